#include "soloist.h"
#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum {
    GREETING_MS = 3000, /* for a WELCOME, before the next socket */
    PATIENCE_MS = 30000,
    MISSED_HEARTBEATS = 3,
    SECRET_BYTES = 32
};
#define NEVER INT64_MAX

/* What was asked and has no outcome yet. */
typedef struct pending {
    struct pending *next;
    soloist_id id;
    soloist_id epoch;     /* of the gateway when it was sent first */
    msgpack_sbuffer said; /* its message */
    uint64_t heard;       /* MESSAGEs so far */
    bool is_query, is_streamed, is_sent, is_marked, is_cancelled;
} pending;

struct soloist {
    char *endpoint;
    soloist_options options;
    void *context, *socket;
    uint8_t secret[SECRET_BYTES];
    soloist_id epoch;
    bool is_greeting, is_lost;
    int64_t heartbeat_ms, sent_at, heard_at, pinged_at, unanswered_since, wake_at;
    pending *first, **last;
    zmq_msg_t frame; /* what the event points to */
    msgpack_unpacked unpacked;
    pending *replayed; /* its RESULT came with messages that were not heard before */
};

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* -- the socket -------------------------------------------------------------------------------- */

/* What does not fit, because nobody reads at the other end, is sent again after a new HELLO. */
static void send_buffer(soloist *client, const msgpack_sbuffer *said) {
    zmq_send(client->socket, said->data, said->size, ZMQ_DONTWAIT);
    client->sent_at = now_ms();
}

/* Say what the gateway answers at once, if it hears. */
static void send_question(soloist *client, msgpack_sbuffer *said) {
    send_buffer(client, said);
    msgpack_sbuffer_destroy(said);
    if (client->unanswered_since == NEVER) client->unanswered_since = client->sent_at;
}

static void say_hello(soloist *client) {
    msgpack_sbuffer said;
    msgpack_packer packer;
    pack_head(&packer, &said, "HELLO", 2);
    pack_text(&packer, "versions");
    msgpack_pack_array(&packer, 1);
    msgpack_pack_int(&packer, VERSION);
    pack_text(&packer, "secret");
    pack_bytes(&packer, client->secret, sizeof client->secret);
    send_question(client, &said);
    client->is_greeting = true;
    client->wake_at = client->sent_at + GREETING_MS;
}

static bool set_key(soloist *client, int option, const char *key) {
    return zmq_setsockopt(client->socket, option, key, strlen(key)) == 0;
}

static bool connect_socket(soloist *client) {
    const soloist_options *keys = &client->options;
    int linger = 0;
    client->socket = zmq_socket(client->context, ZMQ_DEALER);
    if (!client->socket) return false;
    zmq_setsockopt(client->socket, ZMQ_LINGER, &linger, sizeof linger);
    if (keys->server_key && !(set_key(client, ZMQ_CURVE_SERVERKEY, keys->server_key) &&
                              set_key(client, ZMQ_CURVE_PUBLICKEY, keys->public_key) &&
                              set_key(client, ZMQ_CURVE_SECRETKEY, keys->secret_key)))
        return false;
    if (zmq_connect(client->socket, client->endpoint) != 0) return false;
    say_hello(client);
    return true;
}

static void reconnect(soloist *client) {
    zmq_close(client->socket);
    client->is_lost = !connect_socket(client);
}

soloist *soloist_connect(const char *endpoint, const soloist_options *options) {
    soloist *client = calloc(1, sizeof *client);
    if (!client) return NULL;
    if (options) client->options = *options;
    if (client->options.patience_ms == 0) client->options.patience_ms = PATIENCE_MS;
    client->last = &client->first;
    client->heard_at = now_ms();
    client->unanswered_since = NEVER;
    zmq_msg_init(&client->frame);
    msgpack_unpacked_init(&client->unpacked);
    client->endpoint = strdup(endpoint);
    client->context = zmq_ctx_new();
    if (client->endpoint && client->context &&
        getentropy(client->secret, sizeof client->secret) == 0 && connect_socket(client))
        return client;
    int error = errno;
    soloist_disconnect(client);
    errno = error;
    return NULL;
}

static void forget(pending *request) {
    if (!request) return;
    msgpack_sbuffer_destroy(&request->said);
    free(request);
}

void soloist_disconnect(soloist *client) {
    for (pending *next; client->first; client->first = next) {
        next = client->first->next;
        forget(client->first);
    }
    forget(client->replayed);
    zmq_msg_close(&client->frame);
    msgpack_unpacked_destroy(&client->unpacked);
    if (client->socket) zmq_close(client->socket);
    if (client->context) zmq_ctx_term(client->context);
    free(client->endpoint);
    free(client);
}

/* -- asking ------------------------------------------------------------------------------------ */

static pending **find(soloist *client, const soloist_id *id) {
    pending **at = &client->first;
    while (*at && memcmp((*at)->id.bytes, id->bytes, sizeof id->bytes) != 0) at = &(*at)->next;
    return at;
}

static pending *take_out(soloist *client, pending **at) {
    pending *request = *at;
    *at = request->next;
    if (client->last == &request->next) client->last = at;
    return request;
}

