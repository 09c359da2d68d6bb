/* sandbox/sandbox.h: the Lua state of one evaluation of the user's script, shared by
 * sandbox/sandbox.c (its life and the calls into it), sandbox/sandbox_lib.c and sandbox/pattern.c
 * (what it finds inside). */
#pragma once

#include "lua/values.h"

#include <lua.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct dm_sandbox {
    lua_State *L;      /* the script's state, NULL once closed */
    lua_State *caller; /* the master's state during a call, else NULL */
    size_t used;       /* bytes, kept by the allocator */
    size_t limit;
    uint64_t budget; /* ms */
    uint64_t deadline;
    bool expired; /* the budget of this call is over: nothing may catch that */
    bool refused; /* the allocator said no in this call */
    bool closing; /* close() came from within a call */
    int host;     /* reference to the host function in the master's state */
    int entries;  /* reference to the table of entry points in the script's state */
    int file;     /* descriptor on its way to io.open, or -1 */
    char *directory;
    struct dm_values values;
    char prelude[128]; /* chunk name of our own Lua in the script's state: not where errors are */
    char where[160];   /* "master.lua:14", where the budget ended */
    char message[1024];
    char traceback[4096];
};

struct dm_sandbox *dm_sandbox_of(lua_State *L);

/* Raises an error if the budget is over. */
void dm_sandbox_look(lua_State *L);

/* Raises at each instruction from now on. */
void dm_sandbox_expire(lua_State *L, struct dm_sandbox *sandbox);

/* Pushes "master.lua:14: " for the innermost line of the user's Lua, or "". */
void dm_sandbox_where(lua_State *L, const struct dm_sandbox *sandbox, lua_Debug *ar);

/* Called once in a new state, protected: libraries, limits, `require 'dutch-master'`. Argument 1:
 * the script's directory or nil. Leaves the table of entry points on the stack. */
int dm_sandbox_open_libraries(lua_State *L);

/* Gives the string library the functions of sandbox/pattern.c. */
void dm_sandbox_open_patterns(lua_State *L);
