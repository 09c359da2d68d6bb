/* poll.h: uv_poll that survives a full kernel table. libuv adds a descriptor to epoll at its next
 * turn, and abort()s if it cannot: ENOSPC (fs.epoll.max_user_watches), ENOMEM. Here it is added
 * before, where that can be handled: a descriptor for which there is no room is parked, asked by
 * poll(2) DM_POLL_PARKED_MS apart, and added as soon as there is some. All that watches descriptors
 * in the master goes this way.
 *
 * Use as uv_poll_t: callbacks get &poll->uv, whose data is the owner's. */
#pragma once

#include "base/list.h"
#include "base/timer.h"

#include <uv.h>

enum { DM_POLL_PARKED_MS = 20 };

struct dm_poll {
    uv_poll_t uv; /* first: what callbacks get is this */
    struct dm_link parked;
    int fd, events;
    uv_poll_cb on_poll;
};

/* Once for the process's loop; before, nothing is parked. An error: there is no room even for
 * libuv's own descriptor. */
int dm_polls_init(struct dm_timers *timers);
void dm_polls_deinit(void);

int dm_poll_init(uv_loop_t *loop, struct dm_poll *poll, int fd);
/* 0, also where there is no room: then it is parked. */
int dm_poll_start(struct dm_poll *poll, int events, uv_poll_cb on_poll);
/* From a callback that can do nothing about what it is told: it is told again after
 * DM_POLL_PARKED_MS, not at once. */
void dm_poll_rest(struct dm_poll *poll);
void dm_poll_stop(struct dm_poll *poll);
/* on_closed gets the handle, `poll` itself; NULL: nobody wants to know. */
void dm_poll_close(struct dm_poll *poll, uv_close_cb on_closed);
