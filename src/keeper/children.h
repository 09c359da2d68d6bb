/* children.h: the keeper's children, and what it holds of them. libc alone.
 *
 * A worker's pid is the kernel's only name for it: while its pidfd is in the store, the keeper
 * leaves it a zombie until a master asks for its end. Whoever else became a child is reaped as it
 * ends. */
#pragma once

#include "keeper/held.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

struct dm_children {
    struct dm_held held;
    pid_t master;                      /* 0: none */
    int elsewhere;                     /* an epoll: who lives of those that are not our children */
    pid_t before_us[DM_KEEPER_BEFORE]; /* of whoever became us by exec; 0: free */
};

static inline uint64_t dm_now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Notes who is there already: they are not ours. */
void dm_children_begin(struct dm_children *c);
/* Notes who is a child of a keeper that died, and so is not ours. */
void dm_children_find_elsewhere(struct dm_children *c);

/* The descriptor is the store's from then on, or closed. */
void dm_children_put(struct dm_children *c, const char *name, int fd, pid_t pid);
void dm_children_drop(struct dm_children *c, struct dm_keeper_held *held); /* NULL: nothing */

void dm_children_note_end(struct dm_children *c, struct dm_keeper_held *held);
/* Reaps strangers, and notes who of the held has ended. */
void dm_children_sweep(struct dm_children *c);
void dm_children_look_elsewhere(struct dm_children *c, bool has_news);
/* -> whether it has ended, and is reaped */
bool dm_children_master_ended(const struct dm_children *c, siginfo_t *info);
/* Of one that has ended. False: others of its group are waited for, look again. */
bool dm_children_reap(struct dm_keeper_held *held);

/* Signals a child that is ours and no worker; any other pid is passed over. */
void dm_children_kill(struct dm_children *c, pid_t pid, int number);
/* -> how many of them live */
int dm_children_signal_elsewhere(const struct dm_children *c, int number);
/* SIGTERM, and after grace_ms SIGKILL: nobody is left behind. */
void dm_children_end_all(struct dm_children *c, uint64_t grace_ms);
