/* lua/open.c: see lua/open.h. */
#include "lua/open.h"

#include "lua/support.h"

#include <lauxlib.h>
#include <luajit.h>
#include <unistd.h>
#include <uv.h>

/* From the build; clang-tidy sees none. */
#ifndef DM_COMMIT
#define DM_COMMIT ""
#define DM_BUILD ""
#endif

#define ENTRY(name) {#name, core_##name},
static const luaL_Reg functions[] = {DM_LUA_FUNCTIONS(ENTRY){NULL, NULL}};
#undef ENTRY

int luaopen_dutch_core(lua_State *L) {
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_pushliteral(L, DM_VERSION);
    lua_setfield(L, -2, "version");
    lua_pushfstring(L, "commit %s, %s, %s, libuv %s", *DM_COMMIT ? DM_COMMIT : "unknown", DM_BUILD,
                    LUAJIT_VERSION, uv_version_string());
    lua_setfield(L, -2, "built");
    dm_lua_set_number(L, "page_kb", (double)sysconf(_SC_PAGESIZE) / 1024);
    dm_lua_set_number(L, "tick_ms", 1000.0 / (double)sysconf(_SC_CLK_TCK)); /* of /proc */
#define OPEN(name) dm_lua_open_##name(L);
    DM_LUA_TYPES(OPEN)
#undef OPEN
    return 1;
}
