/* lua/open.c: require 'dutch-master.core', the whole of what Lua can ask of C. */
#include "lua/support.h"

#include "base/errors.h"
#include "lua/call.h"

#include <lauxlib.h>

static const char core_key, main_key;

void dm_lua_set_core(lua_State *L, struct dm_core *core) {
    lua_pushlightuserdata(L, (void *)&core_key);
    lua_pushlightuserdata(L, core);
    lua_rawset(L, LUA_REGISTRYINDEX);
    lua_pushlightuserdata(L, (void *)&main_key);
    lua_pushlightuserdata(L, L);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

lua_State *dm_lua_main(lua_State *L) {
    lua_pushlightuserdata(L, (void *)&main_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    lua_State *main = lua_touserdata(L, -1);
    lua_pop(L, 1);
    return main;
}

struct dm_core *dm_lua_core(lua_State *L) {
    lua_pushlightuserdata(L, (void *)&core_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    struct dm_core *core = lua_touserdata(L, -1);
    lua_pop(L, 1);
    return core;
}

uv_loop_t *dm_lua_loop(lua_State *L) {
    return dm_lua_core(L)->loop;
}

int dm_lua_fail(lua_State *L, int error, const char *what) {
    lua_pushnil(L);
    if (what) {
        lua_pushfstring(L, "%s: %s", what, dm_error_text(error));
    } else {
        lua_pushstring(L, dm_error_text(error));
    }
    lua_pushstring(L, dm_error_name(error));
    return 3;
}

static int l_stop(lua_State *L) {
    dm_core_stop(dm_lua_core(L), luaL_optint(L, 1, 0));
    return 0;
}

static int l_on_error(lua_State *L) {
    if (!lua_isnoneornil(L, 1)) {
        luaL_checktype(L, 1, LUA_TFUNCTION);
    }
    lua_settop(L, 1);
    dm_lua_set_error_sink(L, 1);
    return 0;
}

static const luaL_Reg functions[] = {
    {"stop", l_stop},
    {"on_error", l_on_error},
    {NULL, NULL},
};

int luaopen_dutch_core(lua_State *L) {
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_pushliteral(L, DM_VERSION);
    lua_setfield(L, -2, "version");
    dm_lua_open_process(L);
    dm_lua_open_io(L);
    dm_lua_open_socket(L);
    dm_lua_open_watch(L);
    dm_lua_open_sandbox(L);
    return 1;
}
