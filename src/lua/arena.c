/* arena.c: see arena.h. A shrinking block must never fail (lua_Alloc), so it stays where it is if
 * there is no other place: one of libc's is then a small one from there on, a stray, and freed with
 * the arena. */
#include "lua/arena.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(bytes, size) ((void)(bytes), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(bytes, size) ((void)(bytes), (void)(size))
#endif

enum {
    GRAIN = 16, /* bytes: sizes are multiples of this, and so is every address */
    SMALL_MAX = 512,
    PIECE = 64 << 10,
    SPARE_MAX = 16, /* pieces that the process keeps: 1 MiB, two states of ours */
};

struct block {
    struct block *next;
};

union piece {
    union piece *next;
    char bytes[PIECE];
};

struct dm_arena {
    union piece *pieces;                           /* blocks are cut from the first */
    size_t used;                                   /* of that */
    struct block *returned[SMALL_MAX / GRAIN + 1]; /* by size */
    struct block *strays;                          /* behind what is used of each */
};

static union piece *spare;
static int spares;

static union piece *take_piece(void) {
    union piece *piece = spare;
    if (!piece) {
        return malloc(sizeof *piece);
    }
    spare = piece->next;
    spares--;
    return piece;
}

static void give_piece(union piece *piece) {
    ASAN_UNPOISON_MEMORY_REGION(piece, sizeof *piece);
    if (spares == SPARE_MAX) {
        free(piece);
        return;
    }
    piece->next = spare;
    spare = piece;
    spares++;
}

struct dm_arena *dm_arena_new(void) {
    struct dm_arena *arena = calloc(1, sizeof *arena);
    if (arena) {
        arena->used = PIECE;
    }
    return arena;
}

void dm_arena_free(struct dm_arena *arena) {
    while (arena && arena->pieces) {
        union piece *piece = arena->pieces;
        arena->pieces = piece->next;
        give_piece(piece);
    }
    while (arena && arena->strays) {
        struct block *stray = arena->strays;
        arena->strays = stray->next;
        ASAN_UNPOISON_MEMORY_REGION((char *)stray - SMALL_MAX, SMALL_MAX);
        free((char *)stray - SMALL_MAX);
    }
    free(arena);
}

static size_t grains(size_t size) {
    return (size + GRAIN - 1) / GRAIN;
}

/* With room for what makes a stray of it. */
static size_t large(size_t size) {
    const size_t least = SMALL_MAX + sizeof(struct block);
    return size < least ? least : size;
}

/* A new piece, of which nothing is in use. */
static bool cut_another(struct dm_arena *arena) {
    union piece *piece = take_piece();
    if (!piece) {
        return false;
    }
    piece->next = arena->pieces;
    arena->pieces = piece;
    arena->used = GRAIN; /* behind next */
    ASAN_POISON_MEMORY_REGION(piece->bytes + GRAIN, sizeof *piece - GRAIN);
    return true;
}

static void *take(struct dm_arena *arena, size_t size) {
    if (size > SMALL_MAX) {
        return malloc(large(size));
    }
    const size_t n = grains(size);
    struct block *block = arena->returned[n];
    if (block) {
        ASAN_UNPOISON_MEMORY_REGION(block, sizeof *block);
        arena->returned[n] = block->next;
    } else if (PIECE - arena->used < n * GRAIN && !cut_another(arena)) {
        return NULL;
    } else {
        block = (struct block *)(void *)(arena->pieces->bytes + arena->used);
        arena->used += n * GRAIN;
    }
    ASAN_UNPOISON_MEMORY_REGION(block, size);
    return block;
}

static void give(struct dm_arena *arena, void *bytes, size_t size) {
    if (size > SMALL_MAX) {
        free(bytes);
    } else if (bytes) {
        struct block *block = bytes;
        ASAN_UNPOISON_MEMORY_REGION(block, sizeof *block);
        block->next = arena->returned[grains(size)];
        arena->returned[grains(size)] = block;
        ASAN_POISON_MEMORY_REGION(block, grains(size) * GRAIN);
    }
}

/* In its place. What it had behind `size` is lost until the arena is. */
static void *shrink(struct dm_arena *arena, char *bytes, size_t old_size, size_t size) {
    if (old_size > SMALL_MAX && size <= SMALL_MAX) {
        struct block *stray = (struct block *)(void *)(bytes + SMALL_MAX);
        stray->next = arena->strays;
        arena->strays = stray;
    }
    return bytes;
}

void *dm_arena_allocate(void *arena, void *block, size_t old_size, size_t size) {
    void *taken = NULL;
    if (size == 0) {
        give(arena, block, old_size);
        return NULL;
    } else if (!block) {
        return take(arena, size);
    } else if (old_size > SMALL_MAX && size > SMALL_MAX) {
        taken = realloc(block, large(size));
    } else if (old_size <= SMALL_MAX && grains(old_size) == grains(size)) {
        ASAN_POISON_MEMORY_REGION(block, grains(size) * GRAIN);
        ASAN_UNPOISON_MEMORY_REGION(block, size);
        return block;
    } else if ((taken = take(arena, size))) {
        memcpy(taken, block, old_size < size ? old_size : size);
        give(arena, block, old_size);
    }
    return taken || size > old_size ? taken : shrink(arena, block, old_size, size);
}
