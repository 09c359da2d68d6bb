/* watch.h: wakes the master up when one of a set of sockets is readable (a connection waits) or was
 * shut down. With it the master can sleep while nothing happens, and stopped it costs the
 * connections nothing. The descriptors stay the caller's, who keeps them open until dm_watch_stop.
 * They are not touched: uv_poll would make them non-blocking, which a worker that shares one may
 * not want. */
#pragma once

#include "base/poll.h"

#include <stdbool.h>
#include <stddef.h>
#include <uv.h>

struct dm_watch {
    struct dm_poll poll; /* of the epoll descriptor */
    int epoll;
    int *fds;
    size_t count;
    void (*on_ready)(struct dm_watch *watch);
    void *owner; /* not used here */
};

int dm_watch_open(struct dm_watch **watch, uv_loop_t *loop,
                  void (*on_ready)(struct dm_watch *watch));
/* on_ready comes once, stopped by then; soon if one is ready already. Either all are watched or
 * none. Takes the place of an earlier start. Without `connections` only a shutdown is of interest.
 */
int dm_watch_start(struct dm_watch *watch, const int *fds, size_t count, bool connections);
void dm_watch_stop(struct dm_watch *watch);
/* Frees it later; on_ready never comes again. */
void dm_watch_close(struct dm_watch *watch);
