/* sandbox/match.c: see sandbox/match.h. Recursion as in every such matcher: what can match in more
 * than one way calls try() for the rest of the pattern, and goes on where that fails. */
#include "sandbox/match.h"

#include "sandbox/sandbox.h"

#include <ctype.h>
#include <lauxlib.h>
#include <stdbool.h>
#include <string.h>

enum {
    DEPTH_MAX = 200,  /* of recursion, as in LuaJIT: about 20 KiB of stack */
    LOOK_EVERY = 256, /* steps between two looks at the clock: about a microsecond */
};

static const char *try(struct dm_match *m, const char *s, const char *p);

void dm_match_step(struct dm_match *m) {
    if (++m->steps % LOOK_EVERY == 0) {
        dm_sandbox_look(m->L);
    }
}

static int byte_of(const char *at) {
    return (unsigned char)*at;
}

/* One character --------------------------------------------------------------------------------
 */

static bool is_of_class(int c, int class) {
    bool is;
    switch (tolower(class)) {
    case 'a':
        is = isalpha(c);
        break;
    case 'c':
        is = iscntrl(c);
        break;
    case 'd':
        is = isdigit(c);
        break;
    case 'g':
        is = isgraph(c);
        break;
    case 'l':
        is = islower(c);
        break;
    case 'p':
        is = ispunct(c);
        break;
    case 's':
        is = isspace(c);
        break;
    case 'u':
        is = isupper(c);
        break;
    case 'w':
        is = isalnum(c);
        break;
    case 'x':
        is = isxdigit(c);
        break;
    case 'z':
        is = c == 0;
        break;
    default:
        return c == class;
    }
    return isupper(class) ? !is : is;
}

/* p: at the "[", last: at its "]". */
static bool is_in_set(int c, const char *p, const char *last) {
    const bool wanted = p[1] != '^';
    for (p += wanted ? 1 : 2; p < last; p++) {
        if (*p == '%') {
            p++;
            if (is_of_class(c, byte_of(p))) {
                return wanted;
            }
        } else if (p[1] == '-' && p + 2 < last) {
            if (byte_of(p) <= c && c <= byte_of(p + 2)) {
                return wanted;
            }
            p += 2;
        } else if (byte_of(p) == c) {
            return wanted;
        }
    }
    return !wanted;
}

/* Behind the item at p: a character, a class or a set. */
static const char *item_end(const struct dm_match *m, const char *p) {
    if (*p == '%') {
        if (p + 1 == m->pattern_end) {
            luaL_error(m->L, "malformed pattern (ends with '%%')");
        }
        return p + 2;
    } else if (*p != '[') {
        return p + 1;
    }
    p += p + 1 < m->pattern_end && p[1] == '^' ? 2 : 1;
    const char *first = p; /* a "]" here is one of the set */
    while (p < m->pattern_end && (*p != ']' || p == first)) {
        p += *p == '%' ? 2 : 1;
    }
    if (p >= m->pattern_end) {
        luaL_error(m->L, "malformed pattern (missing ']')");
    }
    return p + 1;
}

static bool fits(const struct dm_match *m, const char *s, const char *p, const char *after) {
    if (s == m->end) {
        return false;
    }
    switch (*p) {
    case '.':
        return true;
    case '%':
        return is_of_class(byte_of(s), byte_of(p + 1));
    case '[':
        return is_in_set(byte_of(s), p, after - 1);
    default:
        return *s == *p;
    }
}

/* Many characters: each returns where the match ends, or NULL -----------------------------------
 */

static const char *as_many(struct dm_match *m, const char *s, const char *p, const char *after,
                           ptrdiff_t least) {
    ptrdiff_t n = 0;
    while (fits(m, s + n, p, after)) {
        dm_match_step(m);
        n++;
    }
    for (; n >= least; n--) {
        const char *end = try(m, s + n, after + 1);
        if (end) {
            return end;
        }
    }
    return NULL;
}

static const char *as_few(struct dm_match *m, const char *s, const char *p, const char *after) {
    for (;;) {
        const char *end = try(m, s, after + 1);
        if (end || !fits(m, s, p, after)) {
            return end;
        }
        dm_match_step(m);
        s++;
    }
}

/* %bxy; p: at the x. */
static const char *balanced(struct dm_match *m, const char *s, const char *p) {
    if (p + 1 >= m->pattern_end) {
        luaL_error(m->L, "unbalanced pattern");
    }
    if (s == m->end || *s != *p) {
        return NULL;
    }
    for (ptrdiff_t open = 1; ++s < m->end;) {
        dm_match_step(m);
        if (*s == p[1]) {
            if (--open == 0) {
                return s + 1;
            }
        } else if (*s == *p) {
            open++;
        }
    }
    return NULL;
}