/* Begin a message with an id of its own; to be ended by `submit`. */
static pending *begin(msgpack_packer *packer, const char *type, size_t count) {
    pending *request = calloc(1, sizeof *request);
    if (!request) return NULL;
    getentropy(request->id.bytes, sizeof request->id.bytes);
    pack_head(packer, &request->said, type, count + 1);
    pack_id(packer, "id", &request->id);
    return request;
}

/* Send it for the first time, or again: a QUERY then says in which epoch the first time was. */
static void transmit(soloist *client, pending *request) {
    if (!request->is_sent) {
        request->epoch = client->epoch;
        request->is_sent = true;
    } else if (request->is_query && !request->is_marked) {
        msgpack_packer packer;
        msgpack_packer_init(&packer, &request->said, msgpack_sbuffer_write);
        request->said.data[0]++; /* the count of a map of fewer than 16 keys */
        pack_id(&packer, "resent", &request->epoch);
        request->is_marked = true;
    }
    send_buffer(client, &request->said);
}

static bool submit(soloist *client, pending *request, soloist_id *id) {
    *id = request->id;
    *client->last = request;
    client->last = &request->next;
    if (!client->is_greeting) transmit(client, request);
    return true;
}

static void pack_optional(msgpack_packer *packer, const char *key, const char *text) {
    if (!text) return;
    pack_text(packer, key);
    pack_text(packer, text);
}

bool soloist_ask(soloist *client, const soloist_prompt *prompt, soloist_id *id) {
    size_t optional = !!prompt->session + !!prompt->client + !!prompt->on_disconnect;
    msgpack_packer packer;
    pending *request = begin(&packer, "QUERY", 2 + optional + !!prompt->timeout_ms);
    if (!request) return false;
    request->is_query = true;
    request->is_streamed = prompt->is_streamed;
    pack_text(&packer, "prompt");
    if (prompt->text) pack_text(&packer, prompt->text);
    else msgpack_sbuffer_write(&request->said, prompt->blocks->data, prompt->blocks->size);
    pack_text(&packer, "stream");
    (prompt->is_streamed ? msgpack_pack_true : msgpack_pack_false)(&packer);
    if (prompt->session) pack_id(&packer, "session", prompt->session);
    pack_optional(&packer, "client", prompt->client);
    pack_optional(&packer, "on_disconnect", prompt->on_disconnect);
    if (prompt->timeout_ms) {
        pack_text(&packer, "timeout_ms");
        msgpack_pack_uint64(&packer, prompt->timeout_ms);
    }
    return submit(client, request, id);
}

bool soloist_open(soloist *client, const char *name, const soloist_id *ticket, const char *agent,
                  soloist_id *id) {
    msgpack_packer packer;
    pending *request = begin(&packer, "OPEN", !!name + !!ticket + !!agent);
    if (!request) return false;
    pack_optional(&packer, "name", name);
    pack_optional(&packer, "client", agent);
    if (ticket) pack_id(&packer, "ticket", ticket);
    return submit(client, request, id);
}

bool soloist_close(soloist *client, const soloist_id *session, bool is_drained, soloist_id *id) {
    msgpack_packer packer;
    pending *request = begin(&packer, "CLOSE", 2);
    if (!request) return false;
    pack_id(&packer, "session", session);
    pack_text(&packer, "drain");
    (is_drained ? msgpack_pack_true : msgpack_pack_false)(&packer);
    return submit(client, request, id);
}

bool soloist_status(soloist *client, const soloist_id *session, soloist_id *id) {
    msgpack_packer packer;
    pending *request = begin(&packer, "STATUS", !!session);
    if (!request) return false;
    if (session) pack_id(&packer, "session", session);
    return submit(client, request, id);
}

static void send_cancel(soloist *client, const pending *request) {
    msgpack_sbuffer said;
    msgpack_packer packer;
    pack_head(&packer, &said, "CANCEL", 1);
    pack_id(&packer, "id", &request->id);
    send_buffer(client, &said);
    msgpack_sbuffer_destroy(&said);
}

void soloist_cancel(soloist *client, const soloist_id *id) {
    pending *request = *find(client, id);
    if (!request) return;
    request->is_cancelled = true;
    if (!client->is_greeting) send_cancel(client, request);
}

void soloist_credit(soloist *client, const soloist_event *message) {
    if (client->is_greeting || message->size_bytes == 0 || !*find(client, &message->id)) return;
    msgpack_sbuffer said;
    msgpack_packer packer;
    pack_head(&packer, &said, "CREDIT", 2);
    pack_id(&packer, "id", &message->id);
    pack_text(&packer, "bytes");
    msgpack_pack_uint64(&packer, message->size_bytes);
    send_buffer(client, &said);
    msgpack_sbuffer_destroy(&said);
}

void soloist_resend(soloist *client, const soloist_id *id) {
    pending *request = *find(client, id);
    if (request && !client->is_greeting) transmit(client, request);
}

/* -- what the gateway says --------------------------------------------------------------------- */

