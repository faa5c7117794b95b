#include "json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static bool read_value(const char **at, msgpack_sbuffer *out);

static char next_char(const char **at) {
    while (**at && strchr(" \t\r\n", **at)) ++*at;
    return **at;
}

static bool skip(const char **at, char expected) {
    bool is_there = next_char(at) == expected;
    if (is_there) ++*at;
    return is_there;
}

static unsigned long read_unit(const char **at) {
    char digits[5] = {0};
    strncpy(digits, *at, 4);
    *at += strlen(digits);
    return strtoul(digits, NULL, 16);
}

static void write_utf8(msgpack_sbuffer *out, unsigned long c) {
    static const unsigned char heads[] = {0, 0, 0xc0, 0xe0, 0xf0};
    int size = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    char bytes[4];
    for (int i = size - 1; i > 0; i--, c >>= 6) bytes[i] = (char)(0x80 | (c & 0x3f));
    bytes[0] = (char)(heads[size] | c);
    msgpack_sbuffer_write(out, bytes, (size_t)size);
}

static void read_escape(const char **at, msgpack_sbuffer *text) {
    static const char names[] = "bfnrt", meanings[] = "\b\f\n\r\t";
    char name = *(*at)++;
    const char *found = strchr(names, name);
    if (name != 'u') {
        msgpack_sbuffer_write(text, found ? &meanings[found - names] : &name, 1);
        return;
    }
    unsigned long c = read_unit(at);
    if (c >= 0xd800 && c < 0xdc00 && (*at)[0] == '\\' && (*at)[1] == 'u') {
        *at += 2;
        c = 0x10000 + ((c - 0xd800) << 10) + (read_unit(at) - 0xdc00);
    }
    write_utf8(text, c);
}

static bool read_text(const char **at, msgpack_sbuffer *out) {
    msgpack_sbuffer text;
    msgpack_sbuffer_init(&text);
    while (**at && **at != '"') {
        size_t plain = strcspn(*at, "\"\\");
        msgpack_sbuffer_write(&text, *at, plain);
        *at += plain;
        if (**at == '\\' && *++*at) read_escape(at, &text);
    }
    msgpack_packer packer;
    msgpack_packer_init(&packer, out, msgpack_sbuffer_write);
    msgpack_pack_str(&packer, text.size);
    msgpack_pack_str_body(&packer, text.data, text.size);
    msgpack_sbuffer_destroy(&text);
    return *(*at)++ == '"';
}

/* The rest of an array or, if it ends with a brace, of an object. */
static bool read_items(const char **at, char end, msgpack_sbuffer *out) {
    msgpack_sbuffer items;
    msgpack_sbuffer_init(&items);
    size_t count = 0;
    bool is_good = true, is_map = end == '}';
    while (is_good && next_char(at) != end) {
        is_good = count == 0 || skip(at, ',');
        if (is_good && is_map) is_good = skip(at, '"') && read_text(at, &items) && skip(at, ':');
        is_good = is_good && read_value(at, &items);
        count++;
    }
    msgpack_packer packer;
    msgpack_packer_init(&packer, out, msgpack_sbuffer_write);
    (is_map ? msgpack_pack_map : msgpack_pack_array)(&packer, count);
    msgpack_sbuffer_write(out, items.data, items.size);
    msgpack_sbuffer_destroy(&items);
    return is_good && skip(at, end);
}

static bool read_word(const char **at, msgpack_sbuffer *out) {
    static const struct { const char *word; char code; } words[] = {
        {"null", '\xc0'}, {"false", '\xc2'}, {"true", '\xc3'}};
    for (size_t i = 0; i < 3; i++) {
        size_t size = strlen(words[i].word);
        if (strncmp(*at, words[i].word, size) != 0) continue;
        *at += size;
        return msgpack_sbuffer_write(out, &words[i].code, 1) == 0;
    }
    char *end;
    uint64_t number = strtoull(*at, &end, 10);
    if (end == *at || **at == '-') return false;
    *at = end;
    msgpack_packer packer;
    msgpack_packer_init(&packer, out, msgpack_sbuffer_write);
    return msgpack_pack_uint64(&packer, number) == 0;
}

static bool read_value(const char **at, msgpack_sbuffer *out) {
    if (skip(at, '"')) return read_text(at, out);
    if (skip(at, '[')) return read_items(at, ']', out);
    if (skip(at, '{')) return read_items(at, '}', out);
    return read_word(at, out);
}

bool json_read(const char *text, msgpack_sbuffer *out) {
    return read_value(&text, out) && next_char(&text) == '\0';
}

void json_write_text(FILE *file, msgpack_object_str text) {
    putc('"', file);
    for (uint32_t i = 0; i < text.size; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        if (c == '"' || c == '\\') fprintf(file, "\\%c", c);
        else if (c < 0x20) fprintf(file, "\\u%04x", c);
        else putc(c, file);
    }
    putc('"', file);
}

static void write_hex(FILE *file, msgpack_object_bin bytes) {
    putc('"', file);
    for (uint32_t i = 0; i < bytes.size; i++) fprintf(file, "%02x", (unsigned char)bytes.ptr[i]);
    putc('"', file);
}

void json_write(FILE *file, const msgpack_object *value) {
    const msgpack_object_map *map = &value->via.map;
    const msgpack_object_array *array = &value->via.array;
    switch (value->type) {
    case MSGPACK_OBJECT_BOOLEAN: fputs(value->via.boolean ? "true" : "false", file); break;
    case MSGPACK_OBJECT_POSITIVE_INTEGER: fprintf(file, "%" PRIu64, value->via.u64); break;
    case MSGPACK_OBJECT_NEGATIVE_INTEGER: fprintf(file, "%" PRId64, value->via.i64); break;
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64: fprintf(file, "%.17g", value->via.f64); break;
    case MSGPACK_OBJECT_STR: json_write_text(file, value->via.str); break;
    case MSGPACK_OBJECT_BIN: write_hex(file, value->via.bin); break;
    case MSGPACK_OBJECT_ARRAY:
        putc('[', file);
        for (uint32_t i = 0; i < array->size; i++) {
            if (i) putc(',', file);
            json_write(file, &array->ptr[i]);
        }
        putc(']', file);
        break;
    case MSGPACK_OBJECT_MAP:
        putc('{', file);
        for (uint32_t i = 0; i < map->size; i++) {
            if (i) putc(',', file);
            json_write(file, &map->ptr[i].key);
            putc(':', file);
            json_write(file, &map->ptr[i].val);
        }
        putc('}', file);
        break;
    default: fputs("null", file);
    }
}
