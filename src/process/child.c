/* child.c: see child.h. libuv's rules, as they bind here: a handle that was initialised must be
 * closed; its memory may go in its close callback and no earlier; no callback follows uv_close but
 * that one. uv_close takes the number of its descriptor out of the loop once more, whoever has that
 * by then: so a descriptor is closed together with its handle, not earlier. `handles` counts what
 * is open, and the one that brings it to zero frees the child. Longer than 400 lines: one object
 * from spawn to its last handle. */
#include "process/child.h"

#include "base/close.h"
#include "process/capture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* Bytes read from the channel of a dead child, whose end a grandchild may hold and fill. */
enum { FINAL_CHANNEL_BYTES = 1 << 20 };

struct dm_child {
    struct dm_leader leader;
    struct dm_core *core;
    const struct dm_child_events *events;
    void *ctx;
    struct dm_poll error_poll;
    int error_fd; /* -1 once the outcome of the start is known */
    struct dm_spawn_error *failure;
    struct dm_channel *channel;     /* NULL once closed */
    struct dm_capture *captures[2]; /* of stdout and stderr */
    int handles;
    bool execed, exec_reported;
};

/* ---- end of life ---- */

static void drop_handle(struct dm_child *child) {
    if (--child->handles == 0) {
        free(child->failure);
        free(child);
    }
}

static void on_part_freed(void *ctx) {
    drop_handle(ctx);
}

static void on_leader_closed(struct dm_leader *leader) {
    drop_handle(dm_container(leader, struct dm_child, leader));
}

static void on_error_poll_closed(uv_handle_t *handle) {
    drop_handle(handle->data);
}

static void close_parts(struct dm_child *child) {
    child->handles++; /* ours, so that the last of them does not free under our hands */
    dm_child_close_channel(child);
    for (int i = 0; i < 2; i++) {
        if (child->captures[i]) {
            dm_capture_close(child->captures[i]);
            child->captures[i] = NULL;
        }
    }
    drop_handle(child);
}

/* ---- the start's outcome ---- */

static void close_error_pipe(struct dm_child *child) {
    dm_poll_stop(&child->error_poll);
    close(child->error_fd);
    child->error_fd = -1;
    dm_poll_close(&child->error_poll, on_error_poll_closed);
}

/* EOF alone does not mean that the program runs: a child killed before exec closes the pipe too. */
static void read_outcome(struct dm_child *child) {
    struct dm_spawn_error record;
    const ssize_t n = child->error_fd < 0 ? -1 : read(child->error_fd, &record, sizeof record);
    if (n < 0) {
        return;
    }
    if (n == (ssize_t)sizeof record) {
        child->failure = malloc(sizeof record);
        if (child->failure) {
            *child->failure = record;
        }
    } else {
        child->execed = dm_spawn_has_execed(child->leader.pid);
    }
    close_error_pipe(child);
}

static void report_exec(struct dm_child *child) {
    if (child->execed && !child->exec_reported) {
        child->exec_reported = true;
        child->events->on_exec(child->ctx);
    }
}

static void on_error_pipe(uv_poll_t *poll, int status, int events) {
    struct dm_child *child = poll->data;
    read_outcome(child);
    report_exec(child);
}

/* ---- the channel's events ---- */

/* What a program says may be there before the word that it runs: the kernel has no order between
 * two descriptors. */
static void report_start(struct dm_child *child) {
    read_outcome(child);
    report_exec(child);
}

static void on_line(void *ctx, const char *line, size_t length, bool had_fd) {
    struct dm_child *child = ctx;
    report_start(child);
    if (child->channel) { /* else it was closed just now */
        child->events->on_line(child->ctx, line, length, had_fd);
    }
}

static void on_skipped(void *ctx, size_t length, bool had_fd) {
    struct dm_child *child = ctx;
    child->events->on_skipped(child->ctx, length, had_fd);
}

static void on_channel_closed(void *ctx, const char *reason) {
    struct dm_child *child = ctx;
    child->channel = NULL;
    report_start(child);
    child->events->on_channel_closed(child->ctx, reason);
}

