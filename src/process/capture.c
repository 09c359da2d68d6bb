/* capture.c: see capture.h. The target is shared with others and may be anything (terminal, pipe,
 * file), so it is neither polled by libuv, which would make it non-blocking for all of them, nor
 * written to without asking. The answer is worth little: a terminal takes less than it promised,
 * and what a pipe had room for another may have filled by then. Both are opened again,
 * non-blocking. */
#include "process/capture.h"

#include "service/files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    RING_FIRST = 1 << 10,    /* bytes; most workers write little */
    RING_MAX = 64 << 10,     /* bytes; more than any stack trace that is worth a log record */
    PENDING_MAX = 256 << 10, /* bytes a target that stands still can make us keep */
    TICK_BYTES = 64 << 10,   /* read of one child before the others have their turn */
    FINISH_BYTES = 1 << 20,  /* read after the child's death: a pipe's maximum size */
    RETRY_MS = 100,          /* until a full target is asked again */
};

struct dm_capture {
    uv_poll_t poll;
    struct dm_timer retry;
    void (*on_freed)(void *ctx);
    void (*on_data)(void *ctx, const struct dm_capture *c, const char *data, size_t size);
    void *ctx;
    char *ring;
    size_t ring_size, ring_start, ring_length;
    char *pending;
    size_t pending_start, pending_end, pending_size;
    uint64_t lost;
    int fd, target; /* fd is -1 at its end, target -1 once it failed */
    bool own_target;
    bool nowait; /* the target can refuse instead of blocking */
    bool in_lost_line;
};

static char scratch[TICK_BYTES];

/* -- the last bytes -----------------------------------------------------------------------------
 */

static bool grow_ring(struct dm_capture *c, size_t needed) {
    size_t size = c->ring_size ? c->ring_size : RING_FIRST;
    while (size < needed && size < RING_MAX) {
        size *= 2;
    }
    if (size <= c->ring_size) {
        return true;
    }
    char *ring = malloc(size);
    if (!ring) {
        return c->ring != NULL;
    }
    const size_t first = c->ring_size - c->ring_start;
    const size_t head = c->ring_length < first ? c->ring_length : first;
    if (c->ring) {
        memcpy(ring, c->ring + c->ring_start, head);
        memcpy(ring + head, c->ring, c->ring_length - head);
    }
    free(c->ring);
    c->ring = ring;
    c->ring_size = size;
    c->ring_start = 0;
    return true;
}

static void remember(struct dm_capture *c, const char *data, size_t size) {
    if (!grow_ring(c, c->ring_length + size)) {
        return;
    }
    if (size > c->ring_size) {
        data += size - c->ring_size;
        size = c->ring_size;
    }
    if (c->ring_length + size > c->ring_size) {
        const size_t over = c->ring_length + size - c->ring_size;
        c->ring_start = (c->ring_start + over) % c->ring_size;
        c->ring_length -= over;
    }
    const size_t at = (c->ring_start + c->ring_length) % c->ring_size;
    const size_t head = size < c->ring_size - at ? size : c->ring_size - at;
    memcpy(c->ring + at, data, head);
    memcpy(c->ring, data + head, size - head);
    c->ring_length += size;
}

char *dm_capture_tail(const struct dm_capture *c, size_t *length) {
    char *tail = c->ring_length > 0 ? malloc(c->ring_length) : NULL;
    *length = tail ? c->ring_length : 0;
    if (tail) {
        const size_t first = c->ring_size - c->ring_start;
        const size_t head = c->ring_length < first ? c->ring_length : first;
        memcpy(tail, c->ring + c->ring_start, head);
        memcpy(tail + head, c->ring, c->ring_length - head);
    }
    return tail;
}

uint64_t dm_capture_lost(const struct dm_capture *c) {
    return c->lost;
}

/* -- the copy -----------------------------------------------------------------------------------
 */

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

/* Bytes written, 0 for none at the moment, or a negative errno. */
static ssize_t write_piece(struct dm_capture *c, const char *data, size_t size) {
    struct pollfd target = {.fd = c->target, .events = POLLOUT};
    if (poll(&target, 1, 0) <= 0 || !(target.revents & (POLLOUT | POLLERR | POLLHUP | POLLNVAL))) {
        return 0;
    }
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    ssize_t n = c->nowait ? pwritev2(c->target, &iov, 1, -1, RWF_NOWAIT) : -1;
    if (n < 0 && (!c->nowait || errno == EOPNOTSUPP)) {
        c->nowait = false;
        n = write(c->target, data, size);
    }
    if (n >= 0) {
        return n;
    }
    return errno == EAGAIN || errno == EINTR ? 0 : -errno;
}

static void close_own_target(struct dm_capture *c) {
    if (c->own_target) {
        close(c->target);
        c->own_target = false;
        c->target = -1;
    }
}

