/* list.h: a circular doubly linked list whose links live in its members. A link that is on no list
 * points to itself, so taking it off twice does no harm. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct dm_link {
    struct dm_link *prev, *next;
};

#define dm_container(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

static inline void dm_list_init(struct dm_link *list) {
    list->prev = list->next = list;
}

static inline bool dm_list_empty(const struct dm_link *list) {
    return list->next == list;
}

static inline void dm_list_insert_after(struct dm_link *where, struct dm_link *link) {
    link->prev = where;
    link->next = where->next;
    where->next->prev = link;
    where->next = link;
}

static inline void dm_list_append(struct dm_link *list, struct dm_link *link) {
    dm_list_insert_after(list->prev, link);
}

static inline void dm_list_remove(struct dm_link *link) {
    link->prev->next = link->next;
    link->next->prev = link->prev;
    dm_list_init(link);
}
