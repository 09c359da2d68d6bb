/* lua/dial.c: core.dial(address, { on_data = fn(data), on_end = fn(message, code) }) -> d, bound;
 * d:port() d:start(text, finish) d:accepted() d:close(). address: text, as core.address reads it.
 * on_end comes once, without arguments if the other end has closed. An open one is kept alive by
 * the registry. */
#include "net/dial.h"
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"

#define DIAL "dutch-master.dial"

struct core_dial {
    struct dm_lua_object object;
    struct dm_dial *dial; /* NULL once closed */
};

static void on_data(void *ctx, const char *data, size_t size) {
    const struct core_dial *d = ctx;
    dm_lua_push_callback(&d->object, "on_data");
    lua_pushlstring(d->object.L, data, size);
    dm_lua_call(d->object.L, 1, 0, "dial: data");
}

static void on_end(void *ctx, int error) {
    const struct core_dial *d = ctx;
    dm_lua_push_callback(&d->object, "on_end");
    const int count = error ? dm_lua_push_error(d->object.L, error) : 0;
    dm_lua_call(d->object.L, count, 0, "dial: end");
}

static const struct dm_dial_events events = {on_data, on_end};

int core_dial(lua_State *L) {
    struct dm_address address;
    const char *text = luaL_checkstring(L, 1), *why = NULL;
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    lua_getfield(L, 2, "on_data");
    lua_getfield(L, 2, "on_end");
    luaL_checktype(L, 3, LUA_TFUNCTION);
    luaL_checktype(L, 4, LUA_TFUNCTION);
    /* Stack: 1 address, 2 options, 3 on_data, 4 on_end, 5 object */
    struct core_dial *d = dm_lua_new_object(L, sizeof *d, DIAL);
    int error = dm_address_parse(text, &address, &why);
    if (!error) {
        error = dm_dial_open(dm_lua_loop(L), &address, &events, d, &d->dial);
    }
    if (error) {
        d->dial = NULL;
        return dm_lua_fail_why(L, error, text, why);
    }
    dm_lua_set_callback(L, 5, "on_data", 3);
    dm_lua_set_callback(L, 5, "on_end", 4);
    dm_lua_hold(L, 5);
    return 1;
}

static struct core_dial *check(lua_State *L) {
    return luaL_checkudata(L, 1, DIAL);
}

static int l_port(lua_State *L) {
    const struct core_dial *d = check(L);
    return dm_lua_result_integer(L, d->dial ? d->dial->port : -EBADF, NULL);
}

static int l_start(lua_State *L) {
    const struct core_dial *d = check(L);
    size_t size;
    const char *text = luaL_checklstring(L, 2, &size);
    const bool finish = lua_toboolean(L, 3);
    return dm_lua_result(L, d->dial ? dm_dial_start(d->dial, text, size, finish) : -EBADF, NULL);
}

/* -> true, false, or nil where it cannot be told */
static int l_accepted(lua_State *L) {
    const struct core_dial *d = check(L);
    if (d->dial == NULL) {
        return dm_lua_fail(L, -EBADF, NULL);
    }
    const enum dm_accepted accepted = dm_dial_accepted(d->dial);
    return dm_lua_result_maybe(L, accepted == DM_ACCEPTED_UNKNOWN ? -1 : accepted == DM_ACCEPTED);
}

static int l_close(lua_State *L) {
    struct core_dial *d = check(L);
    if (d->dial != NULL) {
        dm_dial_close(d->dial);
    }
    d->dial = NULL;
    dm_lua_release(&d->object);
    return 0;
}

static const luaL_Reg methods[] = {{"port", l_port},
                                   {"start", l_start},
                                   {"accepted", l_accepted},
                                   {"close", l_close},
                                   {NULL, NULL}};

void dm_lua_open_dial(lua_State *L) {
    dm_lua_new_type(L, DIAL, methods, l_close);
}
