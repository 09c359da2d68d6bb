/* lua/dial.c: core.dial(address, { on_data = fn(data), on_end = fn(message, code) }) -> d, bound;
 * d:port() d:start(text, finish) d:accepted() d:close(). address: text, as core.address reads it.
 * on_end comes once, without arguments if the other end has closed. An open one is kept alive by
 * the registry. */
#include "net/dial.h"
#include "base/errors.h"
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"

#define DIAL "dutch-master.dial"

struct core_dial {
    struct dm_dial *dial; /* NULL once closed */
    lua_State *L;
    int self;
    int on_data;
    int on_end;
};

static void on_data(void *ctx, const char *data, size_t size) {
    struct core_dial *d = ctx;
    lua_rawgeti(d->L, LUA_REGISTRYINDEX, d->on_data);
    lua_pushlstring(d->L, data, size);
    dm_lua_call(d->L, 1, 0, "dial: data");
}

static void on_end(void *ctx, int error) {
    struct core_dial *d = ctx;
    lua_State *L = d->L;
    lua_rawgeti(L, LUA_REGISTRYINDEX, d->on_end);
    if (error) {
        dm_lua_push_error(L, error);
    }
    dm_lua_call(L, error ? 2 : 0, 0, "dial: end");
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
    struct core_dial *d = lua_newuserdata(L, sizeof *d);
    *d = (struct core_dial){
        .L = dm_lua_main(L), .self = LUA_NOREF, .on_data = LUA_NOREF, .on_end = LUA_NOREF};
    luaL_getmetatable(L, DIAL);
    lua_setmetatable(L, 5);
    int error = dm_address_parse(text, &address, &why);
    if (!error) {
        error = dm_dial_open(dm_lua_loop(L), &address, &events, d, &d->dial);
    }
    if (error) {
        d->dial = NULL;
        return dm_lua_fail_why(L, error, text, why);
    }
    dm_lua_keep(L, 3, &d->on_data);
    dm_lua_keep(L, 4, &d->on_end);
    lua_pushvalue(L, 5);
    d->self = luaL_ref(L, LUA_REGISTRYINDEX);
    return 1;
}

static int l_port(lua_State *L) {
    const struct core_dial *d = luaL_checkudata(L, 1, DIAL);
    if (d->dial == NULL) {
        return dm_lua_closed(L);
    }
    lua_pushinteger(L, dm_dial_port(d->dial));
    return 1;
}

static int l_start(lua_State *L) {
    const struct core_dial *d = luaL_checkudata(L, 1, DIAL);
    size_t size;
    const char *text = luaL_checklstring(L, 2, &size);
    if (d->dial == NULL) {
        return dm_lua_closed(L);
    }
    const int error = dm_dial_start(d->dial, text, size, lua_toboolean(L, 3));
    if (error) {
        return dm_lua_fail(L, error, NULL);
    }
    lua_pushboolean(L, 1);
    return 1;
}

/* -> true, false, or nil where it cannot be told */
static int l_accepted(lua_State *L) {
    const struct core_dial *d = luaL_checkudata(L, 1, DIAL);
    if (d->dial == NULL) {
        return dm_lua_closed(L);
    }
    switch (dm_dial_accepted(d->dial)) {
    case DM_ACCEPTED:
        lua_pushboolean(L, true);
        break;
    case DM_ACCEPTED_NOT_YET:
        lua_pushboolean(L, false);
        break;
    case DM_ACCEPTED_UNKNOWN:
        lua_pushnil(L);
        break;
    }
    return 1;
}

static int l_close(lua_State *L) {
    struct core_dial *d = luaL_checkudata(L, 1, DIAL);
    if (d->dial != NULL) {
        dm_dial_close(d->dial);
    }
    d->dial = NULL;
    dm_lua_drop(L, &d->on_data);
    dm_lua_drop(L, &d->on_end);
    dm_lua_drop(L, &d->self);
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
