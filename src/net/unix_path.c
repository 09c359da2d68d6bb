/* unix_path.c: see unix_path.h. The functions named *_work may run in another process, with another
 * user's rights: what they find out is in their struct, what they open in `fds`. */
#include "net/unix_path.h"

#include "base/close.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

/* ".NAME.dutch-master.new" */
enum { TWIN_MAX = NAME_MAX + 1 };

/* A path that is too long for a socket's address is reached through its directory. */
static int address_in(int directory, const char *name, const struct dm_address *address,
                      struct sockaddr_un *out, socklen_t *length) {
    if (address->length > 0) {
        *out = address->u.un;
        *length = address->length;
        return 0;
    }
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    const int used =
        snprintf(out->sun_path, sizeof out->sun_path, "/proc/self/fd/%d/%s", directory, name);
    *length = sizeof *out;
    return used < (int)sizeof out->sun_path ? 0 : -ENAMETOOLONG;
}

/* ---- binding ---- */

/* 0 if a process listens behind the path, else why not. Only "refused" proves that none does. */
static int ask(const struct sockaddr_un *address, socklen_t length, int type) {
    const int fd = socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    const int error = connect(fd, (const struct sockaddr *)address, length) == 0 ? 0 : -errno;
    close(fd);
    return error;
}

/* Removes what a dead process of ours left there. */
static int clear(int directory, const char *name, const struct sockaddr_un *address,
                 socklen_t length, const struct dm_binding *b) {
    struct stat st;
    if (fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        return errno == ENOENT ? 0 : -errno;
    }
    if (!S_ISSOCK(st.st_mode)) {
        return -EEXIST;
    }
    const int answer = ask(address, length, b->address.type);
    const bool is_ours = st.st_uid == geteuid() || st.st_uid == b->us;
    if (!is_ours && (answer == -ECONNREFUSED || answer == -EACCES)) {
        return -EPERM;
    }
    if (answer != -ECONNREFUSED && answer != -ENOENT) {
        return -EADDRINUSE;
    }
    return unlinkat(directory, name, 0) == 0 || errno == ENOENT ? 0 : -errno;
}

static bool twin_name(const char *name, char out[TWIN_MAX]) {
    const int used = snprintf(out, TWIN_MAX, ".%s.dutch-master", name);
    return used < TWIN_MAX - (int)sizeof ".new";
}

