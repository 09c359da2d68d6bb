/* core.c: see core.h. */
#include "core.h"

#include "base/poll.h"
#include "process/spawn.h"
#include "process/spawn_memory.h"

#include <errno.h>
#include <linux/close_range.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

/* ms. What a worker has for leaving when nobody is left to ask it properly. */
static const uint64_t LAST_RESORT_MS = 5000;

/* ---- the keeper ---- */

static void on_kept_signal(void *ctx, const struct dm_keeper_frame *frame) {
    struct dm_core *core = ctx;
    if (core->signals.fd >= 0 && sigismember(&core->signals.set, frame->number) == 1) {
        core->signals.on_signal(&core->signals, frame->number, frame->pid, frame->uid,
                                frame->at_ms);
        dm_kept_touch(&core->kept); /* the keeper has it until a snapshot is written */
    }
}

static void on_kept_ended(void *ctx, const struct dm_keeper_frame *frame) {
    struct dm_core *core = ctx;
    const struct dm_exit exit = {
        .code = frame->code, .signaled = frame->signaled, .core = frame->core};
    dm_reaper_kept_ended(&core->reaper, frame->pid, &exit, frame->number != 0);
}

static void on_kept_reaped(void *ctx, pid_t pid, const struct rusage *usage) {
    struct dm_core *core = ctx;
    dm_reaper_kept_reaped(&core->reaper, pid, usage);
}

static void tell_owner(struct dm_core *core, const char *event, int error) {
    if (core->on_keeper && !core->silent) {
        core->on_keeper(core, event, error);
    }
}

static void on_keeper_lost(void *ctx) {
    struct dm_core *core = ctx;
    tell_owner(core, "lost", 0);
    dm_reaper_keeper_lost(&core->reaper);
}

static void on_alone(void *ctx, int error) {
    struct dm_core *core = ctx;
    dm_reaper_alone(&core->reaper);
    tell_owner(core, "alone", error);
}

static void on_kept_write(void *ctx) {
    tell_owner(ctx, "write", 0);
}

static const struct dm_kept_events kept_events = {
    .on_signal = on_kept_signal,
    .on_ended = on_kept_ended,
    .on_reaped = on_kept_reaped,
    .on_lost = on_keeper_lost,
    .on_alone = on_alone,
    .on_write = on_kept_write,
};

/* The youngest of what is needed: without it no child would ever be started. */
static int ask_kernel(void) {
    struct utsname kernel;
    if (syscall(SYS_close_range, ~0U, ~0U, CLOSE_RANGE_CLOEXEC) == 0) {
        return 0;
    }
    const int error = errno;
    uname(&kernel);
    fprintf(stderr,
            "dutch-master: Linux 5.11 or later is needed, this is %s: close_range: %s (where the "
            "kernel is new enough, a container's seccomp profile may refuse it)\n",
            kernel.release, strerror(error));
    return -error;
}

int dm_core_init(struct dm_core *core, uv_loop_t *loop, const struct dm_keeper_link *link) {
    *core = (struct dm_core){.loop = loop};
    int rc = ask_kernel();
    if (rc != 0) {
        return rc;
    }
    dm_spawn_raise_descriptors();
    dm_spawn_memory_init();
    dm_signals_init(&core->signals, core, NULL); /* nothing comes before dm_signals_set */
    dm_timers_init(&core->timers, loop);
    dm_helpers_init(&core->helpers, &core->reaper, &core->timers);
    rc = dm_polls_init(&core->timers);
    rc = rc != 0 ? rc : dm_reaper_init(&core->reaper, loop);
    if (rc == 0) {
        rc = dm_kept_open(&core->kept, loop, link, &kept_events, core);
        core->reaper.kept = core->kept.open ? &core->kept : NULL;
        if (link->before_us) {
            memcpy(core->reaper.inherited, link->before_us, sizeof core->reaper.inherited);
        }
        if (rc != 0) {
            dm_reaper_deinit(&core->reaper);
        }
    }
    if (rc != 0) {
        fprintf(stderr, "dutch-master: the kernel has no room to watch descriptors: %s\n",
                uv_strerror(rc));
        dm_timers_deinit(&core->timers);
    }
    return rc;
}

void dm_core_stop(struct dm_core *core, int exit_code) {
    core->exit_code = exit_code;
    core->stopped = true;
    uv_stop(core->loop);
}

void dm_children_stop_all(struct dm_core *core) {
    core->silent = true;
    dm_helpers_cancel(&core->helpers);
    dm_reaper_stop_all(&core->reaper, LAST_RESORT_MS);
}

void dm_core_deinit(struct dm_core *core) {
    core->silent = true;
    uv_tty_reset_mode(); /* whoever read keys and could not put it back */
    dm_deathwatch_stop(&core->deathwatch, &core->reaper);
    dm_reaper_deinit(&core->reaper);
    dm_kept_close(&core->kept);
    dm_signals_deinit(&core->signals);
    dm_polls_deinit();
    dm_timers_deinit(&core->timers);
}

static void close_left_over(uv_handle_t *handle, void *ctx) {
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
