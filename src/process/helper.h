/* helper.h: what rights.h does, without waiting: the answer comes on the loop. A process of ours
 * that is asked one thing, with another user's rights, and has DM_RIGHTS_MS for it; one that only
 * waits for a processor, DM_RIGHTS_BUSY_MS. Then it gets SIGKILL; the reaper waits for it however
 * long it takes to die, in a file system that hangs. */
#pragma once

#include "base/rights.h"
#include "base/timer.h"
#include "process/reaper.h"

/* Of one user at a time: whoever lets them hang gets no more of them, and others do. */
enum { DM_HELPERS_MAX = 8 };

/* Owned by the core: what a helper needs, and those that are not reaped. */
struct dm_helpers {
    struct dm_reaper *reaper;
    struct dm_timers *timers;
    struct dm_link alive;
};

struct dm_helper;

struct dm_helper_work {
    int (*work)(void *ctx, int fds[DM_RIGHTS_FDS]); /* runs there, as for dm_rights_run */
    const void *ctx;                                /* of `size` bytes; copied */
    size_t size;
    int keep; /* a descriptor that the work uses, or -1: all others are closed there */
    /* Here, once, from the loop; NULL: nobody wants to know. The descriptors are the callee's. ctx
     * as the work left it. */
    void (*done)(void *data, int result, void *ctx, int fds[DM_RIGHTS_FDS]);
    void *data;
};

void dm_helpers_init(struct dm_helpers *helpers, struct dm_reaper *reaper,
                     struct dm_timers *timers);

/* For the end: whoever waits gets -ECANCELED now. What nobody waits for goes on. */
void dm_helpers_cancel(struct dm_helpers *helpers);

/* 0; -EAGAIN: that user has too many at work; or what failed: then `done` is not called. `helper`:
 * NULL if it is never forgotten. */
int dm_helper_start(struct dm_helpers *helpers, const struct dm_rights *rights,
                    const struct dm_helper_work *work, struct dm_helper **helper);

/* Before `done`: nobody wants to know any more. What the work makes is closed again. */
void dm_helper_forget(struct dm_helper *helper);
