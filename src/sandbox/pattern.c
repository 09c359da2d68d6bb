/* sandbox/pattern.c: string.find, match, gmatch and gsub for the user's script. Lua's own would do,
 * were it not that a pattern may backtrack for years in one call of C, which no hook interrupts.
 * These are bounded by the clock (sandbox/match.c), and find plain text in time that grows with its
 * length alone. They give what Lua's own give: a core spec compares them.
 */
#include "sandbox/match.h"
#include "sandbox/sandbox.h"

#include <ctype.h>
#include <lauxlib.h>
#include <lualib.h>
#include <stdbool.h>
#include <string.h>

/* Captures --------------------------------------------------------------------------------------
 */

/* s, end: the whole match, which is the capture if the pattern has none. */
static void push_capture(const struct dm_match *m, int i, const char *s, const char *end) {
    if (i >= m->count) {
        if (i > 0) {
            luaL_error(m->L, "invalid capture index");
        }
        lua_pushlstring(m->L, s, (size_t)(end - s));
        return;
    }
    const struct dm_capture_range *c = &m->captures[i];
    if (c->length == DM_UNFINISHED) {
        luaL_error(m->L, "unfinished capture");
    } else if (c->length == DM_POSITION) {
        lua_pushinteger(m->L, c->start - m->subject + 1);
    } else {
        lua_pushlstring(m->L, c->start, (size_t)c->length);
    }
}

/* All of them; without any the whole match, unless s is NULL. */
static int push_captures(const struct dm_match *m, const char *s, const char *end) {
    const int n = m->count == 0 && s ? 1 : m->count;
    luaL_checkstack(m->L, n, "too many captures");
    for (int i = 0; i < n; i++) {
        push_capture(m, i, s, end);
    }
    return n;
}

/* The functions ---------------------------------------------------------------------------------
 */

static const char *begin(lua_State *L, struct dm_match *m) {
    size_t length;
    m->L = L;
    m->subject = luaL_checklstring(L, 1, &length);
    m->end = m->subject + length;
    const char *pattern = luaL_checkstring(L, 2);
    m->pattern_end = pattern + strlen(pattern); /* as in Lua 5.1: %z is the class of NUL */
    m->steps = 0;
    return pattern;
}

/* Where the third argument says, which may count from the end. */
static const char *first(lua_State *L, const struct dm_match *m) {
    const ptrdiff_t length = m->end - m->subject;
    ptrdiff_t from = luaL_optinteger(L, 3, 1);
    from = from < 0 ? from + length : from - 1;
    return m->subject + (from < 0 ? 0 : from > length ? length : from);
}

static bool is_plain(const char *p, size_t length) {
    static const char special[] = "^$*+?.([%-";
    const char *end = p + length;
    while (p < end && !memchr(special, *p, sizeof special - 1)) {
        p++;
    }
    return p == end;
}

static int push_range(lua_State *L, const struct dm_match *m, const char *s, const char *end) {
    lua_pushinteger(L, s - m->subject + 1);
    lua_pushinteger(L, end - m->subject);
    return 2;
}

static int find_plain(lua_State *L, const struct dm_match *m, const char *s) {
    size_t length;
    const char *p = lua_tolstring(L, 2, &length);
    const char *at = memmem(s, (size_t)(m->end - s), p, length);
    return at ? push_range(L, m, at, at + length) : (lua_pushnil(L), 1);
}

static int search(lua_State *L, bool find) {
    struct dm_match m;
    const char *p = begin(L, &m);
    const char *s = first(L, &m);
    if (find && (lua_toboolean(L, 4) || is_plain(p, lua_objlen(L, 2)))) {
        return find_plain(L, &m, s);
    }
    const bool anchored = p < m.pattern_end && *p == '^';
    for (p += anchored; s <= m.end; s++) {
        const char *end = dm_match_at(&m, s, p);
        if (end) {
            return find ? push_range(L, &m, s, end) + push_captures(&m, NULL, NULL)
                        : push_captures(&m, s, end);
        } else if (anchored) {
            break;
        }
        dm_match_step(&m);
    }
    lua_pushnil(L);
    return 1;
}

