/* files.c: the private run-time directory, the pid file.
 *
 * Everything here is done once, at start or at the user's request, so it may block on the disk.
 * What must never happen: following a symbolic link planted by somebody else, replacing or
 * removing a file that is not ours, or hanging on a FIFO.
 */
#include "service/files.h"

#include "base/identity.h"
#include "service/append.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct dm_pid_file {
    int fd; /* kept open: else the inode's number could be given to another file */
    char path[];
};

pid_t dm_parse_pid(const char *text) {
    char *end;
    long pid = strtol(text, &end, 10);
    return end == text || pid <= 0 || pid > INT_MAX ? 0 : (pid_t)pid;
}

/* `closed`: the bits of its mode that must not be set. */
static int own_dir(const char *path, mode_t mode, mode_t closed, const char **why) {
    *why = NULL;
    const mode_t mask = umask(0);
    const int made = mkdir(path, mode) < 0 && errno != EEXIST ? -errno : 0;
    umask(mask);
    if (made != 0) {
        return made;
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        int err = -errno;
        if (err == -ELOOP || err == -ENOTDIR) {
            *why = "not a directory of its own (a symbolic link or another file): remove it";
        }
        return err;
    }
    struct stat st;
    int err = fstat(fd, &st) < 0 ? -errno : 0;
    close(fd);
    if (err != 0) {
        return err;
    }
    if (st.st_uid != geteuid()) {
        *why = "the directory belongs to another user: remove it, or set DUTCH_MASTER_RUNTIME_DIR";
        return -EPERM;
    }
    if ((st.st_mode & closed) != 0) {
        *why = closed == 077 ? "the directory is open to other users: set its mode to 0700"
                             : "other users can write to the directory: set its mode to 0711";
        return -EPERM;
    }
    return 0;
}

static int runtime_path(char *path, size_t size, const char *suffix) {
    const char *own = getenv("DUTCH_MASTER_RUNTIME_DIR");
    const char *xdg = getenv("XDG_RUNTIME_DIR");
    int n;
    if (own != NULL && own[0] == '/') {
        n = snprintf(path, size, "%s%s", own, suffix);
    } else if (geteuid() == 0) {
        n = snprintf(path, size, "/run/dutch-master%s", suffix);
    } else if (xdg != NULL && xdg[0] == '/') {
        n = snprintf(path, size, "%s/dutch-master%s", xdg, suffix);
    } else {
        n = snprintf(path, size, "/tmp/dutch-master-%u%s", (unsigned)geteuid(), suffix);
    }
    return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

int dm_runtime_dir(char *path, size_t size, bool for_workers, const char **why) {
    *why = NULL;
    const int err = runtime_path(path, size, for_workers ? "-workers" : "");
    if (err != 0) {
        return err;
    }
    return for_workers ? own_dir(path, 0711, 022, why) : own_dir(path, 0700, 077, why);
}

/* Opens the directory that holds path and points *base at the last part of it. */
static int open_parent(const char *path, const char **base) {
    const char *slash = strrchr(path, '/');
    *base = slash == NULL ? path : slash + 1;
    if (**base == '\0') {
        return -EISDIR;
    }
    size_t len = slash == NULL ? 1 : (size_t)(slash - path);
    if (len == 0) {
        len = 1;
    }
    char *dir = slash == NULL ? strdup(".") : strndup(path, len);
    if (dir == NULL) {
        return -ENOMEM;
    }
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int err = fd < 0 ? -errno : fd;
    free(dir);
    return err;
}

/* Why the pid file must not be put here, or 0. */
static int check_place(int dir, const char *base, const char **why) {
    struct stat st;
    if (fstat(dir, &st) < 0) {
        return -errno;
    }
    if ((st.st_mode & S_IWOTH) != 0 && (st.st_mode & S_ISVTX) == 0) {
        *why = "its directory is writable by everyone: choose a directory of your own";
        return -EPERM;
    }
    if (fstatat(dir, base, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        return errno == ENOENT ? 0 : -errno;
    }
    if (S_ISLNK(st.st_mode)) {
        *why = "it is a symbolic link, and what it points to is not ours to replace: remove it";
        return -ELOOP;
    }
    if (!S_ISREG(st.st_mode)) {
        *why = "something that is not a regular file is in its place: remove it";
        return -EEXIST;
    }
    if (st.st_uid != geteuid()) {
        *why = "a file of another user is in its place: remove it";
        return -EPERM;
    }
    return 0;
}

/* Writes our pid to a new file under a name of its own and moves it into place: its descriptor. */
static int write_pid(int dir, const char *base) {
    char temp[NAME_MAX + 1];
    int n = snprintf(temp, sizeof temp, ".%s.%d", base, (int)getpid());
    if (n < 0 || (size_t)n >= sizeof temp) {
        return -ENAMETOOLONG;
    }
    int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(dir, temp, flags, 0644);
    if (fd < 0 && errno == EEXIST && unlinkat(dir, temp, 0) == 0) {
        fd = openat(dir, temp, flags, 0644);
    }
    if (fd < 0) {
        return -errno;
    }
    if (dprintf(fd, "%d\n", (int)dm_identity()) >= 0 && renameat(dir, temp, dir, base) == 0) {
        return fd;
    }
    int err = -errno;
    unlinkat(dir, temp, 0);
    close(fd);
    return err;
}

int dm_pid_file_open(const char *path, struct dm_pid_file **file, const char **why) {
    *why = NULL;
    const char *base;
    int dir = open_parent(path, &base);
    if (dir < 0) {
        return dir;
    }
    int err = check_place(dir, base, why);
    size_t len = strlen(path) + 1;
    struct dm_pid_file *f = err == 0 ? malloc(sizeof *f + len) : NULL;
    if (err == 0 && f == NULL) {
        err = -ENOMEM;
    }
    if (err == 0) {
        f->fd = write_pid(dir, base);
        err = f->fd < 0 ? f->fd : 0;
    }
    close(dir);
    if (err != 0) {
        free(f);
        return err;
    }
    memcpy(f->path, path, len);
    *file = f;
    return 0;
}

void dm_pid_file_close(struct dm_pid_file *file) {
    struct stat ours, named;
    char text[16] = "";
    if (fstat(file->fd, &ours) == 0 && lstat(file->path, &named) == 0 &&
        ours.st_dev == named.st_dev && ours.st_ino == named.st_ino &&
        pread(file->fd, text, sizeof text - 1, 0) > 0 && dm_parse_pid(text) == dm_identity()) {
        unlink(file->path);
    }
    close(file->fd);
    free(file);
}

int dm_open_append(const char *path) {
    const int fd = dm_append_open(path);
    if (fd < 0) {
        return fd;
    }
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0) {
        int err = -errno;
        close(fd);
        return err;
    }
    return fd;
}
