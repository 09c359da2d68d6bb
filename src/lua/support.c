/* lua/support.c: see lua/support.h. */
#include "lua/support.h"

#include "base/errors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char CORE[] = "dutch-master.core", MAIN[] = "dutch-master.main"; /* in the registry */

static void *registered(lua_State *L, const char *key) {
    lua_getfield(L, LUA_REGISTRYINDEX, key);
    void *found = lua_touserdata(L, -1);
    lua_pop(L, 1);
    return found;
}

void dm_lua_set_core(lua_State *L, struct dm_core *core) {
    lua_pushlightuserdata(L, core);
    lua_setfield(L, LUA_REGISTRYINDEX, CORE);
    lua_pushlightuserdata(L, L);
    lua_setfield(L, LUA_REGISTRYINDEX, MAIN);
}

lua_State *dm_lua_main(lua_State *L) {
    return registered(L, MAIN);
}

struct dm_core *dm_lua_core(lua_State *L) {
    return registered(L, CORE);
}

uv_loop_t *dm_lua_loop(lua_State *L) {
    return dm_lua_core(L)->loop;
}

int dm_lua_fail(lua_State *L, int error, const char *what) {
    return dm_lua_fail_why(L, error, what, NULL);
}

int dm_lua_fail_why(lua_State *L, int error, const char *what, const char *why) {
    why = why ? why : error == -EBADF ? "closed" : dm_error_text(error);
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

int dm_lua_result(lua_State *L, int error, const char *what) {
    if (error) {
        return dm_lua_fail(L, error, what);
    }
    lua_pushboolean(L, 1);
    return 1;
}

int dm_lua_result_integer(lua_State *L, int result, const char *what) {
    if (result < 0) {
        return dm_lua_fail(L, result, what);
    }
    lua_pushinteger(L, result);
    return 1;
}

int dm_lua_result_maybe(lua_State *L, int result) {
    if (result < 0) {
        lua_pushnil(L);
    } else {
        lua_pushboolean(L, result);
    }
    return 1;
}

int dm_lua_integer_field(lua_State *L, int table, const char *key, int missing) {
    int value = missing;
    if (lua_istable(L, table)) {
        lua_getfield(L, table, key);
        value = luaL_optint(L, -1, missing);
        lua_pop(L, 1);
    }
    return value;
}

bool dm_lua_boolean_field(lua_State *L, int table, const char *key) {
    bool value = false;
    if (lua_istable(L, table)) {
        lua_getfield(L, table, key);
        value = lua_toboolean(L, -1);
        lua_pop(L, 1);
    }
    return value;
}

void dm_lua_set_number(lua_State *L, const char *field, double value) {
    lua_pushnumber(L, value);
    lua_setfield(L, -2, field);
}

/* A double has so many exactly. */
static const uint64_t EXACT_MAX = UINT64_C(1) << 53;

void dm_lua_set_id(lua_State *L, const char *field, uint64_t id) {
    char digits[24];
    if (id <= EXACT_MAX) {
        dm_lua_set_number(L, field, (double)id);
    } else {
        snprintf(digits, sizeof digits, "%" PRIu64, id);
        dm_lua_set_string(L, field, digits);
    }
}

uint64_t dm_lua_id_field(lua_State *L, int table, const char *key) {
    lua_getfield(L, table, key);
    const uint64_t id = lua_type(L, -1) == LUA_TSTRING ? strtoull(lua_tostring(L, -1), NULL, 10)
                                                       : (uint64_t)lua_tonumber(L, -1);
    lua_pop(L, 1);
    return id;
}

void dm_lua_set_string(lua_State *L, const char *field, const char *value) {
    lua_pushstring(L, value);
    lua_setfield(L, -2, field);
}

void dm_lua_set_boolean(lua_State *L, const char *field, bool value) {
    lua_pushboolean(L, value);
    lua_setfield(L, -2, field);
}

void dm_lua_push_integers(lua_State *L, const int *integers, size_t count) {
    lua_createtable(L, (int)count, 0);
    for (size_t i = 0; i < count; i++) {
        lua_pushinteger(L, integers[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

int *dm_lua_check_integers(lua_State *L, int index, size_t *count) {
    luaL_checktype(L, index, LUA_TTABLE);
    *count = lua_objlen(L, index);
    int *integers = lua_newuserdata(L, (*count + 1) * sizeof *integers);
    for (size_t i = 0; i < *count; i++) {
        lua_rawgeti(L, index, (int)i + 1);
        integers[i] = luaL_checkint(L, -1);
        lua_pop(L, 1);
    }
    return integers;
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

void *dm_lua_new(lua_State *L, size_t size, const char *type) {
    void *object = memset(lua_newuserdata(L, size), 0, size);
    luaL_getmetatable(L, type);
    lua_setmetatable(L, -2);
    return object;
}

void *dm_lua_new_object(lua_State *L, size_t size, const char *type) {
    struct dm_lua_object *object = dm_lua_new(L, size, type);
    *object = (struct dm_lua_object){dm_lua_main(L), LUA_NOREF};
    lua_newtable(L);
    lua_setfenv(L, -2);
    return object;
}

void dm_lua_hold(lua_State *L, int index) {
    struct dm_lua_object *object = lua_touserdata(L, index);
    if (object->self == LUA_NOREF) {
        lua_pushvalue(L, index);
        object->self = luaL_ref(L, LUA_REGISTRYINDEX);
    }
}

void dm_lua_release(struct dm_lua_object *object) {
    luaL_unref(object->L, LUA_REGISTRYINDEX, object->self);
    object->self = LUA_NOREF;
}

void dm_lua_set_callback(lua_State *L, int object, const char *name, int function) {
    if (lua_isnoneornil(L, function)) {
        lua_pushnil(L);
    } else {
        luaL_checktype(L, function, LUA_TFUNCTION);
        lua_pushvalue(L, function);
    }
    lua_getfenv(L, object); /* function, callbacks */
    lua_insert(L, -2);
    lua_setfield(L, -2, name);
    lua_pop(L, 1);
}

bool dm_lua_push_callback(const struct dm_lua_object *object, const char *name) {
    lua_State *L = object->L;
    if (object->self == LUA_NOREF) {
        return false;
    }
    lua_rawgeti(L, LUA_REGISTRYINDEX, object->self); /* object */
    lua_getfenv(L, -1);                              /* object, callbacks */
    lua_getfield(L, -1, name);                       /* object, callbacks, function */
    lua_replace(L, -3);
    lua_pop(L, 1);
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        return false;
    }
    return true;
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
        dm_lua_set_string(L, "signal", name ? name : "unknown");
        dm_lua_set_boolean(L, "core", exit->core);
    } else {
        dm_lua_set_number(L, "code", exit->code);
    }
    dm_lua_set_number(L, "user_ms", to_ms(&exit->usage.ru_utime));
    dm_lua_set_number(L, "system_ms", to_ms(&exit->usage.ru_stime));
    dm_lua_set_number(L, "max_rss_kb", (double)exit->usage.ru_maxrss);
}
