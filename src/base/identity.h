/* identity.h: the pid by which others know this program: in pid files, locks, to the service
 * manager. Its own, unless it is kept (keeper/keeper.h). */
#pragma once

#include <sys/types.h>

pid_t dm_identity(void);
void dm_identity_set(pid_t pid); /* 0: its own */
