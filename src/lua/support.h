/* lua/support.h: what the binding files share: the core they work on, how they report failures, and
 * how they keep functions and make types. Nothing here knows a binding.
 *
 * Every object of a binding is a userdata that holds a pointer, NULL once it is closed. What is
 * asked of a closed one is -EBADF.
 */
#pragma once

#include "core.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>

/* Puts `core` behind the state; before luaopen_dutch_core. */
void dm_lua_set_core(lua_State *L, struct dm_core *core);
struct dm_core *dm_lua_core(lua_State *L);
lua_State *dm_lua_main(lua_State *L); /* the state's main thread, where callbacks run */
uv_loop_t *dm_lua_loop(lua_State *L);

/* ---- results: true, or nil, message, "ECODE"; each returns how many it pushed ---- */

/* "what: text of the error" (or the text alone if `what` is NULL); -EBADF is "closed". */
int dm_lua_fail(lua_State *L, int error, const char *what);
/* "what: why" (what NULL: why alone; why NULL: the error's own text). */
int dm_lua_fail_why(lua_State *L, int error, const char *what, const char *why);
/* true, or as dm_lua_fail. */
int dm_lua_result(lua_State *L, int error, const char *what);
/* The number, or as dm_lua_fail if it is a negative errno. */
int dm_lua_result_integer(lua_State *L, int result, const char *what);
/* true, false, or nil if it is negative: nobody can tell. */
int dm_lua_result_maybe(lua_State *L, int result);

/* "text of the error", "ECODE": pushes these two */
int dm_lua_push_error(lua_State *L, int error);

/* ---- tables ---- */

/* What is at `key` of the table at `table`, or `missing`: also where there is no table. */
int dm_lua_integer_field(lua_State *L, int table, const char *key, int missing);
bool dm_lua_boolean_field(lua_State *L, int table, const char *key); /* missing: false */

/* Sets a field of the table on top of the stack. */
void dm_lua_set_number(lua_State *L, const char *field, double value);
/* An inode, a device: a number, or, where that is too small for it, its digits. */
void dm_lua_set_id(lua_State *L, const char *field, uint64_t id);
uint64_t dm_lua_id_field(lua_State *L, int table, const char *key); /* missing: 0 */
void dm_lua_set_string(lua_State *L, const char *field, const char *value);
void dm_lua_set_boolean(lua_State *L, const char *field, bool value);

/* A list of descriptors or pids. */
void dm_lua_push_integers(lua_State *L, const int *integers, size_t count);
/* That at `index`; pushes the memory that they are in. */
int *dm_lua_check_integers(lua_State *L, int index, size_t *count);

/* ---- objects ---- */

/* Makes the metatable of a type. Methods whose name begins with "__" are the metatable's own; gc
 * may be NULL. */
void dm_lua_new_type(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction gc);
/* Pushes an object of the type: `size` bytes, all zero. */
void *dm_lua_new(lua_State *L, size_t size, const char *type);

/* The first member of an object that calls Lua. Its callbacks are in its environment, by name: they
 * go with it. */
struct dm_lua_object {
    lua_State *L;
    int self; /* a reference of the registry's, which keeps it; or LUA_NOREF */
};

void *dm_lua_new_object(lua_State *L, size_t size, const char *type);
/* Keeps the object at `index`, until it is released. Twice is once. */
void dm_lua_hold(lua_State *L, int index);
void dm_lua_release(struct dm_lua_object *object);
/* `function`: the index of one, or of nil. */
void dm_lua_set_callback(lua_State *L, int object, const char *name, int function);
/* False, and nothing pushed: there is none, or the object is not held. */
bool dm_lua_push_callback(const struct dm_lua_object *object, const char *name);

/* A signal's number from its name at `index`; an unknown name is the caller's mistake. */
int dm_lua_check_signal(lua_State *L, int index);

/* {code=} or {signal=, core=}, with user_ms, system_ms and max_rss_kb. */
void dm_lua_push_exit(lua_State *L, const struct dm_exit *exit);
