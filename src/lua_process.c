/* lua_process.c: placeholder. */
#include "lua_core.h"

void dm_lua_open_process(lua_State *L) {
    (void)L;
}
