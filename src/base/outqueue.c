/* outqueue.c: see outqueue.h. */
#include "base/outqueue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_CAPACITY = 1024 }; /* bytes: a few lines */

void dm_outqueue_init(struct dm_outqueue *queue, size_t max) {
    *queue = (struct dm_outqueue){.max = max};
}

void dm_outqueue_clear(struct dm_outqueue *queue) {
    free(queue->bytes);
    dm_outqueue_init(queue, queue->max);
}

/* Room for `size` bytes behind the end. What waits is moved down only when at least as much is out
 * already: a byte moves once, on the average. */
static int make_room(struct dm_outqueue *queue, size_t size) {
    const size_t used = dm_outqueue_size(queue);
    if (used > queue->max || size > queue->max - used) {
        return -ENOBUFS;
    }
    const size_t needed = (queue->head < used ? queue->head : 0) + used + size;
    size_t capacity = queue->capacity ? queue->capacity : FIRST_CAPACITY;
    while (capacity < needed) {
        capacity *= 2;
    }
    if (capacity > queue->capacity) {
        char *grown = realloc(queue->bytes, capacity);
        if (!grown) {
            return -ENOMEM;
        }
        queue->bytes = grown;
        queue->capacity = capacity;
    }
    if (size > capacity - queue->end) {
        memmove(queue->bytes, queue->bytes + queue->head, used);
        queue->head = 0;
        queue->end = used;
    }
    return 0;
}

int dm_outqueue_add(struct dm_outqueue *queue, const char *data, size_t size) {
    const int rc = size > 0 ? make_room(queue, size) : 0;
    if (rc == 0 && size > 0) {
        memcpy(queue->bytes + queue->end, data, size);
        queue->end += size;
    }
    return rc;
}

void dm_outqueue_take(struct dm_outqueue *queue, size_t size) {
    queue->head += size;
    if (queue->head == queue->end) {
        dm_outqueue_clear(queue);
    }
}

void dm_outqueue_cut(struct dm_outqueue *queue, size_t size) {
    queue->end = queue->head + size;
    if (size == 0) {
        dm_outqueue_clear(queue);
    }
}
