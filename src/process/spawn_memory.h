/* spawn_memory.h: what the child of a fork gets of the master's memory. Each page that both of them
 * have costs the master a fault when it writes to it next: 2 us, and it writes to hundreds of its
 * heap between two forks. So the heap, Lua's too, stays with the master alone, and what the child
 * needs is copied out of it. */
#pragma once

#include "process/spawn.h"

/* A description outside of the heap. */
struct dm_spawn_memory {
    struct dm_spawn spawn;
    char *bytes; /* NULL: they are only counted */
    size_t used, size;
};

/* Notes where the heap begins; what is in it by now stays visible to children. */
void dm_spawn_memory_init(void);

/* 0 or a negative errno. */
int dm_spawn_memory_take(struct dm_spawn_memory *memory, const struct dm_spawn *spawn);
void dm_spawn_memory_free(struct dm_spawn_memory *memory);

/* Around one clone. A child that would touch what is hidden dies of SIGSEGV. */
void dm_spawn_memory_hide_heap(void);
void dm_spawn_memory_show_heap(void);
