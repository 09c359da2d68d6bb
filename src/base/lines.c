/* lines.c: see lines.h. */
#include "base/lines.h"

#include <errno.h>
#include <string.h>

/* A line so many times too long is no message: it may never end. */
enum { SKIPPED_FACTOR = 4 };

void dm_lines_init(struct dm_lines *lines, size_t max) {
    *lines = (struct dm_lines){.skipped = 0};
    dm_outqueue_init(&lines->partial, max);
}

void dm_lines_deinit(struct dm_lines *lines) {
    dm_outqueue_clear(&lines->partial);
    lines->skipped = 0;
}

static bool deliver_partial(struct dm_lines *lines, dm_on_line on_line, void *ctx) {
    struct dm_outqueue line = lines->partial;
    dm_outqueue_init(&lines->partial, line.max);
    const bool more = on_line(ctx, dm_outqueue_data(&line), dm_outqueue_size(&line));
    dm_outqueue_clear(&line);
    return more;
}

/* Loses what there is of a line that is too long. */
static int skip(struct dm_lines *lines, size_t size) {
    if (!lines->skips_long) {
        return -EMSGSIZE;
    }
    const size_t before = lines->skipped + dm_outqueue_size(&lines->partial);
    dm_lines_deinit(lines);
    lines->skipped = before + size;
    return lines->skipped / SKIPPED_FACTOR > lines->partial.max ? -EMSGSIZE : 0;
}

static int keep_or_skip(struct dm_lines *lines, const char *data, size_t size) {
    const int rc = lines->skipped > 0 ? -ENOBUFS : dm_outqueue_add(&lines->partial, data, size);
    return rc == -ENOBUFS ? skip(lines, size) : rc;
}

/* `data` holds all that had not come of the line. */
static int deliver(struct dm_lines *lines, const char *data, size_t length, bool *more,
                   dm_on_line on_line, void *ctx) {
    if (dm_outqueue_size(&lines->partial) == 0 && lines->skipped == 0 &&
        length <= lines->partial.max) {
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
