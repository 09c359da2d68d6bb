/* lua/socket.c: addresses, listeners, lanes and inherited sockets for Lua. A lane has one userdata,
 * which only points: the listener owns it, so a collected lane userdata changes nothing.
 */
#include "base/errors.h"
#include "lua/open.h"
#include "lua/support.h"
#include "net/address.h"
#include "net/holder.h"
#include "net/inherited.h"
#include "net/listener.h"
#include "net/repair.h"

#include <errno.h>
#include <lauxlib.h>
#include <math.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LISTENER "dutch-master.listener"
#define LANE "dutch-master.lane"

/* Weights are ratios to the largest: 16 bits of resolution, and 1024 of them sum up to 26 bits. */
enum { WEIGHT_SCALE = 65536, DEFAULT_BACKLOG = 511, DEFAULT_BUCKETS = 256 };

static const char lanes_key; /* registry: lane pointer -> userdata, weak */

/* ---- addresses ---- */

/* "EADDRINUSE: address already in use: 127.0.0.1:8000" */
static int fail_at(lua_State *L, int error, const char *where) {
    lua_pushnil(L);
    lua_pushfstring(L, "%s: %s: %s", dm_error_name(error), dm_error_text(error), where);
    lua_pushstring(L, dm_error_name(error));
    return 3;
}

/* Who holds the address is what everybody asks next. */
static int fail_in_use(lua_State *L, const struct dm_address *address, const char *where) {
    struct dm_holder holder;
    fail_at(L, -EADDRINUSE, where);
    if (dm_holder_find(address, &holder)) {
        lua_pushfstring(L, "%s (held by process %d, %s)", lua_tostring(L, -2), (int)holder.pid,
                        holder.name);
        lua_replace(L, -3);
    }
    return 3;
}

static int fail_stale(lua_State *L, const char *where) {
    fail_at(L, -EPERM, where);
    lua_pushfstring(L, "%s: a socket of another user is there: if its program has ended, remove it",
                    lua_tostring(L, -2));
    lua_replace(L, -3);
    return 3;
}

static void push_address(lua_State *L, const struct dm_address *address) {
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
    lua_pushinteger(L, dm_address_port(address));
    lua_setfield(L, -2, "port");
    lua_pushboolean(L, address->dual);
    lua_setfield(L, -2, "dual");
}