static void welcomed(soloist *client, const msgpack_object *body) {
    get_id(body, "epoch", &client->epoch);
    client->heartbeat_ms = (int64_t)get_uint(body, "heartbeat_ms");
    client->is_greeting = false;
    for (pending *request = client->first; request; request = request->next) {
        transmit(client, request);
        if (request->is_cancelled) send_cancel(client, request);
    }
}

/* The next message that a RESULT brought along because its request was sent again, then itself. */
static bool replay(soloist *client, soloist_event *event) {
    pending *request = client->replayed;
    const msgpack_object *body = &client->unpacked.data, *messages = get(body, "messages");
    fill(event, body, 0);
    if (messages && messages->type == MSGPACK_OBJECT_ARRAY &&
        request->heard < messages->via.array.size) {
        event->kind = SOLOIST_MESSAGE;
        event->message = &messages->via.array.ptr[request->heard++];
        event->seq = request->heard;
    } else {
        client->replayed = NULL;
        forget(request);
    }
    return true;
}

/* Settle what it is about. False if it is nothing for the caller. */
static bool hand_over(soloist *client, soloist_event *event) {
    pending **at = find(client, &event->id);
    event->is_unasked = !*at;
    if (!*at || event->kind >= SOLOIST_ACCEPTED) return event->kind != SOLOIST_OTHER;
    if (event->kind == SOLOIST_MESSAGE && event->seq != (*at)->heard + 1) return false;
    if (event->kind == SOLOIST_MESSAGE) return ++(*at)->heard;
    pending *request = take_out(client, at);
    if (event->kind != SOLOIST_RESULT || !request->is_streamed) {
        forget(request);
        return true;
    }
    client->replayed = request;
    return replay(client, event);
}

/* Hear one message, if there is one; -1: none is there. */
static int hear(soloist *client, soloist_event *event) {
    zmq_msg_close(&client->frame);
    zmq_msg_init(&client->frame);
    if (zmq_msg_recv(&client->frame, client->socket, ZMQ_DONTWAIT) < 0) return -1;
    client->heard_at = now_ms();
    client->unanswered_since = NEVER;
    const msgpack_object *body = &client->unpacked.data;
    size_t size = zmq_msg_size(&client->frame), end = 0;
    if (msgpack_unpack_next(&client->unpacked, zmq_msg_data(&client->frame), size, &end) !=
            MSGPACK_UNPACK_SUCCESS || body->type != MSGPACK_OBJECT_MAP) {
        client->is_lost = true; /* whose outcome it was cannot be told */
        return 0;
    }
    if (is_text(get_text(body, "type"), "WELCOME")) {
        welcomed(client, body);
        return 0;
    }
    fill(event, body, size);
    if (event->kind != SOLOIST_ERROR) return hand_over(client, event);
    if (is_text(event->code, "hello_required")) {
        if (!client->is_greeting) say_hello(client); /* one is enough, however much was refused */
        return 0;
    }
    /* A HELLO that is refused is told, and is the last that is. */
    if (client->is_greeting && get(body, "id")->type == MSGPACK_OBJECT_NIL) client->is_lost = true;
    return hand_over(client, event);
}

/* -- time -------------------------------------------------------------------------------------- */

static int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

/* PING if for a heartbeat nothing was said, or nothing heard. */
static void ping_if_quiet(soloist *client, int64_t now) {
    int64_t quiet_since = greater(lesser(client->sent_at, client->heard_at), client->pinged_at);
    client->wake_at = quiet_since + client->heartbeat_ms;
    if (now < client->wake_at) return;
    msgpack_sbuffer said;
    msgpack_packer packer;
    pack_head(&packer, &said, "PING", 0);
    send_question(client, &said);
    client->pinged_at = now;
    client->wake_at = now + client->heartbeat_ms;
}

static void tick(soloist *client) {
    int64_t now = now_ms();
    int64_t silent_ms = client->unanswered_since == NEVER ? 0 : now - client->unanswered_since;
    if (silent_ms >= client->options.patience_ms) {
        client->is_lost = true;
    } else if (client->is_greeting) {
        if (now >= client->wake_at) reconnect(client);
    } else if (silent_ms >= (MISSED_HEARTBEATS - 1) * client->heartbeat_ms) {
        reconnect(client); /* the PING itself came after a heartbeat of silence */
    } else {
        ping_if_quiet(client, now);
    }
}

soloist_next_result soloist_next(soloist *client, int timeout_ms, soloist_event *event) {
    int64_t deadline = timeout_ms < 0 ? NEVER : now_ms() + timeout_ms;
    while (!client->is_lost) {
        if (client->replayed && replay(client, event)) return SOLOIST_EVENT;
        int heard = hear(client, event);
        if (heard > 0) return SOLOIST_EVENT;
        if (!client->is_lost) tick(client);
        if (heard == 0 || client->is_lost) continue;
        int64_t now = now_ms();
        if (now >= deadline) return SOLOIST_TIME_UP;
        zmq_pollitem_t item = {.socket = client->socket, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, (long)greater(lesser(client->wake_at, deadline) - now, 0));
    }
    return SOLOIST_LOST;
}
