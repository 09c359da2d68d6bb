/* worker/wire_binding.c: the worker's end of the channel and what it does with the sockets that
 * arrive on it, private to the modules of lua/worker. Nothing here blocks: readiness comes from a
 * uv_poll of the worker's loop. Descriptors are plain numbers; who closes them is written in those
 * modules. */
#include "worker/wire_binding.h"

#include "base/fdpass.h"
#include "lua/support.h"
#include "net/address.h"

#include <fcntl.h>
#include <unistd.h>

/* One read takes what a socket usually holds; longer lines take several. */
enum { RECEIVE_BYTES = 64 * 1024 };

/* open(fd): makes the channel ours alone: O_NONBLOCK, and closed at exec. */
static int l_open(lua_State *L) {
    const int fd = luaL_checkint(L, 1), flags = fcntl(fd, F_GETFL);
    const bool is_open = flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 &&
                         fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
    return dm_lua_result(L, is_open ? 0 : -errno, NULL);
}

/* send(fd, data, first, pass): sends data from byte `first` on -> bytes sent. The descriptor `pass`
 * rides on the first of them. */
static int l_send(lua_State *L) {
    size_t size;
    const int fd = luaL_checkint(L, 1);
    const char *data = luaL_checklstring(L, 2, &size);
    const size_t first = (size_t)luaL_optinteger(L, 3, 1);
    const int pass = luaL_optint(L, 4, -1);
    luaL_argcheck(L, first >= 1 && first <= size, 3, "outside the data");
    struct iovec part = {(void *)(uintptr_t)(data + first - 1), size - first + 1};
    return dm_lua_result_integer(L, (int)dm_fdpass_send(fd, &part, 1, &pass, pass >= 0), NULL);
}

/* receive(fd) -> data, nil or list of descriptors; false at the end of the stream */
static int l_receive(lua_State *L) {
    int fds[DM_FDPASS_MAX];
    size_t count;
    const int fd = luaL_checkint(L, 1);
    char *data = lua_newuserdata(L, RECEIVE_BYTES);
    const ssize_t received = dm_fdpass_receive(fd, data, RECEIVE_BYTES, fds, &count, NULL);
    if (received < 0) {
        return dm_lua_fail(L, (int)received, NULL);
    }
    if (received == 0) {
        lua_pushboolean(L, 0);
        return 1;
    }
    lua_pushlstring(L, data, (size_t)received);
    if (count == 0) {
        return 1;
    }
    dm_lua_push_integers(L, fds, count);
    return 2;
}

static int l_listen(lua_State *L) {
    const int rc = listen(luaL_checkint(L, 1), luaL_checkint(L, 2));
    return dm_lua_result(L, rc == 0 ? 0 : -errno, NULL);
}

static int l_is_listening(lua_State *L) {
    lua_pushboolean(L, dm_socket_option(luaL_checkint(L, 1), SOL_SOCKET, SO_ACCEPTCONN) > 0);
    return 1;
}

/* accept(fd) -> descriptor, non-blocking */
static int l_accept(lua_State *L) {
    const int fd = accept4(luaL_checkint(L, 1), NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    return dm_lua_result_integer(L, fd < 0 ? -errno : fd, NULL);
}

static int l_duplicate(lua_State *L) {
    const int copy = fcntl(luaL_checkint(L, 1), F_DUPFD_CLOEXEC, 3);
    return dm_lua_result_integer(L, copy < 0 ? -errno : copy, NULL);
}

static int l_close(lua_State *L) {
    const int fd = luaL_checkint(L, 1);
    luaL_argcheck(L, fd > 2, 1, "a standard descriptor");
    close(fd);
    return 0;
}

/* name(fd) -> the host, or the path, and the port that it is bound to */
static int l_name(lua_State *L) {
    struct dm_address address;
    char host[DM_ADDRESS_TEXT];
    const int error = dm_address_of(luaL_checkint(L, 1), &address);
    if (error) {
        return dm_lua_fail(L, error, NULL);
    }
    dm_address_host(&address, host);
    lua_pushstring(L, host);
    lua_pushinteger(L, dm_address_port(&address));
    return 2;
}

int dm_lua_open_wire(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"open", l_open},
        {"send", l_send},
        {"receive", l_receive},
        {"listen", l_listen},
        {"is_listening", l_is_listening},
        {"accept", l_accept},
        {"duplicate", l_duplicate},
        {"close", l_close},
        {"name", l_name},
        {NULL, NULL},
    };
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
