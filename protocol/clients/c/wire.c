#include "wire.h"

#include <string.h>

void pack_text(msgpack_packer *packer, const char *text) {
    size_t size = strlen(text);
    msgpack_pack_str(packer, size);
    msgpack_pack_str_body(packer, text, size);
}

void pack_bytes(msgpack_packer *packer, const void *bytes, size_t size) {
    msgpack_pack_bin(packer, size);
    msgpack_pack_bin_body(packer, bytes, size);
}

void pack_id(msgpack_packer *packer, const char *key, const soloist_id *id) {
    pack_text(packer, key);
    pack_bytes(packer, id->bytes, sizeof id->bytes);
}

void pack_head(msgpack_packer *packer, msgpack_sbuffer *out, const char *type, size_t count) {
    msgpack_sbuffer_init(out);
    msgpack_packer_init(packer, out, msgpack_sbuffer_write);
    msgpack_pack_map(packer, count + 2);
    pack_text(packer, "v");
    msgpack_pack_int(packer, VERSION);
    pack_text(packer, "type");
    pack_text(packer, type);
}

const msgpack_object *get(const msgpack_object *map, const char *key) {
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        const msgpack_object_kv *pair = &map->via.map.ptr[i];
        if (pair->key.type == MSGPACK_OBJECT_STR && pair->key.via.str.size == strlen(key) &&
            memcmp(pair->key.via.str.ptr, key, strlen(key)) == 0)
            return &pair->val;
    }
    return NULL;
}

uint64_t get_uint(const msgpack_object *map, const char *key) {
    const msgpack_object *value = get(map, key);
    return value && value->type == MSGPACK_OBJECT_POSITIVE_INTEGER ? value->via.u64 : 0;
}

msgpack_object_str get_text(const msgpack_object *map, const char *key) {
    const msgpack_object *value = get(map, key);
    return value && value->type == MSGPACK_OBJECT_STR ? value->via.str : (msgpack_object_str){0, ""};
}

bool get_id(const msgpack_object *map, const char *key, soloist_id *id) {
    const msgpack_object *value = get(map, key);
    memset(id, 0, sizeof *id);
    if (!value || value->type != MSGPACK_OBJECT_BIN || value->via.bin.size != sizeof id->bytes)
        return false;
    memcpy(id->bytes, value->via.bin.ptr, sizeof id->bytes);
    return true;
}

bool is_text(msgpack_object_str text, const char *expected) {
    return text.size == strlen(expected) && memcmp(text.ptr, expected, text.size) == 0;
}

void fill(soloist_event *event, const msgpack_object *body, size_t size_bytes) {
    static const char *const names[] = {"MESSAGE", "RESULT", "ERROR", "OPENED", "DONE", "REPORT",
                                        "ACCEPTED"};
    memset(event, 0, sizeof *event);
    while (event->kind < SOLOIST_OTHER && !is_text(get_text(body, "type"), names[event->kind]))
        event->kind++;
    const msgpack_object *retryable = get(body, "retryable"), *started = get(body, "started");
    event->body = body;
    event->size_bytes = size_bytes;
    event->seq = get_uint(body, "seq");
    event->message = get(body, "message");
    event->text = get_text(body, event->kind == SOLOIST_ERROR ? "message" : "text");
    event->sequence = get_uint(body, "sequence");
    event->num_turns = get_uint(body, "num_turns");
    event->incarnation = get_uint(body, "incarnation");
    event->code = get_text(body, "code");
    event->is_retryable = retryable && retryable->type == MSGPACK_OBJECT_BOOLEAN &&
                          retryable->via.boolean;
    event->has_never_started = started && started->type == MSGPACK_OBJECT_BOOLEAN;
    event->endpoint = get_text(body, "endpoint");
    event->status = get(body, "status");
    get_id(body, "id", &event->id);
    get_id(body, "session", &event->session);
    get_id(body, "ticket", &event->ticket);
}
