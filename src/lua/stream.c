/* lua/stream.c: core.serve(path, {on_client=fn(conn), request_ms=10000}) -> server; server:close().
 * core.connect(path[, patience_ms]) -> conn; conn:uid() conn:pid() conn:write(text)
 * conn:on_line(fn(line)) conn:on_close(fn(reason)) conn:close(). What is open is kept alive by the
 * registry. */
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"
#include "service/server.h"

#define CONN "dutch-master.conn"
#define SERVER "dutch-master.server"

/* Time for a client to send its first line, in ms. */
#define REQUEST_MS 10000

struct l_conn {
    struct dm_stream *stream;
    lua_State *L;
    int self;
    int on_line;
    int on_close;
};

struct l_server {
    struct dm_server *server;
    lua_State *L;
    int self;
    int on_client;
};

/* --- connections --- */

static struct l_conn *check_conn(lua_State *L) {
    return luaL_checkudata(L, 1, CONN);
}

/* The stream is gone, or about to be: nothing in C holds the object any more. */
static void forget_conn(struct l_conn *c, lua_State *L) {
    c->stream = NULL;
    dm_lua_drop(L, &c->on_line);
    dm_lua_drop(L, &c->on_close);
    dm_lua_drop(L, &c->self);
}

static void on_line(void *ctx, const char *line, size_t len) {
    struct l_conn *c = ctx;
    if (c->on_line == LUA_NOREF) {
        return;
    }
    lua_rawgeti(c->L, LUA_REGISTRYINDEX, c->on_line);
    lua_pushlstring(c->L, line, len);
    dm_lua_call(c->L, 1, 0, "control line");
}

static void on_close(void *ctx, const char *reason) {
    struct l_conn *c = ctx;
    lua_State *L = c->L;
    const bool wanted = c->on_close != LUA_NOREF;
    if (wanted) {
        lua_rawgeti(L, LUA_REGISTRYINDEX, c->on_close);
    }
    forget_conn(c, L);
    if (!wanted) {
        return;
    }
    if (reason == NULL) {
        lua_pushnil(L);
    } else {
        lua_pushstring(L, reason);
    }
    dm_lua_call(L, 1, 0, "control connection closed");
}

static const struct dm_stream_events conn_events = {on_line, on_close};

/* Pushes an object without a stream. */
static struct l_conn *push_conn(lua_State *L) {
    struct l_conn *c = lua_newuserdata(L, sizeof *c);
    *c = (struct l_conn){
        .L = dm_lua_main(L), .self = LUA_NOREF, .on_line = LUA_NOREF, .on_close = LUA_NOREF};
    luaL_getmetatable(L, CONN);
    lua_setmetatable(L, -2);
    return c;
}

/* Ties the object on top of the stack to its stream. */
static void hold_conn(lua_State *L, struct l_conn *c, struct dm_stream *stream) {
    c->stream = stream;
    lua_pushvalue(L, -1);
    c->self = luaL_ref(L, LUA_REGISTRYINDEX);
    dm_stream_listen(stream, &conn_events, c);
}

int core_connect(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    const lua_Integer patience_ms = luaL_optinteger(L, 2, 0);
    luaL_argcheck(L, patience_ms >= 0 && patience_ms <= 60000, 2, "ms");
    struct l_conn *c = push_conn(L);
    struct dm_stream *stream;
    const int err = dm_stream_connect(dm_lua_loop(L), path, (unsigned)patience_ms, &stream);
    if (err != 0) {
        return dm_lua_fail(L, err, path);
    }
    hold_conn(L, c, stream);
    return 1;
}

static int l_conn_write(lua_State *L) {
    struct l_conn *c = check_conn(L);
    size_t len;
    const char *text = luaL_checklstring(L, 2, &len);
    if (c->stream == NULL) {
        return dm_lua_closed(L);
    }
    const int err = dm_stream_write(c->stream, text, len);
    if (err != 0) {
        return dm_lua_fail(L, err, NULL);
    }
    lua_pushboolean(L, 1);
    return 1;
}

static int l_conn_uid(lua_State *L) {
    struct l_conn *c = check_conn(L);
    if (c->stream == NULL) {
        return dm_lua_closed(L);
    }
    lua_pushnumber(L, (lua_Number)dm_stream_uid(c->stream));
    return 1;
}

static int l_conn_pid(lua_State *L) {
    struct l_conn *c = check_conn(L);
    if (c->stream == NULL) {
        return dm_lua_closed(L);
    }
    lua_pushnumber(L, (lua_Number)dm_stream_pid(c->stream));
    return 1;
}

