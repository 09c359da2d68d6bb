/* lua_socket.c: placeholder. */
#include "lua_core.h"

void dm_lua_open_socket(lua_State *L) {
    (void)L;
}
