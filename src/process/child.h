/* child.h: a process of ours from fork to exit, with what connects us: its pidfd, the error pipe of
 * its start, perhaps a channel, perhaps its output. It ends only by being reaped; then it frees
 * itself. Whoever holds a pointer gets on_exit as the last event, exactly once. */
#pragma once

#include "core.h"
#include "process/channel.h"
#include "process/spawn.h"

struct dm_child;

struct dm_status {
    struct dm_exit exit;
    enum dm_step failed; /* DM_STEP_NONE: the program ran */
    int error;           /* of the failed step, a positive errno */
    const char *path;    /* what it failed on, or NULL; gone after on_exit */
    uint64_t stderr_lost;
};

struct dm_child_events {
    void (*on_exec)(void *ctx);
    void (*on_line)(void *ctx, const char *line, size_t length, bool had_fd);
    void (*on_skipped)(void *ctx, size_t length, bool had_fd); /* see channel.h */
    void (*on_channel_closed)(void *ctx, const char *reason);
    /* What it wrote to fd 1 or 2, as far as that is captured; NULL: nobody wants it. */
    void (*on_output)(void *ctx, int fd, const char *data, size_t size);
    /* It has ended, others of its group live on; on_exit comes when they have ended too. */
    void (*on_leader_exit)(void *ctx, const struct dm_status *status);
    void (*on_exit)(void *ctx, const struct dm_status *status);
};

struct dm_child_options {
    struct dm_spawn spawn; /* all but fds */
    int stdio[3];          /* -1: /dev/null, 1, 2 */
    const int *fds;        /* become 3, 4, ... */
    int fd_count;
    bool channel;       /* behind fds */
    bool captures[2];   /* of stdout and stderr */
    bool report_output; /* on_output is wanted */
    bool lingers;       /* else what is left of its group gets SIGKILL when it ends */
};

/* A negative errno if there is no process; what fails in the process comes with on_exit. */
int dm_child_spawn(struct dm_core *core, const struct dm_child_options *options,
                   const struct dm_child_events *events, void *ctx, struct dm_child **child);

/* A child of a former master, with what was kept of it; -1 for what is not there. */
struct dm_kept_child {
    pid_t pid;
    int pidfd, channel, mark; /* mark: of its channel */
    int output[2], targets[2];
    bool report_output, lingers;
};

/* The descriptors are the child's from here on, and closed also if this fails. *before as
 * dm_channel_keep says. */
int dm_child_adopt(struct dm_core *core, const struct dm_kept_child *kept,
                   const struct dm_child_events *events, void *ctx, struct dm_child **child,
                   enum dm_keeper_mark *before);

/* What must be kept of it. */
void dm_child_keep(const struct dm_child *child, struct dm_kept_child *kept);

pid_t dm_child_pid(const struct dm_child *child);
int dm_child_signal(struct dm_child *child, int number);       /* UV_ESRCH once reaped */
int dm_child_signal_group(struct dm_child *child, int number); /* the same */
/* Processes of its group that became ours when it ended: how many, and the first `max`. */
size_t dm_child_others(const struct dm_child *child, pid_t *pids, size_t max);
int dm_child_send(struct dm_child *child, const char *line, size_t length, int fd, bool now);
bool dm_child_is_unread(const struct dm_child *child); /* as dm_channel_is_unread */
int dm_child_take_fd(struct dm_child *child);          /* as dm_channel_take_fd */
void dm_child_close_channel(struct dm_child *child);
const char *dm_child_tail(const struct dm_child *child, size_t *length); /* as dm_capture_tail */
void dm_child_pause_reading(struct dm_child *child, bool paused);
