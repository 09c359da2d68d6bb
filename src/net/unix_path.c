/* unix_path.c: see unix_path.h. */
#include "net/unix_path.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Whether a process listens behind the path. Only "refused" proves that none does. */
static bool answers(const char *path, int type) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return true;
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    const int rc = connect(fd, (struct sockaddr *)&address, sizeof address);
    const bool refused = rc != 0 && (errno == ECONNREFUSED || errno == ENOENT);
    close(fd);
    return !refused;
}

int dm_unix_path_clear(const char *path, int type) {
    struct stat st;
    if (lstat(path, &st) != 0) {
        return errno == ENOENT ? 0 : -errno;
    }
    if (!S_ISSOCK(st.st_mode)) {
        return -EEXIST;
    }
    if (answers(path, type)) {
        return -EADDRINUSE;
    }
    return unlink(path) == 0 || errno == ENOENT ? 0 : -errno;
}

static bool is_ours(const struct dm_unix_path *self, const char *path) {
    struct stat st;
    return lstat(path, &st) == 0 && st.st_dev == self->device && st.st_ino == self->inode;
}

/* dir/.name.dutch-master */
static char *twin_of(const char *path) {
    const char *name = strrchr(path, '/') + 1;
    char *twin = NULL;
    if (asprintf(&twin, "%.*s.%s.dutch-master", (int)(name - path), path, name) < 0) {
        return NULL;
    }
    return twin;
}

static void make_twin(struct dm_unix_path *self) {
    struct stat st;
    self->twin = twin_of(self->path);
    if (!self->twin) {
        return;
    }
    /* `path` was free or stale, so a twin of that name is a dead master's. */
    if (lstat(self->twin, &st) == 0 && S_ISSOCK(st.st_mode)) {
        unlink(self->twin);
    }
    if (link(self->path, self->twin) != 0) {
        free(self->twin);
        self->twin = NULL;
    }
}

int dm_unix_path_open(struct dm_unix_path *self, const char *path) {
    struct stat st;
    memset(self, 0, sizeof *self);
    if (lstat(path, &st) != 0) {
        return -errno;
    }
    self->path = strdup(path);
    if (!self->path) {
        return -ENOMEM;
    }
    self->device = st.st_dev;
    self->inode = st.st_ino;
    make_twin(self);
    return 0;
}

bool dm_unix_path_intact(const struct dm_unix_path *self) {
    return !self->path || is_ours(self, self->path);
}

int dm_unix_path_repair(struct dm_unix_path *self) {
    struct stat st;
    char *fresh = NULL;
    if (!self->twin || !is_ours(self, self->twin)) {
        return -ENOENT;
    }
    if (lstat(self->path, &st) == 0 && !S_ISSOCK(st.st_mode)) {
        return -EEXIST;
    }
    /* rename between two links of one inode does nothing, so the link that moves is a third one. */
    if (asprintf(&fresh, "%s.new", self->twin) < 0) {
        return -ENOMEM;
    }
    unlink(fresh);
    int error = link(self->twin, fresh) == 0 ? 0 : -errno;
    if (!error && rename(fresh, self->path) != 0) {
        error = -errno;
        unlink(fresh);
    }
    free(fresh);
    return error;
}

void dm_unix_path_close(struct dm_unix_path *self) {
    if (self->path && is_ours(self, self->path)) {
        unlink(self->path);
    }
    if (self->twin && is_ours(self, self->twin)) {
        unlink(self->twin);
    }
    free(self->path);
    free(self->twin);
    memset(self, 0, sizeof *self);
}
