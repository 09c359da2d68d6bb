/* lua/values.c: see lua/values.h. One byte of type, then the value; a table is its keys and values
 * between '{' and '}'. Tables are read raw: no metamethod of the sender runs here. Packing never
 * throws for what the sender does, so that nothing leaks in either state. */
#include "lua/values.h"

#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    DEPTH_MAX = 32,
    SIZE_MAX_BYTES = 8 << 20, /* also bounds tables that are reached by many ways */
};

struct packer {
    lua_State *L;
    struct dm_values *values;
    bool loose;
    int depth;
    const void *open[DEPTH_MAX]; /* tables being packed */
    int keys[DEPTH_MAX];         /* stack slots of the keys on the way */
};

static bool add(struct packer *p, const void *data, size_t size) {
    struct dm_values *v = p->values;
    if (v->size + size > SIZE_MAX_BYTES) {
        snprintf(v->error, sizeof v->error, "more than %d MiB cannot be passed",
                 SIZE_MAX_BYTES >> 20);
        return false;
    }
    if (v->size + size > v->capacity) {
        size_t capacity = v->capacity ? v->capacity : 256;
        while (capacity < v->size + size) {
            capacity *= 2;
        }
        char *grown = realloc(v->data, capacity);
        if (!grown) {
            snprintf(v->error, sizeof v->error, "not enough memory");
            return false;
        }
        v->data = grown;
        v->capacity = capacity;
    }
    memcpy(v->data + v->size, data, size);
    v->size += size;
    return true;
}

static bool add_tag(struct packer *p, char tag) {
    return add(p, &tag, 1);
}

/* "value.a.b[3]: what": the way down to where packing stopped. */
static bool refuse(struct packer *p, const char *what) {
    char *at = p->values->error;
    char *const end = at + sizeof p->values->error;
    at += snprintf(at, (size_t)(end - at), "value");
    for (int i = 0; i < p->depth && at < end - 1; i++) {
        size_t length;
        if (lua_type(p->L, p->keys[i]) == LUA_TSTRING) {
            const char *key = lua_tolstring(p->L, p->keys[i], &length);
            at += snprintf(at, (size_t)(end - at), ".%.40s", key);
        } else if (lua_type(p->L, p->keys[i]) == LUA_TNUMBER) {
            at += snprintf(at, (size_t)(end - at), "[%.14g]", lua_tonumber(p->L, p->keys[i]));
        } else {
            at += snprintf(at, (size_t)(end - at), "[?]");
        }
    }
    if (at < end - 1) {
        snprintf(at, (size_t)(end - at), ": %s", what);
    }
    return false;
}

static bool refuse_type(struct packer *p, int type, const char *as) {
    char what[80];
    snprintf(what, sizeof what, "a %s cannot be %s", lua_typename(p->L, type), as);
    return refuse(p, what);
}

static bool pack(struct packer *p, int index);

static bool pack_table(struct packer *p, int index) {
    lua_State *L = p->L;
    const void *table = lua_topointer(L, index);
    for (int i = 0; i < p->depth; i++) {
        if (p->open[i] == table) {
            return refuse(p, "a table that contains itself cannot be passed");
        }
    }
    if (p->depth == DEPTH_MAX) {
        return refuse(p, "tables nested deeper than 32 cannot be passed");
    }
    if (!lua_checkstack(L, 4)) {
        return refuse(p, "no stack left");
    }
    if (!add_tag(p, '{')) {
        return false;
    }
    p->open[p->depth] = table;
    lua_pushnil(L);
    while (lua_next(L, index)) { /* key, value */
        const int key = lua_gettop(L) - 1;
        const int type = lua_type(L, key);
        p->keys[p->depth] = key;
        p->depth++;
        if (type != LUA_TSTRING && type != LUA_TNUMBER && type != LUA_TBOOLEAN) {
            return refuse_type(p, type, "a key of what is passed");
        }
        if (!pack(p, key) || !pack(p, key + 1)) {
            return false;
        }
        p->depth--;
        lua_settop(L, key);
    }
    return add_tag(p, '}');
}

static bool pack(struct packer *p, int index) {
    lua_State *L = p->L;
    const int type = lua_type(L, index);
    switch (type) {
    case LUA_TNIL:
        return add_tag(p, 'n');
    case LUA_TBOOLEAN:
        return add_tag(p, lua_toboolean(L, index) ? 't' : 'f');
    case LUA_TNUMBER: {
        const lua_Number n = lua_tonumber(L, index);
        return add_tag(p, 'd') && add(p, &n, sizeof n);
    }
    case LUA_TSTRING: {
        size_t length;
        const char *text = lua_tolstring(L, index, &length);
        return add_tag(p, 's') && add(p, &length, sizeof length) && add(p, text, length);
    }
    case LUA_TTABLE:
        return pack_table(p, index);
    default:
        if (p->loose) {
            return add_tag(p, type == LUA_TFUNCTION ? 'F' : 'U');
        }
        return refuse_type(p, type, "passed");
    }
}

bool dm_lua_pack(lua_State *L, int first, struct dm_values *values, bool loose) {
    struct packer p = {.L = L, .values = values, .loose = loose};
    const int top = lua_gettop(L);
    values->size = 0;
    values->error[0] = '\0';
    bool ok = true;
    for (int i = first; ok && i <= top; i++) {
        ok = pack(&p, i);
    }
    lua_settop(L, top);
    return ok;
}

static int l_stand_in(lua_State *L) {
    return luaL_error(L, "a function of the script lives in the script's own state");
}

static const char *unpack(lua_State *L, const char *at) {
    luaL_checkstack(L, 4, "values");
    switch (*at++) {
    case 't':
        lua_pushboolean(L, 1);
        return at;
    case 'f':
        lua_pushboolean(L, 0);
        return at;
    case 'd': {
        lua_Number n;
        memcpy(&n, at, sizeof n);
        lua_pushnumber(L, n);
        return at + sizeof n;
    }
    case 's': {
        size_t length;
        memcpy(&length, at, sizeof length);
        lua_pushlstring(L, at + sizeof length, length);
        return at + sizeof length + length;
    }
    case '{':
        lua_newtable(L);
        while (*at != '}') {
            at = unpack(L, at);
            at = unpack(L, at);
            lua_rawset(L, -3);
        }
        return at + 1;
    case 'F':
        lua_pushcfunction(L, l_stand_in);
        return at;
    case 'U':
        lua_pushlightuserdata(L, NULL);
        return at;
    default:
        lua_pushnil(L);
        return at;
    }
}

int dm_lua_unpack(lua_State *L, const struct dm_values *values) {
    const char *at = values->data;
    const char *const end = at + values->size;
    int count = 0;
    while (values->size > 0 && at < end) {
        at = unpack(L, at);
        count++;
    }
    return count;
}

void dm_lua_values_free(struct dm_values *values) {
    free(values->data);
    values->data = NULL;
    values->size = values->capacity = 0;
}
