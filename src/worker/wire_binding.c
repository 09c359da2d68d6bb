/* worker/wire_binding.c: binding of wire.h, private to the modules of lua/worker. Descriptors are
 * plain numbers here; who closes them is written in those modules. */
#include "worker/wire_binding.h"

#include "lua/support.h"
#include "worker/wire.h"

#include <lauxlib.h>
#include <unistd.h>
#include <uv.h>

/* One read takes what a socket usually holds; longer lines take several. */
enum { RECEIVE_BYTES = 64 * 1024 };

static int result(lua_State *L, int code) {
    return dm_lua_result(L, code < 0 ? code : 0, NULL);
}

static int l_open(lua_State *L) {
    return result(L, dm_wire_open(luaL_checkint(L, 1)));
}

/* send(fd, data, first, pass): sends data from byte `first` on -> bytes sent */
static int l_send(lua_State *L) {
    size_t size;
    int fd = luaL_checkint(L, 1);
    const char *data = luaL_checklstring(L, 2, &size);
    size_t first = (size_t)luaL_optinteger(L, 3, 1);
    luaL_argcheck(L, first >= 1 && first <= size, 3, "outside the data");
    int sent = dm_wire_send(fd, data + first - 1, size - first + 1, luaL_optint(L, 4, -1));
    if (sent < 0) {
        return dm_lua_fail(L, sent, NULL);
    }
    lua_pushinteger(L, sent);
    return 1;
}

/* receive(fd) -> data, nil or list of descriptors; false at the end of the stream */
static int l_receive(lua_State *L) {
    int fds[DM_FDPASS_MAX];
    size_t count;
    int fd = luaL_checkint(L, 1);
    char *data = lua_newuserdata(L, RECEIVE_BYTES);
    int received = dm_wire_receive(fd, data, RECEIVE_BYTES, fds, &count);
    if (received == UV_EOF) {
        lua_pushboolean(L, 0);
        return 1;
    }
    if (received < 0) {
        return dm_lua_fail(L, received, NULL);
    }
    lua_pushlstring(L, data, (size_t)received);
    if (count == 0) {
        return 1;
    }
    lua_createtable(L, (int)count, 0);
    for (size_t i = 0; i < count; i++) {
        lua_pushinteger(L, fds[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 2;
}

static int l_listen(lua_State *L) {
    return result(L, dm_wire_listen(luaL_checkint(L, 1), luaL_checkint(L, 2)));
}

static int l_is_listening(lua_State *L) {
    lua_pushboolean(L, dm_wire_is_listening(luaL_checkint(L, 1)));
    return 1;
}

static int l_duplicate(lua_State *L) {
    int copy = dm_wire_duplicate(luaL_checkint(L, 1));
    if (copy < 0) {
        return dm_lua_fail(L, copy, NULL);
    }
    lua_pushinteger(L, copy);
    return 1;
}

static int l_close(lua_State *L) {
    int fd = luaL_checkint(L, 1);
    luaL_argcheck(L, fd > 2, 1, "a standard descriptor");
    close(fd);
    return 0;
}

/* name(fd) -> family, address, port */
static int l_name(lua_State *L) {
    struct dm_wire_name name;
    int code = dm_wire_name(luaL_checkint(L, 1), &name);
    if (code < 0) {
        return dm_lua_fail(L, code, NULL);
    }
    lua_pushstring(L, name.family);
    lua_pushstring(L, name.address);
    lua_pushinteger(L, name.port);
    return 3;
}

int dm_lua_open_wire(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"open", l_open},
        {"send", l_send},
        {"receive", l_receive},
        {"listen", l_listen},
        {"is_listening", l_is_listening},
        {"duplicate", l_duplicate},
        {"close", l_close},
        {"name", l_name},
        {NULL, NULL},
    };
    lua_newtable(L);
    for (const luaL_Reg *entry = functions; entry->name; entry++) {
        lua_pushcfunction(L, entry->func);
        lua_setfield(L, -2, entry->name);
    }
    return 1;
}
