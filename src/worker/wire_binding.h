/* worker/wire_binding.h: `dutch-master.wire`, what the worker's Lua modules cannot do through luv.
 */
#pragma once

#include <lua.h>

int dm_lua_open_wire(lua_State *L);
