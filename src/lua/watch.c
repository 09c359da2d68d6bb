/* lua/watch.c: core.watch. A started watch is kept by the registry until it is ready or stopped. */
#include "net/watch.h"
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"

#include <lauxlib.h>

#define WATCH "dm.watch"

struct proxy {
    struct dm_lua_object object; /* held while started */
    struct dm_watch *watch;      /* NULL once closed */
};

static void on_ready(struct dm_watch *watch) {
    struct proxy *proxy = watch->owner;
    lua_State *L = proxy->object.L;
    dm_lua_push_callback(&proxy->object, "on_ready");
    dm_lua_release(&proxy->object);
    dm_lua_call(L, 0, 0, "watch");
}

/* watch(fn) */
int core_watch(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    struct proxy *proxy = dm_lua_new_object(L, sizeof *proxy, WATCH);
    dm_lua_set_callback(L, 2, "on_ready", 1);
    const int error = dm_watch_open(&proxy->watch, dm_lua_loop(L), on_ready);
    if (error) {
        return dm_lua_fail(L, error, "watch");
    }
    proxy->watch->owner = proxy;
    return 1;
}

/* watch:start({ fd, ... }, ends): with `ends` a connection is of no interest, only a shutdown */
static int l_start(lua_State *L) {
    struct proxy *proxy = luaL_checkudata(L, 1, WATCH);
    size_t count;
    const bool connections = !lua_toboolean(L, 3);
    const int *fds = dm_lua_check_integers(L, 2, &count);
    const int error = proxy->watch ? dm_watch_start(proxy->watch, fds, count, connections) : -EBADF;
    if (error) {
        dm_lua_release(&proxy->object);
    } else {
        dm_lua_hold(L, 1);
    }
    return dm_lua_result(L, error, "watch");
}

static int l_stop(lua_State *L) {
    struct proxy *proxy = luaL_checkudata(L, 1, WATCH);
    if (proxy->watch) {
        dm_watch_stop(proxy->watch);
        dm_lua_release(&proxy->object);
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
