/* lua/lane.c: see lua/lane.h. */
#include "lua/lane.h"

#include "base/outlive.h"
#include "lua/open.h"
#include "lua/support.h"
#include "net/repair.h"

#include <errno.h>
#include <lauxlib.h>

#define LANE "dutch-master.lane"

#define LANES "dutch-master.lanes" /* registry: lane pointer -> userdata, weak */

void dm_lua_wipe_lane(const struct dm_lane *lane) {
    if (lane->handle) {
        *(struct dm_lane **)lane->handle = NULL;
    }
}

void dm_lua_push_lane(lua_State *L, struct dm_lane *lane) {
    lua_getfield(L, LUA_REGISTRYINDEX, LANES);
    lua_pushlightuserdata(L, lane);
    lua_rawget(L, -2);
    if (lane->handle && !lua_isnil(L, -1)) {
        lua_remove(L, -2);
        return;
    }
    lua_pop(L, 1);
    struct dm_lane **proxy = dm_lua_new(L, sizeof(struct dm_lane *), LANE);
    *proxy = lane;
    lane->handle = proxy;
    lua_pushlightuserdata(L, lane);
    lua_pushvalue(L, -2);
    lua_rawset(L, -4);
    lua_remove(L, -2);
}

struct dm_lane *dm_lua_to_lane(lua_State *L, int index) {
    return *(struct dm_lane **)luaL_checkudata(L, index, LANE);
}

/* lane:fd(how = 'nonblocking') */
static int l_lane_fd(lua_State *L) {
    static const char *const ways[] = {"nonblocking", "blocking", "as it is", NULL};
    const struct dm_lane *lane = dm_lua_to_lane(L, 1);
    const enum dm_hand_out how = (enum dm_hand_out)luaL_checkoption(L, 2, "nonblocking", ways);
    return dm_lua_result_integer(L, lane ? dm_lane_hand_out(lane, how) : -EBADF, NULL);
}

/* lane:defer([seconds]) -> what was in force: see dm_lane_defer */
static int l_lane_defer(lua_State *L) {
    const struct dm_lane *lane = dm_lua_to_lane(L, 1);
    const int seconds = (int)luaL_optinteger(L, 2, -1);
    return dm_lua_result_integer(L, lane ? dm_lane_defer(lane, seconds) : -EBADF, NULL);
}

static int l_lane_shut_out(lua_State *L) {
    struct dm_lane *lane = dm_lua_to_lane(L, 1);
    return dm_lua_result(L, lane ? dm_lane_shut_out(lane) : -EBADF, NULL);
}

/* Position in the group, from 0. */
static int l_lane_index(lua_State *L) {
    const struct dm_lane *lane = dm_lua_to_lane(L, 1);
    return dm_lua_result_integer(L, lane ? (int)lane->index : -EBADF, NULL);
}

static int l_lane_queue(lua_State *L) {
    const struct dm_lane *lane = dm_lua_to_lane(L, 1);
    uint32_t depth, limit;
    const int error = lane ? dm_lane_queue(lane, &depth, &limit) : -EBADF;
    if (error) {
        return dm_lua_fail(L, error, NULL);
    }
    lua_pushinteger(L, depth);
    lua_pushinteger(L, limit);
    return 2;
}

struct taking {
    const struct dm_lane *lane;
    struct dm_kept *kept;
    const char *name;
    int fd; /* or a negative errno */
    bool is_kept;
};

static void take(void *data) {
    struct taking *taking = data;
    taking->fd = dm_lane_accept(taking->lane);
    taking->is_kept = taking->fd >= 0 && taking->name &&
                      dm_kept_put(taking->kept, taking->name, taking->fd, 0) == 0;
}

/* accept([name]) -> the descriptor of a connection, whether the keeper has it too, by that name. A
 * master that dies between the two would take the connection with it, so it does not. */
static int l_lane_accept(lua_State *L) {
    struct taking taking = {.lane = dm_lua_to_lane(L, 1),
                            .kept = &dm_lua_core(L)->kept,
                            .name = luaL_optstring(L, 2, NULL),
                            .fd = -EBADF};
    if (taking.lane && dm_lane_is_empty(taking.lane)) {
        taking.fd = -EAGAIN;
    } else if (taking.lane && taking.name && taking.kept->open) {
        taking.fd = -EIO; /* unless it ends in time */
        dm_outlive(take, &taking);
    } else if (taking.lane) {
        take(&taking);
    }
    const int results = dm_lua_result_integer(L, taking.fd, NULL);
    if (taking.fd < 0) {
        return results;
    }
    lua_pushboolean(L, taking.is_kept);
    return results + 1;
}

static int l_lane_repair(lua_State *L) {
    static const struct {
        int bit;
        const char *word;
    } words[] = {{DM_LANE_REVIVED, "shutdown"},  {DM_LANE_BACKLOG, "backlog"},
                 {DM_LANE_NONBLOCK, "nonblock"}, {DM_LANE_REUSEPORT, "reuseport"},
                 {DM_LANE_PATH, "path"},         {DM_LANE_PATH_LOST, "path lost"},
                 {DM_LANE_FILTER, "filter"},     {DM_LANE_LOCKED, "locked"}};
    struct dm_lane *lane = dm_lua_to_lane(L, 1);
    const int done = lane ? dm_lane_repair(lane, lua_toboolean(L, 2)) : -EBADF;
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

/* lane:close(regardless): see dm_listener_close_lane */
static int l_lane_close(lua_State *L) {
    struct dm_lane **proxy = luaL_checkudata(L, 1, LANE);
    struct dm_lane *lane = *proxy;
    const bool is_shared = lane && lane->listener->shared; /* its socket closes with its listener */
    const int error = lane ? dm_listener_close_lane(lane, lua_toboolean(L, 2)) : -EBADF;
    if (!error && !is_shared) {
        *proxy = NULL;
    }
    return dm_lua_result(L, error, NULL);
}

static int l_lane_gc(lua_State *L) {
    struct dm_lane **proxy = luaL_checkudata(L, 1, LANE);
    if (*proxy && (*proxy)->handle == proxy) {
        (*proxy)->handle = NULL;
    }
    *proxy = NULL;
    return 0;
}

static const luaL_Reg lane_methods[] = {
    {"fd", l_lane_fd},         {"index", l_lane_index},   {"queue", l_lane_queue},
    {"accept", l_lane_accept}, {"repair", l_lane_repair}, {"shut_out", l_lane_shut_out},
    {"defer", l_lane_defer},   {"close", l_lane_close},   {NULL, NULL},
};

void dm_lua_open_lane(lua_State *L) {
    dm_lua_new_type(L, LANE, lane_methods, l_lane_gc);
    lua_newtable(L);
    lua_createtable(L, 0, 1);
    dm_lua_set_string(L, "__mode", "v");
    lua_setmetatable(L, -2);
    lua_setfield(L, LUA_REGISTRYINDEX, LANES);
}
