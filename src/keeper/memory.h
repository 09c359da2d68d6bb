/* memory.h: the memory that keeper and master share, and which of its snapshots is whole. libc
 * alone.
 */
#pragma once

#include "keeper/keeper.h"

/* Of a file without a name: it crosses an exec. fd: -1 if there is none, and so no upgrade. */
struct dm_keeper_memory *dm_keeper_make_memory(int *fd);
/* NULL, with errno, if it cannot be had. */
struct dm_keeper_memory *dm_keeper_map(int fd);
/* Whether it is laid out as this program's. */
bool dm_keeper_understands(const struct dm_keeper_memory *memory);

uint64_t dm_keeper_sum(const char *text, size_t size);
/* The newest whole snapshot, or NULL. */
const char *dm_keeper_newest(const struct dm_keeper_memory *memory, size_t *size);
/* The order of the newest signal that it knows; 0: of none. */
uint64_t dm_keeper_heard(const struct dm_keeper_memory *memory);
/* Whether there ever was one. */
bool dm_keeper_has_written(const struct dm_keeper_memory *memory);
