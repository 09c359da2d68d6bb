/* lines.c: see lines.h. */
#include "base/lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    FIRST_CAPACITY = 512,  /* bytes: most messages of a worker fit */
    SKIPPED_FACTOR = 4,    /* a line so many times too long is no message: it may never end */
    KEPT_CAPACITY = 16384, /* bytes: what one big line made larger is given back after it */
};

void dm_lines_init(struct dm_lines *lines, size_t max) {
    *lines = (struct dm_lines){.max = max};
}

void dm_lines_deinit(struct dm_lines *lines) {
    free(lines->partial);
    lines->partial = NULL;
    lines->length = lines->capacity = lines->skipped = 0;
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

/* Loses what there is of a line that is too long. */
static int skip(struct dm_lines *lines, size_t size) {
    if (!lines->skips_long) {
        return -EMSGSIZE;
    }
    const size_t before = lines->skipped + lines->length;
    dm_lines_deinit(lines);
    lines->skipped = before + size;
    return lines->skipped / SKIPPED_FACTOR > lines->max ? -EMSGSIZE : 0;
}

static int keep_or_skip(struct dm_lines *lines, const char *data, size_t size) {
    const int rc = lines->skipped > 0 ? -EMSGSIZE : keep(lines, data, size);
    return rc == -EMSGSIZE ? skip(lines, size) : rc;
}

/* `data` holds all that had not come of the line. */
static int deliver(struct dm_lines *lines, const char *data, size_t length, bool *more,
                   dm_on_line on_line, void *ctx) {
    if (lines->length == 0 && lines->skipped == 0 && length <= lines->max) {
        *more = on_line(ctx, data, length);
        return 0;
    }
    const int rc = keep_or_skip(lines, data, length);
    if (rc != 0) {
        return rc;
    }
    const size_t skipped = lines->skipped;
    lines->skipped = 0;
    *more = skipped > 0 ? on_line(ctx, NULL, skipped) : deliver_partial(lines, on_line, ctx);
    return 0;
}

int dm_lines_feed(struct dm_lines *lines, const char *data, size_t size, dm_on_line on_line,
                  void *ctx) {
    const char *end = data + size;
    const char *newline;
    while (data < end && (newline = memchr(data, '\n', (size_t)(end - data)))) {
        bool more = true;
        const int rc = deliver(lines, data, (size_t)(newline - data), &more, on_line, ctx);
        if (rc != 0 || !more) {
            return rc;
        }
        data = newline + 1;
    }
    return keep_or_skip(lines, data, (size_t)(end - data));
}
