/* stream.h: one connection of a unix stream socket that carries lines, either end of it.
 *
 * What comes in is bounded by the line, what goes out by the queue, and both by a budget for each
 * turn of the loop. No function here calls back; callbacks come from the loop only.
 */
#pragma once

#include "base/lines.h"
#include "base/poll.h"

#include <stdint.h>
#include <sys/socket.h>

struct dm_stream;

struct dm_stream_events {
    /* A line without its newline. May close the stream. */
    void (*on_line)(void *ctx, const char *line, size_t len);
    /* The last event; the stream is gone. reason: NULL if the peer hung up. Never comes after
     * dm_stream_close(). */
    void (*on_close)(void *ctx, const char *reason);
};

struct dm_stream_options {
    size_t line_max;        /* bytes */
    uint64_t first_line_ms; /* time in which the first line must come, 0 for any */
    uint64_t silent_ms;     /* after its last word a peer that waits for nothing is kept so long */
    bool complain;          /* tell the peer why it is dropped, as a line of JSON */
    /* The stream is gone, however that came; for whoever keeps a list. */
    void (*on_gone)(void *owner, struct dm_stream *stream);
    void *owner;
};

struct dm_stream {
    uv_loop_t *loop;
    struct dm_poll poll;
    uv_timer_t timer; /* first line, half-closed peer, or pending failure */
    int open_handles;
    int fd;
    struct ucred peer; /* of the other end */
    bool dead;
    bool half_closed;    /* the peer will say no more, but may listen */
    bool asked;          /* a line has come */
    int held;            /* answers that it waits for, which must not be lost: its owner's */
    const char *failure; /* to be reported from the loop */
    struct dm_lines lines;
    char reason[64];
    uint64_t last_active; /* ms of the loop: when something was received or sent */
    struct dm_outqueue out;
    struct dm_stream_options options;
    struct dm_stream_events events;
    void *ctx;
};

/* Takes over the descriptor, which is O_NONBLOCK, if it succeeds. */
int dm_stream_open(uv_loop_t *loop, int fd, const struct dm_stream_options *options,
                   struct dm_stream **stream);
/* Waits for a server whose backlog is full, patience_ms at most (0: five seconds). */
int dm_stream_connect(uv_loop_t *loop, const char *path, unsigned patience_ms,
                      struct dm_stream **stream);
void dm_stream_listen(struct dm_stream *stream, const struct dm_stream_events *events, void *ctx);

/* Sends, or queues what the peer does not take yet. A peer that does not read is dropped. */
int dm_stream_write(struct dm_stream *stream, const char *data, size_t len);
/* Closes; what is still queued gets one more chance and is then dropped. */
void dm_stream_close(struct dm_stream *stream);
/* Closes and calls on_close, now. Only from the loop, never from a function that Lua called. */
void dm_stream_drop(struct dm_stream *stream, const char *reason);
/* Closes and calls on_close, soon. Nobody is told through on_gone. */
void dm_stream_disown(struct dm_stream *stream, const char *reason);

/* Tells a peer on a bare descriptor why it is dropped. code and message: plain ASCII. */
void dm_stream_complain(int fd, const char *code, const char *message);
/* The address of a path; -ENAMETOOLONG if it does not fit, never a truncated one. */
struct sockaddr_un;
int dm_stream_address(const char *path, struct sockaddr_un *addr);
