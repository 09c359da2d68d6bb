/* lua/terminal.c: core.isatty(fd), tty_size(fd), write_stdout(text), write_stderr(text),
 * tty_raw(bool), read_tty(fn): fn(bytes), fn(nil) at the end; read_tty(nil) stops. */
#include "service/terminal.h"
#include "lua/call.h"
#include "lua/open.h"
#include "lua/support.h"

#include <sys/ioctl.h>
#include <unistd.h>

#define TYPE "dutch-master.terminal"

/* There is one, in the registry under this name. */
#define READER "dutch-master.tty_reader"

struct l_terminal {
    struct dm_lua_object object;
    struct dm_terminal *terminal; /* while somebody reads */
};

int core_isatty(lua_State *L) {
    lua_pushboolean(L, isatty(luaL_checkint(L, 1)) == 1);
    return 1;
}

int core_tty_size(lua_State *L) {
    struct winsize size;
    if (ioctl(luaL_checkint(L, 1), TIOCGWINSZ, &size) < 0) {
        return dm_lua_fail(L, -ENOTTY, "terminal");
    }
    lua_pushinteger(L, size.ws_col);
    lua_pushinteger(L, size.ws_row);
    return 2;
}

static int write_to(lua_State *L, int fd, const char *name) {
    size_t len;
    const char *text = luaL_checklstring(L, 1, &len);
    return dm_lua_result(L, dm_terminal_write(fd, text, len), name);
}

int core_write_stdout(lua_State *L) {
    return write_to(L, STDOUT_FILENO, "standard output");
}

int core_write_stderr(lua_State *L) {
    return write_to(L, STDERR_FILENO, "standard error");
}

int core_tty_raw(lua_State *L) {
    return dm_lua_result(L, dm_terminal_raw(lua_toboolean(L, 1)), "/dev/tty");
}

static void on_read(void *ctx, const char *data, size_t len) {
    const struct l_terminal *t = ctx;
    if (dm_lua_push_callback(&t->object, "on_read")) {
        if (data == NULL) {
            lua_pushnil(t->object.L);
        } else {
            lua_pushlstring(t->object.L, data, len);
        }
        dm_lua_call(t->object.L, 1, 0, "terminal input");
    }
}

static void stop_reading(struct l_terminal *t) {
    if (t->terminal != NULL) {
        dm_terminal_close(t->terminal);
    }
    t->terminal = NULL;
    dm_lua_release(&t->object);
}

static int l_gc(lua_State *L) {
    stop_reading(luaL_checkudata(L, 1, TYPE));
    return 0;
}

int core_read_tty(lua_State *L) {
    lua_settop(L, 1);
    lua_getfield(L, LUA_REGISTRYINDEX, READER);
    struct l_terminal *t = lua_touserdata(L, 2);
    dm_lua_set_callback(L, 2, "on_read", 1);
    int err = 0;
    if (lua_isnil(L, 1)) {
        stop_reading(t);
    } else if (t->terminal == NULL) {
        err = dm_terminal_open(dm_lua_loop(L), on_read, t, &t->terminal);
        if (err == 0) {
            dm_lua_hold(L, 2);
        }
    }
    return dm_lua_result(L, err, "/dev/tty");
}

static const luaL_Reg no_methods[] = {{NULL, NULL}};

void dm_lua_open_terminal(lua_State *L) {
    dm_lua_new_type(L, TYPE, no_methods, l_gc);
    dm_lua_new_object(L, sizeof(struct l_terminal), TYPE);
    lua_setfield(L, LUA_REGISTRYINDEX, READER);
}
