/* arena.h: the memory of a Lua state that lives for one evaluation. Small blocks are cut from large
 * pieces, which the process keeps for its next state: libc's heap, which joins what is free again,
 * took a third of the time of an evaluation. */
#pragma once

#include <stddef.h>

struct dm_arena;

/* NULL: no memory. */
struct dm_arena *dm_arena_new(void);
/* After lua_close: what is larger than a small block is libc's. */
void dm_arena_free(struct dm_arena *arena);

/* A lua_Alloc; `arena` is a struct dm_arena. */
void *dm_arena_allocate(void *arena, void *block, size_t old_size, size_t size);
