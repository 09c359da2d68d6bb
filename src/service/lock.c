/* lock.c: flock() on a file that holds our pid.
 *
 * The lock belongs to the open file description, so the descriptor is O_CLOEXEC: a worker that got
 * it would hold the lock after our death. The file is unlinked on close; whoever opened it before
 * that and locks it afterwards has locked a file without a name, finds that out by comparing
 * inodes, and tries again.
 */
#include "service/lock.h"

#include "base/identity.h"
#include "service/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* Lost races against an unlinking holder before giving up; each needs a master to end just then. */
#define TRIES 100

static pid_t read_holder(int fd) {
    char text[16] = "";
    if (pread(fd, text, sizeof text - 1, 0) <= 0) {
        return 0;
    }
    return dm_parse_pid(text);
}

static int check_file(const struct stat *st, const char **why) {
    if (!S_ISREG(st->st_mode)) {
        *why = "it is not a regular file: remove it";
        return -EEXIST;
    }
    if (st->st_uid != geteuid()) {
        *why = "it belongs to another user: remove it, or run as that user";
        return -EPERM;
    }
    if (st->st_nlink > 1) {
        *why = "it has a second name (hard link), and its content may not be ours: remove it";
        return -EEXIST;
    }
    return 0;
}

/* One attempt: a locked descriptor of the file that bears the name now, -ESTALE to try again. */
static int try_lock(const char *path, struct stat *st, pid_t *holder, const char **why) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600);
    if (fd < 0) {
        if (errno == ELOOP) {
            *why = "it is a symbolic link: remove it";
        }
        return -errno;
    }
    struct stat named;
    int err = fstat(fd, st) < 0 ? -errno : check_file(st, why);
    if (err == 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        err = -errno;
    }
    if (err == -EAGAIN) {
        *holder = read_holder(fd);
    }
    if (err == 0 &&
        (lstat(path, &named) < 0 || named.st_dev != st->st_dev || named.st_ino != st->st_ino)) {
        err = -ESTALE;
    }
    if (err == 0) {
        return fd;
    }
    close(fd);
    return err;
}

static struct dm_lock *new_lock(const char *path, int fd, const struct stat *st) {
    const size_t len = strlen(path) + 1;
    struct dm_lock *l = malloc(sizeof *l + len);
    if (l != NULL) {
        *l = (struct dm_lock){fd, st->st_dev, st->st_ino};
        memcpy(l->path, path, len);
    }
    return l;
}

int dm_lock_open(const char *path, struct dm_lock **lock, pid_t *holder, const char **why) {
    *holder = 0;
    *why = NULL;
    struct stat st;
    int fd = -ESTALE;
    for (int i = 0; i < TRIES && fd == -ESTALE; i++) {
        fd = try_lock(path, &st, holder, why);
    }
    if (fd < 0) {
        return fd;
    }
    *lock = new_lock(path, fd, &st);
    if (*lock == NULL) {
        close(fd);
        return -ENOMEM;
    }
    /* The pid is for people; on a full disk the lock holds without it. */
    if (ftruncate(fd, 0) == 0 && dprintf(fd, "%d\n", (int)dm_identity()) < 0) {
        (void)ftruncate(fd, 0);
    }
    return 0;
}

int dm_lock_resume(const char *path, int fd, struct dm_lock **lock) {
    struct stat st;
    if (fstat(fd, &st) < 0) {
        close(fd);
        return -EBADF;
    }
    *lock = new_lock(path, fd, &st);
    if (*lock == NULL) {
        close(fd);
        return -ENOMEM;
    }
    return 0;
}

void dm_lock_close(struct dm_lock *lock) {
    struct stat named;
    if (lstat(lock->path, &named) == 0 && named.st_dev == lock->dev && named.st_ino == lock->ino) {
        unlink(lock->path);
    }
    close(lock->fd);
    free(lock);
}
