/* unix_path.h: the name of a unix socket in the file system. Its directory is held open and the
 * name is looked at, put back and removed in it and nowhere else; with another user's rights where
 * the socket was asked for by that user's process. Nothing is ever chmod'ed or chown'ed: the socket
 * has its owner and mode when it appears. A name is taken only if it is a socket of ours behind
 * which nobody answers. A second, hidden link lets a name be put back that a worker removed. */
#pragma once

#include "base/rights.h"
#include "net/address.h"

#include <sys/stat.h>

struct dm_unix_path {
    int directory; /* O_PATH; -1: there is no name */
    char *name, *twin;
    dev_t device;
    ino_t inode;
    struct dm_rights rights; /* with which the name is put back and removed; none: ours */
    bool has_rights;
};

/* Binds a socket and notes its name. mode: -1 as the umask has it. rights: NULL for ours; with them
 * the socket also listens already, so that its credentials are theirs. -EEXIST: something else has
 * the name; -EADDRINUSE: somebody answers there; -EPERM: another user's stale socket. */
int dm_unix_path_bind(struct dm_unix_path *self, const struct dm_address *address, int mode,
                      int backlog, const struct dm_rights *rights, int *fd);
/* False if the name is gone or leads to another inode. */
bool dm_unix_path_intact(const struct dm_unix_path *self);
/* Puts the name back; -EEXIST if something that is not a socket has taken it. */
int dm_unix_path_repair(struct dm_unix_path *self);
/* Removes the name if it is ours still. */
void dm_unix_path_close(struct dm_unix_path *self);
