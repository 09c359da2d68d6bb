/* lua/call.c: see lua/call.h. Nothing here throws; whatever was on the stack below the function
 * stays there. With DM_GC_STRESS the collector runs after each call, so that a value kept by C
 * alone shows as a crash in the specs. */
#include "lua/call.h"

#include <lauxlib.h>
#include <stdio.h>

static const char sink_key;

static int l_traceback(lua_State *L) {
    if (lua_isstring(L, 1)) {
        luaL_traceback(L, L, lua_tostring(L, 1), 1);
    } else if (!luaL_callmeta(L, 1, "__tostring")) {
        lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
    }
    return 1;
}

/* Stack on entry: ... message. Takes it off. */
static void report(lua_State *L, const char *what) {
    const int top = lua_gettop(L);
    const char *message = lua_tostring(L, top);
    lua_pushlightuserdata(L, (void *)&sink_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    int rc = LUA_ERRRUN;
    if (lua_isfunction(L, -1)) {
        lua_pushstring(L, what);
        lua_pushvalue(L, top);
        rc = lua_pcall(L, 2, 0, 0);
    }
    if (rc != 0) {
        fprintf(stderr, "dutch-master: %s: %s\n", what,
                message ? message : "error without message");
    }
    lua_settop(L, top - 1);
}

int dm_lua_call(lua_State *L, int nargs, int nresults, const char *what) {
    const int function = lua_gettop(L) - nargs;
    if (!lua_checkstack(L, 8)) {
        lua_settop(L, function - 1);
        fprintf(stderr, "dutch-master: %s: no Lua stack left\n", what);
        return -1;
    }
    lua_pushcfunction(L, l_traceback);
    lua_insert(L, function);
    const int rc = lua_pcall(L, nargs, nresults, function);
    lua_remove(L, function);
    if (rc != 0) {
        report(L, what);
    }
#ifdef DM_GC_STRESS
    lua_gc(L, LUA_GCCOLLECT, 0);
#endif
    return rc == 0 ? 0 : -1;
}

void dm_lua_set_error_sink(lua_State *L, int index) {
    lua_pushvalue(L, index);
    lua_pushlightuserdata(L, (void *)&sink_key);
    lua_insert(L, -2);
    lua_rawset(L, LUA_REGISTRYINDEX);
}
