/* lua/timer.c: core.timer. An armed timer is kept by the registry until it fires or is stopped; an
 * idle one goes with its last reference. */
#include "base/timer.h"
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"

#include <lauxlib.h>
#include <time.h>

#define TIMER "dm.timer"

/* ms. A hundred years: what a deadline that never comes may be given as. */
static const double LONGEST_MS = 3.2e12;

struct proxy {
    struct dm_lua_object object; /* held while armed */
    struct dm_timer timer;
    bool closed;
};

static void on_due(struct dm_timer *timer) {
    struct proxy *proxy = dm_container(timer, struct proxy, timer);
    lua_State *L = proxy->object.L;
    dm_lua_push_callback(&proxy->object, "on_due");
    dm_lua_release(&proxy->object);
    dm_lua_call(L, 0, 0, "timer");
}

/* timer(fn) */
int core_timer(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    struct proxy *proxy = dm_lua_new_object(L, sizeof *proxy, TIMER);
    dm_timer_init(&proxy->timer, &dm_lua_core(L)->timers, on_due);
    dm_lua_set_callback(L, 2, "on_due", 1);
    return 1;
}

static struct proxy *check_proxy(lua_State *L) {
    return luaL_checkudata(L, 1, TIMER);
}

static int l_start(lua_State *L) {
    struct proxy *proxy = check_proxy(L);
    const double ms = luaL_checknumber(L, 2);
    luaL_argcheck(L, ms >= 0, 2, "expected milliseconds, not negative");
    if (!proxy->closed) {
        dm_lua_hold(L, 1);
        dm_timer_start(&proxy->timer, (uint64_t)(ms < LONGEST_MS ? ms : LONGEST_MS));
    }
    return dm_lua_result(L, proxy->closed ? -EBADF : 0, NULL);
}

static int l_stop(lua_State *L) {
    struct proxy *proxy = check_proxy(L);
    dm_timer_stop(&proxy->timer);
    dm_lua_release(&proxy->object);
    return 0;
}

/* Also __gc: at the latest when the state closes, an armed timer leaves the list. */
static int l_close(lua_State *L) {
    check_proxy(L)->closed = true;
    return l_stop(L);
}

int core_now(lua_State *L) {
    lua_pushnumber(L, (double)dm_now_ms());
    return 1;
}

int core_wall(lua_State *L) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    lua_pushnumber(L, (double)now.tv_sec + (double)now.tv_nsec / 1e9);
    return 1;
}

static const luaL_Reg methods[] = {
    {"start", l_start},
    {"stop", l_stop},
    {"close", l_close},
    {NULL, NULL},
};

void dm_lua_open_timer(lua_State *L) {
    dm_lua_new_type(L, TIMER, methods, l_close);
}
