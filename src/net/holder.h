/* holder.h: finds the process that holds an address which we were refused. It reads all of /proc,
 * so it is for an error message only. */
#pragma once

#include "net/address.h"

#include <sys/types.h>

enum { DM_HOLDER_NAME = 32 };

/* The first process found that has a socket bound there; it may be one we may not see. */
bool dm_holder_find(const struct dm_address *address, pid_t *pid, char name[DM_HOLDER_NAME]);
