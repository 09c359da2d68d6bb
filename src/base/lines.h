/* lines.h: bytes in, lines out. Knows no descriptor and no loop. What comes in one piece is not
 * copied; a half line is kept until its end comes, up to a bound. */
#pragma once

#include "base/outqueue.h"

#include <stdbool.h>

struct dm_lines {
    struct dm_outqueue partial; /* start of a line whose end has not come */
    size_t skipped;             /* of a line that is too long, whose end has not come */
    bool skips_long;            /* up to four times max */
};

/* False: no more lines, please (the rest of the input is dropped). `line` NULL: one of `length`
 * bytes was too long, and is lost; only with skips_long. */
typedef bool (*dm_on_line)(void *ctx, const char *line, size_t length);

/* max: bytes in a line, without its newline. */
void dm_lines_init(struct dm_lines *lines, size_t max);
/* 0, UV_EMSGSIZE (a line longer than max, without skips_long) or UV_ENOMEM, as negative errno.
 * Callbacks must not feed.
 */
int dm_lines_feed(struct dm_lines *lines, const char *data, size_t size, dm_on_line on_line,
                  void *ctx);
void dm_lines_deinit(struct dm_lines *lines);
