/* lua/io.h: what the binding files of input and output share.
 *
 * Every object is a userdata that holds a pointer, NULL once it is closed. Callbacks are kept in
 * the registry, by number, until then.
 */
#pragma once

#include "lua/support.h"

#include <lauxlib.h>

/* Pushes nil, "what: why" (why NULL: the errno's own text), "ECODE"; returns 3. */
int dm_lua_fail_why(lua_State *L, int error, const char *what, const char *why);

/* Pushes nil, "closed", "EBADF"; returns 3. */
int dm_lua_closed(lua_State *L);

/* Replaces the function *ref stands for by the one (or nil) at index. */
void dm_lua_keep(lua_State *L, int index, int *ref);
void dm_lua_drop(lua_State *L, int *ref);

/* Makes the metatable of a type, with its methods and the collector's function. */
void dm_lua_new_type(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction gc);

/* Each adds its functions to the table on top of the stack. */
void dm_lua_open_files(lua_State *L);
void dm_lua_open_sink(lua_State *L);
void dm_lua_open_notify(lua_State *L);
void dm_lua_open_stream(lua_State *L);
void dm_lua_open_dial(lua_State *L);
void dm_lua_open_terminal(lua_State *L);
