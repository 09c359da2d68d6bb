/* lua/process.h: shared by the binding files about processes. */
#pragma once

#include "process/reaper.h"

#include <lua.h>

/* {code=} or {signal=, core=}, with user_ms, system_ms and max_rss_kb. */
void dm_lua_push_exit(lua_State *L, const struct dm_exit *exit);
