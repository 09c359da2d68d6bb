/* lua/terminal.c: core.isatty(fd), tty_size(fd), write_stdout(text), write_stderr(text): what the
 * verbs that a person runs need beside luv. */
#include "lua/open.h"
#include "lua/support.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

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

/* All of it, waiting as long as it takes. */
static int write_to(lua_State *L, int fd, const char *name) {
    size_t left;
    const char *text = luaL_checklstring(L, 1, &left);
    while (left > 0) {
        const ssize_t n = write(fd, text, left);
        if (n >= 0) {
            text += n;
            left -= (size_t)n;
        } else if (errno == EAGAIN) { /* somebody else set O_NONBLOCK on our output */
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            poll(&p, 1, -1);
        } else if (errno != EINTR) {
            return dm_lua_fail(L, -errno, name);
        }
    }
    return dm_lua_result(L, 0, NULL);
}

int core_write_stdout(lua_State *L) {
    return write_to(L, STDOUT_FILENO, "standard output");
}

int core_write_stderr(lua_State *L) {
    return write_to(L, STDERR_FILENO, "standard error");
}
