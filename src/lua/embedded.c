/* lua/embedded.c: see lua/embedded.h. */
#include "lua/embedded.h"

#include "lua/embedded_table.h"

#include <lauxlib.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Whether the LuaJIT that runs is the one that compiled: a distribution may replace it later. */
static bool fits(lua_State *L) {
    static int known = -1;
    if (known < 0) {
        const int top = lua_gettop(L);
        lua_getglobal(L, "jit");
        lua_pushliteral(L, "version");
        if (lua_istable(L, -2)) {
            lua_rawget(L, -2);
        }
        const char *version = lua_tostring(L, -1);
        known = version && strcmp(version, dm_embedded_by) == 0;
        lua_settop(L, top);
    }
    return known;
}

int dm_lua_load_embedded(lua_State *L, const char *path) {
    /* secure_getenv: a set-uid binary must not run its caller's Lua. */
    const char *dir = secure_getenv("DUTCH_MASTER_LUA");
    if (dir && *dir) {
        const char *file = lua_pushfstring(L, "%s/%s.lua", dir, path);
        if (access(file, F_OK) != 0) {
            lua_pushfstring(L, "no file '%s'", file);
            lua_remove(L, -2);
            return LUA_ERRFILE;
        }
        const int rc = luaL_loadfile(L, file);
        lua_remove(L, -2);
        return rc;
    }
    for (const struct dm_embedded *e = dm_embedded; e->name; e++) {
        if (strcmp(e->name, path) == 0) {
            const bool compiled = fits(L);
            const char *chunk = lua_pushfstring(L, "@lua/%s.lua", path);
            const int rc = luaL_loadbuffer(L, (const char *)(compiled ? e->code : e->text),
                                           compiled ? e->code_size : e->size, chunk);
            lua_remove(L, -2);
            return rc;
        }
    }
    lua_pushfstring(L, "no embedded module '%s'", path);
    return LUA_ERRFILE;
}

/* Upvalue 1: the prefix. Argument 1: the module's name. */
static int l_search(lua_State *L) {
    const char *name = luaL_checkstring(L, 1);
    const char *path = luaL_gsub(L, name, ".", "/");
    path = lua_pushfstring(L, "%s%s", lua_tostring(L, lua_upvalueindex(1)), path);
    const int rc = dm_lua_load_embedded(L, path);
    if (rc == LUA_ERRFILE) {
        lua_pushfstring(L, "\n\t%s", lua_tostring(L, -1));
    } else if (rc != 0) {
        return luaL_error(L, "error loading module '%s':\n\t%s", name, lua_tostring(L, -1));
    }
    return 1;
}

/* Second in package.loaders, behind package.preload: no file of the same name can take its place.
 */
void dm_lua_open_embedded(lua_State *L, const char *prefix) {
    const int top = lua_gettop(L);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "loaders"); /* package, loaders */
    for (int i = (int)lua_objlen(L, -1); i >= 2; i--) {
        lua_rawgeti(L, -1, i);
        lua_rawseti(L, -2, i + 1);
    }
    lua_pushstring(L, prefix);
    lua_pushcclosure(L, l_search, 1);
    lua_rawseti(L, -2, 2);
    lua_settop(L, top);
}
