/* unix_path.h: the name of a unix socket in the file system. A name is taken only if nobody answers
 * behind it and it is a socket; what is removed is our own inode and nothing else. A second, hidden
 * link to the same inode lets a name be put back that a worker removed.
 */
#pragma once

#include <stdbool.h>
#include <sys/stat.h>

struct dm_unix_path {
    char *path;
    char *twin; /* hidden link beside `path`, NULL if it could not be made */
    dev_t device;
    ino_t inode;
};

/* Removes what a dead process left at `path`. -EEXIST if it is not a socket, -EADDRINUSE if
 * somebody answers; 0 if the path is free now. */
int dm_unix_path_clear(const char *path, int type);
/* After bind: notes the inode and makes the twin. */
int dm_unix_path_open(struct dm_unix_path *self, const char *path);
/* False if the name is gone or leads to another inode. */
bool dm_unix_path_intact(const struct dm_unix_path *self);
/* Puts the name back; -EEXIST if something that is not a socket has taken it. */
int dm_unix_path_repair(struct dm_unix_path *self);
void dm_unix_path_close(struct dm_unix_path *self);
