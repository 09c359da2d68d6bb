/* lua/io.c: table of contents of input and output, and what its binding files share. */
#include "lua/io.h"

int dm_lua_fail_why(lua_State *L, int error, const char *what, const char *why) {
    if (why == NULL) {
        return dm_lua_fail(L, error, what);
    }
    lua_pushnil(L);
    lua_pushfstring(L, "%s: %s", what, why);
    lua_pushstring(L, uv_err_name(error));
    return 3;
}

int dm_lua_closed(lua_State *L) {
    lua_pushnil(L);
    lua_pushliteral(L, "closed");
    lua_pushliteral(L, "EBADF");
    return 3;
}

void dm_lua_drop(lua_State *L, int *ref) {
    luaL_unref(L, LUA_REGISTRYINDEX, *ref);
    *ref = LUA_NOREF;
}

void dm_lua_keep(lua_State *L, int index, int *ref) {
    if (!lua_isnoneornil(L, index)) {
        luaL_checktype(L, index, LUA_TFUNCTION);
    }
    dm_lua_drop(L, ref);
    if (lua_isnoneornil(L, index)) {
        return;
    }
    lua_pushvalue(L, index);
    *ref = luaL_ref(L, LUA_REGISTRYINDEX);
}

void dm_lua_new_type(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction gc) {
    luaL_newmetatable(L, name);
    lua_newtable(L);
    luaL_register(L, NULL, methods);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}

void dm_lua_open_io(lua_State *L) {
    dm_lua_open_files(L);
    dm_lua_open_sink(L);
    dm_lua_open_notify(L);
    dm_lua_open_stream(L);
    dm_lua_open_dial(L);
    dm_lua_open_terminal(L);
}