/* %f[set]; p: at the "[". */
static bool is_frontier(const struct dm_match *m, const char *s, const char *p, const char *after) {
    const int before = s == m->subject ? 0 : byte_of(s - 1);
    const int here = s == m->end ? 0 : byte_of(s);
    return !is_in_set(before, p, after - 1) && is_in_set(here, p, after - 1);
}

/* %1 to %9 */
static const char *repeated(const struct dm_match *m, const char *s, char digit) {
    const int i = digit - '1';
    if (i < 0 || i >= m->count || m->captures[i].length == DM_UNFINISHED) {
        luaL_error(m->L, "invalid capture index");
    }
    const struct dm_capture_range *c = &m->captures[i];
    const bool same =
        c->length >= 0 && m->end - s >= c->length && memcmp(c->start, s, (size_t)c->length) == 0;
    return same ? s + c->length : NULL;
}

static const char *open_capture(struct dm_match *m, const char *s, const char *p,
                                ptrdiff_t length) {
    if (m->count == DM_CAPTURES_MAX) {
        luaL_error(m->L, "too many captures");
    }
    m->captures[m->count++] = (struct dm_capture_range){s, length};
    const char *end = try(m, s, p);
    m->count -= end == NULL;
    return end;
}

static const char *close_capture(struct dm_match *m, const char *s, const char *p) {
    int i = m->count - 1;
    while (i >= 0 && m->captures[i].length != DM_UNFINISHED) {
        i--;
    }
    if (i < 0) {
        luaL_error(m->L, "invalid pattern capture");
    }
    m->captures[i].length = s - m->captures[i].start;
    const char *end = try(m, s, p);
    if (!end) {
        m->captures[i].length = DM_UNFINISHED;
    }
    return end;
}

/* What begins with "%" and is more than one character: true, with *s and *p behind it. */
static bool try_special(struct dm_match *m, const char **s, const char **p) {
    const char kind = *p + 1 < m->pattern_end ? (*p)[1] : '\0';
    if (kind == 'b') {
        *s = balanced(m, *s, *p + 2);
        *p += 4;
    } else if (kind == 'f') {
        const char *set = *p + 2;
        if (set >= m->pattern_end || *set != '[') {
            luaL_error(m->L, "missing '[' after '%%f' in pattern");
        }
        *p = item_end(m, set);
        *s = is_frontier(m, *s, set, *p) ? *s : NULL;
    } else if (isdigit((unsigned char)kind)) {
        *s = repeated(m, *s, kind);
        *p += 2;
    } else {
        return false;
    }
    return true;
}

/* One item with what follows it. True: *s is the end of the whole match, or NULL. False: go on
 * there and at *p. */
static bool try_item(struct dm_match *m, const char **s, const char **p) {
    const char *after = item_end(m, *p);
    const char repetition = after < m->pattern_end ? *after : '\0';
    const char *end;
    switch (repetition) {
    case '*':
        *s = as_many(m, *s, *p, after, 0);
        return true;
    case '+':
        *s = as_many(m, *s, *p, after, 1);
        return true;
    case '-':
        *s = as_few(m, *s, *p, after);
        return true;
    case '?':
        if (fits(m, *s, *p, after) && (end = try(m, *s + 1, after + 1))) {
            *s = end;
            return true;
        }
        *p = after + 1;
        return false;
    default:
        *s = fits(m, *s, *p, after) ? *s + 1 : NULL;
        *p = after;
        return *s == NULL;
    }
}

/* The pattern from p on, at s. */
static const char *try(struct dm_match *m, const char *s, const char *p) {
    if (++m->depth > DEPTH_MAX) {
        luaL_error(m->L, "pattern too complex");
    }
    bool done = false;
    while (!done && s && p < m->pattern_end) {
        dm_match_step(m);
        if (*p == '(') {
            const bool position = p + 1 < m->pattern_end && p[1] == ')';
            s = position ? open_capture(m, s, p + 2, DM_POSITION)
                         : open_capture(m, s, p + 1, DM_UNFINISHED);
            done = true;
        } else if (*p == ')') {
            s = close_capture(m, s, p + 1);
            done = true;
        } else if (*p == '$' && p + 1 == m->pattern_end) {
            s = s == m->end ? s : NULL;
            done = true;
        } else if (*p != '%' || !try_special(m, &s, &p)) {
            done = try_item(m, &s, &p);
        }
    }
    m->depth--;
    return s;
}

const char *dm_match_at(struct dm_match *m, const char *s, const char *p) {
    m->count = m->depth = 0;
    return try(m, s, p);
}
