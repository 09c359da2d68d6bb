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
    struct dm_listener *listener; /* whose it is; not used here */
    bool tcp, shared;             /* as the listener is */
    bool shut_out;
    int fd;
    size_t place; /* in listener->lanes */
    size_t index; /* with SO_REUSEPORT, in the kernel's group: the same, but where strangers are */
    uint32_t limit;      /* of the accept queue, as the kernel made it from the backlog */
    unsigned long inode; /* as /proc names it */
    void *handle;        /* whatever stands for this lane outside; not used here */
};

int dm_lane_listens(const struct dm_lane *lane);
/* Connections that wait, and how many may. -ENOTSUP for what is not TCP. */
int dm_lane_queue(const struct dm_lane *lane, uint32_t *depth, uint32_t *limit);
/* Whether accept has nothing to tell. */
bool dm_lane_is_empty(const struct dm_lane *lane);
/* A connection that waited (O_NONBLOCK, CLOEXEC), or -EAGAIN. */
int dm_lane_accept(const struct dm_lane *lane);

/* How a worker gets the descriptor; its copies share the flag. */
enum dm_hand_out {
    DM_NONBLOCKING, /* whatever the last one made of it */
    DM_BLOCKING,    /* as service managers pass sockets */
    DM_AS_IT_IS     /* others use it now, as they need it */
};
int dm_lane_hand_out(const struct dm_lane *lane, enum dm_hand_out how);
/* A client that has sent nothing yet is let in after so many seconds (TCP_DEFER_ACCEPT, tcp(7): the
 * kernel's unit are its tries, 1 is exact), 0: at once, -1: as before. What was in force until now,
 * or a negative errno. */
int dm_lane_defer(const struct dm_lane *lane, int seconds);
/* From now on the kernel drops who begins to connect; who has begun, or waits, still comes in. */
int dm_lane_shut_out(struct dm_lane *lane);