static const struct dm_channel_events channel_events = {
    .on_line = on_line,
    .on_skipped = on_skipped,
    .on_closed = on_channel_closed,
    .on_freed = on_part_freed,
};

/* ---- output ---- */

static void on_output(void *ctx, const struct dm_capture *capture, const char *data, size_t size) {
    struct dm_child *child = ctx;
    const int fd = capture == child->captures[0] ? STDOUT_FILENO : STDERR_FILENO;
    child->events->on_output(child->ctx, fd, data, size);
}

/* ---- exit ---- */

static void before_reap(struct dm_leader *leader) {
    read_outcome(dm_container(leader, struct dm_child, leader));
}

static void finish_channel(struct dm_child *child) {
    if (child->channel) {
        dm_channel_drain(child->channel, FINAL_CHANNEL_BYTES);
    }
    if (child->channel) {
        dm_child_close_channel(child);
        child->events->on_channel_closed(child->ctx, NULL);
    }
}

static struct dm_status status_of(const struct dm_child *child) {
    struct dm_status status = {.exit = child->leader.exit};
    if (child->failure) {
        status.failed = child->failure->step;
        status.error = child->failure->error;
        status.path = child->failure->path[0] ? child->failure->path : NULL;
    }
    if (child->captures[1]) {
        status.stderr_lost = child->captures[1]->lost;
    }
    return status;
}

static void on_ended(struct dm_leader *leader) {
    struct dm_child *child = dm_container(leader, struct dm_child, leader);
    if (!child->core->silent) {
        report_exec(child);
        finish_channel(child);
        const struct dm_status status = status_of(child);
        child->events->on_leader_exit(child->ctx, &status);
    }
}

static void on_reaped(struct dm_leader *leader) {
    struct dm_child *child = dm_container(leader, struct dm_child, leader);
    if (!child->core->silent) {
        report_exec(child);
        finish_channel(child);
        for (int i = 0; i < 2; i++) {
            if (child->captures[i]) {
                dm_capture_finish(child->captures[i]);
            }
        }
        const struct dm_status status = status_of(child);
        child->events->on_exit(child->ctx, &status);
    }
    dm_deathwatch_remove(&child->core->deathwatch, leader->pid);
    if (child->error_fd >= 0) {
        close_error_pipe(child);
    }
    close_parts(child);
    dm_reaper_close(leader);
}

/* ---- spawning ---- */

/* Descriptors made for one spawn. [0] stays here, [1] goes to the child; -1: none. */
struct ends {
    int channel[2], captures[2][2], null;
};

static void close_ends(struct ends *ends) {
    dm_close(&ends->channel[0]);
    dm_close(&ends->channel[1]);
    for (int i = 0; i < 2; i++) {
        dm_close(&ends->captures[i][0]);
        dm_close(&ends->captures[i][1]);
    }
    dm_close(&ends->null);
}

/* Where stdout (0) or stderr (1) of the child would go, and goes in the end. */
static int target_of(const struct dm_child_options *o, int i) {
    return o->stdio[i + 1] >= 0 ? o->stdio[i + 1] : STDOUT_FILENO + i;
}

static int open_ends(const struct dm_child_options *o, struct ends *ends) {
    *ends = (struct ends){.channel = {-1, -1}, .captures = {{-1, -1}, {-1, -1}}, .null = -1};
    if (o->channel && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends->channel) != 0) {
        return -errno;
    }
    /* A pipe, not a socket: /dev/stderr can then be opened by the child. */
    for (int i = 0; i < 2; i++) {
        if (o->captures[i] && pipe2(ends->captures[i], O_CLOEXEC) != 0) {
            return -errno;
        }
    }
    if (o->stdio[0] < 0 && (ends->null = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0) {
        return -errno;
    }
    return 0;
}

