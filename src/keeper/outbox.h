/* outbox.h: what a master tells its keeper, a frame at a time and in order. Nothing here waits: a
 * keeper that was stopped must not hold its master up. What such a keeper does not take is sent
 * when there is room again; but a descriptor, which the caller may close by then, is refused. */
#pragma once

#include "base/outqueue.h"
#include "keeper/keeper.h"

struct dm_outbox {
    int socket;
    struct dm_outqueue waiting; /* a size and a frame, one after the other */
};

void dm_outbox_init(struct dm_outbox *box, int socket);
void dm_outbox_clear(struct dm_outbox *box);

/* 0: it is sent, or waits. -EAGAIN: there is no room for one with a descriptor. -ENOBUFS: too much
 * waits. -EMSGSIZE, or what else sendmsg says. */
int dm_outbox_send(struct dm_outbox *box, const struct dm_keeper_frame *frame, const char *text,
                   int fd);
/* Sends what waits. -EAGAIN: some of it still does. */
int dm_outbox_flush(struct dm_outbox *box);

static inline bool dm_outbox_is_empty(const struct dm_outbox *box) {
    return dm_outqueue_size(&box->waiting) == 0;
}
