/* lua/descriptors.c: core.close_fd, copy_listener, quiet_ms, holders, group_has, inherit, bound,
 * untouched: what is known of a bare descriptor. */
#include "base/close.h"
#include "lua/address.h"
#include "lua/open.h"
#include "lua/support.h"
#include "net/holder.h"
#include "net/strangers.h"
#include "net/untouched.h"

#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* copy_listener(pidfd, number): that descriptor of another process, if it is a socket that listens:
 * -> {fd, address, inode, reuseport = others may have the address too} | nil, message, code */
int core_copy_listener(lua_State *L) {
    struct dm_address address;
    struct stat found;
    const int fd =
        (int)syscall(SYS_pidfd_getfd, luaL_checkint(L, 1), luaL_checkint(L, 2), 0); /* CLOEXEC */
    if (fd < 0) {
        return dm_lua_fail(L, -errno, "socket of another process");
    }
    if (dm_socket_option(fd, SOL_SOCKET, SO_ACCEPTCONN) <= 0 || dm_address_of(fd, &address) != 0 ||
        fstat(fd, &found) != 0) {
        close(fd);
        return dm_lua_fail(L, -ENOTSOCK, "descriptor of another process");
    }
    lua_createtable(L, 0, 4);
    dm_lua_set_number(L, "fd", fd);
    dm_lua_set_number(L, "inode", (double)found.st_ino);
    dm_lua_set_boolean(L, "reuseport", dm_socket_option(fd, SOL_SOCKET, SO_REUSEPORT) > 0);
    dm_lua_push_address(L, &address);
    lua_setfield(L, -2, "address");
    return 1;
}

int core_close_fd(lua_State *L) {
    int fd = luaL_checkint(L, 1);
    luaL_argcheck(L, fd > 2, 1, "not one of 0, 1, 2");
    const int error = fcntl(fd, F_GETFD) < 0 ? -EBADF : 0;
    dm_close_foreign(&fd);
    return dm_lua_result(L, error, NULL);
}

/* quiet_ms(fd): how long nothing has come from the peer of a TCP connection. */
int core_quiet_ms(lua_State *L) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    memset(&info, 0, sizeof info);
    if (getsockopt(luaL_checkint(L, 1), IPPROTO_TCP, TCP_INFO, &info, &size) != 0) {
        return dm_lua_fail(L, -errno, NULL);
    }
    lua_pushinteger(L, info.tcpi_last_ack_recv);
    return 1;
}

/* holders(inodes): the processes that have one of these sockets: { pid, name, group }, the first
 * ones. Reads all of /proc. */
int core_holders(lua_State *L) {
    enum { ROOM = 16 };
    struct dm_holder list[ROOM];
    unsigned long inodes[DM_STRANGERS];
    size_t count = 0;
    luaL_checktype(L, 1, LUA_TTABLE);
    for (; count < lua_objlen(L, 1) && count < DM_STRANGERS; count++) {
        lua_rawgeti(L, 1, (int)count + 1);
        inodes[count] = (unsigned long)luaL_checknumber(L, -1);
        lua_pop(L, 1);
    }
    count = dm_holder_list(inodes, count, list, ROOM);
    lua_createtable(L, (int)count, 0);
    for (size_t i = 0; i < count; i++) {
        lua_createtable(L, 0, 3);
        dm_lua_set_number(L, "pid", list[i].pid);
        dm_lua_set_number(L, "group", list[i].group);
        dm_lua_set_string(L, "name", list[i].name);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

/* group_has(group, fd): whether some process of a group has the socket that is our `fd`; nil where
 * that cannot be seen. Reads all of /proc. */
int core_group_has(lua_State *L) {
    struct stat found;
    const pid_t group = (pid_t)luaL_checkinteger(L, 1);
    if (fstat(luaL_checkint(L, 2), &found) != 0) {
        return dm_lua_fail(L, -errno, NULL);
    }
    return dm_lua_result_maybe(L, dm_holder_group_has(group, (unsigned long)found.st_ino));
}

/* bound(fd) -> the address of a socket, whether it is one of a SO_REUSEPORT group; nil: it is none,
 * or bound to nothing. */
int core_bound(lua_State *L) {
    struct dm_address address;
    const int fd = luaL_checkint(L, 1);
    if (dm_address_of(fd, &address) != 0) {
        return 0;
    }
    dm_lua_push_address(L, &address);
    lua_pushboolean(L, dm_socket_option(fd, SOL_SOCKET, SO_REUSEPORT) > 0);
    return 2;
}

/* untouched(fd): whether nobody has begun to serve a TCP connection; nil: it is none. */
int core_untouched(lua_State *L) {
    return dm_lua_result_maybe(L, dm_untouched(luaL_checkint(L, 1)));
}

/* inherit(count): so many descriptors from 3 on were passed to this program. They become CLOEXEC,
 * and the variables that speak of them go in any case, so that no child sees them. */
int core_inherit(lua_State *L) {
    static const char *const variables[] = {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
                                            "LISTEN_PIDFDID"};
    const int end = 3 + luaL_checkint(L, 1);
    int error = 0;
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        unsetenv(variables[i]);
    }
    for (int fd = 3; fd < end && !error; fd++) {
        error = fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 ? 0 : -errno;
    }
    return dm_lua_result(L, error, NULL);
}
