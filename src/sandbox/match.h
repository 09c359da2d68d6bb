/* sandbox/match.h: one match of a Lua pattern against a subject, in the script's state. Looks at
 * the clock, so that no pattern outlasts the budget. A bad pattern is a Lua error. */
#pragma once

#include <lua.h>
#include <stddef.h>

enum { DM_CAPTURES_MAX = 32 }; /* as LUA_MAXCAPTURES */

/* Instead of a capture's length. */
enum { DM_UNFINISHED = -1, DM_POSITION = -2 };

struct dm_capture_range {
    const char *start;
    ptrdiff_t length;
};

struct dm_match {
    lua_State *L;
    const char *subject, *end;
    const char *pattern_end;
    struct dm_capture_range captures[DM_CAPTURES_MAX];
    int count; /* of captures */
    int depth;
    unsigned steps;
};

/* Counts what takes time. */
void dm_match_step(struct dm_match *match);

/* A new attempt with the pattern p at s alone. Where the match ends, or NULL. */
const char *dm_match_at(struct dm_match *match, const char *s, const char *p);
