/* lua/open.c: see lua/open.h. */
#include "lua/open.h"

#include "lua/support.h"

#include <lauxlib.h>

#define ENTRY(name) {#name, core_##name},
static const luaL_Reg functions[] = {DM_LUA_FUNCTIONS(ENTRY){NULL, NULL}};
#undef ENTRY

int luaopen_dutch_core(lua_State *L) {
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_pushliteral(L, DM_VERSION);
    lua_setfield(L, -2, "version");
#define OPEN(name) dm_lua_open_##name(L);
    DM_LUA_TYPES(OPEN)
#undef OPEN
    dm_lua_open_sandbox(L);
    return 1;
}
