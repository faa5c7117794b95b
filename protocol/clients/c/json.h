/* Just enough JSON for the scenarios: read into msgpack, written from it. */
#ifndef JSON_H
#define JSON_H

#include <msgpack.h>
#include <stdbool.h>
#include <stdio.h>

/* Append the value that `text` consists of; false if it is not JSON with whole numbers from 0. */
bool json_read(const char *text, msgpack_sbuffer *out);
/* Bytes become hex. */
void json_write(FILE *file, const msgpack_object *value);
void json_write_text(FILE *file, msgpack_object_str text);

#endif
