/* lua/lane.c: see lua/lane.h. */
#include "lua/lane.h"
#include "lua/open.h"
#include "lua/support.h"
#include "net/repair.h"

#include <errno.h>
#include <lauxlib.h>

#define LANE "dutch-master.lane"

static const char lanes_key; /* registry: lane pointer -> userdata, weak */

void dm_lua_wipe_lane(const struct dm_lane *lane) {
    if (lane->handle) {
        *(struct dm_lane **)lane->handle = NULL;
    }
}

void dm_lua_push_lane(lua_State *L, struct dm_lane *lane) {
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

struct dm_lane *dm_lua_to_lane(lua_State *L, int index) {
    return *(struct dm_lane **)luaL_checkudata(L, index, LANE);
}

/* lane:fd(how = 'nonblocking') */
static int l_lane_fd(lua_State *L) {
    static const char *const ways[] = {"nonblocking", "blocking", "as it is", NULL};
    const struct dm_lane *lane = dm_lua_to_lane(L, 1);
    if (!lane) {
        return dm_lua_closed(L);
    }
    lua_pushinteger(
        L, dm_lane_hand_out(lane, (enum dm_hand_out)luaL_checkoption(L, 2, "nonblocking", ways)));
    return 1;
}

static int l_lane_shut_out(lua_State *L) {
    struct dm_lane *lane = dm_lua_to_lane(L, 1);
    const int error = lane ? dm_lane_shut_out(lane) : -EBADF;
    if (error) {
        return dm_lua_fail(L, error, NULL);
    }
    lua_pushboolean(L, 1);
    return 1;
}

/* Position in the group, from 0. */
static int l_lane_index(lua_State *L) {
    const struct dm_lane *lane = dm_lua_to_lane(L, 1);
    if (!lane) {
        return dm_lua_closed(L);
    }
    lua_pushinteger(L, (lua_Integer)lane->index);
    return 1;
}

static int l_lane_queue(lua_State *L) {
    const struct dm_lane *lane = dm_lua_to_lane(L, 1);
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
    const struct dm_lane *lane = dm_lua_to_lane(L, 1);
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
                 {DM_LANE_PATH, "path"},         {DM_LANE_PATH_LOST, "path lost"},
                 {DM_LANE_FILTER, "filter"},     {DM_LANE_LOCKED, "locked"}};
    struct dm_lane *lane = dm_lua_to_lane(L, 1);
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

/* lane:close(regardless): see dm_listener_close_lane */
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
    const int error = dm_listener_close_lane(lane, lua_toboolean(L, 2));
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

static const luaL_Reg lane_methods[] = {
    {"fd", l_lane_fd},         {"index", l_lane_index},
    {"queue", l_lane_queue},   {"accept", l_lane_accept},
    {"repair", l_lane_repair}, {"shut_out", l_lane_shut_out},
    {"close", l_lane_close},   {NULL, NULL},
};

void dm_lua_open_lane(lua_State *L) {
    dm_lua_new_type(L, LANE, lane_methods, l_lane_gc);
    lua_pushlightuserdata(L, (void *)&lanes_key);
    lua_newtable(L);
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "v");
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_rawset(L, LUA_REGISTRYINDEX);
}
