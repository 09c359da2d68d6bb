/* embedded.h: the Lua files of lua/, put into the binary by embed.lua. Read only. */
#pragma once

#include <stddef.h>

struct dm_embedded {
    const char *name; /* path below lua/ without ".lua", such as "dutch-master/cluster/cluster" */
    const unsigned char *text;
    size_t size;
    const unsigned char *code; /* the same, compiled */
    size_t code_size;
};

extern const char dm_embedded_by[]; /* the version of LuaJIT that has compiled it */

extern const struct dm_embedded dm_embedded[]; /* ends with a NULL name */
