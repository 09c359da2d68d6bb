/* held.c: see held.h. */
#include "keeper/held.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct dm_keeper_held *dm_held_find(const struct dm_held *held, const char *name) {
    for (uint32_t i = 0; i < held->count; i++) {
        if (strcmp(held->items[i].name, name) == 0) {
            return &held->items[i];
        }
    }
    return NULL;
}

struct dm_keeper_held *dm_held_pid(const struct dm_held *held, pid_t pid) {
    for (uint32_t i = 0; i < held->count; i++) {
        if (held->items[i].pid == pid) {
            return &held->items[i];
        }
    }
    return NULL;
}

static int make_room(struct dm_held *held) {
    const uint32_t room = held->room ? 2 * held->room : 64;
    if (held->count < held->room) {
        return 0;
    }
    struct dm_keeper_held *more =
        room > DM_KEEPER_FDS ? NULL : realloc(held->items, room * sizeof *more);
    if (!more) {
        return -ENOMEM;
    }
    held->items = more;
    held->room = room;
    return 0;
}

int dm_held_put(struct dm_held *held, const char *name, int fd, pid_t pid) {
    dm_held_drop(held, name);
    const int error = make_room(held);
    if (error) {
        return error;
    }
    struct dm_keeper_held *item = &held->items[held->count++];
    *item = (struct dm_keeper_held){.fd = fd, .pid = pid};
    memcpy(item->name, name, strlen(name) + 1);
    return 0;
}

void dm_held_drop(struct dm_held *held, const char *name) {
    struct dm_keeper_held *item = dm_held_find(held, name);
    if (item) {
        dm_held_remove(held, item);
    }
}

void dm_held_remove(struct dm_held *held, struct dm_keeper_held *item) {
    *item = held->items[--held->count];
}

void dm_held_exit(struct dm_held *held, pid_t pid, int code, bool signaled, bool core) {
    struct dm_keeper_held *item = pid > 0 ? dm_held_pid(held, pid) : NULL;
    if (item && !item->ended) {
        dm_held_note_exit(item, code, signaled, core);
    }
}

void dm_held_note_exit(struct dm_keeper_held *item, int code, bool signaled, bool core) {
    item->exit_known = 1;
    item->code = code;
    item->signaled = signaled;
    item->core = core;
}

void dm_held_clear(struct dm_held *held) {
    free(held->items);
    *held = (struct dm_held){0};
}
