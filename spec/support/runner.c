/* runner.c: dm-spec FILE [ARGS...] runs a Lua file with the core linked in, so that sanitizers and
 * valgrind see one executable: dm-spec /usr/bin/busted --run=core. Lua comes from the source tree,
 * the working directory must be its top. Adds require 'spec.loop': the core's loop in single steps,
 * and what only specs ask of the core.
 */
#include "core.h"
#include "lua/call.h"
#include "lua/embedded.h"
#include "lua/open.h"
#include "lua/state.h"
#include "lua/support.h"
#include "script/script_main.h"

#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <luajit.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct dm_core core;
static uv_timer_t limit;

static void on_limit(uv_timer_t *timer) {
    (void)timer;
}

/* SIGINT is how spec/support/limit asks a spec that hangs where it is: it fails there, as in
 * luajit. */
static lua_State *main_state;

static void interrupt(lua_State *L, lua_Debug *at) {
    (void)at;
    lua_sethook(L, NULL, 0, 0);
    luaL_traceback(L, L, "dm-spec: interrupted", 0);
    fprintf(stderr, "%s\n", lua_tostring(L, -1));
    luaL_error(L, "interrupted");
}

static void on_interrupt(int number) {
    signal(number, SIG_DFL);
    lua_sethook(main_state, interrupt, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

/* ---- allocations that fail, of what is linked in here: the linker calls these (--wrap) ---- */

static long allocations_left; /* the last of them fails; 0: none does */

static bool fails(void) {
    return allocations_left > 0 && --allocations_left == 0;
}

#define WRAPPED(name, parameters, arguments)                                                       \
    void *__real_##name parameters;                                                                \
    void *__wrap_##name parameters;                                                                \
    void *__wrap_##name parameters {                                                               \
        if (fails()) {                                                                             \
            errno = ENOMEM;                                                                        \
            return NULL;                                                                           \
        }                                                                                          \
        return __real_##name arguments;                                                            \
    }

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
WRAPPED(malloc, (size_t size), (size))
WRAPPED(calloc, (size_t count, size_t size), (count, size))
WRAPPED(realloc, (void *block, size_t size), (block, size))
WRAPPED(strdup, (const char *text), (text))
WRAPPED(strndup, (const char *text, size_t size), (text, size))
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

/* Lua's own never fail. */
static void *allocate(void *ud, void *block, size_t old_size, size_t size) {
    (void)ud;
    (void)old_size;
    if (size == 0) {
        free(block);
        return NULL;
    }
    return __real_realloc(block, size);
}

static void spare_lua(lua_State *L) {
    void *ud;
    lua_getallocf(L, &ud);
    if (!ud) { /* else LuaJIT has a heap of its own: see state.c */
        lua_setallocf(L, allocate, NULL);
    }
}

/* fail_allocation(n): the n-th from now on fails, 0: none. -> whether the one that was to fail
 * before was never reached */
static int l_fail_allocation(lua_State *L) {
    lua_pushboolean(L, allocations_left > 0);
    allocations_left = luaL_checklong(L, 1);
    return 1;
}

/* run_once(ms): one iteration that blocks at most so long. */
static int l_run_once(lua_State *L) {
    const uint64_t ms = (uint64_t)luaL_optinteger(L, 1, 1000);
    if (ms == 0) {
        uv_run(core.loop, UV_RUN_NOWAIT);
        return 0;
    }
    /* Repeated, since it may fire before the poll phase, which then has to end too. */
    uv_update_time(core.loop);
    uv_timer_start(&limit, on_limit, ms, ms);
    uv_run(core.loop, UV_RUN_ONCE);
    uv_timer_stop(&limit);
    return 0;
}

/* os.exit(code) unwinds to main, so that everything is closed and checked. */
static int l_exit(lua_State *L) {
    core.exit_code = lua_isboolean(L, 1) ? !lua_toboolean(L, 1) : luaL_optint(L, 1, 0);
    lua_pushlightuserdata(L, &core);
    return lua_error(L);
}

/* close(): runs the callbacks of what was closed. */
static int l_close(lua_State *L) {
    (void)L;
    for (int i = 0; i < 4; i++) {
        uv_run(core.loop, UV_RUN_NOWAIT);
    }
    return 0;
}

/* lend_sigchld(bool): to luv, whose own processes are seen by its signal handler alone; then core
 * sees its children by their pidfds, and no orphans. Lent until a spec of core takes it back. */
static void lend_sigchld(bool lend) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    pthread_sigmask(lend ? SIG_UNBLOCK : SIG_BLOCK, &set, NULL);
    if (!lend) {
        /* Orphans that ended meanwhile told it to luv. */
        kill(getpid(), SIGCHLD);
    }
}

