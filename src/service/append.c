/* append.c: see append.h. */
#include "service/append.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LINKS_MAX = 16, MODE = 0640 };

static const int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

static uid_t trusted_uid; /* root's until something else is said */
static gid_t trusted_gid;

void dm_append_trust(uid_t uid, gid_t gid) {
    trusted_uid = uid;
    trusted_gid = gid;
}

static bool is_ours(const struct stat *st) {
    return st->st_uid == 0 || st->st_uid == geteuid() || st->st_uid == trusted_uid;
}

/* Whether nobody else can put anything in this directory in place of what is ours there. */
static bool is_safe(const struct stat *st) {
    const bool group_is_ours = st->st_gid == 0 || st->st_gid == trusted_gid;
    const mode_t others = S_IWOTH | (group_is_ours ? 0 : S_IWGRP);
    return is_ours(st) && (!(st->st_mode & others) || st->st_mode & S_ISVTX);
}

/* Puts what the link at path[0..end) leads to in its place. */
static bool follow(char path[PATH_MAX], size_t start, size_t end) {
    char target[PATH_MAX], whole[PATH_MAX];
    const char kept = path[end];
    path[end] = '\0';
    const ssize_t n = readlink(path, target, sizeof target - 1);
    path[end] = kept;
    if (n <= 0) {
        return false;
    }
    target[n] = '\0';
    const size_t before = target[0] == '/' ? 0 : start;
    const int used =
        snprintf(whole, sizeof whole, "%.*s%s%s", (int)before, path, target, path + end);
    if (used < 0 || used >= (int)sizeof whole) {
        return false;
    }
    memcpy(path, whole, (size_t)used + 1);
    return true;
}

/* Whether all of a path that has links in it, and of what they lead to, is in the hands of root or
 * of our user: then it stays as it is seen here. What the kernel makes up in /proc is. */
static bool is_safe_path(const char *given) {
    char path[PATH_MAX];
    size_t start = 1; /* of a name */
    int links = 0;
    if (given[0] != '/' || strlen(given) >= sizeof path) {
        return false;
    }
    strcpy(path, given);
    while (path[start] != '\0' && strncmp(path, "/proc/", 6) != 0) {
        struct stat st;
        const size_t end = start + strcspn(path + start, "/");
        const char kept = path[end];
        path[end] = '\0';
        const int error = lstat(path, &st) == 0 ? 0 : errno;
        path[end] = kept;
        if (error) {
            return error == ENOENT && kept == '\0'; /* to be made */
        }
        if (S_ISLNK(st.st_mode)) {
            if (!is_ours(&st) || ++links > LINKS_MAX || !follow(path, start, end)) {
                return false;
            }
            start = 1;
        } else if (kept != '\0' && !is_safe(&st)) {
            return false;
        } else {
            start = end + (kept == '/');
        }
    }
    return true;
}

/* A file of root's that somebody has given a second name in a directory of theirs. */
static bool is_foreign_link(int fd, const char *path) {
    char directory[PATH_MAX];
    struct stat st;
    const char *slash = strrchr(path, '/');
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_nlink < 2) {
        return false;
    }
    snprintf(directory, sizeof directory, "%.*s/", slash ? (int)(slash - path) : 1,
             slash ? path : ".");
    return stat(directory, &st) != 0 || !is_safe(&st);
}

static int result_of(long fd) {
    return fd < 0 ? -errno : (int)fd;
}

static int open_without_links(const char *path) {
    struct open_how how = {.flags = (unsigned)flags, .mode = MODE, .resolve = RESOLVE_NO_SYMLINKS};
    const int fd = result_of(syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how));
    return fd == -ENOSYS || fd == -EPERM /* before Linux 5.6; some sandboxes */
               ? result_of(open(path, flags | O_NOFOLLOW, MODE))
               : fd;
}

int dm_append_open(const char *path) {
    if (geteuid() != 0) {
        return result_of(open(path, flags, MODE));
    }
    int fd = open_without_links(path);
    if (fd == -ELOOP && is_safe_path(path)) {
        fd = result_of(open(path, flags, MODE));
    }
    if (fd >= 0 && is_foreign_link(fd, path)) {
        close(fd);
        return -EMLINK;
    }
    return fd;
}

const char *dm_append_why(int error) {
    switch (error) {
    case -ELOOP:
        return "there is a symbolic link in the path that another user may change, which is not "
               "followed as root: name the file that it leads to";
    case -EMLINK:
        return "the file has several names, in a directory that another user may write, and is "
               "not opened as root: remove it";
    default:
        return NULL;
    }
}
