/* lua/stream.c: core.serve(path, {on_client=fn(conn), fd=, request_ms=10000, silent_ms=60000}) ->
 * server; server:close().
 * core.connect(path[, patience_ms]) -> conn; conn:uid() conn:pid() conn:write(text)
 * conn:on_line(fn(line)) conn:on_close(fn(reason)) conn:close(). What is open is kept alive by the
 * registry. */
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"
#include "service/server.h"

#define CONN "dutch-master.conn"
#define SERVER "dutch-master.server"

/* In ms: time for a client to send its first line, and to hear something when it has said its last.
 */
#define REQUEST_MS 10000
#define SILENT_MS 60000

struct l_conn {
    struct dm_lua_object object;
    struct dm_stream *stream; /* NULL once it is gone */
};

struct l_server {
    struct dm_lua_object object;
    struct dm_server *server;
};

/* ---- connections ---- */

static struct l_conn *check_conn(lua_State *L) {
    return luaL_checkudata(L, 1, CONN);
}

static void on_line(void *ctx, const char *line, size_t len) {
    const struct l_conn *c = ctx;
    if (dm_lua_push_callback(&c->object, "on_line")) {
        lua_pushlstring(c->object.L, line, len);
        dm_lua_call(c->object.L, 1, 0, "control line");
    }
}

static void on_close(void *ctx, const char *reason) {
    struct l_conn *c = ctx;
    lua_State *L = c->object.L;
    const bool wanted = dm_lua_push_callback(&c->object, "on_close");
    c->stream = NULL;
    dm_lua_release(&c->object);
    if (wanted) {
        lua_pushstring(L, reason); /* nil for NULL */
        dm_lua_call(L, 1, 0, "control connection closed");
    }
}

static const struct dm_stream_events conn_events = {on_line, on_close};

/* Ties the object on top of the stack to its stream. */
static void hold_conn(lua_State *L, struct l_conn *c, struct dm_stream *stream) {
    c->stream = stream;
    dm_lua_hold(L, lua_gettop(L));
    dm_stream_listen(stream, &conn_events, c);
}

int core_connect(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    const lua_Integer patience_ms = luaL_optinteger(L, 2, 0);
    luaL_argcheck(L, patience_ms >= 0 && patience_ms <= 60000, 2, "ms");
    struct l_conn *c = dm_lua_new_object(L, sizeof *c, CONN);
    struct dm_stream *stream;
    const int err = dm_stream_connect(dm_lua_loop(L), path, (unsigned)patience_ms, &stream);
    if (err != 0) {
        return dm_lua_fail(L, err, path);
    }
    hold_conn(L, c, stream);
    return 1;
}

static int l_conn_write(lua_State *L) {
    const struct l_conn *c = check_conn(L);
    size_t len;
    const char *text = luaL_checklstring(L, 2, &len);
    return dm_lua_result(L, c->stream ? dm_stream_write(c->stream, text, len) : -EBADF, NULL);
}

/* uid() of the other end: a number, which may be any of 32 bits. */
static int l_conn_uid(lua_State *L) {
    const struct l_conn *c = check_conn(L);
    if (c->stream == NULL) {
        return dm_lua_fail(L, -EBADF, NULL);
    }
    lua_pushnumber(L, c->stream->peer.uid);
    return 1;
}

static int l_conn_pid(lua_State *L) {
    const struct l_conn *c = check_conn(L);
    return dm_lua_result_integer(L, c->stream ? c->stream->peer.pid : -EBADF, NULL);
}

static int l_conn_fd(lua_State *L) {
    const struct l_conn *c = check_conn(L);
    return dm_lua_result_integer(L, c->stream ? c->stream->fd : -EBADF, NULL);
}

/* hold(1) before, hold(-1) after what the client must not be sent away from. */
static int l_conn_hold(lua_State *L) {
    const struct l_conn *c = check_conn(L);
    if (c->stream) {
        c->stream->held += luaL_checkint(L, 2) > 0 ? 1 : -1;
    }
    return dm_lua_result(L, c->stream ? 0 : -EBADF, NULL);
}

static int set_conn_callback(lua_State *L, const char *name) {
    const struct l_conn *c = check_conn(L);
    if (c->stream) {
        dm_lua_set_callback(L, 1, name, 2);
    }
    return dm_lua_result(L, c->stream ? 0 : -EBADF, NULL);
}

static int l_conn_on_line(lua_State *L) {
    return set_conn_callback(L, "on_line");
}

static int l_conn_on_close(lua_State *L) {
    return set_conn_callback(L, "on_close");
}

static int l_conn_close(lua_State *L) {
    struct l_conn *c = check_conn(L);
    struct dm_stream *stream = c->stream;
    c->stream = NULL;
    dm_lua_release(&c->object);
    if (stream != NULL) {
        dm_stream_close(stream);
    }
    return 0;
}

/* ---- servers ---- */

static void on_client(void *ctx, struct dm_stream *client) {
    const struct l_server *s = ctx;
    lua_State *L = s->object.L;
    dm_lua_push_callback(&s->object, "on_client");
    hold_conn(L, dm_lua_new_object(L, sizeof(struct l_conn), CONN), client);
    dm_lua_call(L, 1, 0, "control client");
}

int core_serve(lua_State *L) {
    const char *path = luaL_checkstring(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    lua_getfield(L, 2, "on_client");
    luaL_checktype(L, 3, LUA_TFUNCTION);
    /* Stack: 1 path, 2 options, 3 on_client, 4 object */
    struct l_server *s = dm_lua_new_object(L, sizeof *s, SERVER);
    const struct dm_server_options options = {
        .fd = dm_lua_integer_field(L, 2, "fd", -1),
        .request_ms = (uint64_t)dm_lua_integer_field(L, 2, "request_ms", REQUEST_MS),
        .silent_ms = (uint64_t)dm_lua_integer_field(L, 2, "silent_ms", SILENT_MS),
        .on_client = on_client,
        .ctx = s,
    };
    const char *why;
    struct dm_server *server;
    const int err = dm_server_open(dm_lua_loop(L), path, &options, &server, &why);
    if (err != 0) {
        return dm_lua_fail_why(L, err, path, why);
    }
    s->server = server;
    dm_lua_set_callback(L, 4, "on_client", 3);
    dm_lua_hold(L, 4);
    return 1;
}

static int l_server_fd(lua_State *L) {
    const struct l_server *s = luaL_checkudata(L, 1, SERVER);
    return dm_lua_result_integer(L, s->server ? dm_server_fd(s->server) : -EBADF, NULL);
}

static int l_server_close(lua_State *L) {
    struct l_server *s = luaL_checkudata(L, 1, SERVER);
    struct dm_server *server = s->server;
    s->server = NULL;
    dm_lua_release(&s->object);
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