static int *make_fd_table(const struct dm_child_options *o, const struct ends *ends, int *count) {
    int *fds = malloc(((size_t)o->fd_count + 4) * sizeof *fds);
    if (!fds) {
        return NULL;
    }
    int n = 0;
    fds[n++] = o->stdio[0] >= 0 ? o->stdio[0] : ends->null;
    for (int i = 0; i < 2; i++) {
        fds[n++] = o->captures[i] ? ends->captures[i][1] : target_of(o, i);
    }
    for (int i = 0; i < o->fd_count; i++) {
        fds[n++] = o->fds[i];
    }
    if (o->channel) {
        fds[n++] = ends->channel[1];
    }
    *count = n;
    return fds;
}

/* Before the fork: afterwards nothing may fail for want of memory. */
static int open_parts(struct dm_child *child, const struct dm_child_options *o, struct ends *ends) {
    struct dm_core *core = child->core;
    if (o->channel) {
        child->channel =
            dm_channel_open(core->loop, &core->timers, ends->channel[0], &channel_events, child);
        if (!child->channel) {
            return UV_ENOMEM;
        }
        ends->channel[0] = -1;
        child->handles++;
        if (!child->leader.kept) {
            dm_channel_keep(child->channel, &core->kept, -1);
        }
    }
    for (int i = 0; i < 2; i++) {
        if (!o->captures[i]) {
            continue;
        }
        child->captures[i] = dm_capture_open(core->loop, &core->timers, ends->captures[i][0],
                                             target_of(o, i), on_part_freed, child);
        if (!child->captures[i]) {
            return UV_ENOMEM;
        }
        if (o->report_output) {
            child->captures[i]->on_data = on_output;
        }
        ends->captures[i][0] = -1;
        child->handles++;
    }
    return 0;
}

static void hold_leader(struct dm_child *child, bool lingers) {
    struct dm_leader *leader = &child->leader;
    leader->lingers = lingers;
    leader->before_reap = before_reap;
    leader->on_ended = on_ended;
    leader->on_reaped = on_reaped;
    leader->on_closed = on_leader_closed;
}

static int start(struct dm_child *child, const struct dm_child_options *o,
                 const struct ends *ends) {
    struct dm_spawn spawn = o->spawn;
    struct dm_leader *leader = &child->leader;
    spawn.fds = make_fd_table(o, ends, &spawn.fd_count);
    if (!spawn.fds) {
        return UV_ENOMEM;
    }
    int rc = spawn.die_with_master
                 ? dm_deathwatch_start(&child->core->deathwatch, &child->core->reaper)
                 : 0;
    if (rc == 0) {
        rc = dm_spawn(&spawn, &leader->pid, &leader->pidfd, &child->error_fd);
    }
    free(spawn.fds);
    if (rc != 0) {
        return rc;
    }
    rc = dm_poll_init(child->core->loop, &child->error_poll, child->error_fd);
    if (rc != 0) {
        close(child->error_fd);
        child->error_fd = -1;
        dm_reaper_abandon(leader->pid, leader->pidfd);
        return rc;
    }
    child->error_poll.uv.data = child;
    child->handles++;
    hold_leader(child, o->lingers);
    rc = dm_reaper_add(&child->core->reaper, leader);
    if (rc != 0) {
        close_error_pipe(child);
        dm_reaper_abandon(leader->pid, leader->pidfd);
        return rc;
    }
    child->handles++;
    if (spawn.die_with_master) {
        dm_deathwatch_add(&child->core->deathwatch, leader->pid);
    }
    dm_poll_start(&child->error_poll, UV_READABLE, on_error_pipe);
    return 0;
}

int dm_child_spawn(struct dm_core *core, const struct dm_child_options *options,
                   const struct dm_child_events *events, void *ctx, struct dm_child **out) {
    struct dm_child *child = calloc(1, sizeof *child);
    if (!child) {
        return UV_ENOMEM;
    }
    child->core = core;
    child->events = events;
    child->ctx = ctx;
    child->error_fd = -1;
    child->handles = 1; /* this function's */

    struct ends ends;
    int rc = open_ends(options, &ends);
    if (rc == 0) {
        rc = open_parts(child, options, &ends);
    }
    if (rc == 0) {
        rc = start(child, options, &ends);
    }
    close_ends(&ends);
    if (rc != 0) {
        close_parts(child);
    } else {
        *out = child;
    }
    drop_handle(child);
    return rc;
}

