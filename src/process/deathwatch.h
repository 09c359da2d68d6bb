/* deathwatch.h: kills process groups when this process dies, however it dies. A signal at the
 * parent's death (PR_SET_PDEATHSIG) reaches the leader of a group alone; so a small process of ours
 * gets that signal and kills the groups of a table that it shares with us. One for all groups,
 * started with the first of them. It holds no descriptor, sleeps, and dies with us. */
#pragma once

#include "process/reaper.h"

#include <sys/types.h>

struct dm_deathwatch {
    pid_t *groups; /* shared with the watcher; 0: free. NULL before the first start */
};

/* Nothing if it runs already. 0 or a negative errno. */
int dm_deathwatch_start(struct dm_deathwatch *watch, struct dm_reaper *reaper);
void dm_deathwatch_add(struct dm_deathwatch *watch, pid_t group);
void dm_deathwatch_remove(struct dm_deathwatch *watch, pid_t group); /* or nothing */
void dm_deathwatch_stop(struct dm_deathwatch *watch, struct dm_reaper *reaper);
