/* handoff.h: a keeper that becomes another program, in place: what it holds crosses the exec in a
 * piece of memory that goes by its descriptor. That of the image which was left goes with it, so
 * that it can be called back, whatever lies at its path by then. libc alone.
 */
#pragma once

#include "keeper/keeper.h"

#include <signal.h>

struct dm_handoff_signal {
    int32_t pid;
    uint32_t uid;
    uint8_t is_there;
};

/* Two programs understand each other if version and sizes are the same: change the version when
 * anything here, or in keeper.h, changes its meaning. */
struct dm_handoff {
    uint32_t magic, version, size, held_size, memory_size;
    int32_t memory; /* the descriptor of the memory */
    int32_t died_of, exited_with;
    uint32_t deaths, failures, starts;
    struct dm_keeper_upgrade upgrade;
    struct dm_handoff_signal pending[NSIG];
    int32_t before_us[DM_KEEPER_BEFORE]; /* children that were there before the keeper */
    sigset_t before;
    struct rlimit descriptors;
    uint32_t held_count;
};

/* Whether this process was made so. */
bool dm_handoff_is_there(void);
/* Reads what the former image left, at most `most` descriptors; -> 0, or a negative errno: nothing
 * of it can be used. former: the descriptor of that image, or -1. */
int dm_handoff_read(struct dm_handoff *handoff, struct dm_keeper_held *held, uint32_t most,
                    int *former);
/* Becomes `image`. Returns what failed; nothing has changed then. */
int dm_handoff_exec(int image, int former, char **argv, struct dm_handoff *handoff,
                    const struct dm_keeper_held *held);
/* Goes back to the image that was left, before anything is understood. Returns if it cannot. */
void dm_handoff_refuse(char **argv);
