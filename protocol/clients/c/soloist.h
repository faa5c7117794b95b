/* A client of a Soloist gateway: chapter 2 of ../../SPEC.md, over one DEALER socket.
 *
 * A client belongs to one thread. Functions that say something return at once; all that is heard
 * comes out of soloist_next(), one event after another. It also does what time demands, heartbeats
 * included, so call it often; a client that is left alone for longer counts as gone, and begins
 * again by itself at the next call. What has no outcome is then sent again, and runs once. */
#ifndef SOLOIST_H
#define SOLOIST_H

#include <msgpack.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct soloist soloist;
typedef struct { uint8_t bytes[16]; } soloist_id;

typedef struct {
    const char *server_key, *public_key, *secret_key; /* Z85; server_key NULL: no CURVE */
    int patience_ms; /* after so long without a word: SOLOIST_LOST; 0: 30,000 */
} soloist_options;

typedef struct {
    const char *text;              /* UTF-8; or, if it is NULL: */
    const msgpack_sbuffer *blocks; /* an encoded array of content blocks */
    const soloist_id *session;     /* NULL: a worker of the pool */
    const char *client;            /* NULL: the default */
    const char *on_disconnect;     /* NULL: "cancel" */
    uint64_t timeout_ms;           /* 0: none */
    bool is_streamed;
} soloist_prompt;

typedef enum {
    SOLOIST_MESSAGE, SOLOIST_RESULT, SOLOIST_ERROR, SOLOIST_OPENED, SOLOIST_DONE, SOLOIST_REPORT,
    SOLOIST_ACCEPTED, SOLOIST_OTHER
} soloist_kind;

/* What was heard. Pointers are good until the next call of soloist_next(). */
typedef struct {
    soloist_kind kind;
    soloist_id id;
    bool is_unasked;                /* no request of this id is without an outcome */
    const msgpack_object *body;     /* the whole message, a map */
    uint64_t seq, size_bytes;       /* MESSAGE: its number, its cost in credit */
    const msgpack_object *message;  /* MESSAGE: the conversation's, a map */
    msgpack_object_str text;        /* RESULT: the answer; ERROR: for people */
    uint64_t sequence, num_turns;   /* RESULT */
    uint64_t incarnation;           /* RESULT, OPENED */
    msgpack_object_str code;        /* ERROR */
    bool is_retryable;              /* ERROR */
    bool has_never_started;         /* ERROR: false: it may have run */
    soloist_id session, ticket;     /* OPENED */
    msgpack_object_str endpoint;    /* OPENED */
    const msgpack_object *status;   /* REPORT: a map */
} soloist_event;

typedef enum {
    SOLOIST_LOST = -1, /* nothing more will come, and nothing is known of what had no outcome */
    SOLOIST_TIME_UP = 0,
    SOLOIST_EVENT = 1
} soloist_next_result;

/* Begin to connect. NULL, with errno, if the endpoint or a key is none. */
soloist *soloist_connect(const char *endpoint, const soloist_options *options);
void soloist_disconnect(soloist *client);

/* Wait for an event, at most timeout_ms; -1: without limit. */
soloist_next_result soloist_next(soloist *client, int timeout_ms, soloist_event *event);

/* Each of these has one outcome, under the id that it writes. False: there is no memory. */
bool soloist_ask(soloist *client, const soloist_prompt *prompt, soloist_id *id);
bool soloist_status(soloist *client, const soloist_id *session, soloist_id *id);
bool soloist_close(soloist *client, const soloist_id *session, bool is_drained, soloist_id *id);
/* By name, or by ticket; with neither, a conversation of one's own. Those not used are NULL. */
bool soloist_open(soloist *client, const char *name, const soloist_id *ticket, const char *agent,
                  soloist_id *id);

/* These have none. Of a request that is over they do nothing. */
void soloist_cancel(soloist *client, const soloist_id *id);
void soloist_credit(soloist *client, const soloist_event *message); /* it was worked through */
void soloist_resend(soloist *client, const soloist_id *id); /* under its id: it runs once */

#endif