static int l_find(lua_State *L) {
    return search(L, true);
}

static int l_match(lua_State *L) {
    return search(L, false);
}

/* Upvalues: subject, pattern, where to go on. */
static int next_match(lua_State *L) {
    struct dm_match m;
    lua_settop(L, 0);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_pushvalue(L, lua_upvalueindex(2));
    const char *p = begin(L, &m);
    for (const char *s = m.subject + lua_tointeger(L, lua_upvalueindex(3)); s <= m.end; s++) {
        const char *end = dm_match_at(&m, s, p);
        if (end) {
            lua_pushinteger(L, end - m.subject + (end == s));
            lua_replace(L, lua_upvalueindex(3));
            return push_captures(&m, s, end);
        }
        dm_match_step(&m);
    }
    return 0;
}

static int l_gmatch(lua_State *L) {
    luaL_checkstring(L, 1);
    luaL_checkstring(L, 2);
    lua_settop(L, 2);
    lua_pushinteger(L, 0);
    lua_pushcclosure(L, next_match, 3);
    return 1;
}

/* The text of argument 3, with %0 to %9 filled in. */
static void add_text(const struct dm_match *m, luaL_Buffer *b, const char *s, const char *end) {
    size_t length;
    const char *text = lua_tolstring(m->L, 3, &length);
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '%') {
            i++; /* at the very end this is the closing NUL */
            if (text[i] == '0') {
                luaL_addlstring(b, s, (size_t)(end - s));
                continue;
            } else if (isdigit((unsigned char)text[i])) {
                push_capture(m, text[i] - '1', s, end);
                luaL_addvalue(b);
                continue;
            }
        }
        luaL_addchar(b, text[i]);
    }
}

/* What replaces the match from s to end: nil or false leave it as it is. */
static void add_replacement(const struct dm_match *m, luaL_Buffer *b, const char *s,
                            const char *end) {
    lua_State *L = m->L;
    switch (lua_type(L, 3)) {
    case LUA_TFUNCTION:
        lua_pushvalue(L, 3);
        lua_call(L, push_captures(m, s, end), 1);
        break;
    case LUA_TTABLE:
        push_capture(m, 0, s, end);
        lua_gettable(L, 3);
        break;
    default:
        add_text(m, b, s, end);
        return;
    }
    if (!lua_toboolean(L, -1)) {
        lua_pop(L, 1);
        lua_pushlstring(L, s, (size_t)(end - s));
    } else if (!lua_isstring(L, -1)) {
        luaL_error(L, "invalid replacement value (a %s)", luaL_typename(L, -1));
    }
    luaL_addvalue(b);
}

static int l_gsub(lua_State *L) {
    struct dm_match m;
    const char *p = begin(L, &m);
    const char *s = m.subject;
    const int type = lua_type(L, 3);
    if (type != LUA_TNUMBER && type != LUA_TSTRING && type != LUA_TFUNCTION && type != LUA_TTABLE) {
        luaL_argerror(L, 3, "string/function/table expected");
    }
    const lua_Integer most = luaL_optinteger(L, 4, m.end - m.subject + 1);
    const bool anchored = p < m.pattern_end && *p == '^';
    lua_Integer n = 0;
    luaL_Buffer b;
    p += anchored;
    luaL_buffinit(L, &b);
    while (n < most) {
        const char *end = dm_match_at(&m, s, p);
        dm_match_step(&m);
        if (end) {
            n++;
            add_replacement(&m, &b, s, end);
        }
        if (end && end > s) {
            s = end;
        } else if (s < m.end) {
            luaL_addchar(&b, *s);
            s++;
        } else {
            break;
        }
        if (anchored) {
            break;
        }
    }
    luaL_addlstring(&b, s, (size_t)(m.end - s));
    luaL_pushresult(&b);
    lua_pushinteger(L, n);
    return 2;
}

static const luaL_Reg functions[] = {
    {"find", l_find}, {"match", l_match}, {"gmatch", l_gmatch}, {"gsub", l_gsub}, {NULL, NULL},
};

void dm_sandbox_open_patterns(lua_State *L) {
    luaL_register(L, LUA_STRLIBNAME, functions);
    lua_pop(L, 1);
}
