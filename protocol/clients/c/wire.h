/* Messages <-> msgpack: what soloist.c needs of it. */
#ifndef SOLOIST_WIRE_H
#define SOLOIST_WIRE_H

#include "soloist.h"

enum { VERSION = 1 };

/* Begin a map of `count` keys beside `v` and `type`; together fewer than 16. */
void pack_head(msgpack_packer *packer, msgpack_sbuffer *out, const char *type, size_t count);
void pack_text(msgpack_packer *packer, const char *text);
void pack_bytes(msgpack_packer *packer, const void *bytes, size_t size);
void pack_id(msgpack_packer *packer, const char *key, const soloist_id *id);

/* The value of a key, or NULL; or 0, or an empty text, if it is missing or of another type. */
const msgpack_object *get(const msgpack_object *map, const char *key);
uint64_t get_uint(const msgpack_object *map, const char *key);
msgpack_object_str get_text(const msgpack_object *map, const char *key);
/* False, and zeros, if it is none. */
bool get_id(const msgpack_object *map, const char *key, soloist_id *id);
bool is_text(msgpack_object_str text, const char *expected);

/* What a message of `size_bytes` says. */
void fill(soloist_event *event, const msgpack_object *body, size_t size_bytes);

#endif
