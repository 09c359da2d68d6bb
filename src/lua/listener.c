/* lua/listener.c: core.listen: listeners with their steering for Lua. Longer than 400 lines: one
 * type with all that is asked of it, and how it is resumed. */
#include "net/listener.h"
#include "base/errors.h"
#include "lua/address.h"
#include "lua/call.h"
#include "lua/lane.h"
#include "lua/open.h"
#include "lua/support.h"
#include "net/holder.h"
#include "net/strangers.h"

#include <errno.h>
#include <lauxlib.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#define LISTENER "dutch-master.listener"

/* Weights are ratios to the largest: 16 bits of resolution, and 1024 of them sum up to 26 bits. */
enum { WEIGHT_SCALE = 65536, DEFAULT_BACKLOG = 511 };

struct proxy {
    struct dm_lua_object object; /* held while it is opened, or its path is put back */
    struct dm_listener listener;
    bool open;
};

static struct dm_listener *to_listener(lua_State *L, int index) {
    struct proxy *proxy = luaL_checkudata(L, index, LISTENER);
    return proxy->open ? &proxy->listener : NULL;
}

/* options.as or options.owner: {uid =, gid =, groups = {}}. */
static bool rights_field(lua_State *L, const char *key, struct dm_rights *rights) {
    lua_getfield(L, 2, key);
    const bool given = lua_istable(L, -1);
    if (given) {
        const int table = lua_gettop(L);
        rights->uid = (uid_t)dm_lua_integer_field(L, table, "uid", (int)geteuid());
        rights->gid = (gid_t)dm_lua_integer_field(L, table, "gid", (int)getegid());
        lua_getfield(L, table, "groups");
        const size_t count = lua_istable(L, -1) ? lua_objlen(L, -1) : 0;
        rights->group_count = count < DM_RIGHTS_GROUPS ? count : DM_RIGHTS_GROUPS;
        for (size_t i = 0; i < rights->group_count; i++) {
            lua_rawgeti(L, -1, (int)i + 1);
            rights->groups[i] = (gid_t)luaL_checkinteger(L, -1);
            lua_pop(L, 1);
        }
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    return given;
}

/* Whose rights: of who asks for the socket (as), or ours, for somebody (owner). */
static const struct dm_rights *check_rights(lua_State *L, struct dm_rights *rights) {
    if (!lua_istable(L, 2)) {
        return NULL;
    }
    if (rights_field(L, "as", rights)) {
        return rights;
    }
    rights->owner_only = true;
    return rights_field(L, "owner", rights) ? rights : NULL;
}

/* Who holds the address is what everybody asks next. */
static int fail_in_use(lua_State *L, const struct dm_address *address, const char *where) {
    struct dm_holder holder;
    dm_lua_fail_at(L, -EADDRINUSE, where);
    if (dm_holder_find(address, &holder)) {
        lua_pushfstring(L, "%s (held by process %d, %s)", lua_tostring(L, -2), (int)holder.pid,
                        holder.name);
        lua_replace(L, -3);
    }
    return 3;
}

static int fail_stale(lua_State *L, const char *where) {
    dm_lua_fail_at(L, -EPERM, where);
    lua_pushfstring(L, "%s: a socket of another user is there: if its program has ended, remove it",
                    lua_tostring(L, -2));
    lua_replace(L, -3);
    return 3;
}

static int fail_open(lua_State *L, int error, const struct dm_address *address) {
    char text[DM_ADDRESS_TEXT];
    dm_address_text(address, text);
    if (error == -EPERM && dm_address_is_path(address)) {
        return fail_stale(L, text);
    }
    return error == -EADDRINUSE ? fail_in_use(L, address, text) : dm_lua_fail_at(L, error, text);
}

/* ---- opened with the rights of whoever asked ---- */

static void on_opened(void *data, int error) {
    struct proxy *proxy = data;
    lua_State *L = proxy->object.L;
    proxy->open = error == 0; /* nobody closes it at a silent end but the collector */
    dm_lua_push_callback(&proxy->object, "done");
    const int below = lua_gettop(L);
    lua_rawgeti(L, LUA_REGISTRYINDEX, proxy->object.self);
    dm_lua_release(&proxy->object);
    if (dm_lua_core(L)->silent) {
        lua_settop(L, below - 1);
        return;
    }
    int count = 1;
    if (error) {
        count = fail_open(L, error, &proxy->listener.address);
        while (lua_gettop(L) > below + count) {
            lua_remove(L, below + 1);
        }
    }
    dm_lua_call(L, count, 0, "listen");
}

/* Stack: 3 the function, last the proxy. It is held before anything knows of it: what fails in Lua
 * fails then. */
static int open_theirs(lua_State *L, struct proxy *proxy, const struct dm_address *address,
                       const struct dm_listener_options *options) {
    dm_lua_set_callback(L, lua_gettop(L), "done", 3);
    dm_lua_hold(L, lua_gettop(L));
    const int error = dm_listener_open_theirs(&proxy->listener, address, options,
                                              &dm_lua_core(L)->helpers, on_opened, proxy);
    if (error) {
        dm_lua_release(&proxy->object);
    }
    return error;
}

/* options.kept, as listener:keep() gave it, with the descriptors as they are now. */
static int resume(lua_State *L, struct dm_listener *listener, const struct dm_address *address,
                  const struct dm_listener_options *options) {
    const int table = lua_gettop(L);
    struct dm_listener_kept kept = {.helpers = &dm_lua_core(L)->helpers};
    lua_getfield(L, table, "lanes");
    kept.fds = dm_lua_check_integers(L, table + 1, &kept.count);
    luaL_argcheck(L, kept.count >= 1 && kept.count <= DM_STEERING_LANES, 2, "lanes");
    kept.shared = dm_lua_boolean_field(L, table, "shared");
    kept.borrowed = dm_lua_boolean_field(L, table, "borrowed");
    kept.uncertain = dm_lua_boolean_field(L, table, "uncertain");
    lua_getfield(L, table, "indexes");
    if (lua_istable(L, -1)) {
        kept.indexes = dm_lua_check_integers(L, lua_gettop(L), &kept.index_count);
    }
    kept.device = dm_lua_id_field(L, table, "device");
    kept.inode = dm_lua_id_field(L, table, "inode");
    const int error = dm_listener_resume(listener, address, options, &kept);
    lua_settop(L, table);
    return error;
}

/* listen(address [, { backlog =, reuseport =, reuse =, mode =, fd =, as =, owner =,
 * kept = } [, done]]); mode: with 010000 in it, beside what the umask leaves.
 * -> listener. With `done`, where it is bound with others' rights: true, and done(listener) or
 * done(nil, message, code) follows. */
int core_listen(lua_State *L) {
    struct dm_address address;
    const char *why = NULL;
    int error = dm_lua_check_address(L, 1, &address, &why);
    if (error) {
        return dm_lua_fail_why(L, error, dm_error_name(error), why);
    }
    struct dm_rights rights = {.group_count = 0};
    const struct dm_listener_options options = {
        .backlog = dm_lua_integer_field(L, 2, "backlog", DEFAULT_BACKLOG),
        .mode = dm_lua_integer_field(L, 2, "mode", -1),
        .fd = dm_lua_integer_field(L, 2, "fd", -1),
        .reuseport = dm_lua_boolean_field(L, 2, "reuseport"),
        .reuse = dm_lua_boolean_field(L, 2, "reuse"),
        .rights = check_rights(L, &rights),
    };
    bool later = lua_isfunction(L, 3) && dm_listener_is_theirs(&address, &options);
    struct proxy *proxy = dm_lua_new_object(L, sizeof *proxy, LISTENER);
    const int self = lua_gettop(L);
    if (lua_istable(L, 2)) {
        lua_getfield(L, 2, "kept");
    }
    if (lua_istable(L, -1)) {
        later = false;
        error = resume(L, &proxy->listener, &address, &options);
        lua_settop(L, self);
    } else {
        lua_settop(L, self);
        error = later ? open_theirs(L, proxy, &address, &options)
                      : dm_listener_open(&proxy->listener, &address, &options);
    }
    if (error) {
        return fail_open(L, error, &address);
    }
    if (later) {
        lua_pushboolean(L, true);
    } else {
        proxy->open = true;
    }
    return 1;
}

/* keep(): { shared =, device =, inode =, indexes = of the lanes, where strangers are }, for
 * options.kept beside the lanes' descriptors, in order. */
static int l_listener_keep(lua_State *L) {
    const struct dm_listener *listener = to_listener(L, 1);
    if (!listener) {
        return dm_lua_fail(L, -EBADF, NULL);
    }
    lua_createtable(L, 0, 4);
    dm_lua_set_boolean(L, "shared", listener->shared);
    if (listener->strangers.count > 0) {
        lua_createtable(L, (int)listener->members, 0);
        for (size_t i = 0; i < listener->members; i++) {
            lua_pushinteger(L, (lua_Integer)listener->lanes[i]->index);
            lua_rawseti(L, -2, (int)i + 1);
        }
        lua_setfield(L, -2, "indexes");
    }
    if (listener->path.directory >= 0) {
        dm_lua_set_id(L, "device", listener->path.device);
        dm_lua_set_id(L, "inode", listener->path.inode);
    }
    return 1;
}

/* own(): of one that was opened with kept.borrowed: nobody else serves there any more. */
static int l_listener_own(lua_State *L) {
    struct dm_listener *listener = to_listener(L, 1);
    if (listener) {
        dm_listener_own(listener);
    }
    return 0;
}

static int l_listener_address(lua_State *L) {
    const struct dm_listener *listener = to_listener(L, 1);
    if (!listener) {
        return dm_lua_fail(L, -EBADF, NULL);
    }
    dm_lua_push_address(L, &listener->address);
    return 1;
}

static int l_listener_shared(lua_State *L) {
    const struct dm_listener *listener = to_listener(L, 1);
    if (!listener) {
        return dm_lua_fail(L, -EBADF, NULL);
    }
    lua_pushboolean(L, listener->shared);
    return 1;
}

static int l_listener_lane(lua_State *L) {
    struct dm_listener *listener = to_listener(L, 1);
    struct dm_lane *lane;
    if (!listener) {
        return dm_lua_fail(L, -EBADF, NULL);
    }
    const int error = dm_listener_lane(listener, &lane);
    if (error) {
        char text[DM_ADDRESS_TEXT];
        dm_address_text(&listener->address, text);
        return dm_lua_fail_at(L, error, text);
    }
    dm_lua_push_lane(L, lane);
    return 1;
}

static int l_listener_lanes(lua_State *L) {
    const struct dm_listener *listener = to_listener(L, 1);
    if (!listener) {
        return dm_lua_fail(L, -EBADF, NULL);
    }
    lua_createtable(L, (int)listener->count, 0);
    for (size_t i = 0; i < listener->count; i++) {
        dm_lua_push_lane(L, listener->lanes[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

/* queued(): lane -> number, of those in which connections wait; nil if there are none. Called every
 * few milliseconds while connections wait. */
static int l_listener_queued(lua_State *L) {
    const struct dm_listener *listener = to_listener(L, 1);
    bool any = false;
    lua_settop(L, 1);
    for (size_t i = 0; listener && i < listener->count; i++) {
        uint32_t depth = 0, limit;
        if (dm_lane_queue(listener->lanes[i], &depth, &limit) == 0 && depth > 0) {
            if (!any) {
                lua_newtable(L);
            }
            any = true;
            dm_lua_push_lane(L, listener->lanes[i]);
            lua_pushinteger(L, depth);
            lua_rawset(L, 2);
        }
    }
    return any;
}

/* strangers(): inodes of sockets in its group that are not its own, the first of them; how many
 * there are. Steering goes round them from now on. */
static int l_listener_strangers(lua_State *L) {
    struct dm_listener *listener = to_listener(L, 1);
    const int error = listener ? dm_listener_census(listener) : -EBADF;
    if (error) {
        return dm_lua_fail(L, error, NULL);
    }
    const struct dm_strangers *found = &listener->strangers;
    const size_t named = found->count < DM_STRANGERS ? found->count : DM_STRANGERS;
    lua_createtable(L, (int)named, 0);
    for (size_t i = 0; i < named; i++) {
        lua_pushnumber(L, (lua_Number)found->inodes[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_pushinteger(L, (lua_Integer)found->count);
    return 2;
}

static int l_listener_close(lua_State *L) {
    struct proxy *proxy = luaL_checkudata(L, 1, LISTENER);
    if (!proxy->open) {
        return 0;
    }
    for (size_t i = 0; i < proxy->listener.count; i++) {
        dm_lua_wipe_lane(proxy->listener.lanes[i]);
    }
    proxy->open = false;
    dm_listener_close(&proxy->listener);
    return 0;
}

/* ---- the path ---- */

static void on_settled(void *data) {
    struct proxy *proxy = data;
    lua_State *L = proxy->object.L;
    dm_lua_push_callback(&proxy->object, "settled");
    dm_lua_release(&proxy->object);
    if (dm_lua_core(L)->silent) {
        lua_pop(L, 1);
    } else {
        dm_lua_call(L, 0, 0, "path");
    }
}

/* await_path(fn) -> whether its path is being put back: then fn() follows, once. */
static int l_listener_await_path(lua_State *L) {
    struct proxy *proxy = luaL_checkudata(L, 1, LISTENER);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    dm_lua_set_callback(L, 1, "settled", 2);
    dm_lua_hold(L, 1);
    const bool waits = proxy->open && dm_unix_path_await(&proxy->listener.path, on_settled, proxy);
    if (!waits) {
        dm_lua_release(&proxy->object);
    }
    lua_pushboolean(L, waits);
    return 1;
}

/* ---- steering ---- */

static struct dm_lane *check_member(lua_State *L, int index, const struct dm_listener *listener) {
    struct dm_lane *lane = dm_lua_to_lane(L, index);
    if (!lane || lane->listener != listener) {
        luaL_error(L, "steer: not a lane of this listener");
    }
    return lane;
}

static double weight_at(lua_State *L, int entry) {
    lua_getfield(L, entry, "weight");
    const double weight = luaL_optnumber(L, -1, 1);
    lua_pop(L, 1);
    if (!(weight > 0) || isinf(weight)) {
        luaL_error(L, "steer: expected a weight above 0, found %f", weight);
    }
    return weight;
}

/* Reads the list at 2 into `lanes`, of `count` entries. */
static void check_lanes(lua_State *L, const struct dm_listener *listener,
                        struct dm_steer_lane *lanes, int count) {
    double largest = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < count; i++) {
            lua_rawgeti(L, 2, i + 1);
            luaL_checktype(L, -1, LUA_TTABLE);
            const double weight = weight_at(L, lua_gettop(L));
            if (pass == 0) {
                largest = weight > largest ? weight : largest;
            } else {
                const double scaled = round(weight / largest * WEIGHT_SCALE);
                lua_getfield(L, -1, "lane");
                lanes[i].lane = check_member(L, -1, listener);
                lanes[i].weight = scaled < 1 ? 1 : (uint32_t)scaled;
                lua_pop(L, 1);
            }
            lua_pop(L, 1);
        }
    }
}

/* opts.sticky: the position in the list, from 1, for each bucket. */
static void check_sticky(lua_State *L, struct dm_steer *steer, uint16_t *buckets) {
    lua_getfield(L, 3, "sticky");
    if (lua_istable(L, -1)) {
        const size_t count = lua_objlen(L, -1);
        luaL_argcheck(L, count >= 1 && count <= DM_STEERING_BUCKETS, 3, "1 to 1024 buckets");
        for (size_t i = 0; i < count; i++) {
            lua_rawgeti(L, -1, (int)i + 1);
            const lua_Integer position = lua_tointeger(L, -1);
            luaL_argcheck(L, position >= 1 && (size_t)position <= steer->count, 3,
                          "a bucket names no entry of the list");
            buckets[i] = (uint16_t)(position - 1);
            lua_pop(L, 1);
        }
        steer->bucket_count = count;
    }
    steer->buckets = steer->bucket_count ? buckets : NULL;
    lua_pop(L, 1);
}

/* opts.probes: { { port, lane }, ... } */
static void check_probes(lua_State *L, const struct dm_listener *listener, struct dm_steer *steer,
                         struct dm_steer_probe *probes) {
    lua_getfield(L, 3, "probes");
    const size_t count = lua_istable(L, -1) ? lua_objlen(L, -1) : 0;
    luaL_argcheck(L, count <= DM_STEERING_PROBES, 3, "at most 64 probes");
    for (size_t i = 0; i < count; i++) {
        lua_rawgeti(L, -1, (int)i + 1);
        luaL_checktype(L, -1, LUA_TTABLE);
        const int port = dm_lua_integer_field(L, lua_gettop(L), "port", 0);
        luaL_argcheck(L, port >= 1 && port <= 65535, 3, "probe: expected a port");
        lua_getfield(L, -1, "lane");
        probes[i] = (struct dm_steer_probe){check_member(L, -1, listener), (uint16_t)port};
        lua_pop(L, 2);
    }
    steer->probes = probes;
    steer->probe_count = count;
    lua_pop(L, 1);
}

/* What is in force; then, if it is not what was asked for, why: message, code. */
static int l_listener_steer(lua_State *L) {
    static const char *const names[] = {"shared", "hash", "steered", "sticky"};
    struct dm_steer_lane lanes[DM_STEERING_LANES];
    uint16_t buckets[DM_STEERING_BUCKETS];
    struct dm_steer_probe probes[DM_STEERING_PROBES];
    struct dm_steer steer = {.lanes = lanes};
    struct dm_listener *listener = to_listener(L, 1);
    if (!listener) {
        return dm_lua_fail(L, -EBADF, NULL);
    }
    luaL_checktype(L, 2, LUA_TTABLE);
    steer.count = lua_objlen(L, 2);
    luaL_argcheck(L, steer.count <= DM_STEERING_LANES, 2, "at most 1024 lanes");
    check_lanes(L, listener, lanes, (int)steer.count);
    if (lua_istable(L, 3)) {
        check_sticky(L, &steer, buckets);
        check_probes(L, listener, &steer, probes);
    }
    const int error = dm_listener_steer(listener, &steer);
    lua_pushstring(L, names[listener->in_force]);
    if (!error) {
        return 1;
    }
    return 1 + dm_lua_push_error(L, error);
}

/* ---- registration ---- */

static const luaL_Reg listener_methods[] = {
    {"address", l_listener_address},
    {"shared", l_listener_shared},
    {"lane", l_listener_lane},
    {"lanes", l_listener_lanes},
    {"queued", l_listener_queued},
    {"steer", l_listener_steer},
    {"strangers", l_listener_strangers},
    {"keep", l_listener_keep},
    {"own", l_listener_own},
    {"close", l_listener_close},
    {"await_path", l_listener_await_path},
    {NULL, NULL},
};

void dm_lua_open_listener(lua_State *L) {
    dm_lua_new_type(L, LISTENER, listener_methods, l_listener_close);
}
