/* lock.h: one file, locked while we live, that decides between two masters of one script. */
#pragma once

#include <sys/types.h>

struct dm_lock {
    int fd;
    dev_t dev;
    ino_t ino;
    char path[];
};

/* 0, -EAGAIN if another process holds the lock (*holder is its pid, 0 if not readable), or another
 * negative errno, with *why set where the errno does not say enough. */
int dm_lock_open(const char *path, struct dm_lock **lock, pid_t *holder, const char **why);
/* The same lock, held by a copy of the descriptor of a master that has died: ours from here on, and
 * closed also if this fails. */
int dm_lock_resume(const char *path, int fd, struct dm_lock **lock);
/* Removes the file if it is still ours, releases the lock and frees. */
void dm_lock_close(struct dm_lock *lock);
