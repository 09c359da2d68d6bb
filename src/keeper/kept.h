/* kept.h: the master's end of what connects it with its keeper (keeper.h). Without a keeper nothing
 * is open, and every function does nothing. */
#pragma once

#include "base/list.h"
#include "base/poll.h"
#include "keeper/held.h"
#include "keeper/outbox.h"

#include <sys/uio.h>
#include <uv.h>

struct dm_kept;

struct dm_kept_events {
    void (*on_signal)(void *ctx, const struct dm_keeper_frame *frame);
    void (*on_ended)(void *ctx, const struct dm_keeper_frame *frame);
    void (*on_reaped)(void *ctx, pid_t pid, const struct rusage *usage);
    /* The keeper has died. What is put, dropped and told of exits from then on is noted here:
     * dm_kept_renew may follow. If it does not, or fails later, it is over: on_alone. */
    void (*on_lost)(void *ctx);
    void (*on_alone)(void *ctx, int error);
    void (*on_write)(void *ctx); /* something has changed: write a snapshot */
};

/* Whether a channel is in the middle of something that the newest snapshot does not know. Embedded
 * in the channel. */
struct dm_mark {
    struct dm_link link;
    struct dm_kept *kept; /* NULL: none */
    int index;
    bool (*is_settled)(const struct dm_mark *mark);
    void (*commit)(
        struct dm_mark *mark); /* the snapshot is written: what waited for it may go out */
};

struct dm_kept {
    struct dm_keeper_link link;
    const struct dm_kept_events *events;
    void *ctx;
    struct dm_poll poll;
    uv_prepare_t prepare;
    uv_timer_t again;
    struct dm_link touched;
    uint8_t used[DM_KEEPER_MARKS];
    uint64_t snapshots;
    uint64_t heard;      /* the order of the newest signal */
    uint64_t written_at; /* ns: the last one */
    uint64_t spent_us;   /* in snapshots, but for what the time since has paid */
    uint64_t rest_until; /* ns: no snapshot before */
    uint64_t leave_by;   /* 0: not leaving */
    uint64_t full_since; /* ms: the keeper has taken nothing since; 0: it has room */
    struct dm_outbox outbox;
    bool open, dirty, lost;
    bool refused;        /* no room: the newest snapshot is older than our state */
    struct dm_held held; /* once the keeper is lost */
};

int dm_kept_open(struct dm_kept *kept, uv_loop_t *loop, const struct dm_keeper_link *link,
                 const struct dm_kept_events *events, void *ctx);
void dm_kept_close(struct dm_kept *kept);

/* 0 or a negative errno. Once it has returned the descriptor outlives us. -EAGAIN: the keeper does
 * not read; on_write comes again when it does, or else what waits for a snapshot waits no longer,
 * and it is -ETIMEDOUT from then on. */
int dm_kept_put(struct dm_kept *kept, const char *name, int fd, pid_t pid);
/* 0: it is the keeper's no more. -EAGAIN: it will be dropped, but is not yet. */
int dm_kept_drop(struct dm_kept *kept, const char *name);
void dm_kept_hello(struct dm_kept *kept);
void dm_kept_reap(struct dm_kept *kept, pid_t pid, bool lingers);
/* Before it is reaped: if we die after that, nobody could say how it ended. */
void dm_kept_exit(struct dm_kept *kept, pid_t pid, int code, bool signaled, bool core);
void dm_kept_kill(struct dm_kept *kept, pid_t pid, int number);
int dm_kept_notify(struct dm_kept *kept, const char *text);
/* Gives place to another program: this process ends as soon as what it is in the middle of is done,
 * and half a second later at the latest. 0 or a negative errno. */
int dm_kept_become(struct dm_kept *kept, const char *path);
void dm_kept_settled(struct dm_kept *kept);
/* The same after on_lost: this process becomes the keeper of another master. */
void dm_kept_renew(struct dm_kept *kept);

/* on_write comes before the loop waits again, or at most 20 ms later in a rush. */
void dm_kept_touch(struct dm_kept *kept);
int dm_kept_write(struct dm_kept *kept, const struct iovec *parts, size_t count);
/* The number of the last record of the log that was written, by any master. At once: no snapshot
 * comes between the record and this. */
uint64_t dm_kept_said(const struct dm_kept *kept);
void dm_kept_say(struct dm_kept *kept, uint64_t number);

/* index -1: a free one. -> as it was left by one who died in the middle of something */
enum dm_keeper_mark dm_mark_open(struct dm_mark *mark, struct dm_kept *kept, int index,
                                 bool (*is_settled)(const struct dm_mark *mark),
                                 void (*commit)(struct dm_mark *mark));
/* It stays what it is if that is more. */
void dm_mark_set(struct dm_mark *mark, enum dm_keeper_mark value);
/* So many bytes are to be written, the ends of lines; then: nothing any more, or half a line. */
void dm_mark_writing(struct dm_mark *mark, size_t size);
void dm_mark_written(struct dm_mark *mark, bool all);
void dm_mark_close(struct dm_mark *mark);
