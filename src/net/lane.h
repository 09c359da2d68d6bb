/* lane.h: one listening socket of a listener. The listener owns its lanes and their order, which is
 * the kernel's: listener.h. The descriptor never leaves the master's hands by itself; copies of it
 * that workers hold share its state, which is why it is looked after here.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct dm_listener;

struct dm_lane {
    struct dm_listener *listener;
    int fd;
    size_t index;   /* in listener->lanes and, with SO_REUSEPORT, in the kernel's group */
    uint32_t limit; /* of the accept queue, as the kernel made it from the backlog */
    void *handle;   /* whatever stands for this lane outside; not used here */
};

/* What a worker had done to a lane. */
enum {
    DM_LANE_REVIVED = 1,    /* shutdown() */
    DM_LANE_BACKLOG = 2,    /* listen() with another backlog */
    DM_LANE_NONBLOCK = 4,   /* O_NONBLOCK cleared */
    DM_LANE_PATH = 8,       /* the socket's path removed or taken */
    DM_LANE_PATH_LOST = 16, /* and it could not be put back */
    DM_LANE_REUSEPORT = 32  /* SO_REUSEPORT cleared: its group would not be asked any more */
};

int dm_lane_listens(const struct dm_lane *lane);
/* Connections that wait, and how many may. -ENOTSUP for what is not TCP. */
int dm_lane_queue(const struct dm_lane *lane, uint32_t *depth, uint32_t *limit);
/* A connection that waited (O_NONBLOCK, CLOEXEC), or -EAGAIN. */
int dm_lane_accept(const struct dm_lane *lane);
/* The descriptor as it is handed to a worker: non-blocking, whatever the last one made of it; but a
 * shared socket of workers that may block stays as they have it, for they use it now. */
int dm_lane_hand_out(const struct dm_lane *lane, bool may_block);

/* What was repaired, as DM_LANE_ bits, or a negative error if the lane stays broken. With may_block
 * a worker may have cleared O_NONBLOCK, also of a socket that others share. */
int dm_lane_repair(struct dm_lane *lane, bool may_block);
