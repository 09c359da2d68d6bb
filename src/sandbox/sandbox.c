/* sandbox/sandbox.c: core.sandbox{memory =, host =, directory =}: a Lua state of its own for the
 * user's script. It belongs to its userdata; closing it gives all of its memory back at once.
 * Everything done in that state is done protected, within a budget of time and memory, and what
 * goes in or out is copied: whatever happens in there, the master's own state does not notice.
 *
 * The JIT compiler is not opened in it, so a hook on the count of instructions always comes. Once
 * the budget is over the hook raises at each instruction, so that pcall only prolongs it by one. An
 * alarm brings the hook in time when single instructions are slow, being calls of C. */
#include "sandbox/sandbox.h"

#include "lua/support.h"
#include "process/command.h"
#include "sandbox/alarm.h"

#include <lauxlib.h>
#include <luajit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    COUNT = 1000,              /* instructions between two looks at the clock: about 0.01 ms */
    MEMORY_DEFAULT = 64 << 20, /* bytes */
    OPEN_BUDGET_MS = 10000,    /* for our own code when the state is made */
};

static const char *const type_name = "dutch-master.sandbox";

static const char *const TOO_LONG = "the budget of time is over";

struct dm_sandbox *dm_sandbox_of(lua_State *L) {
    void *sandbox;
    lua_getallocf(L, &sandbox);
    return sandbox;
}

static void *allocate(void *ud, void *block, size_t old_size, size_t size) {
    struct dm_sandbox *s = ud;
    if (size == 0) {
        free(block);
        s->used -= block ? old_size : 0;
        return NULL;
    }
    const size_t old = block ? old_size : 0;
    if (size > old && s->used - old + size > s->limit) {
        s->refused = true;
        return NULL;
    }
    void *grown = realloc(block, size);
    if (grown) {
        s->used = s->used - old + size;
    }
    return grown;
}

/* Errors ----------------------------------------------------------------------------------------
 */

static bool is_ours(const struct dm_sandbox *s, const lua_Debug *ar) {
    return strcmp(ar->source, s->prelude) == 0;
}

void dm_sandbox_where(lua_State *L, const struct dm_sandbox *s, lua_Debug *ar) {
    for (int level = 0; lua_getstack(L, level, ar); level++) {
        lua_getinfo(L, "Sl", ar);
        if (ar->currentline > 0 && !is_ours(s, ar)) {
            lua_pushfstring(L, "%s:%d: ", ar->short_src, ar->currentline);
            return;
        }
    }
    ar->currentline = -1;
    lua_pushliteral(L, "");
}

void dm_sandbox_look(lua_State *L) {
    struct dm_sandbox *s = dm_sandbox_of(L);
    if (!s->expired) {
        if (dm_command_clock() < s->deadline) {
            return;
        }
        dm_sandbox_expire(L, s);
    }
    lua_pushstring(L, TOO_LONG);
    lua_error(L);
}

static void on_count(lua_State *L, lua_Debug *ar) {
    (void)ar;
    dm_sandbox_look(L);
}

void dm_sandbox_expire(lua_State *L, struct dm_sandbox *s) {
    lua_Debug ar;
    s->expired = true;
    dm_sandbox_where(L, s, &ar);
    lua_pop(L, 1);
    if (ar.currentline > 0) {
        snprintf(s->where, sizeof s->where, "%s:%d", ar.short_src, ar.currentline);
    }
    lua_sethook(L, on_count, LUA_MASKCOUNT, 1);
}

/* In a signal's handler. lua_sethook is made to be called there, as Lua's own shell does. */
static void on_time(void *ctx) {
    const struct dm_sandbox *s = ctx;
    lua_sethook(s->L, on_count, LUA_MASKCOUNT, 1);
}

/* Has the message a position, "name:12: "? */
static bool has_position(const char *text) {
    const char *colon = strchr(text, ':');
    size_t digits;
    while (colon) {
        digits = strspn(colon + 1, "0123456789");
        if (digits > 0 && colon[1 + digits] == ':') {
            return true;
        }
        colon = strchr(colon + 1, ':');
    }
    return false;
}

/* One line of printable text. Of several the first, which must not promise more by a colon. */
static void copy_line(char *to, size_t size, const char *prefix, const char *text, size_t length) {
    size_t n = (size_t)snprintf(to, size, "%s", prefix);
    n = n < size ? n : size - 1;
    for (size_t i = 0; i < length && n < size - 1 && text[i] != '\n'; i++) {
        const char c = text[i];
        to[n++] = c;
        if ((unsigned char)c < ' ' || c == 127) {
            to[n - 1] = '?';
        }
    }
    n -= n > 0 && to[n - 1] == ':' && memchr(text, '\n', length) ? 1 : 0;
    to[n] = '\0';
}

