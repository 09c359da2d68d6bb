/* lua/embedded.h: Lua modules that are compiled into the binary. DUTCH_MASTER_LUA=DIR takes them
 * from the source tree's lua/ directory instead. */
#pragma once

#include <lua.h>

/* Like luaL_loadfile, by path below lua/ without ".lua": 0 with the chunk on the stack, else an
 * error message is; LUA_ERRFILE means that there is no such file. */
int dm_lua_load_embedded(lua_State *L, const char *path);

/* Adds a searcher to package.loaders: require 'a.b' finds PREFIXa/b. PREFIX "" for the master's
 * state, "worker/" for a Lua worker's, "script/" for a script's. */
void dm_lua_open_embedded(lua_State *L, const char *prefix);
