/* held.h: descriptors by their names, and how the processes ended that some of them are of. The
 * keeper's store; in a master whose keeper has died, what the next one is to hold. libc alone. */
#pragma once

#include "keeper/keeper.h"

/* Grows by itself, but not where room is DM_KEEPER_FDS from the start. */
struct dm_held {
    struct dm_keeper_held *items;
    uint32_t count, room;
};

/* NULL: there is none. */
struct dm_keeper_held *dm_held_find(const struct dm_held *held, const char *name);
struct dm_keeper_held *dm_held_pid(const struct dm_held *held, pid_t pid);
/* 0 or -ENOMEM. name is shorter than DM_KEEPER_NAME; what had it before is forgotten. */
int dm_held_put(struct dm_held *held, const char *name, int fd, pid_t pid);
void dm_held_drop(struct dm_held *held, const char *name);
/* The last one comes to its place. */
void dm_held_remove(struct dm_held *held, struct dm_keeper_held *item);
/* How the process ended whose pidfd is among them, unless that is known. */
void dm_held_exit(struct dm_held *held, pid_t pid, int code, bool signaled, bool core);
void dm_held_note_exit(struct dm_keeper_held *item, int code, bool signaled, bool core);
void dm_held_clear(struct dm_held *held);
