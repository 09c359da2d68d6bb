/* lua/notify.c: core.notify_socket({uid=, fd=, name=}, fn(text)) -> n; n:name() n:fd() n:close().
 * core.sd_notify(text), core.sd_notify_set(). An open socket is kept alive by the registry. */
#include "service/notify.h"
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"
#include "service/sdnotify.h"

#include <unistd.h>

#define TYPE "dutch-master.notify"

struct l_notify {
    struct dm_lua_object object;
    struct dm_notify *notify;
};

static struct l_notify *check(lua_State *L) {
    return luaL_checkudata(L, 1, TYPE);
}

static void on_message(void *ctx, const char *text, size_t len) {
    const struct l_notify *n = ctx;
    dm_lua_push_callback(&n->object, "on_message");
    lua_pushlstring(n->object.L, text, len);
    dm_lua_call(n->object.L, 1, 0, "notification");
}

int core_notify_socket(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    lua_settop(L, 2);
    const int fd = dm_lua_integer_field(L, 1, "fd", -1);
    lua_getfield(L, 1, "uid");
    const uid_t uid = (uid_t)luaL_optnumber(L, 3, geteuid());
    lua_getfield(L, 1, "name");
    const char *name = luaL_optstring(L, 4, "");
    /* Stack: 1 options, 2 function, 3 uid, 4 name, 5 object */
    struct l_notify *n = dm_lua_new_object(L, sizeof *n, TYPE);
    dm_lua_set_callback(L, 5, "on_message", 2);
    const int err = fd >= 0
                        ? dm_notify_resume(dm_lua_loop(L), uid, fd, name, on_message, n, &n->notify)
                        : dm_notify_open(dm_lua_loop(L), uid, on_message, n, &n->notify);
    if (err != 0) {
        n->notify = NULL;
        return dm_lua_fail(L, err, "notification socket");
    }
    dm_lua_hold(L, 5);
    return 1;
}

static int l_name(lua_State *L) {
    const struct l_notify *n = check(L);
    if (n->notify == NULL) {
        return dm_lua_fail(L, -EBADF, NULL);
    }
    lua_pushstring(L, n->notify->name);
    return 1;
}

static int l_fd(lua_State *L) {
    const struct l_notify *n = check(L);
    return dm_lua_result_integer(L, n->notify ? n->notify->fd : -EBADF, NULL);
}

static int l_close(lua_State *L) {
    struct l_notify *n = check(L);
    if (n->notify != NULL) {
        dm_notify_close(n->notify);
    }
    n->notify = NULL;
    dm_lua_release(&n->object);
    return 0;
}

int core_sd_notify(lua_State *L) {
    return dm_lua_result(L, dm_sd_notify(luaL_checkstring(L, 1)), "NOTIFY_SOCKET");
}

int core_sd_notify_set(lua_State *L) {
    lua_pushboolean(L, dm_sd_notify_is_set());
    return 1;
}

static const luaL_Reg methods[] = {
    {"name", l_name}, {"fd", l_fd}, {"close", l_close}, {NULL, NULL}};

void dm_lua_open_notify(lua_State *L) {
    dm_sd_notify_init(&dm_lua_core(L)->kept);
    dm_lua_new_type(L, TYPE, methods, l_close);
}