/* The handler of lua_pcall: notes message and traceback while the stack is still there. Runs
 * nothing of the script's once the budget is over, for no hook could stop that. */
static int l_handler(lua_State *L) {
    struct dm_sandbox *s = dm_sandbox_of(L);
    lua_Debug ar;
    lua_settop(L, 1);
    if (!s->expired && dm_command_clock() >= s->deadline) {
        dm_sandbox_expire(L, s); /* a call of C that was interrupted has failed for it */
    }
    if (lua_type(L, 1) != LUA_TSTRING && !s->expired && luaL_callmeta(L, 1, "__tostring") &&
        lua_type(L, -1) == LUA_TSTRING) {
        lua_replace(L, 1);
    }
    if (lua_type(L, 1) == LUA_TNUMBER) {
        lua_tostring(L, 1);
    } else if (lua_type(L, 1) != LUA_TSTRING) {
        lua_pushfstring(L, "an error that is a %s value", luaL_typename(L, 1));
        lua_replace(L, 1);
    }
    lua_settop(L, 1);
    size_t length;
    const char *text = lua_tolstring(L, 1, &length);
    /* First without anything that takes stack: after a stack overflow there is little. */
    copy_line(s->message, sizeof s->message, "", text, length);
    dm_sandbox_where(L, s, &ar);
    copy_line(s->message, sizeof s->message, has_position(text) ? "" : lua_tostring(L, -1), text,
              length);
    lua_settop(L, 1);
    luaL_traceback(L, L, text, 1);
    snprintf(s->traceback, sizeof s->traceback, "%s", lua_tostring(L, -1));
    lua_settop(L, 1);
    return 1;
}

/* One entry into the script's state ---------------------------------------------------------------
 */

struct entry {
    struct dm_sandbox *sandbox;
    const char *chunk; /* to load and run: its name */
    const char *source;
    size_t size;
    const char *function; /* or: the entry point to call with the packed values */
    const char *kind;     /* of the error; NULL if there is none */
};

static const char *load_error(struct dm_sandbox *s, lua_State *L, const struct entry *e) {
    size_t length;
    const char *text = lua_tolstring(L, -1, &length);
    if (strstr(text, "attempt to load chunk with wrong mode") ||
        strstr(text, "cannot load malformed bytecode")) {
        snprintf(s->message, sizeof s->message, "%s: is compiled Lua; a script must be text",
                 e->chunk + (*e->chunk == '@' || *e->chunk == '='));
        return "bytecode";
    }
    copy_line(s->message, sizeof s->message, "", text, length);
    return "syntax";
}

/* In the script's state, protected by lua_cpcall. */
static int enter(lua_State *L) {
    struct entry *e = lua_touserdata(L, 1);
    struct dm_sandbox *s = e->sandbox;
    lua_settop(L, 0);
    lua_pushcfunction(L, l_handler);
    int nargs = 0;
    if (e->chunk) {
        const int rc = luaL_loadbufferx(L, e->source, e->size, e->chunk, "t");
        if (rc != 0) {
            e->kind = rc == LUA_ERRMEM ? "memory" : load_error(s, L, e);
            return 0;
        }
    } else {
        lua_rawgeti(L, LUA_REGISTRYINDEX, s->entries);
        lua_getfield(L, -1, e->function);
        lua_remove(L, -2);
        nargs = dm_lua_unpack(L, &s->values);
    }
    s->values.size = 0;
    s->deadline = dm_command_clock() + s->budget;
    struct dm_alarm alarm = {.deadline_ms = s->deadline, .on_time = on_time, .ctx = s};
    lua_sethook(L, on_count, LUA_MASKCOUNT, COUNT);
    dm_alarm_start(&alarm);
    const int rc = lua_pcall(L, nargs, LUA_MULTRET, 1);
    dm_alarm_stop(&alarm);
    lua_sethook(L, NULL, 0, 0);
    if (rc == LUA_ERRMEM || (rc == LUA_ERRERR && s->refused) ||
        (rc != 0 && strstr(s->message, "not enough memory"))) {
        e->kind = "memory";
    } else if (rc != 0) {
        if (rc == LUA_ERRERR || !s->message[0]) { /* no stack was left even for the handler */
            snprintf(s->message, sizeof s->message, "stack overflow");
        }
        e->kind = strstr(s->message, "os.exit was called") ? "exit" : "runtime";
    } else if (!dm_lua_pack(L, 2, &s->values, e->function && strcmp(e->function, "options") == 0)) {
        snprintf(s->message, sizeof s->message, "%s", s->values.error);
        e->kind = "runtime";
    }
    return 0;
}

