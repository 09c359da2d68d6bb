/* capture.c: see capture.h. */
#include "process/capture.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    TAIL_MAX = 64 << 10,     /* bytes; more than any stack trace that is worth a log record */
    PENDING_MAX = 256 << 10, /* bytes a target that stands still can make us keep */
    TICK_BYTES = 64 << 10,   /* read of one child before the others have their turn */
    FINISH_BYTES = 1 << 20,  /* read after the child's death: a pipe's maximum size */
    RETRY_MS = 100,          /* until a full target is asked again */
};

static char scratch[TICK_BYTES];

/* ---- the last bytes ---- */

static void remember(struct dm_capture *c, const char *data, size_t size) {
    _Static_assert(TICK_BYTES <= TAIL_MAX, "what is read at once must fit");
    const size_t all = dm_outqueue_size(&c->tail) + size;
    if (all > TAIL_MAX) {
        dm_outqueue_take(&c->tail, all - TAIL_MAX);
    }
    dm_outqueue_add(&c->tail, data, size);
}

const char *dm_capture_tail(const struct dm_capture *c, size_t *length) {
    *length = dm_outqueue_size(&c->tail);
    return dm_outqueue_data(&c->tail);
}

/* ---- the copy ---- */

/* How much of the data to write now: whole lines up to PIPE_BUF, which a pipe that polls writable
 * takes at once and unmixed. 0: wait for the rest of the line. */
static size_t next_piece(const char *data, size_t size, bool last) {
    const size_t most = size < PIPE_BUF ? size : PIPE_BUF;
    const char *newline = memrchr(data, '\n', most);
    if (newline) {
        return (size_t)(newline - data) + 1;
    }
    return size >= PIPE_BUF || last ? most : 0;
}

static void flush(struct dm_capture *c, bool last) {
    while (dm_outqueue_size(&c->pending) > 0 && c->target.fd >= 0) {
        const char *data = dm_outqueue_data(&c->pending);
        const size_t piece = next_piece(data, dm_outqueue_size(&c->pending), last || c->ended);
        if (piece == 0) {
            break;
        }
        const ssize_t n = dm_target_write(&c->target, data, piece);
        if (n == -EAGAIN) {
            if (!last) {
                dm_timer_start(&c->retry, RETRY_MS);
            }
            break;
        } else if (n < 0 && dm_target_may_recover((int)n)) {
            c->lost += piece; /* may pass */
            dm_outqueue_take(&c->pending, piece);
        } else if (n < 0) {
            dm_target_close(&c->target);
        } else {
            dm_outqueue_take(&c->pending, (size_t)n);
        }
    }
    if (c->target.fd < 0 || last) {
        c->lost += dm_outqueue_size(&c->pending);
        dm_outqueue_clear(&c->pending);
    }
}

/* What is lost is lost by lines, so that no two halves make up a line that nobody wrote. */
static void lose(struct dm_capture *c, const char *data, size_t size) {
    const size_t kept = dm_outqueue_size(&c->pending);
    const char *start = dm_outqueue_data(&c->pending);
    const char *newline = start ? memrchr(start, '\n', kept) : NULL;
    const size_t whole = newline ? (size_t)(newline - start) + 1 : 0;
    c->lost += kept - whole + size;
    dm_outqueue_cut(&c->pending, whole);
    c->in_lost_line = data[size - 1] != '\n';
}

static void take(struct dm_capture *c, const char *data, size_t size) {
    remember(c, data, size);
    if (c->on_data) {
        c->on_data(c->ctx, c, data, size);
    }
    if (c->in_lost_line) {
        const char *newline = memchr(data, '\n', size);
        const size_t rest = newline ? (size_t)(newline - data) + 1 : size;
        c->lost += rest;
        c->in_lost_line = !newline;
        data += rest;
        size -= rest;
    }
    if (size == 0) {
        return;
    }
    if (c->target.fd < 0 || dm_outqueue_add(&c->pending, data, size) != 0) {
        lose(c, data, size);
        return;
    }
    if (dm_list_empty(&c->retry.link)) {
        flush(c, false);
    }
}

static void on_retry(struct dm_timer *timer) {
    flush(dm_container(timer, struct dm_capture, retry), false);
}

/* ---- the pipe ---- */

static void end(struct dm_capture *c) {
    dm_poll_stop(&c->poll);
    c->ended = true;
}

/* False when nothing more is there. */
static bool read_some(struct dm_capture *c) {
    const ssize_t n = read(c->fd, scratch, sizeof scratch);
    if (n > 0) {
        take(c, scratch, (size_t)n);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        end(c);
        flush(c, false);
    }
    return n > 0;
}

static void on_readable(uv_poll_t *poll, int status, int events) {
    struct dm_capture *c = poll->data;
    read_some(c);
    if (!c->ended && status < 0) {
        dm_poll_start(&c->poll, UV_READABLE, on_readable);
    }
}

void dm_capture_finish(struct dm_capture *c) {
    for (size_t total = 0; !c->ended && total < FINISH_BYTES; total += TICK_BYTES) {
        if (!read_some(c)) {
            break;
        }
    }
    end(c);
    dm_timer_stop(&c->retry);
    flush(c, true);
}

static void on_handle_closed(uv_handle_t *handle) {
    struct dm_capture *c = handle->data;
    void (*on_freed)(void *) = c->on_freed;
    void *ctx = c->ctx;
    dm_outqueue_clear(&c->tail);
    dm_outqueue_clear(&c->pending);
    free(c);
    on_freed(ctx);
}

void dm_capture_close(struct dm_capture *c) {
    dm_timer_stop(&c->retry);
    end(c);
    dm_target_close(&c->target);
    close(c->fd);
    dm_poll_close(&c->poll, on_handle_closed);
}

struct dm_capture *dm_capture_open(uv_loop_t *loop, struct dm_timers *timers, int fd, int target,
                                   void (*on_freed)(void *ctx), void *ctx) {
    struct dm_capture *c = calloc(1, sizeof *c);
    if (!c || dm_poll_init(loop, &c->poll, fd) != 0) {
        free(c);
        return NULL;
    }
    c->poll.uv.data = c;
    c->on_freed = on_freed;
    c->ctx = ctx;
    c->fd = fd;
    dm_outqueue_init(&c->tail, TAIL_MAX);
    dm_outqueue_init(&c->pending, PENDING_MAX);
    if (dm_target_open(&c->target, target) != 0) {
        c->target.fd = -1;
    }
    dm_timer_init(&c->retry, timers, on_retry);
    dm_poll_start(&c->poll, UV_READABLE, on_readable);
    return c;
}
