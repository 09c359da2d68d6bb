/* Fuzz target: line framing. The first byte says how the rest is cut into pieces, and whether lines
 * that are too long are skipped; whatever the cuts, the lines must be those of the whole, and
 * nothing may be kept beyond the bound. */
#include "base/lines.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum { LINE_MAX_BYTES = 64 };

struct expected {
    const char *at, *end;
};

/* Each line must be the next one of the input. */
static bool on_line(void *ctx, const char *line, size_t length) {
    struct expected *expected = ctx;
    const char *newline = memchr(expected->at, '\n', (size_t)(expected->end - expected->at));
    if (newline == NULL || (size_t)(newline - expected->at) != length ||
        (line == NULL) != (length > LINE_MAX_BYTES) ||
        (line != NULL && memcmp(line, expected->at, length) != 0)) {
        abort();
    }
    expected->at = newline + 1;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1) {
        return 0;
    }
    const size_t step = data[0] % 37 + 1U;
    struct expected expected = {(const char *)data + 1, (const char *)data + size};
    struct dm_lines lines;
    dm_lines_init(&lines, LINE_MAX_BYTES);
    lines.skips_long = data[0] & 0x80;
    int rc = 0;
    for (size_t at = 1; at < size && rc == 0; at += step) {
        const size_t n = size - at < step ? size - at : step;
        rc = dm_lines_feed(&lines, (const char *)data + at, n, on_line, &expected);
    }
    const char *newline = memchr(expected.at, '\n', (size_t)(expected.end - expected.at));
    if (rc == 0 && newline != NULL) {
        abort(); /* a line was kept back */
    }
    const ptrdiff_t allowed = lines.skips_long ? 4 * LINE_MAX_BYTES : LINE_MAX_BYTES;
    if (rc != 0 && (rc != UV_EMSGSIZE || (newline != NULL && newline - expected.at <= allowed))) {
        abort(); /* refused for no reason */
    }
    dm_lines_deinit(&lines);
    return 0;
}
