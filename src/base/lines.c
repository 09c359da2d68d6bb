/* lines.c: see lines.h. */
#include "base/lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    FIRST_CAPACITY = 512,  /* bytes: most messages of a worker fit */
    KEPT_CAPACITY = 16384, /* bytes: what one big line made larger is given back after it */
};

void dm_lines_init(struct dm_lines *lines, size_t max) {
    *lines = (struct dm_lines){.max = max};
}

void dm_lines_deinit(struct dm_lines *lines) {
    free(lines->partial);
    dm_lines_init(lines, lines->max);
}

static int keep(struct dm_lines *lines, const char *data, size_t size) {
    if (size == 0) {
        return 0;
    }
    if (size > lines->max - lines->length) {
        return -EMSGSIZE;
    }
    const size_t needed = lines->length + size;
    if (needed > lines->capacity) {
        size_t capacity = lines->capacity ? lines->capacity : FIRST_CAPACITY;
        while (capacity < needed) {
            capacity *= 2;
        }
        char *partial = realloc(lines->partial, capacity);
        if (!partial) {
            return -ENOMEM;
        }
        lines->partial = partial;
        lines->capacity = capacity;
    }
    memcpy(lines->partial + lines->length, data, size);
    lines->length = needed;
    return 0;
}

static bool deliver_partial(struct dm_lines *lines, dm_on_line on_line, void *ctx) {
    const size_t length = lines->length;
    lines->length = 0;
    const bool more = on_line(ctx, lines->partial, length);
    if (lines->capacity > KEPT_CAPACITY) {
        dm_lines_deinit(lines);
    }
    return more;
}

int dm_lines_feed(struct dm_lines *lines, const char *data, size_t size, dm_on_line on_line,
                  void *ctx) {
    const char *end = data + size;
    const char *newline;
    while (data < end && (newline = memchr(data, '\n', (size_t)(end - data)))) {
        const size_t length = (size_t)(newline - data);
        bool more;
        if (lines->length > 0) {
            const int rc = keep(lines, data, length);
            if (rc != 0) {
                return rc;
            }
            more = deliver_partial(lines, on_line, ctx);
        } else if (length > lines->max) {
            return -EMSGSIZE;
        } else {
            more = on_line(ctx, data, length);
        }
        if (!more) {
            return 0;
        }
        data = newline + 1;
    }
    return keep(lines, data, (size_t)(end - data));
}
