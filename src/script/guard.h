/* script/guard.h: calls of the user's Lua that can be cut short from outside. The alarm's handler
 * sets a debug hook, which raises an error at the place where the script is, again and again until
 * the call is over: pcall only prolongs it by one instruction. A call of C ends when it returns; a
 * system call that waits is interrupted. Whoever is not stopped by that is killed by the master. */
#pragma once

#include <lua.h>
#include <signal.h>

/* The master's word that the time is over. Blocks nothing else: nobody uses it. */
#define DM_GUARD_SIGNAL SIGVTALRM

void dm_guard_init(void);

/* Chunks of our own, which are not where errors are. `L`: their function is on the stack top. */
void dm_guard_is_ours(lua_State *L);

/* guard(f, ...) -> true, results... | false, kind, message, where, traceback. One line each, but
 * for the traceback. kind: runtime, memory, budget. */
int dm_guard_call(lua_State *L);

/* where([level]) -> "master.lua:14" of the user's Lua that runs now, or nil. */
int dm_guard_where(lua_State *L);
