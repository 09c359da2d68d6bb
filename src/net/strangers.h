/* strangers.h: sockets in a listener's SO_REUSEPORT group that are not its own: a worker (nginx
 * with `listen ... reuseport`), or another program of the same user, has opened them. The kernel
 * counts them as members, so who serves where is known only after the order was learnt anew.
 */
#pragma once

#include "net/address.h"

#include <stddef.h>
#include <stdint.h>

/* So many are named; all are counted. */
enum { DM_STRANGERS = 64 };

struct dm_strangers {
    size_t count;
    uint64_t sum; /* tells one set from another of as many */
    unsigned long inodes[DM_STRANGERS];
};

/* Those that listen at the address, less the inodes in ours[], which it sorts. 0, or a negative
 * errno: it cannot be seen. */
int dm_strangers_find(const struct dm_address *address, unsigned long *ours, size_t count,
                      struct dm_strangers *found);