static bool make_twin(int directory, const char *name) {
    char twin[TWIN_MAX];
    struct stat st;
    if (!twin_name(name, twin)) {
        return false;
    }
    /* `name` was free or stale, so a twin of that name is a dead master's. */
    if (fstatat(directory, twin, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISSOCK(st.st_mode)) {
        unlinkat(directory, twin, 0);
    }
    return linkat(directory, name, directory, twin, 0) == 0;
}

static mode_t mask_for(int mode, mode_t before) {
    if (mode < 0) {
        return before;
    }
    return (mode & DM_MODE_ADDS ? before : 0777) & ~(mode_t)mode;
}

static int bind_socket(int fd, const struct sockaddr_un *address, socklen_t length,
                       const struct dm_binding *b) {
    const mode_t before = umask(0);
    umask(mask_for(b->mode, before));
    int error = bind(fd, (const struct sockaddr *)address, length) == 0 ? 0 : -errno;
    umask(before);
    if (!error && b->listens && b->address.type == SOCK_STREAM && listen(fd, b->backlog) != 0) {
        error = -errno;
    }
    return error;
}

static int bind_in(int directory, const char *name, struct dm_binding *b, int fds[DM_RIGHTS_FDS]) {
    struct sockaddr_un address;
    socklen_t length;
    struct stat st;
    int error = address_in(directory, name, &b->address, &address, &length);
    if (!error) {
        error = clear(directory, name, &address, length, b);
    }
    if (error) {
        return error;
    }
    fds[0] = socket(AF_UNIX, b->address.type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fds[0] < 0) {
        return -errno;
    }
    error = bind_socket(fds[0], &address, length, b);
    if (!error &&
        (fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISSOCK(st.st_mode))) {
        error = -ENOENT; /* the path led elsewhere, or somebody was quicker */
    }
    if (!error && (b->owner != (uid_t)-1 || b->group != (gid_t)-1) &&
        fchownat(directory, name, b->owner, b->group, AT_SYMLINK_NOFOLLOW) != 0) {
        error = -errno;
        unlinkat(directory, name, 0);
    }
    if (!error) {
        b->device = st.st_dev;
        b->inode = st.st_ino;
        b->has_twin = make_twin(directory, name);
    }
    return error;
}

/* Of a file system that a user's own process serves, every answer may be late. */
static bool is_users(int directory) {
    struct statfs fs;
    return fstatfs(directory, &fs) != 0 || (unsigned long)fs.f_type == FUSE_SUPER_MAGIC;
}

int dm_unix_path_bind(void *ctx, int fds[DM_RIGHTS_FDS]) {
    struct dm_binding *b = ctx;
    char path[DM_PATH_MAX + 1];
    strcpy(path, b->address.path);
    char *slash = strrchr(path, '/');
    char *name = slash + 1;
    char in_root[] = "/";
    *slash = '\0';
    const int directory = open(slash == path ? in_root : path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) {
        return -errno;
    }
    const int error = *name == '\0' ? -EISDIR : bind_in(directory, name, b, fds);
    if (error) {
        close(directory);
        dm_close(&fds[0]);
        return error;
    }
    b->theirs = is_users(directory);
    fds[1] = directory;
    return 0;
}

struct dm_binding dm_unix_path_binding(const struct dm_address *address, int mode, int backlog,
                                       const struct dm_rights *rights) {
    const bool theirs = dm_rights_matter(rights);
    struct dm_binding binding = {.address = *address,
                                 .mode = mode,
                                 .backlog = backlog,
                                 .owner = (uid_t)-1,
                                 .group = (gid_t)-1,
                                 .listens = theirs && !rights->owner_only,
                                 .us = theirs ? rights->uid : geteuid()};
    if (rights && rights->owner_only && geteuid() != 0) { /* one of our groups, at most */
        binding.owner = rights->uid != geteuid() ? rights->uid : (uid_t)-1;
        binding.group = rights->gid != getegid() ? rights->gid : (gid_t)-1;
    }
    return binding;
}

int dm_unix_path_open(struct dm_unix_path *self, const struct dm_binding *bound, int directory,
                      const struct dm_rights *rights, struct dm_helpers *helpers) {
    char twin[TWIN_MAX];
    const char *name = strrchr(bound->address.path, '/') + 1;
    *self = (struct dm_unix_path){
        .directory = directory, .device = bound->device, .inode = bound->inode, .helpers = helpers};
    self->has_rights = dm_rights_matter(rights) && !rights->owner_only;
    if (self->has_rights) {
        self->rights = *rights;
        self->theirs = bound->theirs;
    }
    self->name = strdup(name);
    self->twin = bound->has_twin && twin_name(name, twin) ? strdup(twin) : NULL;
    if (self->name && (self->twin || !bound->has_twin)) {
        return 0;
    }
    dm_unix_path_close(self);
    return -ENOMEM;
}

void dm_unix_path_resume(struct dm_unix_path *self, const struct dm_address *address,
                         const struct dm_rights *rights, dev_t device, ino_t inode,
                         struct dm_helpers *helpers) {
    struct dm_binding bound = {.address = *address, .device = device, .inode = inode};
    char path[DM_PATH_MAX + 1], twin[TWIN_MAX];
    struct stat st;
    strcpy(path, address->path);
    char *slash = strrchr(path, '/');
    slash[slash == path] = '\0';
    *self = (struct dm_unix_path){.directory = -1};
    const int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) {
        return;
    }
    bound.theirs = is_users(directory);
    bound.has_twin = !bound.theirs && twin_name(strrchr(address->path, '/') + 1, twin) &&
                     fstatat(directory, twin, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
                     st.st_ino == inode && st.st_dev == device;
    (void)dm_unix_path_open(self, &bound, directory, rights, helpers);
}

/* ---- looking after it ---- */

static bool leads_to_us(const struct dm_unix_path *self, const char *name) {
    struct statx st;
    /* Not asked of a file system that somebody has mounted there meanwhile. */
    return statx(self->directory, name, AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC, STATX_INO, &st) ==
               0 &&
           makedev(st.stx_dev_major, st.stx_dev_minor) == self->device && st.stx_ino == self->inode;
}

static int repair_work(void *ctx, int fds[DM_RIGHTS_FDS]) {
    const struct dm_unix_path *self = ctx;
    struct stat st;
    char fresh[TWIN_MAX];
    if (!self->twin || !leads_to_us(self, self->twin)) {
        return -ENOENT;
    }
    if (fstatat(self->directory, self->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
        !S_ISSOCK(st.st_mode)) {
        return -EEXIST;
    }
    /* rename between two links of one inode does nothing, so the link that moves is a third one. */
    snprintf(fresh, sizeof fresh, "%s.new", self->twin);
    unlinkat(self->directory, fresh, 0);
    if (linkat(self->directory, self->twin, self->directory, fresh, 0) != 0) {
        return -errno;
    }
    const int error =
        renameat(self->directory, fresh, self->directory, self->name) == 0 ? 0 : -errno;
    if (error) {
        unlinkat(self->directory, fresh, 0);
    }
    return error;
}

static int remove_work(void *ctx, int fds[DM_RIGHTS_FDS]) {
    const struct dm_unix_path *self = ctx;
    if (leads_to_us(self, self->name)) {
        unlinkat(self->directory, self->name, 0);
    }
    if (self->twin && leads_to_us(self, self->twin)) {
        unlinkat(self->directory, self->twin, 0);
    }
    return 0;
}

static void on_repaired(void *data, int result, void *ctx, int fds[DM_RIGHTS_FDS]) {
    struct dm_unix_path *self = data;
    void (*settled)(void *) = self->on_settled;
    self->repair = NULL;
    self->outcome = result == 0 ? DM_PATH_REPAIRED : DM_PATH_LOST;
    self->on_settled = NULL;
    if (settled) {
        settled(self->data);
    }
}

static enum dm_path_state repair(struct dm_unix_path *self) {
    const struct dm_helper_work work = {repair_work,     self,        sizeof *self,
                                        self->directory, on_repaired, self};
    const struct dm_rights_work at_once = {repair_work, self, sizeof *self, self->directory};
    int fds[DM_RIGHTS_FDS] = {-1, -1};
    if (!self->has_rights) {
        return repair_work(self, fds) == 0 ? DM_PATH_REPAIRED : DM_PATH_LOST;
    }
    if (!self->helpers) {
        return dm_rights_run(&self->rights, &at_once, fds) == 0 ? DM_PATH_REPAIRED : DM_PATH_LOST;
    }
    return dm_helper_start(self->helpers, &self->rights, &work, &self->repair) == 0
               ? DM_PATH_BEING_REPAIRED
               : DM_PATH_LOST;
}

enum dm_path_state dm_unix_path_look(struct dm_unix_path *self) {
    const enum dm_path_state outcome = self->outcome;
    if (self->repair) {
        return DM_PATH_BEING_REPAIRED;
    }
    if (outcome != DM_PATH_INTACT) {
        self->outcome = DM_PATH_INTACT;
        return outcome;
    }
    if (self->directory < 0 || self->theirs || leads_to_us(self, self->name)) {
        return DM_PATH_INTACT;
    }
    return repair(self);
}

bool dm_unix_path_await(struct dm_unix_path *self, void (*on_settled)(void *data), void *data) {
    if (self->repair) {
        self->on_settled = on_settled;
        self->data = data;
    }
    return self->repair != NULL;
}

static void remove_name(struct dm_unix_path *self) {
    const struct dm_helper_work work = {remove_work,     self, sizeof *self,
                                        self->directory, NULL, NULL};
    const struct dm_rights_work at_once = {remove_work, self, sizeof *self, self->directory};
    int fds[DM_RIGHTS_FDS] = {-1, -1};
    if (!self->has_rights) {
        remove_work(self, fds);
    } else if (!self->helpers || dm_helper_start(self->helpers, &self->rights, &work, NULL) != 0) {
        dm_rights_run(&self->rights, &at_once, fds);
    }
}

void dm_unix_path_close(struct dm_unix_path *self) {
    void (*settled)(void *) = self->on_settled;
    void *data = self->data;
    if (self->repair) {
        dm_helper_forget(self->repair);
    }
    if (self->directory >= 0 && self->name) {
        remove_name(self);
    }
    dm_close(&self->directory);
    free(self->name);
    free(self->twin);
    *self = (struct dm_unix_path){.directory = -1};
    if (settled) {
        settled(data);
    }
}
