/* worker/worker_main.c: see worker/worker_main.h. A Lua state with luv and cjson, the script, then
 * luv's loop until nothing is left in it. Unlike in the master, an error nobody caught ends the
 * process: exit code 1 with a traceback, and the master replaces the worker. */
#include "worker/worker_main.h"

#include "lua/call.h"
#include "lua/embedded.h"
#include "lua/state.h"
#include "worker/wire_binding.h"

#include <lauxlib.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#if defined(__SANITIZE_ADDRESS__)
#define DM_LEAK_CHECK 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DM_LEAK_CHECK 1
#endif
#endif
#ifdef DM_LEAK_CHECK
#include <sanitizer/lsan_interface.h>
/* LuaJIT's tagged pointers hide from the checker what the open state still holds at the end, and
 * a check at each exit takes longer than specs leave a worker to end. */
static int is_worker;
int __lsan_is_turned_off(void) {
    return is_worker;
}
#endif

enum { EXIT_ERROR = 1, EXIT_USAGE = 2 };

/* Of a message on the stack top. */
static int fail(lua_State *L) {
    fprintf(stderr, "dutch-master: worker: %s\n", lua_tostring(L, -1));
    return -1;
}

/* What luv calls every callback through. */
static int on_callback(lua_State *L, int nargs, int nresults, int flags) {
    const int results = dm_lua_call_luv(L, nargs, nresults, flags);
    if (results < 0) {
        exit(EXIT_ERROR);
    }
    return results;
}

/* Appends the absolute entries of `path` to the string on the stack top. A relative entry would
 * mean another file after each chdir. */
static void append_absolute(lua_State *L, const char *path) {
    while (*path) {
        size_t length = strcspn(path, ";");
        if (*path == '/') {
            lua_pushliteral(L, ";");
            lua_pushlstring(L, path, length);
            lua_concat(L, 3);
        }
        path += length + (path[length] == ';');
    }
}

/* package[field] = first, then the variable's entries (";;" stands for the default), all absolute.
 */
static void set_path(lua_State *L, const char *field, const char *variable, const char *first) {
    lua_getglobal(L, "package");
    lua_getfield(L, -1, field);
    const char *wanted = secure_getenv(variable);
    if (wanted) {
        const char *fallback = lua_pushfstring(L, ";%s;", lua_tostring(L, -1));
        luaL_gsub(L, wanted, ";;", fallback);
        lua_replace(L, -3);
        lua_pop(L, 1);
    }
    lua_pushstring(L, first); /* package, entries, result */
    append_absolute(L, lua_tostring(L, -2));
    lua_setfield(L, -3, field);
    lua_pop(L, 2);
}

/* The real directory, as in Node: a worker stays in the release it was started from, even when a
 * `current` link is moved meanwhile. */
static int set_paths(lua_State *L, const char *script) {
    char path[PATH_MAX];
    if (!realpath(script, path)) {
        lua_pushfstring(L, "cannot open %s", script);
        return fail(L);
    }
    const char *dir = dirname(path);
    const char *lua = lua_pushfstring(L, "%s/?.lua;%s/?/init.lua", dir, dir);
    set_path(L, "path", "LUA_PATH", lua);
    const char *native = lua_pushfstring(L, "%s/?.so", dir);
    set_path(L, "cpath", "LUA_CPATH", native);
    lua_pop(L, 2);
    return 0;
}

/* `arg` as the plain lua program sets it: the script is 0. */
static void set_arg(lua_State *L, int argc, char **argv) {
    lua_createtable(L, argc - 3, 3);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i - 2);
    }
    lua_setglobal(L, "arg");
}

/* The worker module is loaded even if the script never asks for it: someone must hear the master.
 */
static int listen_to_master(lua_State *L) {
    if (!getenv("NODE_CHANNEL_FD")) {
        return 0;
    }
    lua_getglobal(L, "require");
    lua_pushliteral(L, "dutch-master.worker");
    return dm_lua_call(L, 1, 0, "worker");
}

static int run_script(lua_State *L, int argc, char **argv) {
    if (luaL_loadfile(L, argv[2]) != 0) {
        return fail(L);
    }
    luaL_checkstack(L, argc, "too many arguments");
    for (int i = 3; i < argc; i++) {
        lua_pushstring(L, argv[i]);
    }
    return dm_lua_call(L, argc - 3, 0, "worker");
}

/* Not if the script has run the loop itself and left in it. */
static int run_loop(lua_State *L) {
    static const char code[] = "local worker = package.loaded['dutch-master.worker']\n"
                               "if not (worker and worker.left) then require('luv').run() end";
    luaL_loadbuffer(L, code, sizeof code - 1, "=worker");
    return dm_lua_call(L, 0, 0, "worker");
}

int dm_lua_worker_main(int argc, char **argv) {
    if (argc < 3) {
        fputs("usage: dutch-master --lua-worker SCRIPT [ARGS...]\n", stderr);
        return EXIT_USAGE;
    }
    prctl(PR_SET_NAME, "dutch-master"); /* it was exec'ed as /proc/self/exe */
    /* Otherwise what is printed stays in the worker until 4 KiB have come together. */
    setvbuf(stdout, NULL, _IOLBF, 0);
#ifdef DM_LEAK_CHECK
    is_worker = 1;
#endif
    lua_State *L = dm_lua_state_new(false, NULL);
    if (!L) {
        fputs("dutch-master: worker: not enough memory\n", stderr);
        return EXIT_ERROR;
    }
    luv_set_callback(L, on_callback);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, dm_lua_open_wire);
    lua_setfield(L, -2, "dutch-master.wire");
    if (dm_lua_load_embedded(L, "dutch-master/addresses") != 0) { /* the master's own, as it is */
        fail(L);
        return EXIT_ERROR;
    }
    lua_setfield(L, -2, "dutch-master.addresses");
    lua_settop(L, 0);
    dm_lua_open_embedded(L, "worker/");
    set_arg(L, argc, argv);

    if (set_paths(L, argv[2]) != 0 || listen_to_master(L) != 0 || run_script(L, argc, argv) != 0 ||
        run_loop(L) != 0) {
        return EXIT_ERROR;
    }
    /* Not lua_close: with handles left open luv 1.44 then calls into what is already freed. */
    return EXIT_SUCCESS;
}