static void flush(struct dm_capture *c, bool last) {
    while (c->pending_start < c->pending_end && c->target >= 0) {
        const char *data = c->pending + c->pending_start;
        const size_t piece = next_piece(data, c->pending_end - c->pending_start, last || c->fd < 0);
        const ssize_t n = piece > 0 ? write_piece(c, data, piece) : 0;
        if (n == -ENOSPC || n == -EIO || n == -EDQUOT) {
            c->lost += piece; /* may pass */
            c->pending_start += piece;
        } else if (n < 0) {
            close_own_target(c);
            c->target = -1;
        } else if (n == 0) {
            if (piece > 0 && !last) {
                dm_timer_start(&c->retry, RETRY_MS);
            }
            break;
        } else {
            c->pending_start += (size_t)n;
        }
    }
    if (c->target < 0 || last) {
        c->lost += c->pending_end - c->pending_start;
        c->pending_start = c->pending_end;
    }
    if (c->pending_start == c->pending_end) {
        free(c->pending);
        c->pending = NULL;
        c->pending_start = c->pending_end = c->pending_size = 0;
    }
}

static bool make_room(struct dm_capture *c, size_t size) {
    const size_t kept = c->pending_end - c->pending_start;
    if (kept + size > PENDING_MAX) {
        return false;
    }
    if (c->pending_start > 0) {
        memmove(c->pending, c->pending + c->pending_start, kept);
        c->pending_start = 0;
        c->pending_end = kept;
    }
    if (kept + size > c->pending_size) {
        char *pending = realloc(c->pending, kept + size);
        if (!pending) {
            return false;
        }
        c->pending = pending;
        c->pending_size = kept + size;
    }
    return true;
}

/* What is lost is lost by lines, so that no two halves make up a line that nobody wrote. */
static void lose(struct dm_capture *c, const char *data, size_t size) {
    const size_t kept = c->pending_end - c->pending_start;
    const char *start = kept > 0 ? c->pending + c->pending_start : NULL;
    const char *newline = start ? memrchr(start, '\n', kept) : NULL;
    const size_t whole = newline ? (size_t)(newline - start) + 1 : 0;
    c->lost += kept - whole + size;
    c->pending_end = c->pending_start + whole;
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
    if (c->target < 0 || !make_room(c, size)) {
        lose(c, data, size);
        return;
    }
    memcpy(c->pending + c->pending_end, data, size);
    c->pending_end += size;
    if (dm_list_empty(&c->retry.link)) {
        flush(c, false);
    }
}

static void on_retry(struct dm_timer *timer) {
    flush(dm_container(timer, struct dm_capture, retry), false);
}

/* -- the pipe -----------------------------------------------------------------------------------
 */

static void end(struct dm_capture *c) {
    uv_poll_stop(&c->poll);
    close(c->fd);
    c->fd = -1;
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
    (void)status;
    (void)events;
    struct dm_capture *c = poll->data;
    read_some(c);
    if (c->fd >= 0 && status < 0) {
        uv_poll_start(&c->poll, UV_READABLE, on_readable);
    }
}

void dm_capture_finish(struct dm_capture *c) {
    for (size_t total = 0; c->fd >= 0 && total < FINISH_BYTES; total += TICK_BYTES) {
        if (!read_some(c)) {
            break;
        }
    }
    if (c->fd >= 0) {
        end(c);
    }
    dm_timer_stop(&c->retry);
    flush(c, true);
}

static void on_handle_closed(uv_handle_t *handle) {
    struct dm_capture *c = handle->data;
    void (*on_freed)(void *) = c->on_freed;
    void *ctx = c->ctx;
    free(c->ring);
    free(c->pending);
    free(c);
    on_freed(ctx);
}

void dm_capture_close(struct dm_capture *c) {
    dm_timer_stop(&c->retry);
    if (c->fd >= 0) {
        end(c);
    }
    close_own_target(c);
    uv_close((uv_handle_t *)&c->poll, on_handle_closed);
}

void dm_capture_listen(struct dm_capture *c,
                       void (*on_data)(void *, const struct dm_capture *, const char *, size_t)) {
    c->on_data = on_data;
}

static void choose_way(struct dm_capture *c, int target) {
    struct stat st = {0};
    fstat(target, &st);
    const bool fifo = S_ISFIFO(st.st_mode);
    const int own = fifo || isatty(target) == 1 ? dm_open_again(target) : -1;
    c->own_target = own >= 0;
    c->target = c->own_target ? own : target;
    c->nowait = !c->own_target && (fifo || S_ISSOCK(st.st_mode));
}

struct dm_capture *dm_capture_open(uv_loop_t *loop, struct dm_timers *timers, int fd, int target,
                                   void (*on_freed)(void *ctx), void *ctx) {
    struct dm_capture *c = calloc(1, sizeof *c);
    if (!c || uv_poll_init(loop, &c->poll, fd) != 0) {
        free(c);
        return NULL;
    }
    c->poll.data = c;
    c->on_freed = on_freed;
    c->ctx = ctx;
    c->fd = fd;
    choose_way(c, target);
    dm_timer_init(&c->retry, timers, on_retry);
    uv_poll_start(&c->poll, UV_READABLE, on_readable);
    return c;
}
