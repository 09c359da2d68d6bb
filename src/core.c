/* core.c: see core.h. */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>

int dm_core_init(struct dm_core *core, uv_loop_t *loop) {
    *core = (struct dm_core){.loop = loop};
    return 0;
}

void dm_core_stop(struct dm_core *core, int exit_code) {
    core->exit_code = exit_code;
    core->stopped = true;
    uv_stop(core->loop);
}

void dm_core_deinit(struct dm_core *core) {
    (void)core;
}

static void close_left_over(uv_handle_t *handle, void *ctx) {
    (void)ctx;
    if (!uv_is_closing(handle)) {
        uv_close(handle, NULL);
    }
}

void dm_core_close_loop(uv_loop_t *loop) {
    /* 16 rounds: a close callback may close another handle, but not for ever. */
    int rc = uv_loop_close(loop);
    for (int i = 0; i < 16 && rc == UV_EBUSY; i++) {
        uv_run(loop, UV_RUN_NOWAIT);
        rc = uv_loop_close(loop);
    }
    if (rc == UV_EBUSY) {
        fputs("dutch-master: handles left open:\n", stderr);
        uv_print_all_handles(loop, stderr);
#ifdef __SANITIZE_ADDRESS__
        abort();
#endif
        uv_walk(loop, close_left_over, NULL);
    }
}
