/* unix_path.h: the name of a unix socket in the file system. Its directory is held open and the
 * name is looked at, put back and removed in it and nowhere else; with another user's rights where
 * the socket was asked for by that user's process. Nothing is ever chmod'ed or chown'ed: the socket
 * has its owner and mode when it appears. A name is taken only if it is a socket of ours behind
 * which nobody answers. A second, hidden link lets a name be put back that a worker removed. */
#pragma once

#include "net/address.h"
#include "process/helper.h"

#include <sys/stat.h>

/* In a mode: its bits are added to those that the umask leaves. */
enum { DM_MODE_ADDS = 010000 };

enum dm_path_state {
    DM_PATH_INTACT,
    DM_PATH_BEING_REPAIRED, /* with another's rights, meanwhile the loop goes on */
    DM_PATH_REPAIRED,       /* since it was last looked at */
    DM_PATH_LOST
};

struct dm_unix_path {
    int directory; /* O_PATH; -1: there is no name */
    char *name, *twin;
    dev_t device;
    ino_t inode;
    struct dm_rights rights; /* with which the name is put back and removed; none: ours */
    bool has_rights;
    bool theirs;                /* its file system answers when its user wants: never looked at */
    struct dm_helpers *helpers; /* for that; NULL: the caller waits */
    struct dm_helper *repair;   /* under way */
    enum dm_path_state outcome; /* of the last one, until it is asked for */
    void (*on_settled)(void *data);
    void *data;
};

/* What is bound; as another process may do it. */
struct dm_binding {
    struct dm_address address;
    int mode, backlog;
    bool listens;
    uid_t owner; /* to be, if this process cannot be it; -1 */
    gid_t group;
    uid_t us; /* whose stale socket may be replaced, beside that of who does it */
    dev_t device;
    ino_t inode;
    bool has_twin, theirs;
};

/* mode: -1 as the umask has it. rights: NULL for ours; with them the socket also listens already,
 * so that its credentials are theirs. */
struct dm_binding dm_unix_path_binding(const struct dm_address *address, int mode, int backlog,
                                       const struct dm_rights *rights);
/* Binds it: `ctx` is a dm_binding; fds: the socket, its directory. -EEXIST: something else has the
 * name; -EADDRINUSE: somebody answers there; -EPERM: another user's stale socket. */
int dm_unix_path_bind(void *ctx, int fds[DM_RIGHTS_FDS]);
/* Notes the name of what was bound. Takes the directory. helpers: NULL: the caller waits where
 * others' rights are needed. */
int dm_unix_path_open(struct dm_unix_path *self, const struct dm_binding *bound, int directory,
                      const struct dm_rights *rights, struct dm_helpers *helpers);
/* Looks whether the name leads to the socket still. If not, puts it back: lost, if something that
 * is not a socket has taken it, or nobody may. */
enum dm_path_state dm_unix_path_look(struct dm_unix_path *self);
/* Whether a repair is under way: then on_settled comes once, from the loop or when it is closed. */
bool dm_unix_path_await(struct dm_unix_path *self, void (*on_settled)(void *data), void *data);
/* The name again, of a socket with this inode that a master that has died had bound. If its
 * directory cannot be opened there is no name, and nothing is looked after. */
void dm_unix_path_resume(struct dm_unix_path *self, const struct dm_address *address,
                         const struct dm_rights *rights, dev_t device, ino_t inode,
                         struct dm_helpers *helpers);
/* Removes the name if it is ours still. */
void dm_unix_path_close(struct dm_unix_path *self);
