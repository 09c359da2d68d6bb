/* reaper.h: the one place where children are waited for. Exits come from pidfds; SIGCHLD is only a
 * hint to look for what no pidfd tells of: orphans that became ours (we are a subreaper, and may be
 * process 1). Every exit is collected first and reported afterwards, so a callback may do anything.
 */
#pragma once

#include "base/list.h"
#include "base/poll.h"
#include "base/signals.h"
#include "keeper/kept.h"

#include <stdbool.h>
#include <sys/resource.h>
#include <sys/types.h>

struct dm_exit {
    int code; /* exit code, or the number of the signal */
    bool signaled, core;
    struct rusage usage;
};

/* The leader of a process group of ours, from clone to reaping. Embedded in struct dm_child.
 *
 * Nothing of its group outlives it. If it lingers, that takes until the others have ended by
 * themselves or were killed: so long it is left a zombie, which keeps the group's number ours. If
 * not, they get SIGKILL when it ends. */
struct dm_leader {
    struct dm_link link;
    struct dm_reaper *reaper;
    struct dm_poll poll;
    pid_t pid;
    int pidfd; /* -1 once reaped */
    int reaped_pidfd;
    struct dm_exit exit;
    bool lingers;
    bool kept;       /* a child of the keeper's, who waits for it: see dm_reaper_kept_ended */
    bool reap_asked; /* of the keeper */
    bool ended;      /* a zombie, or reaped */
    void (*before_reap)(struct dm_leader *leader); /* just ended: /proc/PID can be read */
    void (*on_ended)(struct dm_leader *leader);    /* from the loop; others of its group live */
    void (*on_reaped)(struct dm_leader *leader);   /* once, from the loop */
    void (*on_closed)(struct dm_leader *leader);   /* the handle is closed: memory may go */
};

struct dm_reaper {
    uv_loop_t *loop;
    struct dm_signals sigchld;
    uv_timer_t look;          /* while somebody lingers */
    struct dm_link alive;     /* not yet ended */
    struct dm_link ended;     /* lingers, not yet reported */
    struct dm_link lingering; /* reported */
    struct dm_link reaped;    /* reaped, not yet reported */
    int count;
    struct dm_kept *kept; /* who reaps those of a former master, or NULL */
    pid_t attendant;      /* a child that is none of anybody's business (deathwatch.c), or 0 */
    /* Children that were there before this program took its process, or the keeper's, over by exec:
     * any further ones count as orphans. 0: free. */
    pid_t inherited[DM_KEEPER_BEFORE];
};

int dm_reaper_init(struct dm_reaper *reaper, uv_loop_t *loop);
void dm_reaper_deinit(struct dm_reaper *reaper);

/* `leader` has its pid, pidfd and callbacks set. On failure the caller still owns pid and pidfd. */
int dm_reaper_add(struct dm_reaper *reaper, struct dm_leader *leader);

/* What the keeper says of leaders that are `kept`; that it has died: another one is to know who has
 * ended; and that there is none any more: they are waited for by their pidfds then, and how they
 * ended is not known. */
void dm_reaper_kept_ended(struct dm_reaper *reaper, pid_t pid, const struct dm_exit *exit,
                          bool others);
void dm_reaper_kept_reaped(struct dm_reaper *reaper, pid_t pid, const struct rusage *usage);
void dm_reaper_keeper_lost(struct dm_reaper *reaper);
void dm_reaper_alone(struct dm_reaper *reaper);

/* 0, UV_ESRCH once reaped, or another negative errno. */
int dm_leader_signal(const struct dm_leader *leader, int number);

/* After on_reaped (or without, at the very end): gives the handle back, then on_closed. */
void dm_reaper_close(struct dm_leader *leader);

void dm_reaper_end_attendant(struct dm_reaper *reaper);

/* Without loop or callbacks: SIGTERM to all, SIGKILL after grace_ms, until every one is reaped.
 * They stay unreported. */
void dm_reaper_stop_all(struct dm_reaper *reaper, uint64_t grace_ms);

/* Kills the leader's group and waits for the leader, however it got here. */
void dm_reaper_abandon(pid_t pid, int pidfd);

/* Children of ours, adopted or not, that live in the group: how many of them, and the first `max`.
 */
size_t dm_leader_others(const struct dm_leader *leader, pid_t *pids, size_t max);

/* Children that are no leaders of ours: adopted orphans, with a keeper also those that it has
 * adopted when a former master died. How many, and the first `max` of them. */
size_t dm_reaper_adopted(struct dm_reaper *reaper, pid_t *pids, size_t max);

/* SIGKILL for those that are ours, and for theirs, until none is left or the time is over. Waits.
 * -> how many got it */
size_t dm_reaper_kill_adopted(struct dm_reaper *reaper, uint64_t limit_ms);

/* A signal for one of these, and for its group if it leads one: what left a worker by setsid()
 * does. False: it is none of these, or not any more. */
bool dm_reaper_signal_adopted(const struct dm_reaper *reaper, pid_t pid, int number);