static int l_conn_fd(lua_State *L) {
    struct l_conn *c = check_conn(L);
    if (c->stream == NULL) {
        return dm_lua_closed(L);
    }
    lua_pushinteger(L, dm_stream_fd(c->stream));
    return 1;
}

/* hold(1) before, hold(-1) after what the client must not be sent away from. */
static int l_conn_hold(lua_State *L) {
    struct l_conn *c = check_conn(L);
    if (c->stream == NULL) {
        return dm_lua_closed(L);
    }
    dm_stream_hold(c->stream, luaL_checkint(L, 2) > 0 ? 1 : -1);
    return dm_lua_result(L, 0, NULL);
}

static int keep_callback(lua_State *L, const struct l_conn *c, int *ref) {
    if (c->stream == NULL) {
        return dm_lua_closed(L);
    }
    dm_lua_keep(L, 2, ref);
    lua_pushboolean(L, 1);
    return 1;
}

static int l_conn_on_line(lua_State *L) {
    struct l_conn *c = check_conn(L);
    return keep_callback(L, c, &c->on_line);
}

static int l_conn_on_close(lua_State *L) {
    struct l_conn *c = check_conn(L);
    return keep_callback(L, c, &c->on_close);
}

static int l_conn_close(lua_State *L) {
    struct l_conn *c = check_conn(L);
    struct dm_stream *stream = c->stream;
    forget_conn(c, L);
    if (stream != NULL) {
        dm_stream_close(stream);
    }
    return 0;
}

/* --- servers --- */

static void on_client(void *ctx, struct dm_stream *client) {
    struct l_server *s = ctx;
    lua_State *L = s->L;
    lua_rawgeti(L, LUA_REGISTRYINDEX, s->on_client);
    struct l_conn *c = push_conn(L);
    hold_conn(L, c, client);
    dm_lua_call(L, 1, 0, "control client");
}

int core_serve(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    lua_getfield(L, 2, "on_client");
    luaL_checktype(L, 3, LUA_TFUNCTION);
    lua_getfield(L, 2, "request_ms");
    const lua_Number request_ms = luaL_optnumber(L, 4, REQUEST_MS);
    lua_getfield(L, 2, "fd");
    const int fd = luaL_optint(L, 5, -1);
    lua_settop(L, 3);
    /* Stack: 1 path, 2 options, 3 on_client, 4 object */
    struct l_server *s = lua_newuserdata(L, sizeof *s);
    *s = (struct l_server){.L = dm_lua_main(L), .self = LUA_NOREF, .on_client = LUA_NOREF};
    luaL_getmetatable(L, SERVER);
    lua_setmetatable(L, 4);
    const char *why;
    struct dm_server *server;
    const int err =
        dm_server_open(dm_lua_loop(L), path, fd, (uint64_t)request_ms, on_client, s, &server, &why);
    if (err != 0) {
        return dm_lua_fail_why(L, err, path, why);
    }
    s->server = server;
    dm_lua_keep(L, 3, &s->on_client);
    lua_pushvalue(L, 4);
    s->self = luaL_ref(L, LUA_REGISTRYINDEX);
    return 1;
}

static int l_server_fd(lua_State *L) {
    const struct l_server *s = luaL_checkudata(L, 1, SERVER);
    if (s->server == NULL) {
        return dm_lua_closed(L);
    }
    lua_pushinteger(L, dm_server_fd(s->server));
    return 1;
}

static int l_server_close(lua_State *L) {
    struct l_server *s = luaL_checkudata(L, 1, SERVER);
    struct dm_server *server = s->server;
    s->server = NULL;
    dm_lua_drop(L, &s->on_client);
    dm_lua_drop(L, &s->self);
    if (server != NULL) {
        dm_server_close(server);
    }
    return 0;
}

static const luaL_Reg conn_methods[] = {
    {"write", l_conn_write},       {"uid", l_conn_uid},     {"fd", l_conn_fd},
    {"pid", l_conn_pid},           {"hold", l_conn_hold},   {"on_line", l_conn_on_line},
    {"on_close", l_conn_on_close}, {"close", l_conn_close}, {NULL, NULL},
};

static const luaL_Reg server_methods[] = {
    {"fd", l_server_fd}, {"close", l_server_close}, {NULL, NULL}};
void dm_lua_open_stream(lua_State *L) {
    dm_lua_new_type(L, CONN, conn_methods, l_conn_close);
    dm_lua_new_type(L, SERVER, server_methods, l_server_close);
}