static void close_state(struct dm_sandbox *s) {
    if (s->L) {
        lua_State *L = s->L;
        s->L = NULL;
        lua_close(L);
    }
    if (s->file >= 0) {
        close(s->file);
        s->file = -1;
    }
    free(s->directory);
    s->directory = NULL;
    dm_lua_values_free(&s->values);
}

/* Runs the entry from the master's state. NULL, or the kind of error; message is set then. */
static const char *run(lua_State *L, struct dm_sandbox *s, struct entry *e, double budget) {
    s->caller = L;
    s->expired = s->refused = false;
    s->message[0] = s->traceback[0] = s->where[0] = '\0';
    s->budget = budget < 1 ? 1 : budget > 1e9 ? 1000000000 : (uint64_t)budget;
    const int rc = lua_cpcall(s->L, enter, e);
    lua_sethook(s->L, NULL, 0, 0);
    if (rc != 0) {
        e->kind = rc == LUA_ERRMEM || s->refused ? "memory" : "runtime";
        if (rc != LUA_ERRMEM && !s->message[0]) {
            const char *text =
                lua_type(s->L, -1) == LUA_TSTRING ? lua_tostring(s->L, -1) : "failed";
            copy_line(s->message, sizeof s->message, "", text, strlen(text));
        }
    }
    lua_settop(s->L, 0);
    if (s->expired) {
        e->kind = "budget";
        snprintf(s->message, sizeof s->message, "%s%stook longer than its budget of %g s", s->where,
                 s->where[0] ? ": " : "", (double)s->budget / 1000);
    } else if (e->kind && strcmp(e->kind, "memory") == 0) {
        snprintf(s->message, sizeof s->message, "used more than its %zu MiB of memory",
                 s->limit >> 20);
        s->closing = true; /* what the script was doing is lost in an unknown place */
    }
    s->caller = NULL;
    if (s->closing && e->kind) {
        close_state(s);
    }
    return e->kind;
}

/* The userdata ------------------------------------------------------------------------------------
 */

static struct dm_sandbox **proxy(lua_State *L) {
    return luaL_checkudata(L, 1, type_name);
}

static int push_error(lua_State *L, const char *kind, const struct dm_sandbox *s) {
    lua_pushnil(L);
    lua_createtable(L, 0, 4);
    lua_pushstring(L, kind);
    lua_setfield(L, -2, "kind");
    lua_pushstring(L, s->message);
    lua_setfield(L, -2, "message");
    if (s->traceback[0]) {
        lua_pushstring(L, s->traceback);
        lua_setfield(L, -2, "traceback");
    }
    if (s->where[0]) {
        lua_pushstring(L, s->where);
        lua_setfield(L, -2, "where");
    }
    return 2;
}

static int plain_error(lua_State *L, const char *kind, const char *message) {
    lua_pushnil(L);
    lua_createtable(L, 0, 2);
    lua_pushstring(L, kind);
    lua_setfield(L, -2, "kind");
    lua_pushstring(L, message);
    lua_setfield(L, -2, "message");
    return 2;
}

/* NULL, with the error pushed, if nothing can be run now. */
static struct dm_sandbox *ready(lua_State *L) {
    struct dm_sandbox *s = *proxy(L);
    if (!s || !s->L || s->closing) {
        plain_error(L, "closed", "the script's state is closed");
        return NULL;
    } else if (s->caller) {
        plain_error(L, "busy", "the script's state is in a call");
        return NULL;
    }
    return s;
}

static int finish(lua_State *L, struct dm_sandbox *s, const char *kind) {
    int count;
    if (kind) {
        count = push_error(L, kind, s);
    } else {
        lua_settop(L, 1);
        lua_pushboolean(L, 1);
        count = 1 + dm_lua_unpack(L, &s->values);
    }
    if (s->closing) {
        close_state(s);
    }
    return count;
}

/* s:run(chunkname, source, budget_ms) */
static int l_run(lua_State *L) {
    struct entry e = {0};
    e.chunk = luaL_checkstring(L, 2);
    e.source = luaL_checklstring(L, 3, &e.size);
    const double budget = luaL_checknumber(L, 4);
    struct dm_sandbox *s = e.sandbox = ready(L);
    if (!s) {
        return 2;
    }
    return finish(L, s, run(L, s, &e, budget));
}

