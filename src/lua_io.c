/* lua_io.c: placeholder. */
#include "lua_core.h"

void dm_lua_open_io(lua_State *L) {
    (void)L;
}
