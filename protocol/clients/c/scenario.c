/* Plays the scenarios of chapter 3 of ../../SPEC.md: `scenario ENDPOINT`. */
#include "json.h"
#include "soloist.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LISTEN_MS = 1000 };

static soloist *gateway;
static const msgpack_object *parameters; /* a map */

static void fail(const char *why) {
    fprintf(stderr, "scenario: %s\n", why);
    exit(1);
}

static const msgpack_object *parameter(const char *name) {
    const msgpack_object_map *map = &parameters->via.map;
    for (uint32_t i = 0; i < map->size; i++) {
        msgpack_object_str key = map->ptr[i].key.via.str;
        if (key.size == strlen(name) && memcmp(key.ptr, name, key.size) == 0)
            return &map->ptr[i].val;
    }
    return NULL;
}

static char *copy_of(const msgpack_object *text) {
    char *copy = text->type == MSGPACK_OBJECT_STR
                     ? strndup(text->via.str.ptr, text->via.str.size) : NULL;
    if (!copy) fail("a parameter is no text");
    return copy;
}

/* NULL if it is not there; never freed, for the program is short. */
static const char *text_of(const char *name) {
    const msgpack_object *value = parameter(name);
    return value ? copy_of(value) : NULL;
}

static uint64_t number_of(const char *name) {
    const msgpack_object *value = parameter(name);
    if (!value || value->type != MSGPACK_OBJECT_POSITIVE_INTEGER) fail("a parameter is no number");
    return value->via.u64;
}

static void next(soloist_event *event) {
    if (soloist_next(gateway, -1, event) != SOLOIST_EVENT) fail("the gateway is lost");
    if (event->kind == SOLOIST_ERROR && event->is_unasked) fail("the gateway refuses us");
}

static bool is_outcome(const soloist_event *event) {
    return event->kind < SOLOIST_ACCEPTED && event->kind != SOLOIST_MESSAGE;
}

/* Wait for the outcome of the one request that there is; its messages are worked through. */
static uint64_t await(soloist_event *event) {
    uint64_t pieces = 0;
    for (next(event); !is_outcome(event); next(event)) {
        if (event->kind != SOLOIST_MESSAGE) continue;
        pieces++;
        soloist_credit(gateway, event);
    }
    return pieces;
}

static void ask(const soloist_id *session, const char *text, bool is_streamed, soloist_id *id) {
    soloist_prompt prompt = {.text = text, .session = session, .is_streamed = is_streamed};
    if (!session) prompt.client = text_of("client");
    if (!soloist_ask(gateway, &prompt, id)) fail("no memory");
}

/* -- lines ------------------------------------------------------------------------------------- */

static void end_line(void) {
    puts("}");
    fflush(stdout);
}

static void write_outcome(const soloist_event *event) {
    if (event->kind != SOLOIST_ERROR) {
        fputs("\"text\":", stdout);
        json_write_text(stdout, event->text);
        return;
    }
    fputs("\"error\":{\"code\":", stdout);
    json_write_text(stdout, event->code);
    printf(",\"retryable\":%s,\"started\":%s}", event->is_retryable ? "true" : "false",
           event->has_never_started ? "false" : "null");
}

static void show_outcome(const soloist_event *event) {
    putchar('{');
    write_outcome(event);
    end_line();
}

static void write_id(const char *key, const soloist_id *id) {
    printf("\"%s\":\"", key);
    for (size_t i = 0; i < sizeof id->bytes; i++) printf("%02x", id->bytes[i]);
    fputs("\",", stdout);
}

/* -- scenarios --------------------------------------------------------------------------------- */

static void play_map(void) {
    const msgpack_object *prompts = parameter("prompts");
    if (!prompts || prompts->type != MSGPACK_OBJECT_ARRAY) fail("no prompts");
    const char *client = text_of("client");
    uint64_t window = number_of("window");
    uint32_t asked = 0, count = prompts->via.array.size;
    soloist_id *ids = calloc(count + 1, sizeof *ids);
    soloist_event event;
    for (uint32_t settled = 0; settled < count; settled++) {
        for (; asked < count && asked - settled < window; asked++) {
            char *text = copy_of(&prompts->via.array.ptr[asked]);
            soloist_prompt prompt = {.text = text, .client = client};
            if (!soloist_ask(gateway, &prompt, &ids[asked])) fail("no memory");
            free(text);
        }
        await(&event);
        uint32_t index = 0;
        while (memcmp(&ids[index], &event.id, sizeof event.id) != 0) index++;
        printf("{\"index\":%" PRIu32 ",", index);
        write_outcome(&event);
        end_line();
    }
    free(ids);
}

/* False if it is the outcome that it could not be opened, which is shown. */
static bool open_conversation(soloist_event *opened) {
    const char *hex = text_of("ticket");
    soloist_id id, ticket;
    for (size_t i = 0; hex && i < sizeof ticket.bytes; i++)
        if (sscanf(hex + 2 * i, "%2hhx", &ticket.bytes[i]) != 1) fail("the ticket is no hex");
    if (!soloist_open(gateway, text_of("name"), hex ? &ticket : NULL, text_of("client"), &id))
        fail("no memory");
    await(opened);
    if (opened->kind != SOLOIST_OPENED) show_outcome(opened);
    return opened->kind == SOLOIST_OPENED;
}

