/* lua/files.c: core.realpath, stat, access, read_file, runtime_dir; the objects
 * core.lock(path) and core.pid_file(path), both with close(). */
#include "service/files.h"
#include "base/claim.h"
#include "base/close.h"
#include "base/identity.h"
#include "lua/open.h"
#include "lua/support.h"
#include "service/append.h"
#include "service/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOCK "dutch-master.lock"
#define CLAIM "dutch-master.claim"
#define PID_FILE "dutch-master.pid_file"

int core_realpath(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    char real[PATH_MAX];
    if (realpath(path, real) == NULL) {
        return dm_lua_fail(L, -errno, path);
    }
    lua_pushstring(L, real);
    return 1;
}

static const char *type_of(mode_t mode) {
    return S_ISREG(mode)    ? "file"
           : S_ISDIR(mode)  ? "directory"
           : S_ISSOCK(mode) ? "socket"
           : S_ISFIFO(mode) ? "fifo"
           : S_ISCHR(mode)  ? "char"
           : S_ISBLK(mode)  ? "block"
                            : "unknown";
}

static int push_stat(lua_State *L, const struct stat *st) {
    lua_createtable(L, 0, 8);
    dm_lua_set_string(L, "type", type_of(st->st_mode));
    dm_lua_set_number(L, "mode", st->st_mode & 07777);
    dm_lua_set_number(L, "uid", st->st_uid);
    dm_lua_set_number(L, "gid", st->st_gid);
    dm_lua_set_number(L, "size", (lua_Number)st->st_size);
    dm_lua_set_number(L, "dev", (lua_Number)st->st_dev);
    dm_lua_set_id(L, "ino", st->st_ino);
    dm_lua_set_number(L, "mtime",
                      (lua_Number)st->st_mtim.tv_sec + (lua_Number)st->st_mtim.tv_nsec / 1e9);
    return 1;
}

/* When the file was made, where its file system keeps that: with dev and ino it names one file for
 * ever, while ino alone is given to another when the file is gone. */
static void set_birth(lua_State *L, const char *path) {
    struct statx stx;
    char text[48];
    if (statx(AT_FDCWD, path, 0, STATX_BTIME, &stx) == 0 && (stx.stx_mask & STATX_BTIME) != 0) {
        (void)snprintf(text, sizeof text, "%lld.%09u", (long long)stx.stx_btime.tv_sec,
                       (unsigned)stx.stx_btime.tv_nsec);
        dm_lua_set_string(L, "born", text);
    }
}

int core_stat(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    struct stat st;
    if (stat(path, &st) < 0) {
        return dm_lua_fail(L, -errno, path);
    }
    push_stat(L, &st);
    set_birth(L, path);
    return 1;
}

int core_access(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    const char *mode = luaL_optstring(L, 2, "");
    int wanted = F_OK;
    for (const char *c = mode; *c != '\0'; c++) {
        luaL_argcheck(L, strchr("rwx", *c) != NULL, 2, "made of r, w, x");
        wanted |= *c == 'r' ? R_OK : *c == 'w' ? W_OK : X_OK;
    }
    return dm_lua_result(L, eaccess(path, wanted) < 0 ? -errno : 0, path);
}

static int check_regular(int fd, size_t max) {
    struct stat st;
    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    if (!S_ISREG(st.st_mode)) {
        return S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL;
    }
    return st.st_size > 0 && (size_t)st.st_size > max ? -EFBIG : 0;
}

/* read_file(path, max): the whole of a regular file, whatever size it claims to have; EFBIG beyond
 * max bytes. */