/* s:call(name, budget_ms, ...) */
static int l_call(lua_State *L) {
    struct entry e = {.function = luaL_checkstring(L, 2)};
    const double budget = luaL_checknumber(L, 3);
    struct dm_sandbox *s = e.sandbox = ready(L);
    if (!s) {
        return 2;
    } else if (!dm_lua_pack(L, 4, &s->values, false)) {
        return plain_error(L, "runtime", s->values.error);
    }
    return finish(L, s, run(L, s, &e, budget));
}

static int l_memory(lua_State *L) {
    const struct dm_sandbox *s = *proxy(L);
    lua_pushnumber(L, s && s->L ? (lua_Number)s->used : 0);
    return 1;
}

/* s:directory() -> what dutch.chdir said last, or nil. s:directory(path or false) sets it. */
static int l_directory(lua_State *L) {
    struct dm_sandbox *s = *proxy(L);
    if (s && s->L && !s->caller && !lua_isnone(L, 2)) {
        const char *path = lua_toboolean(L, 2) ? luaL_checkstring(L, 2) : NULL;
        char *copy = path ? strdup(path) : NULL;
        if (path && !copy) {
            return luaL_error(L, "not enough memory");
        }
        free(s->directory);
        s->directory = copy;
    }
    lua_pushstring(L, s ? s->directory : NULL);
    return 1;
}

static int l_close(lua_State *L) {
    struct dm_sandbox **p = proxy(L);
    struct dm_sandbox *s = *p;
    if (s && s->caller) {
        s->closing = true;
    } else if (s) {
        *p = NULL;
        close_state(s);
        luaL_unref(L, LUA_REGISTRYINDEX, s->host);
        free(s);
    }
    return 0;
}

static int open_state(lua_State *L) {
    struct dm_sandbox *s = dm_sandbox_of(L);
    const char *directory = lua_touserdata(L, 1);
    lua_settop(L, 0);
    /* A state without luaopen_jit() compiles nothing; this makes sure of it. */
    luaJIT_setmode(L, 0, LUAJIT_MODE_ENGINE | LUAJIT_MODE_OFF);
    lua_gc(L, LUA_GCSTOP, 0); /* there is no garbage yet */
    lua_pushcfunction(L, dm_sandbox_open_libraries);
    lua_pushstring(L, directory);
    lua_call(L, 1, 1);
    s->entries = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_gc(L, LUA_GCRESTART, 0);
    return 0;
}

/* core.sandbox{memory = bytes, host = fn(name, ...), directory = path} */
static int l_sandbox(lua_State *L) {
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    lua_getfield(L, 1, "memory");
    lua_getfield(L, 1, "host");
    lua_getfield(L, 1, "directory"); /* options, memory, host, directory */
    const lua_Number memory = luaL_optnumber(L, 2, MEMORY_DEFAULT);
    luaL_checktype(L, 3, LUA_TFUNCTION);
    const char *directory = luaL_optstring(L, 4, NULL);
    struct dm_sandbox **p = lua_newuserdata(L, sizeof *p);
    *p = NULL;
    luaL_getmetatable(L, type_name);
    lua_setmetatable(L, -2);
    struct dm_sandbox *s = *p = calloc(1, sizeof *s);
    if (!s) {
        return dm_lua_fail(L, UV_ENOMEM, NULL);
    }
    s->file = -1;
    s->limit = memory > 0 && memory < 1e15 ? (size_t)memory : MEMORY_DEFAULT;
    lua_pushvalue(L, 3);
    s->host = luaL_ref(L, LUA_REGISTRYINDEX);
    s->L = lua_newstate(allocate, s);
    if (!s->L) {
        return dm_lua_fail(L, UV_ENOMEM, "sandbox");
    }
    s->deadline = dm_command_clock() + OPEN_BUDGET_MS;
    if (lua_cpcall(s->L, open_state, (void *)(uintptr_t)directory) != 0) {
        const char *text = lua_type(s->L, -1) == LUA_TSTRING ? lua_tostring(s->L, -1) : "failed";
        lua_pushnil(L);
        lua_pushfstring(L, "sandbox: %s", text);
        lua_pushliteral(L, "ENOMEM");
        close_state(s);
        return 3;
    }
    return 1;
}

static const luaL_Reg methods[] = {
    {"run", l_run},     {"call", l_call}, {"memory", l_memory}, {"directory", l_directory},
    {"close", l_close}, {NULL, NULL},
};

void dm_lua_open_sandbox(lua_State *L) {
    luaL_newmetatable(L, type_name);
    lua_pushvalue(L, -1);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, l_close);
    lua_setfield(L, -2, "__gc");
    luaL_register(L, NULL, methods);
    lua_pop(L, 1);
    lua_pushcfunction(L, l_sandbox);
    lua_setfield(L, -2, "sandbox");
}
