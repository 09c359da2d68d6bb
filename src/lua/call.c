/* lua/call.c: see lua/call.h. Nothing here throws; whatever was on the stack below the function
 * stays there. With DM_GC_STRESS the collector runs after each call, so that a value kept by C
 * alone shows as a crash in the specs. */
#include "lua/call.h"

#include "core.h"
#include "lua/open.h"
#include "lua/support.h"

#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>
#include <uv.h>

#define ERROR_SINK "dutch-master.error_sink" /* in the registry */

#define MINUTE_NS UINT64_C(60000000000)

/* How long the loop was held by Lua. Calls nest seldom; only the outermost counts. */
static struct {
    uint64_t calls, ns;
    uint64_t longest_ns[2]; /* of this minute, and of the one before */
    uint64_t minute_ns;     /* when this one began */
} held;
static int depth;

static void begin_minute(uint64_t now) {
    if (now - held.minute_ns >= MINUTE_NS) {
        held.longest_ns[1] = now - held.minute_ns < 2 * MINUTE_NS ? held.longest_ns[0] : 0;
        held.longest_ns[0] = 0;
        held.minute_ns = now;
    }
}

static void note_held(uint64_t began) {
    const uint64_t now = uv_hrtime();
    begin_minute(now);
    held.calls++;
    held.ns += now - began;
    if (now - began > held.longest_ns[0]) {
        held.longest_ns[0] = now - began;
    }
}

static int l_traceback(lua_State *L) {
    if (!lua_isstring(L, 1) && !luaL_callmeta(L, 1, "__tostring")) {
        lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
    }
    luaL_traceback(L, L, lua_tostring(L, -1), 1);
    return 1;
}

/* Stack on entry: ... message. Takes it off. */
static void report(lua_State *L, const char *what) {
    const int top = lua_gettop(L);
    const char *message = lua_tostring(L, top);
    lua_getfield(L, LUA_REGISTRYINDEX, ERROR_SINK);
    int rc = LUA_ERRRUN;
    if (lua_isfunction(L, -1)) {
        lua_pushstring(L, what);
        lua_pushvalue(L, top);
        rc = lua_pcall(L, 2, 0, 0);
    }
    if (rc != 0) {
        fflush(stdout);
        fprintf(stderr, "dutch-master: %s: %s\n", what,
                message ? message : "error without message");
    }
    lua_settop(L, top - 1);
}

/* What was begun without memory is half done, and no snapshot would know what it was. With a keeper
 * another master goes on from the last one, before anybody hears of this turn. */
static void end_without_memory(lua_State *L) {
    const struct dm_core *core = dm_lua_core(L);
    if (core && core->kept.open) {
        abort();
    }
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
    const uint64_t began = depth++ == 0 ? uv_hrtime() : 0;
    const int rc = lua_pcall(L, nargs, nresults, function);
    if (--depth == 0) {
        note_held(began);
    }
    lua_remove(L, function);
    if (rc != 0) {
        report(L, what);
    }
    if (rc == LUA_ERRMEM) {
        end_without_memory(L);
    }
#ifdef DM_GC_STRESS
    lua_gc(L, LUA_GCCOLLECT, 0);
#endif
    return rc == 0 ? 0 : -1;
}

int dm_lua_call_luv(lua_State *L, int nargs, int nresults, int flags) {
    const int below = lua_gettop(L) - nargs - 1;
    if (dm_lua_call(L, nargs, nresults, "callback") != 0) {
        return -LUA_ERRRUN;
    }
    return nresults == LUA_MULTRET ? lua_gettop(L) - below : nresults;
}

/* core.held() -> callbacks so far, seconds they took, seconds of the longest of the last minute or
 * two: how late anything else can have been. */
int core_held(lua_State *L) {
    begin_minute(uv_hrtime());
    const uint64_t longest =
        held.longest_ns[0] > held.longest_ns[1] ? held.longest_ns[0] : held.longest_ns[1];
    lua_pushnumber(L, (double)held.calls);
    lua_pushnumber(L, (double)held.ns / 1e9);
    lua_pushnumber(L, (double)longest / 1e9);
    return 3;
}

void dm_lua_set_error_sink(lua_State *L, int index) {
    lua_pushvalue(L, index);
    lua_setfield(L, LUA_REGISTRYINDEX, ERROR_SINK);
}
