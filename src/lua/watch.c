/* lua/watch.c: core.watch. A started watch is kept by the registry until it is ready or stopped. */
#include "net/watch.h"
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"

#include <lauxlib.h>

#define WATCH "dm.watch"

struct proxy {
    struct dm_watch *watch; /* NULL once closed */
    lua_State *L;
    int self; /* reference while started */
};

static void unkeep(struct proxy *proxy) {
    luaL_unref(proxy->L, LUA_REGISTRYINDEX, proxy->self);
    proxy->self = LUA_NOREF;
}

static void on_ready(struct dm_watch *watch) {
    struct proxy *proxy = watch->owner;
    lua_State *L = proxy->L;
    lua_rawgeti(L, LUA_REGISTRYINDEX, proxy->self); /* watch: alive until the call returns */
    unkeep(proxy);
    lua_getfenv(L, -1); /* watch, environment */
    lua_rawgeti(L, -1, 1);
    dm_lua_call(L, 0, 0, "watch");
    lua_pop(L, 2);
}

/* watch(fn) */
int core_watch(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    struct proxy *proxy = lua_newuserdata(L, sizeof *proxy);
    proxy->watch = NULL;
    proxy->L = dm_lua_main(L);
    proxy->self = LUA_NOREF;
    luaL_getmetatable(L, WATCH);
    lua_setmetatable(L, -2);
    lua_createtable(L, 1, 0);
    lua_pushvalue(L, 1);
    lua_rawseti(L, -2, 1);
    lua_setfenv(L, -2);
    const int error = dm_watch_open(&proxy->watch, dm_lua_loop(L), on_ready);
    if (error) {
        return dm_lua_fail(L, error, "watch");
    }
    proxy->watch->owner = proxy;
    return 1;
}

/* watch:start{ fd, ... } */
static int l_start(lua_State *L) {
    struct proxy *proxy = luaL_checkudata(L, 1, WATCH);
    luaL_checktype(L, 2, LUA_TTABLE);
    const size_t count = lua_objlen(L, 2);
    int *fds = lua_newuserdata(L, (count + 1) * sizeof *fds);
    for (size_t i = 0; i < count; i++) {
        lua_rawgeti(L, 2, (int)i + 1);
        fds[i] = luaL_checkint(L, -1);
        lua_pop(L, 1);
    }
    const int error = proxy->watch ? dm_watch_start(proxy->watch, fds, count) : UV_EBADF;
    if (error) {
        unkeep(proxy);
        return dm_lua_fail(L, error, "watch");
    }
    if (proxy->self == LUA_NOREF) {
        lua_pushvalue(L, 1);
        proxy->self = luaL_ref(L, LUA_REGISTRYINDEX);
    }
    lua_pushboolean(L, 1);
    return 1;
}

static int l_stop(lua_State *L) {
    struct proxy *proxy = luaL_checkudata(L, 1, WATCH);
    if (proxy->watch) {
        dm_watch_stop(proxy->watch);
        unkeep(proxy);
    }
    return 0;
}

/* Also __gc. */
static int l_close(lua_State *L) {
    struct proxy *proxy = luaL_checkudata(L, 1, WATCH);
    if (proxy->watch) {
        l_stop(L);
        dm_watch_close(proxy->watch);
        proxy->watch = NULL;
    }
    return 0;
}

static const luaL_Reg methods[] = {
    {"start", l_start},
    {"stop", l_stop},
    {"close", l_close},
    {NULL, NULL},
};

void dm_lua_open_watch(lua_State *L) {
    dm_lua_new_type(L, WATCH, methods, l_close);
}
