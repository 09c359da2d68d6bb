/* lua_sandbox.c: placeholder. */
#include "lua_core.h"

void dm_lua_open_sandbox(lua_State *L) {
    (void)L;
}
