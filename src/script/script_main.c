/* script/script_main.c: see script/script_main.h. A line from the master is a letter and what it
 * says:
 *
 *   E<number> <json>   evaluate the script in a new Lua state of this number; the state of the last
 *                      evaluation goes, unless it was kept. If it says what it said in the state
 *                      that was kept, and the master asks for that, the hooks of a fork follow
 *   C<number> <json>   call something in the state of that number
 *   K<number>          keep that state: a later evaluation may be worse. Only one is kept.
 *   R<json>            the answer to what a hook has asked; comes only while one waits for it
 *
 * To E and C one line answers, and one more each hook that follows. Before it come the hook's
 * questions and notes; all of these are made and read in lua/script/dutch-master.lua. Nothing here
 * is protected against the script: it can crash, block, or close what it likes, and the master sees
 * to that. Longer than 400 lines: one program. */
#include "script/script_main.h"

#include "lua/arena.h"
#include "lua/embedded.h"
#include "lua/open.h"
#include "lua/state.h"
#include "script/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <luajit.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define DM_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DM_SANITIZED 1
#endif
#endif

enum {
    SOCKET = 3,
    /* What the process may write to of its own: three states of Lua, C modules, and the four stacks
     * of luv's threads, 8 MiB each. */
    MEMORY_MAX = 128 << 20,
    LINE_MAX_BYTES = 16 << 20, /* the master's: it sends less */
};

struct state {
    lua_State *L;           /* NULL: none */
    struct dm_arena *arena; /* its memory */
    long number;
    int entries;  /* reference to the table of entry points */
    char *answer; /* the line that answered its evaluation, NULL: none that was good */
};

static struct state kept, fresh, spare; /* spare: made while nothing was asked, not used yet */
static int home = -1;                   /* the directory that the master was started in */
static pid_t self;

static struct {
    char *bytes;
    size_t length, capacity, taken; /* taken: of the line given last */
} input;

/* -- the socket ---------------------------------------------------------------------------------
 */

/* The master is gone, or does not want us any more; and so goes what hooks have left behind. */
static _Noreturn void leave(void) {
    if (getpid() == self) {
        kill(0, SIGKILL);
    }
    _exit(0);
}

/* In one piece where the kernel takes it, so that the master wakes up once. */
static void write_line(const char *bytes, size_t length) {
    if (getpid() != self) {
        _exit(0); /* a hook has forked: the master talks with one of us */
    }
    for (size_t sent = 0; sent <= length;) {
        const bool begun = sent < length;
        struct iovec iov[2] = {{(void *)(uintptr_t)(bytes + sent), length - sent},
                               {(char[]){'\n'}, 1}};
        const struct msghdr message = {.msg_iov = begun ? iov : iov + 1,
                                       .msg_iovlen = begun ? 2 : 1};
        const ssize_t n = sendmsg(SOCKET, &message, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR) {
            leave();
        }
        sent += n > 0 ? (size_t)n : 0;
    }
}

static void make_room(void) {
    if (input.length < input.capacity) {
        return;
    }
    const size_t capacity = input.capacity ? 2 * input.capacity : 64 << 10;
    char *grown = capacity <= LINE_MAX_BYTES ? realloc(input.bytes, capacity) : NULL;
    if (!grown) {
        leave();
    }
    input.bytes = grown;
    input.capacity = capacity;
}

/* The next line, without its end; valid until the next call. */
static const char *read_line(size_t *length) {
    if (input.taken > 0) {
        memmove(input.bytes, input.bytes + input.taken, input.length - input.taken);
        input.length -= input.taken;
        input.taken = 0;
    }
    for (size_t from = 0;;) {
        char *end =
            input.length > from ? memchr(input.bytes + from, '\n', input.length - from) : NULL;
        if (end) {
            *end = '\0';
            *length = (size_t)(end - input.bytes);
            input.taken = *length + 1;
            return input.bytes;
        }
        from = input.length;
        make_room();
        const ssize_t n =
            recv(SOCKET, input.bytes + input.length, input.capacity - input.length, 0);
        if (n == 0 || (n < 0 && errno != EINTR) || getpid() != self) {
            leave();
        }
        input.length += n > 0 ? (size_t)n : 0;
    }
}

/* -- what the Lua of a state calls --------------------------------------------------------------
 */

/* say(line): without an answer */
static int l_say(lua_State *L) {
    size_t length;
    const char *line = luaL_checklstring(L, 1, &length);
    write_line(line, length);
    return 0;
}

