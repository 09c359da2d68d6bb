/* held.h: what a master whose keeper has died notes for the next keeper: the descriptors that it is
 * to hold, and how their processes ended. */
#pragma once

#include "keeper/keeper.h"

struct dm_held {
    struct dm_keeper_held *items;
    uint32_t count, room;
};

/* 0 or -ENOMEM. name is shorter than DM_KEEPER_NAME; what had it before is forgotten. */
int dm_held_put(struct dm_held *held, const char *name, int fd, pid_t pid);
void dm_held_drop(struct dm_held *held, const char *name);
/* How the process ended whose pidfd is among them. */
void dm_held_exit(struct dm_held *held, pid_t pid, int code, bool signaled, bool core);
void dm_held_clear(struct dm_held *held);
