/* outqueue.h: bytes that wait until a descriptor takes them, up to a bound. Knows no descriptor and
 * no loop: whoever owns one sends from its start and says how much went. Empty, it holds no memory.
 */
#pragma once

#include <stddef.h>

struct dm_outqueue {
    char *bytes; /* [head, end) waits */
    size_t head, end, capacity;
    size_t max; /* bytes that may wait */
};

void dm_outqueue_init(struct dm_outqueue *queue, size_t max);
/* 0, or -ENOBUFS (beyond max), -ENOMEM: nothing was added. */
int dm_outqueue_add(struct dm_outqueue *queue, const char *data, size_t size);
/* The first bytes are out. */
void dm_outqueue_take(struct dm_outqueue *queue, size_t size);
/* Only the first bytes stay. */
void dm_outqueue_cut(struct dm_outqueue *queue, size_t size);
void dm_outqueue_clear(struct dm_outqueue *queue);

static inline size_t dm_outqueue_size(const struct dm_outqueue *queue) {
    return queue->end - queue->head;
}

/* Until the next call that changes the queue. */
static inline const char *dm_outqueue_data(const struct dm_outqueue *queue) {
    return queue->bytes ? queue->bytes + queue->head : NULL;
}
