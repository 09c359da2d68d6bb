/* lua/state.h: the master's Lua state as main.c sees it, without lua.h. */
#pragma once

#include "core.h"

#include <stdbool.h>

struct dm_arena;
struct lua_State;

enum {
    DM_LUA_RUN = -1,   /* the loop is to run until dm_core_stop() */
    DM_LUA_PANIC = -2, /* policy could not be entered */
};

/* NULL if there is no memory for it. */
struct lua_State *dm_lua_state_open(struct dm_core *core);
void dm_lua_state_close(struct lua_State *L);

/* require('dutch-master.cli').main(argv): an exit code, or one of the above. */
int dm_lua_state_enter(struct lua_State *L, int argc, char **argv);

/* A new state with the standard libraries, cjson and luv (loaded when required). LUA_PATH and the
 * like count only with `environment`. Also what Lua workers and scripts start from. Its memory is
 * of the arena (lua/arena.h), which is freed after it, or libc's for NULL. NULL without memory. */
struct lua_State *dm_lua_state_new(bool environment, struct dm_arena *arena);
