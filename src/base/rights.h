/* rights.h: does one thing with another user's rights, in a process of its own that lives as long
 * as that takes. In the master's process rights could leak: they are the whole process's, and what
 * is set back may fail to be. What the work makes belongs to that user from its first moment, so
 * nobody has to chmod or chown anything by a path.
 *
 * The caller waits, DM_RIGHTS_MS at most: the user may own the file system that is asked. One that
 * is not held up, but waits for a processor on a busy machine, has up to DM_RIGHTS_BUSY_MS.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum {
    DM_RIGHTS_MS = 250,
    DM_RIGHTS_BUSY_MS = 2000,
    DM_RIGHTS_FDS = 2,
    DM_RIGHTS_GROUPS = 64,
    DM_RIGHTS_CONTEXT = 4096
};

struct dm_rights {
    bool owner_only; /* our rights, but what is made belongs to them: for what the script asks */
    uid_t uid;
    gid_t gid;
    size_t group_count;
    gid_t groups[DM_RIGHTS_GROUPS]; /* more are left out: then there are fewer rights, not more */
};

/* Whether it makes a difference: only root can take another's rights. */
bool dm_rights_matter(const struct dm_rights *rights);

struct dm_rights_work {
    /* What it opens is in fds (-1 before). No memory that it allocates survives. */
    int (*work)(void *ctx, int fds[DM_RIGHTS_FDS]);
    void *ctx;
    size_t size; /* bytes of ctx that come back */
    int keep;    /* a descriptor that it uses, or -1: all others of ours are closed there */
};

/* Runs work with these rights (NULL, or none that matter: here) and waits for it. Returns what it
 * returned; -ETIMEDOUT; or what failed. */
int dm_rights_run(const struct dm_rights *rights, const struct dm_rights_work *work,
                  int fds[DM_RIGHTS_FDS]);

/* ---- the same in parts, for who does not wait: see process/helper.h ---- */

/* A child of ours, with a socket on which its answer comes. It ends by itself. */
int dm_rights_start(const struct dm_rights *rights, const struct dm_rights_work *work, pid_t *pid,
                    int *pidfd, int *socket);
/* Reads the answer, which is there, or the socket's end. -ECHILD: it ended without an answer. */
int dm_rights_collect(int socket, void *ctx, size_t size, int fds[DM_RIGHTS_FDS]);
