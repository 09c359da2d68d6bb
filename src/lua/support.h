/* lua/support.h: what the binding files share: the core they work on, and how they report failures.
 */
#pragma once

#include "core.h"

#include <lua.h>

int luaopen_dutch_core(lua_State *L); /* require 'dutch-master.core' */

/* Puts `core` behind the state; before luaopen_dutch_core. */
void dm_lua_set_core(lua_State *L, struct dm_core *core);
struct dm_core *dm_lua_core(lua_State *L);
lua_State *dm_lua_main(lua_State *L); /* the state's main thread, where callbacks run */
uv_loop_t *dm_lua_loop(lua_State *L);

/* Pushes nil, "what: message" (or the message alone if `what` is NULL), "ECODE"; returns 3. */
int dm_lua_fail(lua_State *L, int error, const char *what);

/* A signal's number from its name at `index`; an unknown name is the caller's mistake. */
int dm_lua_check_signal(lua_State *L, int index);

/* Each adds its functions to the table on top of the stack. */
void dm_lua_open_process(lua_State *L);
void dm_lua_open_child(lua_State *L);
void dm_lua_open_timer(lua_State *L);
void dm_lua_open_sysinfo(lua_State *L);
void dm_lua_open_io(lua_State *L);
void dm_lua_open_socket(lua_State *L);
void dm_lua_open_watch(lua_State *L);
void dm_lua_open_sandbox(lua_State *L);