static void play_shared(void) {
    soloist_event opened, event;
    const char *label = text_of("label");
    const msgpack_object *stream = parameter("stream");
    uint64_t count = number_of("count");
    if (!open_conversation(&opened)) return;
    fputs("{\"opened\":{", stdout);
    write_id("session", &opened.session);
    write_id("ticket", &opened.ticket);
    fputs("\"endpoint\":", stdout);
    json_write_text(stdout, opened.endpoint);
    printf(",\"incarnation\":%" PRIu64 "}", opened.incarnation);
    end_line();
    for (uint64_t index = 0; index < count; index++) {
        char text[1024];
        soloist_id id;
        snprintf(text, sizeof text, "%s-%" PRIu64, label, index);
        ask(&opened.session, text, stream && stream->via.boolean, &id);
        uint64_t pieces = await(&event);
        printf("{\"index\":%" PRIu64 ",", index);
        write_outcome(&event);
        if (event.kind == SOLOIST_RESULT)
            printf(",\"sequence\":%" PRIu64 ",\"num_turns\":%" PRIu64 ",\"pieces\":%" PRIu64,
                   event.sequence, event.num_turns, pieces);
        end_line();
    }
}

static void play_cancel(void) {
    soloist_event opened, event;
    soloist_id id;
    if (!open_conversation(&opened)) return;
    ask(&opened.session, text_of("prompt"), true, &id);
    for (next(&event); !is_outcome(&event); next(&event)) {
        if (event.kind == SOLOIST_MESSAGE && event.seq == 1) soloist_cancel(gateway, &id);
        if (event.kind == SOLOIST_MESSAGE) soloist_credit(gateway, &event);
    }
    show_outcome(&event);
    ask(&opened.session, text_of("then"), false, &id);
    await(&event);
    show_outcome(&event);
}

static void show_message(const soloist_event *event) {
    const msgpack_object_map *message = &event->message->via.map;
    printf("{\"seq\":%" PRIu64 ",\"type\":", event->seq);
    for (uint32_t i = 0; i < message->size; i++)
        if (message->ptr[i].key.via.str.size == 4 &&
            memcmp(message->ptr[i].key.via.str.ptr, "type", 4) == 0)
            json_write(stdout, &message->ptr[i].val);
    end_line();
}

static void play_stream(void) {
    soloist_event opened, event;
    soloist_id id;
    bool is_pooled = !parameter("name");
    if (!is_pooled && !open_conversation(&opened)) return;
    ask(is_pooled ? NULL : &opened.session, text_of("prompt"), true, &id);
    for (next(&event); !is_outcome(&event); next(&event)) {
        if (event.kind != SOLOIST_MESSAGE) continue;
        show_message(&event);
        soloist_credit(gateway, &event);
    }
    show_outcome(&event);
}

static void play_slow(void) {
    soloist_event event;
    soloist_id id;
    ask(NULL, text_of("prompt"), true, &id);
    do next(&event); while (!is_outcome(&event)); /* and never any credit */
    show_outcome(&event);
}

static void play_status(void) {
    soloist_event event;
    soloist_id id;
    if (!soloist_status(gateway, NULL, &id)) fail("no memory");
    await(&event);
    if (event.kind != SOLOIST_REPORT) fail("no report");
    fputs("{\"status\":", stdout);
    json_write(stdout, event.status);
    end_line();
}

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void play_resend(void) {
    soloist_event event;
    soloist_id id;
    uint64_t outcomes = 1, copies = number_of("copies");
    ask(NULL, text_of("prompt"), false, &id);
    while (--copies) soloist_resend(gateway, &id);
    await(&event);
    show_outcome(&event);
    int64_t left, deadline = now_ms() + LISTEN_MS;
    while ((left = deadline - now_ms()) > 0 && soloist_next(gateway, (int)left, &event) > 0) {
        if (!is_outcome(&event) || memcmp(&event.id, &id, sizeof id) != 0) continue;
        show_outcome(&event);
        outcomes++;
    }
    printf("{\"outcomes\":%" PRIu64, outcomes);
    end_line();
}

/* -- the program ------------------------------------------------------------------------------- */

static const struct { const char *name; void (*play)(void); } SCENARIOS[] = {
    {"map", play_map}, {"shared", play_shared}, {"cancel", play_cancel}, {"stream", play_stream},
    {"slow", play_slow}, {"status", play_status}, {"resend", play_resend}};

static char *read_all(FILE *file) {
    size_t size = 0, room = 4096;
    char *text = malloc(room + 1);
    while (text && (size += fread(text + size, 1, room - size, file)) == room)
        text = realloc(text, (room *= 2) + 1);
    if (!text) fail("no memory");
    text[size] = '\0';
    return text;
}

int main(int count, char **arguments) {
    msgpack_sbuffer input;
    msgpack_unpacked unpacked;
    msgpack_sbuffer_init(&input);
    msgpack_unpacked_init(&unpacked);
    char *text = read_all(stdin);
    if (count != 2 || !json_read(text, &input) ||
        msgpack_unpack_next(&unpacked, input.data, input.size, NULL) != MSGPACK_UNPACK_SUCCESS ||
        unpacked.data.type != MSGPACK_OBJECT_MAP)
        fail("one endpoint as argument, one JSON object as input");
    free(text);
    parameters = &unpacked.data;
    soloist_options options = {.server_key = getenv("SOLOIST_SERVER_KEY"),
                               .public_key = getenv("SOLOIST_PUBLIC_KEY"),
                               .secret_key = getenv("SOLOIST_SECRET_KEY")};
    gateway = soloist_connect(arguments[1], &options);
    if (!gateway) fail("no such endpoint or key");
    const char *scenario = text_of("scenario");
    for (size_t i = 0; scenario && i < sizeof SCENARIOS / sizeof *SCENARIOS; i++) {
        if (strcmp(scenario, SCENARIOS[i].name) != 0) continue;
        SCENARIOS[i].play();
        soloist_disconnect(gateway);
        msgpack_unpacked_destroy(&unpacked);
        msgpack_sbuffer_destroy(&input);
        return 0;
    }
    fail("no such scenario");
}
