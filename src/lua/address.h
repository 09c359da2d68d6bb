/* lua/address.h: addresses as tables {family, type, text, host, port, dual} or {.., path}, for the
 * bindings of sockets. */
#pragma once

#include "net/address.h"

#include <lua.h>

void dm_lua_push_address(lua_State *L, const struct dm_address *address);
/* From a table as dm_lua_push_address makes it. 0, or a negative errno and why. */
int dm_lua_check_address(lua_State *L, int table, struct dm_address *address, const char **why);
/* nil, "EADDRINUSE: address already in use: 127.0.0.1:8000", "EADDRINUSE": the name is what people
 * look for in a log. */
int dm_lua_fail_at(lua_State *L, int error, const char *where);