/* ---- one of a former master ---- */

int dm_child_adopt(struct dm_core *core, const struct dm_kept_child *kept,
                   const struct dm_child_events *events, void *ctx, struct dm_child **out,
                   enum dm_keeper_mark *before) {
    struct ends ends = {.channel = {kept->channel, -1},
                        .captures = {{kept->output[0], -1}, {kept->output[1], -1}},
                        .null = -1};
    int pidfd = kept->pidfd;
    struct dm_child *child = calloc(1, sizeof *child);
    if (!child) {
        close_ends(&ends);
        close(pidfd);
        return UV_ENOMEM;
    }
    *child = (struct dm_child){.core = core,
                               .events = events,
                               .ctx = ctx,
                               .error_fd = -1,
                               .handles = 1,
                               .execed = true,
                               .exec_reported = true};
    child->leader.pid = kept->pid;
    child->leader.pidfd = pidfd;
    child->leader.kept = true;
    const struct dm_child_options options = {
        .channel = kept->channel >= 0,
        .captures = {kept->output[0] >= 0, kept->output[1] >= 0},
        .report_output = kept->report_output,
        .stdio = {-1, kept->targets[0], kept->targets[1]},
    };
    int rc = open_parts(child, &options, &ends);
    *before = DM_MARK_CLEAR;
    if (rc == 0) {
        hold_leader(child, kept->lingers);
        rc = dm_reaper_add(&core->reaper, &child->leader);
    }
    close_ends(&ends);
    if (rc != 0) {
        close_parts(child);
        close(pidfd);
    } else {
        child->handles++;
        if (child->channel) {
            *before = dm_channel_keep(child->channel, &core->kept, kept->mark);
        }
        *out = child;
    }
    drop_handle(child);
    return rc;
}

void dm_child_keep(const struct dm_child *child, struct dm_kept_child *kept) {
    *kept = (struct dm_kept_child){
        .pid = child->leader.pid,
        .pidfd = child->leader.pidfd,
        .channel = child->channel ? dm_channel_fd(child->channel) : -1,
        .mark = child->channel ? dm_channel_mark(child->channel) : -1,
    };
    for (int i = 0; i < 2; i++) {
        kept->output[i] = child->captures[i] ? child->captures[i]->fd : -1;
    }
}

/* ---- while it lives ---- */

pid_t dm_child_pid(const struct dm_child *child) {
    return child->leader.pid;
}

int dm_child_signal(struct dm_child *child, int number) {
    return dm_leader_signal(&child->leader, number);
}

int dm_child_signal_group(struct dm_child *child, int number) {
    if (child->leader.pidfd < 0 || child->leader.pid <= 1) {
        return UV_ESRCH;
    }
    return kill(-child->leader.pid, number) == 0 ? 0 : -errno;
}

size_t dm_child_others(const struct dm_child *child, pid_t *pids, size_t max) {
    return dm_leader_others(&child->leader, pids, max);
}

int dm_child_send(struct dm_child *child, const char *line, size_t length, int fd, bool now) {
    return child->channel ? dm_channel_send(child->channel, line, length, fd, now) : UV_EPIPE;
}

bool dm_child_is_unread(const struct dm_child *child) {
    return child->channel && dm_channel_is_unread(child->channel);
}

int dm_child_take_fd(struct dm_child *child) {
    return child->channel ? dm_channel_take_fd(child->channel) : -1;
}

void dm_child_close_channel(struct dm_child *child) {
    if (child->channel) {
        dm_channel_close(child->channel);
        child->channel = NULL;
    }
}

const char *dm_child_tail(const struct dm_child *child, size_t *length) {
    *length = 0;
    return child->captures[1] ? dm_capture_tail(child->captures[1], length) : NULL;
}

void dm_child_pause_reading(struct dm_child *child, bool paused) {
    if (child->channel) {
        dm_channel_pause(child->channel, paused);
    }
}
