/* arena.c: see arena.h. */
#include "lua/arena.h"

#include <stdlib.h>
#include <string.h>

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
    free(arena);
}

static size_t grains(size_t size) {
    return (size + GRAIN - 1) / GRAIN;
}

static void *take(struct dm_arena *arena, size_t size) {
    if (size > SMALL_MAX) {
        return malloc(size);
    }
    const size_t n = grains(size);
    struct block *block = arena->returned[n];
    if (block) {
        arena->returned[n] = block->next;
        return block;
    } else if (PIECE - arena->used < n * GRAIN) {
        union piece *piece = take_piece();
        if (!piece) {
            return NULL;
        }
        piece->next = arena->pieces;
        arena->pieces = piece;
        arena->used = GRAIN; /* behind next */
    }
    void *taken = arena->pieces->bytes + arena->used;
    arena->used += n * GRAIN;
    return taken;
}

static void give(struct dm_arena *arena, void *bytes, size_t size) {
    if (size > SMALL_MAX) {
        free(bytes);
    } else if (bytes) {
        struct block *block = bytes;
        block->next = arena->returned[grains(size)];
        arena->returned[grains(size)] = block;
    }
}

void *dm_arena_allocate(void *arena, void *block, size_t old_size, size_t size) {
    if (size == 0) {
        give(arena, block, old_size);
        return NULL;
    } else if (!block) {
        return take(arena, size);
    } else if (old_size > SMALL_MAX && size > SMALL_MAX) {
        return realloc(block, size);
    } else if (old_size <= SMALL_MAX && grains(old_size) == grains(size)) {
        return block;
    }
    void *taken = take(arena, size);
    if (taken) {
        memcpy(taken, block, old_size < size ? old_size : size);
        give(arena, block, old_size);
    }
    return taken;
}
