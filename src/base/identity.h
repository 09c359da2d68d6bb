/* identity.h: the pid by which others know this program: in pid files, locks, to the service
 * manager. Its own, unless it is kept (keeper/keeper.h). */
#pragma once

#include <sys/types.h>

/* What `ps` shows of a keeper. */
#define DM_KEEPER_COMM "dutch-keeper"

pid_t dm_identity(void);
pid_t dm_identity_of(pid_t pid); /* of another master */
void dm_identity_set(pid_t pid); /* 0: its own */
