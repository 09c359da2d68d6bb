/* dial.h: one TCP connection that the master makes, to an address of its own machine. It leaves
 * from the very address it goes to, and from a port that is known before it is made: by these the
 * steering knows it. What it says is sent once connected, what is answered is handed on as it
 * comes. No time limits here, and no function here calls back: callbacks come from the loop only.
 */
#pragma once

#include "base/poll.h"
#include "net/address.h"
#include "net/diag.h"

struct dm_dial_events {
    /* May close the connection. */
    void (*on_data)(void *ctx, const char *data, size_t size);
    /* The last event, but the connection is still to be closed. error: 0 if the other end closed
     * it. */
    void (*on_end)(void *ctx, int error);
};

struct dm_dial {
    struct dm_poll poll;
    int fd;
    int port; /* from which it comes */
    struct dm_address to;
    char *text; /* [sent, size) is still to be sent */
    size_t sent, size;
    bool connected, finish;
    struct dm_dial_events events;
    void *ctx;
};

/* A socket that is to be connected to `to`, bound to the same host, and its port; or a negative
 * errno. */
int dm_dial_socket(const struct dm_address *to, int *port);
/* Binds. */
int dm_dial_open(uv_loop_t *loop, const struct dm_address *to, const struct dm_dial_events *events,
                 void *ctx, struct dm_dial **dial);
/* Connects and says `text`; once. If it fails at once, there are no events. With `finish` it says
 * that nothing more will come: whoever accepts it finds its end and closes, and a listener that
 * waits for data (TCP_DEFER_ACCEPT) lets it in. */
int dm_dial_start(struct dm_dial *dial, const char *text, size_t size, bool finish);
/* Whether a process of the other side has it by now. */
enum dm_accepted dm_dial_accepted(const struct dm_dial *dial);
void dm_dial_close(struct dm_dial *dial);
