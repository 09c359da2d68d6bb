/* sink.h: where log records go. Writing never blocks and never fails for good.
 *
 * A record is one line. What cannot be written now waits in a bounded buffer; what does not fit is
 * dropped whole and counted. When everything has got out again after a loss, on_drain tells.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

struct dm_sink;

/* May write to the sink and may close it. */
typedef void (*dm_sink_drain_cb)(void *ctx);

/* On a descriptor we were given: it stays open and its O_NONBLOCK flag, shared with whoever else
 * holds it, is never touched. */
int dm_sink_open_fd(uv_loop_t *loop, int fd, struct dm_sink **sink);
/* On a file (absolute path), appended to, made with mode 0640 if missing. */
int dm_sink_open_path(uv_loop_t *loop, const char *path, struct dm_sink **sink);

void dm_sink_on_drain(struct dm_sink *sink, dm_sink_drain_cb cb, void *ctx);

/* What is done as soon as a record is out whole: both, or neither, if this process is killed (see
 * base/outlive.h, whose rules fn keeps). */
struct dm_sink_then {
    void (*fn)(void *ctx);
    void *ctx;
};

/* 0: written or buffered. Negative: this record is lost (and counted). A part of the buffer is for
 * grave records alone: no flood of others takes it. then: NULL, or done if it is not buffered. */
int dm_sink_write(struct dm_sink *sink, const char *record, size_t len, bool grave,
                  const struct dm_sink_then *then);
/* Records lost since the last call. */
uint64_t dm_sink_take_lost(struct dm_sink *sink);
/* Waits until nothing is buffered, ms at most. Only for the end of the process. */
int dm_sink_flush(struct dm_sink *sink, uint64_t ms);
/* Opens the path anew (log rotation); on failure the old file stays in use. */
int dm_sink_reopen(struct dm_sink *sink);
bool dm_sink_is_tty(const struct dm_sink *sink);
void dm_sink_close(struct dm_sink *sink);