/* ask(line) -> the answer of the master, which does not wait for anything to give it */
static int l_ask(lua_State *L) {
    size_t length;
    l_say(L);
    const char *answer = read_line(&length);
    if (*answer != 'R') {
        leave();
    }
    lua_pushlstring(L, answer + 1, length - 1);
    return 1;
}

/* chdir(path) -> whether it is there now; chdir() goes home */
static int l_chdir(lua_State *L) {
    const char *path = luaL_optstring(L, 1, NULL);
    lua_pushboolean(L, (path ? chdir(path) : fchdir(home)) == 0);
    return 1;
}

/* last(number) -> the line that answered the evaluation of the state that is kept, if it has this
 * number */
static int l_last(lua_State *L) {
    if (!kept.L || kept.number != luaL_checkinteger(L, 1) || !kept.answer) {
        return 0;
    }
    lua_pushstring(L, kept.answer);
    return 1;
}

/* remember(line): the answer of this evaluation */
static int l_remember(lua_State *L) {
    const char *line = lua_tostring(L, 1);
    free(fresh.answer);
    fresh.answer = line ? strdup(line) : NULL;
    return 0;
}

static int load_ours(lua_State *L, const char *path) {
    if (dm_lua_load_embedded(L, path) != 0) {
        return lua_error(L);
    }
    lua_call(L, 0, 1);
    return 1;
}

static int l_presets(lua_State *L) {
    return load_ours(L, "dutch-master/launch/presets");
}

/* relay() -> the module that keeps a message as it was written */
static int l_relay(lua_State *L) {
    return load_ours(L, "dutch-master/channel/relay");
}

static const luaL_Reg primitives[] = {
    {"say", l_say},
    {"ask", l_ask},
    {"chdir", l_chdir},
    {"last", l_last},
    {"remember", l_remember},
    {"guard", dm_guard_call},
    {"where", dm_guard_where},
    {"relay", l_relay},
    {"cpus", core_cpus},
    {"hostname", core_hostname},
    {"environ", core_environ},
    {NULL, NULL},
};

/* -- states -------------------------------------------------------------------------------------
 */

static void close_state(struct state *state) {
    if (state->L) {
        lua_close(state->L);
        state->L = NULL;
    }
    dm_arena_free(state->arena);
    state->arena = NULL;
    free(state->answer);
    state->answer = NULL;
}

/* Loads a file of ours and calls it with the arguments on the stack. */
static void run_embedded(lua_State *L, const char *path, int nargs) {
    if (dm_lua_load_embedded(L, path) != 0) {
        lua_error(L);
    }
    dm_guard_is_ours(L);
    lua_insert(L, -1 - nargs);
    lua_call(L, nargs, 1);
}

static int open_state(lua_State *L) {
    struct state *state = lua_touserdata(L, 1);
    lua_settop(L, 0);
    lua_gc(L, LUA_GCSTOP, 0); /* there is no garbage yet */
    /* Compiled loops do not look at the hook. A script that turns this on is killed, not stopped.
     */
    luaJIT_setmode(L, 0, LUAJIT_MODE_ENGINE | LUAJIT_MODE_OFF);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, l_presets);
    lua_setfield(L, -2, "dutch-master.presets");
    lua_settop(L, 0);
    lua_newtable(L);
    luaL_register(L, NULL, primitives);

    run_embedded(L, "dutch-master/script/values", 0);
    run_embedded(L, "script/dutch-master", 2);
    state->entries = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_gc(L, LUA_GCRESTART, -1); /* LuaJIT: after a pause, which few evaluations see the end of */
    return 0;
}

/* NULL, or why there is none. */
static const char *make_state(struct state *state) {
#ifndef DM_SANITIZED /* which knows libc's blocks alone */
    state->arena = dm_arena_new();
#endif
    /* Root, or a set-uid binary, takes no path from whoever called it. */
    state->L = dm_lua_state_new(geteuid() != 0 && getauxval(AT_SECURE) == 0, state->arena);
    if (!state->L) {
        return "not enough memory";
    }
    if (lua_cpcall(state->L, open_state, state) != 0) {
        return lua_type(state->L, -1) == LUA_TSTRING ? lua_tostring(state->L, -1) : "failed";
    }
    return NULL;
}

static const char *open_fresh(long number) {
    close_state(&fresh);
    if (!spare.L) {
        fresh.number = number;
        return make_state(&fresh);
    }
    fresh = spare;
    fresh.number = number;
    spare = (struct state){.L = NULL};
    return NULL;
}

/* For the next evaluation, unless something is asked by now: at the start, when the master reads
 * its own program, and when a state is kept, which is the last that most forks want. */
