/* lua/support.c: see lua/support.h. */
#include "lua/support.h"

#include "base/errors.h"

#include <string.h>

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
    return dm_lua_fail_why(L, error, what, NULL);
}

int dm_lua_fail_why(lua_State *L, int error, const char *what, const char *why) {
    why = why ? why : dm_error_text(error);
    lua_pushnil(L);
    lua_pushfstring(L, "%s%s%s", what ? what : "", what ? ": " : "", why);
    lua_pushstring(L, dm_error_name(error));
    return 3;
}

int dm_lua_push_error(lua_State *L, int error) {
    lua_pushstring(L, dm_error_text(error));
    lua_pushstring(L, dm_error_name(error));
    return 2;
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

int dm_lua_result(lua_State *L, int error, const char *what) {
    if (error) {
        return dm_lua_fail(L, error, what);
    }
    lua_pushboolean(L, 1);
    return 1;
}

int dm_lua_integer_field(lua_State *L, int table, const char *key, int missing) {
    int value = missing;
    if (lua_istable(L, table)) {
        lua_getfield(L, table, key);
        value = lua_isnil(L, -1) ? missing : luaL_checkint(L, -1);
        lua_pop(L, 1);
    }
    return value;
}

void dm_lua_set_number(lua_State *L, const char *field, double value) {
    lua_pushnumber(L, value);
    lua_setfield(L, -2, field);
}

void dm_lua_set_string(lua_State *L, const char *field, const char *value) {
    lua_pushstring(L, value);
    lua_setfield(L, -2, field);
}

void dm_lua_new_type(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction gc) {
    luaL_newmetatable(L, name);
    lua_newtable(L); /* metatable, methods */
    for (const luaL_Reg *entry = methods; entry->name; entry++) {
        lua_pushcfunction(L, entry->func);
        lua_setfield(L, strncmp(entry->name, "__", 2) == 0 ? -3 : -2, entry->name);
    }
    lua_setfield(L, -2, "__index");
    if (gc) {
        lua_pushcfunction(L, gc);
        lua_setfield(L, -2, "__gc");
    }
    lua_pop(L, 1);
}

int dm_lua_check_signal(lua_State *L, int index) {
    const int number = dm_signal_number(luaL_checkstring(L, index));
    luaL_argcheck(L, number > 0, index, "not the name of a signal");
    return number;
}

static double to_ms(const struct timeval *time) {
    return (double)time->tv_sec * 1000 + (double)time->tv_usec / 1000;
}

void dm_lua_push_exit(lua_State *L, const struct dm_exit *exit) {
    lua_createtable(L, 0, 8);
    if (exit->signaled) {
        char buffer[16];
        const char *name = dm_signal_name(exit->code, buffer);
        lua_pushstring(L, name ? name : "unknown");
        lua_setfield(L, -2, "signal");
        lua_pushboolean(L, exit->core);
        lua_setfield(L, -2, "core");
    } else {
        dm_lua_set_number(L, "code", exit->code);
    }
    dm_lua_set_number(L, "user_ms", to_ms(&exit->usage.ru_utime));
    dm_lua_set_number(L, "system_ms", to_ms(&exit->usage.ru_stime));
    dm_lua_set_number(L, "max_rss_kb", (double)exit->usage.ru_maxrss);
}
