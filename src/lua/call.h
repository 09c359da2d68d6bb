/* lua/call.h: the one way from C into Lua. An error in a callback is reported and goes no further.
 */
#pragma once

#include <lua.h>

/* Calls the function below its `nargs` arguments. 0 with `nresults` on the stack, or -1 with none.
 */
int dm_lua_call(lua_State *L, int nargs, int nresults, const char *what);

/* The same for luv, which is told of it by luv_set_callback: how many results there are, or a
 * negative number. luv.h would bring the headers of another Lua along. */
int dm_lua_call_luv(lua_State *L, int nargs, int nresults, int flags);
void luv_set_callback(lua_State *L, int (*call)(lua_State *L, int nargs, int nresults, int flags));

/* Sets the function at `index` (or nil) as the sink: fn(what, message_with_traceback). */
void dm_lua_set_error_sink(lua_State *L, int index);
