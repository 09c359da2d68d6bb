/* claim.h: a name that one process of this user can hold at a time: an abstract unix socket. It
 * goes with the process and not before, whatever becomes of a directory; each network namespace has
 * names of its own. Such names have no permissions: who holds one is asked for its user, and
 * another user's claim counts for nothing. */
#pragma once

#include <sys/types.h>

enum { DM_CLAIM_NAME = 96 };

/* 0: it is ours, as long as *fd (a listening socket) is open; *fd is -1 if another user sits on the
 * name. -EAGAIN: *holder has it; 0: a process that has bound it and does not listen yet, whichever
 * that is, or the kernel does not say whose it is. */
int dm_claim(const char *name, int *fd, pid_t *holder);
/* fd was a former master's: from now on we are who holds it. */
void dm_claim_resume(int fd);