static void open_spare(void) {
    struct pollfd more = {.fd = SOCKET, .events = POLLIN};
    if (spare.L || input.taken < input.length || poll(&more, 1, 0) != 0) {
        return;
    }
    if (make_state(&spare)) {
        close_state(&spare); /* the evaluation will say why */
    }
}

/* -- requests -----------------------------------------------------------------------------------
 */

struct request {
    struct state *state;
    const char *entry, *json;
    size_t length;
};

/* Protected: entry(json) -> the line that answers. */
static int serve(lua_State *L) {
    const struct request *request = lua_touserdata(L, 1);
    lua_rawgeti(L, LUA_REGISTRYINDEX, request->state->entries);
    lua_getfield(L, -1, request->entry);
    lua_pushlstring(L, request->json, request->length);
    lua_call(L, 1, 1);
    size_t length;
    const char *line = luaL_checklstring(L, -1, &length);
    write_line(line, length);
    return 0;
}

/* When no Lua could say it. The text is ours, or of Lua's own loader. */
static void refuse(const char *kind, const char *text) {
    char line[512], plain[384];
    size_t n = 0;
    for (; text[n] && n < sizeof plain - 1; n++) {
        plain[n] = text[n] < ' ' || text[n] == '"' || text[n] == '\\' ? '?' : text[n];
    }
    plain[n] = '\0';
    const int length = snprintf(line, sizeof line,
                                "{\"ok\":false,\"kind\":\"%s\",\"message\":\"%s\"}", kind, plain);
    write_line(line, (size_t)length);
}

static void handle(const struct request *request) {
    const int rc = lua_cpcall(request->state->L, serve, (void *)(uintptr_t)request);
    if (rc != 0) {
        lua_State *L = request->state->L;
        refuse(rc == LUA_ERRMEM ? "memory" : "runtime",
               lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "failed");
    }
    lua_settop(request->state->L, 0);
}

static void evaluate(long number, const char *json, size_t length) {
    (void)!fchdir(home);
    const char *failure = open_fresh(number);
    if (failure) {
        refuse("system", failure);
        close_state(&fresh);
        return;
    }
    handle(&(struct request){&fresh, "evaluate", json, length});
}

static struct state *find(long number) {
    return fresh.L && fresh.number == number ? &fresh
           : kept.L && kept.number == number ? &kept
                                             : NULL;
}

static void call(long number, const char *json, size_t length) {
    struct state *state = find(number);
    if (state) {
        handle(&(struct request){state, "call", json, length});
    } else {
        refuse("closed", "there is no such state");
    }
}

static void keep(long number) {
    if (fresh.L && fresh.number == number) {
        close_state(&kept);
        kept = fresh;
        fresh = (struct state){.L = NULL};
    }
    open_spare();
}

/* -- the process --------------------------------------------------------------------------------
 */

#ifdef DM_SANITIZED /* a sanitizer's shadow is larger */
static void limit_memory(void) {
}
#else
static struct rlimit usual_memory;

/* What a hook starts by fork() has the memory that the master's children have. */
static void on_fork(void) {
    setrlimit(RLIMIT_DATA, &usual_memory);
}

static void limit_memory(void) {
    getrlimit(RLIMIT_DATA, &usual_memory);
    struct rlimit limit = usual_memory;
    if (limit.rlim_cur > MEMORY_MAX) {
        limit.rlim_cur = MEMORY_MAX;
        setrlimit(RLIMIT_DATA, &limit);
        pthread_atfork(NULL, NULL, on_fork);
    }
}
#endif

static void set_up(void) {
    self = getpid();
    home = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    fcntl(SOCKET, F_SETFD, FD_CLOEXEC);
    prctl(PR_SET_NAME, "dutch-script"); /* else it is that of /proc/self/exe */
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a hook that never returns would not see the socket's end */
    signal(SIGPIPE, SIG_DFL);
    dm_guard_init();
    limit_memory();
}

int dm_script_main(void) {
    set_up();
    open_spare();
    for (;;) {
        size_t length;
        const char *line = read_line(&length);
        char *rest = NULL;
        const long number = length > 0 ? strtol(line + 1, &rest, 10) : 0;
        const char *json = rest && *rest == ' ' ? rest + 1 : "";
        const size_t size = rest && *rest == ' ' ? length - (size_t)(json - line) : 0;
        if (*line == 'E') {
            evaluate(number, json, size);
        } else if (*line == 'C') {
            call(number, json, size);
        } else if (*line == 'K') {
            keep(number);
        } else {
            leave();
        }
    }
}
