/* core.h: what the mechanism keeps for one loop: children, timers and signals. main.c owns the one
 * struct, bindings borrow it. The loop runs until dm_core_stop(). */
#pragma once

#include "base/signals.h"
#include "base/timer.h"
#include "keeper/kept.h"
#include "process/deathwatch.h"
#include "process/helper.h"
#include "process/reaper.h"

#include <stdbool.h>
#include <uv.h>

struct dm_core {
    uv_loop_t *loop;
    struct dm_reaper reaper;
    struct dm_deathwatch deathwatch;
    struct dm_timers timers;
    struct dm_helpers helpers;
    struct dm_kept kept;
    struct dm_signals signals; /* those that policy listens to; its owner sets the callback */
    int exit_code;
    bool stopped;
    /* "write": a snapshot is wanted; "lost", "alone": see kept.h. Its owner sets it, or NULL. */
    void (*on_keeper)(struct dm_core *core, const char *event, int error);
    void *kept_data;
    bool silent; /* no callback any more: whoever would hear it is gone */
};

int dm_core_init(struct dm_core *core, uv_loop_t *loop, const struct dm_keeper_link *link);
void dm_core_stop(struct dm_core *core, int exit_code);

/* The last resort, when policy is gone or has left somebody behind: SIGTERM, 5 s, SIGKILL, reaped,
 * without a callback then or later. */
void dm_children_stop_all(struct dm_core *core);

void dm_core_deinit(struct dm_core *core);

/* Lets close callbacks run and closes the loop; whoever left a handle open is named on stderr. */
void dm_core_close_loop(uv_loop_t *loop);
