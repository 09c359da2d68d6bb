/* lua/lane.h: lanes for Lua. A lane has one userdata, which only points: the listener owns it, so a
 * collected lane userdata changes nothing. */
#pragma once

#include "net/listener.h"

#include <lua.h>

void dm_lua_push_lane(lua_State *L, struct dm_lane *lane);
struct dm_lane *dm_lua_to_lane(lua_State *L, int index); /* NULL: closed */
/* The lane goes: its userdata points to nothing any more. */
void dm_lua_wipe_lane(const struct dm_lane *lane);
