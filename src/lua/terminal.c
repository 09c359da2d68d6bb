/* lua/terminal.c: core.isatty(fd), tty_size(fd), write_stdout(text), write_stderr(text),
 * tty_raw(bool), read_tty(fn): fn(bytes), fn(nil) at the end; read_tty(nil) stops. */
#include "service/terminal.h"
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"

#include <unistd.h>

#define TYPE "dutch-master.terminal"

/* There is one, kept in the registry under reader_key. */
struct l_terminal {
    struct dm_terminal *terminal;
    lua_State *L;
    int on_read;
};

static const char reader_key;

int core_isatty(lua_State *L) {
    lua_pushboolean(L, isatty(luaL_checkint(L, 1)) == 1);
    return 1;
}

int core_tty_size(lua_State *L) {
    int columns, rows;
    if (!dm_terminal_size(luaL_checkint(L, 1), &columns, &rows)) {
        return dm_lua_fail(L, UV_ENOTTY, "terminal");
    }
    lua_pushinteger(L, columns);
    lua_pushinteger(L, rows);
    return 2;
}

static int write_to(lua_State *L, int fd, const char *name) {
    size_t len;
    const char *text = luaL_checklstring(L, 1, &len);
    const int err = dm_terminal_write(fd, text, len);
    if (err != 0) {
        return dm_lua_fail(L, err, name);
    }
    lua_pushboolean(L, 1);
    return 1;
}

int core_write_stdout(lua_State *L) {
    return write_to(L, STDOUT_FILENO, "standard output");
}

int core_write_stderr(lua_State *L) {
    return write_to(L, STDERR_FILENO, "standard error");
}

int core_tty_raw(lua_State *L) {
    const int err = dm_terminal_raw(lua_toboolean(L, 1));
    if (err != 0) {
        return dm_lua_fail(L, err, "/dev/tty");
    }
    lua_pushboolean(L, 1);
    return 1;
}

static void on_read(void *ctx, const char *data, size_t len) {
    struct l_terminal *t = ctx;
    lua_rawgeti(t->L, LUA_REGISTRYINDEX, t->on_read);
    if (data == NULL) {
        lua_pushnil(t->L);
    } else {
        lua_pushlstring(t->L, data, len);
    }
    dm_lua_call(t->L, 1, 0, "terminal input");
}

static int l_gc(lua_State *L) {
    struct l_terminal *t = luaL_checkudata(L, 1, TYPE);
    if (t->terminal != NULL) {
        dm_terminal_close(t->terminal);
    }
    t->terminal = NULL;
    dm_lua_drop(L, &t->on_read);
    return 0;
}

int core_read_tty(lua_State *L) {
    lua_settop(L, 1);
    lua_pushlightuserdata(L, (void *)&reader_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    struct l_terminal *t = lua_touserdata(L, 2);
    dm_lua_keep(L, 1, &t->on_read);
    if (t->on_read == LUA_NOREF && t->terminal != NULL) {
        dm_terminal_close(t->terminal);
        t->terminal = NULL;
    }
    if (t->on_read != LUA_NOREF && t->terminal == NULL) {
        const int err = dm_terminal_open(dm_lua_loop(L), on_read, t, &t->terminal);
        if (err != 0) {
            dm_lua_drop(L, &t->on_read);
            return dm_lua_fail(L, err, "/dev/tty");
        }
    }
    lua_pushboolean(L, 1);
    return 1;
}

static const luaL_Reg no_methods[] = {{NULL, NULL}};

void dm_lua_open_terminal(lua_State *L) {
    dm_lua_new_type(L, TYPE, no_methods, l_gc);
    lua_pushlightuserdata(L, (void *)&reader_key);
    struct l_terminal *t = lua_newuserdata(L, sizeof *t);
    *t = (struct l_terminal){.L = dm_lua_main(L), .on_read = LUA_NOREF};
    luaL_getmetatable(L, TYPE);
    lua_setmetatable(L, -2);
    lua_rawset(L, LUA_REGISTRYINDEX);
}
