/* script/guard.c: see script/guard.h. What an error says is noted in memory of our own while the
 * stack is still there, for after a stack overflow or a failed allocation Lua has none to give. */
#include "script/guard.h"

#include <lauxlib.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { OURS_MAX = 4 };

static struct {
    lua_State *volatile L;         /* in a call, else NULL */
    volatile sig_atomic_t expired; /* the time of this call is over: nothing may catch that */
    char ours[OURS_MAX][128];      /* chunk names */
    char where[160];               /* "master.lua:14", where the time ended */
    char message[1024];
    char traceback[4096];
} guard;

static bool is_ours(const lua_Debug *ar) {
    for (int i = 0; i < OURS_MAX && guard.ours[i][0]; i++) {
        if (strncmp(ar->source, guard.ours[i], sizeof guard.ours[i] - 1) == 0) {
            return true;
        }
    }
    return false;
}

void dm_guard_is_ours(lua_State *L) {
    lua_Debug ar;
    lua_pushvalue(L, -1);
    lua_getinfo(L, ">S", &ar);
    for (int i = 0; i < OURS_MAX && !is_ours(&ar); i++) {
        if (!guard.ours[i][0]) {
            snprintf(guard.ours[i], sizeof guard.ours[i], "%s", ar.source);
        }
    }
}

/* The innermost line of the user's Lua. Pushes nothing. */
static bool find_line(lua_State *L, lua_Debug *ar) {
    for (int level = 0; lua_getstack(L, level, ar); level++) {
        lua_getinfo(L, "Sl", ar);
        if (ar->currentline > 0 && !is_ours(ar)) {
            return true;
        }
    }
    return false;
}

int dm_guard_where(lua_State *L) {
    lua_Debug ar;
    if (!find_line(L, &ar)) {
        return 0;
    }
    lua_pushfstring(L, "%s:%d", ar.short_src, ar.currentline);
    return 1;
}

static void on_instruction(lua_State *L, lua_Debug *ar) {
    if (!guard.where[0] && find_line(L, ar)) {
        snprintf(guard.where, sizeof guard.where, "%s:%d", ar->short_src, ar->currentline);
    }
    lua_pushliteral(L, "the time is over");
    lua_error(L);
}

/* lua_sethook is made to be called from a signal's handler, as Lua's own shell does. */
static void on_alarm(int number) {
    if (guard.L) {
        guard.expired = 1;
        lua_sethook(guard.L, on_instruction, LUA_MASKCOUNT, 1);
    }
}

void dm_guard_init(void) {
    struct sigaction action = {.sa_handler = on_alarm}; /* without SA_RESTART */
    sigaction(DM_GUARD_SIGNAL, &action, NULL);
}

/* Has the message a position, "name:12: "? */
static bool has_position(const char *text) {
    for (const char *colon = strchr(text, ':'); colon; colon = strchr(colon + 1, ':')) {
        const size_t digits = strspn(colon + 1, "0123456789");
        if (digits > 0 && colon[1 + digits] == ':') {
            return true;
        }
    }
    return false;
}

/* One line of printable text. Of several the first, which must not promise more by a colon. */
static void copy_line(char *to, size_t size, const char *prefix, const char *text, size_t length) {
    size_t n = (size_t)snprintf(to, size, "%s", prefix);
    n = n < size ? n : size - 1;
    for (size_t i = 0; i < length && n < size - 1 && text[i] != '\n'; i++) {
        const char c = text[i];
        to[n++] = (unsigned char)c < ' ' || c == 127 ? '?' : c;
    }
    n -= n > 0 && to[n - 1] == ':' && memchr(text, '\n', length) ? 1 : 0;
    to[n] = '\0';
}

/* The handler of lua_pcall. Runs nothing of the script's once the time is over. */
static int l_handler(lua_State *L) {
    lua_Debug ar;
    char place[sizeof guard.where] = "";
    lua_settop(L, 1);
    if (lua_type(L, 1) != LUA_TSTRING && !guard.expired && luaL_callmeta(L, 1, "__tostring") &&
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
    if (!has_position(text) && find_line(L, &ar)) {
        snprintf(place, sizeof place, "%s:%d: ", ar.short_src, ar.currentline);
    }
    copy_line(guard.message, sizeof guard.message, place, text, length);
    luaL_traceback(L, L, text, 1);
    snprintf(guard.traceback, sizeof guard.traceback, "%s", lua_tostring(L, -1));
    lua_settop(L, 1);
    return 1;
}

static const char *kind_of(int rc) {
    if (guard.expired) {
        return "budget";
    } else if (rc == LUA_ERRMEM || strstr(guard.message, "not enough memory")) {
        return "memory";
    }
    if (!guard.message[0]) { /* no stack was left even for the handler */
        snprintf(guard.message, sizeof guard.message, "stack overflow");
    }
    return "runtime";
}

int dm_guard_call(lua_State *L) {
    const int nargs = lua_gettop(L) - 1;
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_pushcfunction(L, l_handler);
    lua_insert(L, 1);
    guard.message[0] = guard.traceback[0] = guard.where[0] = '\0';
    guard.expired = 0;
    guard.L = L;
    int rc = lua_pcall(L, nargs, LUA_MULTRET, 1);
    guard.L = NULL;
    lua_sethook(L, NULL, 0, 0);
    if (rc == 0 && guard.expired) {
        rc = LUA_ERRRUN; /* it ended in the very moment: its time was over all the same */
    }
    if (rc == 0) {
        lua_pushboolean(L, 1);
        lua_replace(L, 1);
        return lua_gettop(L);
    }
    const char *kind = kind_of(rc);
    lua_settop(L, 0);
    if (*kind == 'm') {
        lua_gc(L, LUA_GCCOLLECT, 0); /* what it had eaten is needed to tell of it */
    }
    lua_pushboolean(L, 0);
    lua_pushstring(L, kind);
    lua_pushstring(L, guard.message);
    lua_pushstring(L, guard.where[0] ? guard.where : NULL);
    lua_pushstring(L, guard.traceback[0] ? guard.traceback : NULL);
    return 5;
}