static int l_lend_sigchld(lua_State *L) {
    lend_sigchld(lua_toboolean(L, 1));
    if (!lua_toboolean(L, 1)) {
        kill(getpid(), SIGCHLD); /* there may be orphans whose exit nobody saw meanwhile */
    }
    return 0;
}

static int l_traceback(lua_State *L) {
    if (lua_isstring(L, 1)) {
        luaL_traceback(L, L, lua_tostring(L, 1), 1);
    }
    return 1;
}

/* children(): processes that were started and have not been reported. */
static int l_children(lua_State *L) {
    lua_pushinteger(L, core.reaper.count);
    return 1;
}

static int l_signal_number(lua_State *L) {
    const int number = dm_signal_number(luaL_checkstring(L, 1));
    lua_pushinteger(L, number);
    return number > 0;
}

static int l_signal_name(lua_State *L) {
    char buffer[16];
    lua_pushstring(L, dm_signal_name(luaL_checkint(L, 1), buffer));
    return 1;
}

static int l_dup_fd(lua_State *L) {
    const int fd = fcntl(luaL_checkint(L, 1), F_DUPFD_CLOEXEC, 3);
    lua_pushinteger(L, fd);
    return fd < 0 ? dm_lua_fail(L, -errno, "dup") : 1;
}

static int luaopen_spec_loop(lua_State *L) {
    static const luaL_Reg functions[] = {{"run_once", l_run_once},
                                         {"close", l_close},
                                         {"lend_sigchld", l_lend_sigchld},
                                         {"children", l_children},
                                         {"fail_allocation", l_fail_allocation},
                                         {"signal_number", l_signal_number},
                                         {"signal_name", l_signal_name},
                                         {"dup_fd", l_dup_fd},
                                         {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}

static void open_state(lua_State *L, int argc, char **argv) {
    /* As policy runs in the binary (lua/state.c). The random walks of the model spec are nothing
     * but such code; compiled, 300 of them cost 5,000 traces, 7 flushes of all traces and twice the
     * CPU. */
    luaJIT_setmode(L, 0, LUAJIT_MODE_ENGINE | LUAJIT_MODE_OFF);
    dm_lua_set_core(L, &core);
    lua_getglobal(L, "os");
    lua_pushcfunction(L, l_exit);
    lua_setfield(L, -2, "exit");
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "path");
    lua_pushfstring(L, "lua/?.lua;?.lua;%s", lua_tostring(L, -1));
    lua_setfield(L, -3, "path");
    lua_pop(L, 1);
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, luaopen_dutch_core);
    lua_setfield(L, -2, "dutch-master.core");
    lua_pushcfunction(L, luaopen_spec_loop);
    lua_setfield(L, -2, "spec.loop");
    lua_createtable(L, argc, 0);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i - 1);
    }
    lua_setglobal(L, "arg");
    lua_settop(L, 0);
}

static int run_file(lua_State *L, int argc, char **argv) {
    lua_pushcfunction(L, l_traceback);
    if (luaL_loadfile(L, argv[1]) != 0) {
        fprintf(stderr, "dm-spec: %s\n", lua_tostring(L, -1));
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        lua_pushstring(L, argv[i]);
    }
    if (lua_pcall(L, argc - 2, 0, 1) != 0) {
        if (lua_touserdata(L, -1) == &core) {
            return core.exit_code;
        }
        if (lua_isstring(L, -1)) {
            fprintf(stderr, "dm-spec: %s\n", lua_tostring(L, -1));
        }
        return 1;
    }
    return core.stopped ? core.exit_code : 0;
}

int main(int argc, char **argv) {
    uv_loop_t loop;
    if (argc < 2) {
        fputs("usage: dm-spec FILE [ARGS...]\n", stderr);
        return 2;
    } else if (strcmp(argv[1], "--script-process") == 0) {
        return dm_script_main(); /* as in main.c: /proc/self/exe is this program */
    }
    char *lua = realpath("lua", NULL);
    if (lua) {
        setenv("DUTCH_MASTER_LUA", lua, 0);
        free(lua);
    }
    signal(SIGPIPE, SIG_IGN);
    lua_State *L = dm_lua_state_new(false, NULL);
    if (!L || uv_loop_init(&loop) != 0 ||
        dm_core_init(&core, &loop, &(struct dm_keeper_link){.socket = -1}) != 0) {
        return 2;
    }
    lend_sigchld(true);
    spare_lua(L);
    main_state = L;
    signal(SIGINT, on_interrupt);
    uv_timer_init(&loop, &limit);
    open_state(L, argc, argv);
    const int code = run_file(L, argc, argv);
    dm_children_stop_all(&core);
    lua_close(L);
    uv_close((uv_handle_t *)&limit, NULL);
    dm_core_deinit(&core);
    dm_core_close_loop(&loop);
    return code;
}
