/* lua/values.h: values on their way from one Lua state to another, copied: nil, booleans, numbers,
 * strings and tables of these. The two states never touch each other. */
#pragma once

#include <lua.h>
#include <stdbool.h>
#include <stddef.h>

struct dm_values {
    char *data;
    size_t size;
    size_t capacity;
    char error[256]; /* why packing failed: "value.a[3]: a function cannot be passed" */
};

/* Packs the stack slots from `first` to the top. With `loose`, functions and userdata arrive as
 * stand-ins that only tell their type; else they are refused. False: see values->error. */
bool dm_lua_pack(lua_State *L, int first, struct dm_values *values, bool loose);

/* Pushes all packed values, returns how many. */
int dm_lua_unpack(lua_State *L, const struct dm_values *values);

void dm_lua_values_free(struct dm_values *values);