int core_address(lua_State *L) {
    struct dm_address address;
    const char *why = NULL;
    const char *text = luaL_checkstring(L, 1);
    const int error = dm_address_parse(text, &address, &why);
    if (error) {
        lua_pushnil(L);
        lua_pushfstring(L, "%s: %s", text, why);
        lua_pushstring(L, dm_error_name(error));
        return 3;
    }
    push_address(L, &address);
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
static int check_address(lua_State *L, int table, struct dm_address *address, const char **why) {
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

/* ---- lanes ---- */

static void wipe(const struct dm_lane *lane) {
    if (lane->handle) {
        *(struct dm_lane **)lane->handle = NULL;
    }
}

static void push_lane(lua_State *L, struct dm_lane *lane) {
    lua_pushlightuserdata(L, (void *)&lanes_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    lua_pushlightuserdata(L, lane);
    lua_rawget(L, -2);
    if (lane->handle && !lua_isnil(L, -1)) {
        lua_remove(L, -2);
        return;
    }
    lua_pop(L, 1);
    struct dm_lane **proxy = lua_newuserdata(L, sizeof(struct dm_lane *));
    *proxy = lane;
    luaL_getmetatable(L, LANE);
    lua_setmetatable(L, -2);
    lane->handle = proxy;
    lua_pushlightuserdata(L, lane);
    lua_pushvalue(L, -2);
    lua_rawset(L, -4);
    lua_remove(L, -2);
}

static struct dm_lane *to_lane(lua_State *L, int index) {
    return *(struct dm_lane **)luaL_checkudata(L, index, LANE);
}

/* lane:fd(how = 'nonblocking') */
static int l_lane_fd(lua_State *L) {
    static const char *const ways[] = {"nonblocking", "blocking", "as it is", NULL};
    const struct dm_lane *lane = to_lane(L, 1);
    if (!lane) {
        return dm_lua_closed(L);
    }
    lua_pushinteger(
        L, dm_lane_hand_out(lane, (enum dm_hand_out)luaL_checkoption(L, 2, "nonblocking", ways)));
    return 1;
}

static int l_lane_shut_out(lua_State *L) {
    const struct dm_lane *lane = to_lane(L, 1);
    const int error = lane ? dm_lane_shut_out(lane) : -EBADF;
    if (error) {
        return dm_lua_fail(L, error, NULL);
    }
    lua_pushboolean(L, 1);
    return 1;
}

/* Position in the group, from 0. */
static int l_lane_index(lua_State *L) {
    const struct dm_lane *lane = to_lane(L, 1);
    if (!lane) {
        return dm_lua_closed(L);
    }
    lua_pushinteger(L, (lua_Integer)lane->index);
    return 1;
}

static int l_lane_queue(lua_State *L) {
    const struct dm_lane *lane = to_lane(L, 1);
    uint32_t depth, limit;
    if (!lane) {
        return dm_lua_closed(L);
    }
    const int error = dm_lane_queue(lane, &depth, &limit);
    if (error) {
        return dm_lua_fail(L, error, NULL);
    }
    lua_pushinteger(L, depth);
    lua_pushinteger(L, limit);
    return 2;
}

static int l_lane_accept(lua_State *L) {
    const struct dm_lane *lane = to_lane(L, 1);
    if (!lane) {
        return dm_lua_closed(L);
    }
    const int fd = dm_lane_accept(lane);
    if (fd < 0) {
        return dm_lua_fail(L, fd, NULL);
    }
    lua_pushinteger(L, fd);
    return 1;
}

static int l_lane_repair(lua_State *L) {
    static const struct {
        int bit;
        const char *word;
    } words[] = {{DM_LANE_REVIVED, "shutdown"},  {DM_LANE_BACKLOG, "backlog"},
                 {DM_LANE_NONBLOCK, "nonblock"}, {DM_LANE_REUSEPORT, "reuseport"},
                 {DM_LANE_PATH, "path"},         {DM_LANE_PATH_LOST, "path lost"}};
    struct dm_lane *lane = to_lane(L, 1);
    if (!lane) {
        return dm_lua_closed(L);
    }
    const int done = dm_lane_repair(lane, lua_toboolean(L, 2));
    if (done < 0) {
        return dm_lua_fail(L, done, NULL);
    }
    lua_newtable(L);
    for (size_t i = 0, n = 0; i < sizeof words / sizeof *words; i++) {
        if (done & words[i].bit) {
            lua_pushstring(L, words[i].word);
            lua_rawseti(L, -2, (int)++n);
        }
    }
    return 1;
}

static int l_lane_close(lua_State *L) {
    struct dm_lane **proxy = luaL_checkudata(L, 1, LANE);
    struct dm_lane *lane = *proxy;
    if (!lane) {
        return dm_lua_closed(L);
    }
    if (lane->listener->shared) { /* the one socket closes with its listener */
        lua_pushboolean(L, 1);
        return 1;
    }
    const int error = dm_listener_close_lane(lane);
    if (error) {
        return dm_lua_fail(L, error, NULL);
    }
    *proxy = NULL;
    lua_pushboolean(L, 1);
    return 1;
}

static int l_lane_gc(lua_State *L) {
    struct dm_lane **proxy = luaL_checkudata(L, 1, LANE);
    if (*proxy && (*proxy)->handle == proxy) {
        (*proxy)->handle = NULL;
    }
    *proxy = NULL;
    return 0;
}

/* ---- listeners ---- */

struct proxy {
    struct dm_listener listener;
    bool open;
};

static struct dm_listener *to_listener(lua_State *L, int index) {
    struct proxy *proxy = luaL_checkudata(L, index, LISTENER);
    return proxy->open ? &proxy->listener : NULL;
}

static int integer_field(lua_State *L, int table, const char *key, int missing) {
    int value = missing;
    if (lua_istable(L, table)) {
        lua_getfield(L, table, key);
        value = lua_isnil(L, -1) ? missing : luaL_checkint(L, -1);
        lua_pop(L, 1);
    }
    return value;
}

/* options.as or options.owner: {uid =, gid =, groups = {}}. */
static bool rights_field(lua_State *L, const char *key, struct dm_rights *rights) {
    lua_getfield(L, 2, key);
    const bool given = lua_istable(L, -1);
    if (given) {
        const int table = lua_gettop(L);
        rights->uid = (uid_t)integer_field(L, table, "uid", (int)geteuid());
        rights->gid = (gid_t)integer_field(L, table, "gid", (int)getegid());
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

/* listen(address [, { backlog =, reuseport =, reuse =, mode =, fd =, as =, owner = }])
 */
int core_listen(lua_State *L) {
    struct dm_address address;
    char text[DM_ADDRESS_TEXT];
    const char *why = NULL;
    int error = check_address(L, 1, &address, &why);
    if (error) {
        lua_pushnil(L);
        lua_pushfstring(L, "%s: %s", dm_error_name(error), why);
        lua_pushstring(L, dm_error_name(error));
        return 3;
    }
    struct dm_rights rights = {.group_count = 0};
    struct dm_listener_options options = {
        .backlog = integer_field(L, 2, "backlog", DEFAULT_BACKLOG),
        .mode = integer_field(L, 2, "mode", -1),
        .fd = integer_field(L, 2, "fd", -1),
        .rights = check_rights(L, &rights),
    };
    if (lua_istable(L, 2)) {
        lua_getfield(L, 2, "reuseport");
        options.reuseport = lua_toboolean(L, -1);
        lua_getfield(L, 2, "reuse");
        options.reuse = lua_toboolean(L, -1);
        lua_pop(L, 2);
    }
    struct proxy *proxy = lua_newuserdata(L, sizeof *proxy);
    proxy->open = false;
    luaL_getmetatable(L, LISTENER);
    lua_setmetatable(L, -2);
    error = dm_listener_open(&proxy->listener, &address, &options);
    if (error) {
        dm_address_text(&address, text);
        if (error == -EPERM && dm_address_is_path(&address)) {
            return fail_stale(L, text);
        }
        return error == -EADDRINUSE ? fail_in_use(L, &address, text) : fail_at(L, error, text);
    }
    proxy->open = true;
    return 1;
}

static int l_listener_address(lua_State *L) {
    const struct dm_listener *listener = to_listener(L, 1);
    if (!listener) {
        return dm_lua_closed(L);
    }
    push_address(L, &listener->address);
    return 1;
}

static int l_listener_shared(lua_State *L) {
    const struct dm_listener *listener = to_listener(L, 1);
    if (!listener) {
        return dm_lua_closed(L);
    }
    lua_pushboolean(L, listener->shared);
    return 1;
}

static int l_listener_lane(lua_State *L) {
    struct dm_listener *listener = to_listener(L, 1);
    struct dm_lane *lane;
    if (!listener) {
        return dm_lua_closed(L);
    }
    const int error = dm_listener_lane(listener, &lane);
    if (error) {
        char text[DM_ADDRESS_TEXT];
        dm_address_text(&listener->address, text);
        return fail_at(L, error, text);
    }
    push_lane(L, lane);
    return 1;
}

static int l_listener_lanes(lua_State *L) {
    const struct dm_listener *listener = to_listener(L, 1);
    if (!listener) {
        return dm_lua_closed(L);
    }
    lua_createtable(L, (int)listener->count, 0);
    for (size_t i = 0; i < listener->count; i++) {
        push_lane(L, listener->lanes[i]);
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
            push_lane(L, listener->lanes[i]);
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
    if (!listener) {
        return dm_lua_closed(L);
    }
    const int error = dm_listener_census(listener);
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
        wipe(proxy->listener.lanes[i]);
    }
    proxy->open = false;
    dm_listener_close(&proxy->listener);
    return 0;
}

/* ---- steering ---- */

static struct dm_lane *check_member(lua_State *L, int index, const struct dm_listener *listener) {
    struct dm_lane *lane = to_lane(L, index);
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

/* opts.sticky: true (an even share of 256 buckets for each) or the position in the list, from 1,
 * for each bucket. */
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
    } else if (lua_toboolean(L, -1) && steer->count > 0) {
        const size_t count = steer->count > DEFAULT_BUCKETS ? DM_STEERING_BUCKETS : DEFAULT_BUCKETS;
        for (size_t i = 0; i < count; i++) {
            buckets[i] = (uint16_t)(i * steer->count / count);
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
        const int port = integer_field(L, lua_gettop(L), "port", 0);
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
        return dm_lua_closed(L);
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
    lua_pushstring(L, dm_error_text(error));
    lua_pushstring(L, dm_error_name(error));
    return 3;
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

/* ---- descriptors ---- */

int core_close_fd(lua_State *L) {
    const int fd = luaL_checkint(L, 1);
    luaL_argcheck(L, fd > 2, 1, "not one of 0, 1, 2");
    if (close(fd) != 0 && errno == EBADF) {
        return dm_lua_fail(L, -errno, "close");
    }
    lua_pushboolean(L, 1);
    return 1;
}

/* quiet_ms(fd): how long nothing has come from the peer of a TCP connection. */
int core_quiet_ms(lua_State *L) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    memset(&info, 0, sizeof info);
    if (getsockopt(luaL_checkint(L, 1), IPPROTO_TCP, TCP_INFO, &info, &size) != 0) {
        return dm_lua_fail(L, -errno, NULL);
    }
    lua_pushinteger(L, info.tcpi_last_ack_recv);
    return 1;
}

/* holders(inodes): the processes that have one of these sockets: { pid, name, group }, the first
 * ones. Reads all of /proc. */
int core_holders(lua_State *L) {
    enum { ROOM = 16 };
    struct dm_holder list[ROOM];
    unsigned long inodes[DM_STRANGERS];
    size_t count = 0;
    luaL_checktype(L, 1, LUA_TTABLE);
    for (; count < lua_objlen(L, 1) && count < DM_STRANGERS; count++) {
        lua_rawgeti(L, 1, (int)count + 1);
        inodes[count] = (unsigned long)luaL_checknumber(L, -1);
        lua_pop(L, 1);
    }
    count = dm_holder_list(inodes, count, list, ROOM);
    lua_createtable(L, (int)count, 0);
    for (size_t i = 0; i < count; i++) {
        lua_createtable(L, 0, 3);
        lua_pushinteger(L, list[i].pid);
        lua_setfield(L, -2, "pid");
        lua_pushinteger(L, list[i].group);
        lua_setfield(L, -2, "group");
        dm_lua_set_string(L, "name", list[i].name);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

/* group_has(group, fd): whether some process of a group has the socket that is our `fd`; nil where
 * that cannot be seen. Reads all of /proc. */
int core_group_has(lua_State *L) {
    struct stat found;
    const pid_t group = (pid_t)luaL_checkinteger(L, 1);
    if (fstat(luaL_checkint(L, 2), &found) != 0) {
        return dm_lua_fail(L, -errno, NULL);
    }
    const int has = dm_holder_group_has(group, (unsigned long)found.st_ino);
    if (has < 0) {
        lua_pushnil(L);
    } else {
        lua_pushboolean(L, has);
    }
    return 1;
}

static void push_name(lua_State *L, const char **names) {
    if (!*names) {
        lua_pushliteral(L, "unknown");
        return;
    }
    const size_t length = strcspn(*names, ":");
    lua_pushlstring(L, *names, length);
    *names += length + ((*names)[length] == ':');
}

int core_inherited(lua_State *L) {
    struct dm_inherited inherited;
    const int error = dm_inherited_take(&inherited);
    if (error) {
        return dm_lua_fail(L, error, "LISTEN_FDS");
    }
    const char *names = inherited.names;
    lua_createtable(L, inherited.count, 0);
    for (int i = 0; i < inherited.count; i++) {
        struct dm_address address;
        lua_createtable(L, 0, 3);
        lua_pushinteger(L, 3 + i);
        lua_setfield(L, -2, "fd");
        push_name(L, &names);
        lua_setfield(L, -2, "name");
        if (dm_address_of(3 + i, &address) == 0) {
            push_address(L, &address);
            lua_setfield(L, -2, "address");
        }
        lua_rawseti(L, -2, i + 1);
    }
    dm_inherited_free(&inherited);
    return 1;
}

/* ---- registration ---- */

static const luaL_Reg listener_methods[] = {
    {"address", l_listener_address},     {"shared", l_listener_shared}, {"lane", l_listener_lane},
    {"lanes", l_listener_lanes},         {"queued", l_listener_queued}, {"steer", l_listener_steer},
    {"strangers", l_listener_strangers}, {"close", l_listener_close},   {NULL, NULL},
};

static const luaL_Reg lane_methods[] = {
    {"fd", l_lane_fd},         {"index", l_lane_index},
    {"queue", l_lane_queue},   {"accept", l_lane_accept},
    {"repair", l_lane_repair}, {"shut_out", l_lane_shut_out},
    {"close", l_lane_close},   {NULL, NULL},
};

void dm_lua_open_socket(lua_State *L) {
    dm_lua_new_type(L, LISTENER, listener_methods, l_listener_close);
    dm_lua_new_type(L, LANE, lane_methods, l_lane_gc);
    lua_pushlightuserdata(L, (void *)&lanes_key);
    lua_newtable(L);
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "v");
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_rawset(L, LUA_REGISTRYINDEX);
}
