/* lua/support.h: what the binding files share: the core they work on, how they report failures, and
 * how they keep functions and make types. Nothing here knows a binding.
 *
 * Every object of a binding is a userdata that holds a pointer, NULL once it is closed.
 */
#pragma once

#include "core.h"

#include <lauxlib.h>
#include <lua.h>

/* Puts `core` behind the state; before luaopen_dutch_core. */
void dm_lua_set_core(lua_State *L, struct dm_core *core);
struct dm_core *dm_lua_core(lua_State *L);
lua_State *dm_lua_main(lua_State *L); /* the state's main thread, where callbacks run */
uv_loop_t *dm_lua_loop(lua_State *L);

/* -- results: true, or nil, message, "ECODE"; each returns how many it pushed ------------------ */

/* "what: text of the error" (or the text alone if `what` is NULL). */
int dm_lua_fail(lua_State *L, int error, const char *what);
/* "what: why" (what NULL: why alone; why NULL: the error's own text). */
int dm_lua_fail_why(lua_State *L, int error, const char *what, const char *why);
/* "closed", "EBADF" */
int dm_lua_closed(lua_State *L);
/* true, or as dm_lua_fail. */
int dm_lua_result(lua_State *L, int error, const char *what);

/* "text of the error", "ECODE": pushes these two */
int dm_lua_push_error(lua_State *L, int error);

/* -- fields of tables ---------------------------------------------------------------------------
 */

/* The integer at `key` of the table at `table`, or `missing`: also where there is no table. */
int dm_lua_integer_field(lua_State *L, int table, const char *key, int missing);

/* Sets a field of the table on top of the stack. */
void dm_lua_set_number(lua_State *L, const char *field, double value);
void dm_lua_set_string(lua_State *L, const char *field, const char *value);

/* -- functions kept in the registry, by number --------------------------------------------------
 */

/* Replaces the function *ref stands for by the one (or nil) at index. */
void dm_lua_keep(lua_State *L, int index, int *ref);
void dm_lua_drop(lua_State *L, int *ref);

/* Makes the metatable of a type. Methods whose name begins with "__" are the metatable's own; gc
 * may be NULL. */
void dm_lua_new_type(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction gc);

/* A signal's number from its name at `index`; an unknown name is the caller's mistake. */
int dm_lua_check_signal(lua_State *L, int index);

/* {code=} or {signal=, core=}, with user_ms, system_ms and max_rss_kb. */
void dm_lua_push_exit(lua_State *L, const struct dm_exit *exit);