int core_read_file(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    const lua_Number max = luaL_checknumber(L, 2);
    luaL_argcheck(L, max >= 0 && max <= 1e9, 2, "bytes");
    /* O_NONBLOCK: a FIFO in this place must not hang us before we have seen that it is one. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        return dm_lua_fail(L, -errno, path);
    }
    luaL_Buffer text;
    size_t size = 0;
    ssize_t n = 0;
    int err = check_regular(fd, (size_t)max);
    luaL_buffinit(L, &text);
    while (err == 0 && (n = read(fd, luaL_prepbuffer(&text), LUAL_BUFFERSIZE)) > 0) {
        luaL_addsize(&text, (size_t)n);
        size += (size_t)n;
        err = size > (size_t)max ? -EFBIG : 0;
    }
    err = n < 0 ? -errno : err;
    close(fd);
    if (err != 0) {
        return dm_lua_fail(L, err, path);
    }
    luaL_pushresult(&text);
    return 1;
}

int core_runtime_dir(lua_State *L) {
    char path[PATH_MAX] = "run-time directory";
    const char *why;
    int err = dm_runtime_dir(path, sizeof path, false, &why);
    if (err != 0) {
        return dm_lua_fail_why(L, err, path, why);
    }
    lua_pushstring(L, path);
    return 1;
}

/* lock(path [, fd]): fd is that of a master that has died, who held it. */
int core_lock(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    const int fd = luaL_optint(L, 2, -1);
    struct dm_lock **object = dm_lua_new(L, sizeof *object, LOCK);
    struct dm_lock *lock;
    pid_t holder = 0;
    const char *why = NULL;
    int err = fd >= 0 ? dm_lock_resume(path, fd, &lock) : dm_lock_open(path, &lock, &holder, &why);
    if (err == 0) {
        *object = lock;
        return 1;
    }
    if (err != -EAGAIN) {
        return dm_lua_fail_why(L, err, path, why);
    }
    if (holder <= 0) {
        return dm_lua_fail_why(L, err, path, "held by another process");
    }
    dm_lua_fail_why(L, err, path, lua_pushfstring(L, "held by process %d", (int)holder));
    lua_pushinteger(L, holder);
    return 4;
}

static int l_lock_fd(lua_State *L) {
    struct dm_lock **object = luaL_checkudata(L, 1, LOCK);
    return dm_lua_result_integer(L, *object ? (*object)->fd : -EBADF, NULL);
}

static int l_lock_close(lua_State *L) {
    struct dm_lock **object = luaL_checkudata(L, 1, LOCK);
    if (*object != NULL) {
        dm_lock_close(*object);
    }
    *object = NULL;
    return 0;
}

/* claim(name [, fd]): held by one process of this user at a time, see base/claim.h. */
int core_claim(lua_State *L) {
    const char *name = luaL_checkstring(L, 1);
    pid_t holder;
    const int held = luaL_optint(L, 2, -1);
    int *fd = dm_lua_new(L, sizeof *fd, CLAIM);
    *fd = held;
    if (held >= 0) {
        dm_claim_resume(held);
        return 1;
    }
    const int error = dm_claim(name, fd, &holder);
    if (error == 0) {
        return 1;
    }
    return dm_lua_fail_why(
        L, error, NULL,
        holder > 0 ? lua_pushfstring(L, "held by process %d", (int)dm_identity_of(holder))
                   : "held by another process");
}

static int l_claim_fd(lua_State *L) {
    const int *fd = luaL_checkudata(L, 1, CLAIM);
    lua_pushinteger(L, *fd);
    return 1;
}

static int l_claim_close(lua_State *L) {
    int *fd = luaL_checkudata(L, 1, CLAIM);
    dm_close(fd);
    return 0;
}

int core_pid_file(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    void **object = dm_lua_new(L, sizeof *object, PID_FILE);
    struct dm_pid_file *file;
    const char *why;
    int err = dm_pid_file_open(path, &file, &why);
    if (err != 0) {
        return dm_lua_fail_why(L, err, path, why);
    }
    *object = file;
    return 1;
}

static int l_pid_file_close(lua_State *L) {
    void **object = luaL_checkudata(L, 1, PID_FILE);
    if (*object != NULL) {
        dm_pid_file_close(*object);
    }
    *object = NULL;
    return 0;
}

/* reopen_append(fd, path): fd is the file that the path names now. On failure it stays what it was.
 */
int core_reopen_append(lua_State *L) {
    const int fd = luaL_checkint(L, 1);
    const char *path = luaL_checkstring(L, 2);
    int fresh = dm_open_append(path);
    if (fresh < 0) {
        return dm_lua_fail_why(L, fresh, path, dm_append_why(fresh));
    }
    const int err = dup3(fresh, fd, O_CLOEXEC) < 0 ? -errno : 0;
    close(fresh);
    return dm_lua_result(L, err, path);
}

/* trust_owner_of(path): for open_append and sink, see dm_append_trust. */
int core_trust_owner_of(lua_State *L) {
    struct stat st;
    if (stat(luaL_checkstring(L, 1), &st) == 0) {
        dm_append_trust(st.st_uid, st.st_gid);
    }
    return 0;
}

int core_open_append(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    int fd = dm_open_append(path);
    if (fd < 0) {
        return dm_lua_fail_why(L, fd, path, dm_append_why(fd));
    }
    lua_pushinteger(L, fd);
    return 1;
}

static const luaL_Reg lock_methods[] = {{"fd", l_lock_fd}, {"close", l_lock_close}, {NULL, NULL}};
static const luaL_Reg claim_methods[] = {
    {"fd", l_claim_fd}, {"close", l_claim_close}, {NULL, NULL}};
static const luaL_Reg pid_file_methods[] = {{"close", l_pid_file_close}, {NULL, NULL}};

void dm_lua_open_files(lua_State *L) {
    dm_lua_new_type(L, LOCK, lock_methods, l_lock_close);
    dm_lua_new_type(L, CLAIM, claim_methods, l_claim_close);
    dm_lua_new_type(L, PID_FILE, pid_file_methods, l_pid_file_close);
}
