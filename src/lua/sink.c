/* lua/sink.c: core.sink(target) -> s; s:write(line, grave, number) s:lost() s:on_drain(fn)
 * s:reopen() s:flush(ms) s:is_tty() s:close(). */
#include "service/sink.h"
#include "keeper/kept.h"
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"
#include "service/append.h"

#define TYPE "dutch-master.sink"

struct l_sink {
    struct dm_lua_object object; /* held while there is on_drain */
    struct dm_sink *sink;
};

static struct l_sink *check(lua_State *L) {
    return luaL_checkudata(L, 1, TYPE);
}

static void on_drain(void *ctx) {
    const struct l_sink *s = ctx;
    if (dm_lua_push_callback(&s->object, "on_drain")) {
        dm_lua_call(s->object.L, 0, 0, "sink drained");
    }
}

int core_sink(lua_State *L) {
    struct l_sink *s = dm_lua_new_object(L, sizeof *s, TYPE);
    int err;
    if (lua_type(L, 1) == LUA_TNUMBER) {
        err = dm_sink_open_fd(dm_lua_loop(L), luaL_checkint(L, 1), &s->sink);
        return err == 0 ? 1 : dm_lua_fail(L, err, "log output");
    }
    const char *path = luaL_checkstring(L, 1);
    err = dm_sink_open_path(dm_lua_loop(L), path, &s->sink);
    return err == 0 ? 1 : dm_lua_fail_why(L, err, path, dm_append_why(err));
}

struct saying {
    struct dm_kept *kept;
    uint64_t number;
};

static void say(void *data) {
    const struct saying *saying = data;
    dm_kept_say(saying->kept, saying->number);
}

/* number: core.say() it as soon as the line is out, nil: nothing is said. */
static int l_write(lua_State *L) {
    const struct l_sink *s = check(L);
    size_t len;
    const char *record = luaL_checklstring(L, 2, &len);
    const bool grave = lua_toboolean(L, 3);
    luaL_argcheck(L, len > 0 && record[len - 1] == '\n', 2, "a record ends with a newline");
    struct saying saying = {&dm_lua_core(L)->kept, (uint64_t)luaL_optnumber(L, 4, 0)};
    const struct dm_sink_then then = {say, &saying};
    const bool says = saying.number != 0 && saying.kept->open;
    return dm_lua_result(
        L, s->sink ? dm_sink_write(s->sink, record, len, grave, says ? &then : NULL) : -EBADF,
        NULL);
}

static int l_lost(lua_State *L) {
    const struct l_sink *s = check(L);
    lua_pushnumber(L, s->sink == NULL ? 0 : (lua_Number)dm_sink_take_lost(s->sink));
    return 1;
}

static int l_on_drain(lua_State *L) {
    struct l_sink *s = check(L);
    if (s->sink == NULL) {
        return dm_lua_fail(L, -EBADF, NULL);
    }
    dm_lua_set_callback(L, 1, "on_drain", 2);
    const bool wanted = !lua_isnoneornil(L, 2);
    if (wanted) {
        dm_lua_hold(L, 1);
    } else {
        dm_lua_release(&s->object);
    }
    dm_sink_on_drain(s->sink, wanted ? on_drain : NULL, s);
    return dm_lua_result(L, 0, NULL);
}

static int l_reopen(lua_State *L) {
    const struct l_sink *s = check(L);
    return dm_lua_result(L, s->sink ? dm_sink_reopen(s->sink) : -EBADF, "log output");
}

static int l_flush(lua_State *L) {
    const struct l_sink *s = check(L);
    const lua_Number ms = luaL_checknumber(L, 2);
    luaL_argcheck(L, ms >= 0 && ms <= 3600e3, 2, "milliseconds");
    return dm_lua_result(L, s->sink ? dm_sink_flush(s->sink, (uint64_t)ms) : -EBADF, NULL);
}

static int l_is_tty(lua_State *L) {
    const struct l_sink *s = check(L);
    lua_pushboolean(L, s->sink != NULL && dm_sink_is_tty(s->sink));
    return 1;
}

static int l_close(lua_State *L) {
    struct l_sink *s = check(L);
    struct dm_sink *sink = s->sink;
    s->sink = NULL;
    dm_lua_release(&s->object);
    if (sink != NULL) {
        dm_sink_close(sink);
    }
    return 0;
}

static const luaL_Reg methods[] = {
    {"write", l_write}, {"lost", l_lost},     {"on_drain", l_on_drain}, {"reopen", l_reopen},
    {"flush", l_flush}, {"is_tty", l_is_tty}, {"close", l_close},       {NULL, NULL},
};

void dm_lua_open_sink(lua_State *L) {
    dm_lua_new_type(L, TYPE, methods, l_close);
}
