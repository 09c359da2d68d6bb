/* core.h: what the mechanism keeps for one loop: children, timers and signals. main.c owns the one
 * struct, bindings borrow it. The loop runs until dm_core_stop(). */
#pragma once

#include <stdbool.h>
#include <uv.h>

struct dm_core {
    uv_loop_t *loop;
    int exit_code;
    bool stopped;
};

int dm_core_init(struct dm_core *core, uv_loop_t *loop);
void dm_core_stop(struct dm_core *core, int exit_code);
void dm_core_deinit(struct dm_core *core);

/* Lets close callbacks run and closes the loop; whoever left a handle open is named on stderr. */
void dm_core_close_loop(uv_loop_t *loop);
