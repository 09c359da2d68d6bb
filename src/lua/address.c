/* lua/address.c: see lua/address.h; core.address, bucket. */
#include "lua/address.h"
#include "base/errors.h"
#include "lua/open.h"
#include "lua/support.h"
#include "net/steering.h"

#include <errno.h>
#include <lauxlib.h>
#include <string.h>

int dm_lua_fail_at(lua_State *L, int error, const char *where) {
    return dm_lua_fail_why(L, error, dm_error_name(error),
                           lua_pushfstring(L, "%s: %s", dm_error_text(error), where));
}

void dm_lua_push_address(lua_State *L, const struct dm_address *address) {
    char text[DM_ADDRESS_TEXT];
    const sa_family_t family = address->u.any.sa_family;
    lua_createtable(L, 0, 6);
    dm_lua_set_string(L, "family",
                      family == AF_UNIX    ? "unix"
                      : family == AF_INET6 ? "inet6"
                                           : "inet");
    dm_lua_set_string(L, "type", address->type == SOCK_DGRAM ? "dgram" : "stream");
    dm_address_text(address, text);
    dm_lua_set_string(L, "text", text);
    dm_address_host(address, text);
    if (family == AF_UNIX) {
        dm_lua_set_string(L, "path", text);
        return;
    }
    dm_lua_set_string(L, "host", text);
    dm_lua_set_number(L, "port", dm_address_port(address));
    dm_lua_set_boolean(L, "dual", address->dual);
}

int core_address(lua_State *L) {
    struct dm_address address;
    const char *why = NULL;
    const char *text = luaL_checkstring(L, 1);
    const int error = dm_address_parse(text, &address, &why);
    if (error) {
        return dm_lua_fail_why(L, error, text, why);
    }
    dm_lua_push_address(L, &address);
    return 1;
}

static int host_and_port(lua_State *L, int table, struct dm_address *address, const char **why) {
    lua_getfield(L, table, "host");
    int error = dm_address_set_host(address, luaL_optstring(L, -1, ""), why);
    lua_getfield(L, table, "port");
    if (!error && dm_address_set_port(address, luaL_optinteger(L, -1, 0)) != 0) {
        *why = "expected a port from 0 to 65535";
        error = -EINVAL;
    }
    lua_getfield(L, table, "dual");
    if (!error && address->u.any.sa_family == AF_INET6 &&
        IN6_IS_ADDR_UNSPECIFIED(&address->u.in6.sin6_addr) && !lua_isnil(L, -1)) {
        address->dual = lua_toboolean(L, -1);
    }
    lua_pop(L, 3);
    return error;
}

/* From a table as push_address makes it. */
int dm_lua_check_address(lua_State *L, int table, struct dm_address *address, const char **why) {
    size_t length;
    luaL_checktype(L, table, LUA_TTABLE);
    memset(address, 0, sizeof *address);
    lua_getfield(L, table, "type");
    address->type =
        strcmp(luaL_optstring(L, -1, "stream"), "dgram") == 0 ? SOCK_DGRAM : SOCK_STREAM;
    lua_getfield(L, table, "path");
    const char *path = lua_tolstring(L, -1, &length);
    const int error = path ? dm_address_set_path(address, path, length, why)
                           : host_and_port(L, table, address, why);
    lua_pop(L, 2);
    return error;
}

/* bucket(host, count): the bucket, from 1, that a client's address falls into. */
int core_bucket(lua_State *L) {
    struct dm_address address;
    const char *why = NULL;
    memset(&address, 0, sizeof address);
    const int error = dm_address_set_host(&address, luaL_checkstring(L, 1), &why);
    const int count = luaL_checkint(L, 2);
    luaL_argcheck(L, count >= 1 && count <= DM_STEERING_BUCKETS, 2, "1 to 1024 buckets");
    if (error) {
        return dm_lua_fail(L, error, why);
    }
    const bool v4 = address.u.any.sa_family == AF_INET;
    const uint8_t *bytes =
        v4 ? (const uint8_t *)&address.u.in.sin_addr : (const uint8_t *)&address.u.in6.sin6_addr;
    lua_pushinteger(L, dm_steering_bucket(bytes, v4 ? 4 : 16, (size_t)count) + 1);
    return 1;
}
