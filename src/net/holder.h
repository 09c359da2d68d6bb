/* holder.h: finds the processes that hold sockets, by reading all of /proc: for messages, and for
 * what is looked at seldom. One may hold what we may not see. */
#pragma once

#include "net/address.h"

#include <sys/types.h>

enum { DM_HOLDER_NAME = 32 };

struct dm_holder {
    pid_t pid, group;
    char name[DM_HOLDER_NAME];
};

/* The first process found that has a socket bound there. */
bool dm_holder_find(const struct dm_address *address, struct dm_holder *holder);

/* Processes that have one of these sockets, at most `room` of them; how many there are. */
size_t dm_holder_list(const unsigned long *inodes, size_t count, struct dm_holder *list,
                      size_t room);

/* Whether some process of a group has the socket: 1, 0, or -1: nothing of the group can be seen. */
int dm_holder_group_has(pid_t group, unsigned long inode);
