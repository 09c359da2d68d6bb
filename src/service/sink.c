/* sink.c: non-blocking output of whole lines, with a bounded buffer. The descriptor is shared: see
 * target.h.
 * libuv too sets O_NONBLOCK on what it watches, so it is given an epoll descriptor of our own that
 * holds the shared one.
 *
 * Nothing runs while nothing is buffered. What fails without a way to be woken (a full disk) is
 * tried again with the next record.
 */
#include "service/sink.h"

#include "base/close.h"
#include "base/outlive.h"
#include "base/outqueue.h"
#include "base/poll.h"
#include "base/timer.h"
#include "service/append.h"
#include "service/target.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

/* Bytes kept for a reader that does not read: a few thousand records, nothing to worry the host. */
#define BUFFER_MAX ((size_t)1 << 20)
/* More of them, for grave records alone. */
#define GRAVE_MAX ((size_t)128 << 10)

struct dm_sink {
    uv_loop_t *loop;
    struct dm_poll poll;
    bool poll_ready; /* poll was initialised, so it needs closing */
    bool waiting;    /* poll runs: the output was full, and we shall be told */
    struct dm_target target;
    int epoll_fd;
    char *path;
    struct dm_outqueue lines; /* not fully written */
    size_t written;           /* of the first of them */
    uint64_t lost;
    bool told; /* on_drain was called for this loss */
    dm_sink_drain_cb on_drain;
    void *ctx;
};

static bool is_pending(const struct dm_sink *s) {
    return dm_outqueue_size(&s->lines) > s->written;
}

/* ---- writing what can be written ---- */

/* Writes until it is all out or will not go on: *done bytes, 0 or the error that stopped it. */
static int put(struct dm_sink *s, const char *data, size_t len, size_t *done) {
    *done = 0;
    while (*done < len) {
        const ssize_t n = dm_target_write(&s->target, data + *done, len - *done);
        if (n < 0) {
            return (int)n;
        }
        *done += (size_t)n;
    }
    return 0;
}

struct putting {
    struct dm_sink *s;
    const char *record;
    size_t len, done;
    int err;
    const struct dm_sink_then *then;
};

static void put_and_then(void *data) {
    struct putting *p = data;
    p->err = put(p->s, p->record, p->len, &p->done);
    if (p->err == 0) {
        p->then->fn(p->then->ctx);
    }
}

static int put_record(struct dm_sink *s, const char *record, size_t len,
                      const struct dm_sink_then *then, size_t *done) {
    struct putting p = {.s = s,
                        .record = record,
                        .len = len,
                        .err = -EIO,
                        .then = then}; /* unless it ends in time */
    if (then == NULL) {
        return put(s, record, len, done);
    }
    dm_outlive(put_and_then, &p);
    *done = p.done;
    return p.err;
}

/* ---- the buffer ---- */

static void forget_buffer(struct dm_sink *s) {
    dm_outqueue_clear(&s->lines);
    s->written = 0;
}

static uint64_t count_lines(const char *data, size_t len) {
    uint64_t lines = 0;
    const char *end = data + len;
    for (const char *p = data; p < end && (p = memchr(p, '\n', (size_t)(end - p))) != NULL; p++) {
        lines++;
    }
    return lines;
}

/* The output is gone, and with it all that waited for it. */
static void drop_buffer(struct dm_sink *s) {
    s->lost += count_lines(dm_outqueue_data(&s->lines) + s->written,
                           dm_outqueue_size(&s->lines) - s->written);
    forget_buffer(s);
}

/* Writes what waits. A line half out stays whole, for reopen(). */
static int put_buffer(struct dm_sink *s) {
    if (!is_pending(s)) {
        return 0;
    }
    size_t done;
    const char *data = dm_outqueue_data(&s->lines);
    const int err = put(s, data + s->written, dm_outqueue_size(&s->lines) - s->written, &done);
    s->written += done;
    if (!is_pending(s)) {
        forget_buffer(s);
        return err;
    }
    const char *newline = memrchr(data, '\n', s->written);
    const size_t whole = newline != NULL ? (size_t)(newline + 1 - data) : 0;
    s->written -= whole;
    dm_outqueue_take(&s->lines, whole);
    if (err != 0 && !dm_target_may_recover(err)) {
        drop_buffer(s);
    }
    return err;
}

/* Keeps a line of which the first `done` bytes (0 unless the buffer is empty) are out already. */
static int keep(struct dm_sink *s, const char *record, size_t len, bool grave, size_t done) {
    const bool has_room = grave || dm_outqueue_size(&s->lines) + len <= BUFFER_MAX;
    int err = has_room ? dm_outqueue_add(&s->lines, record, len) : -ENOBUFS;
    if (err != 0) {
        s->lost++;
        return err;
    }
    s->written += done;
    return 0;
}

/* ---- being told when output is possible again ---- */

static void flush_pending(struct dm_sink *s);
static void tell_drained(struct dm_sink *s);

static void on_writable(uv_poll_t *poll, int status, int events) {
    struct dm_sink *s = poll->data;
    flush_pending(s);
    if (!is_pending(s)) {
        tell_drained(s);
    }
}

static void stop_waiting(struct dm_sink *s) {
    if (!s->waiting) {
        return;
    }
    s->waiting = false;
    dm_poll_stop(&s->poll);
    epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, s->target.fd, NULL);
}

/* Where this fails (a file, no descriptor left) the next record tries again. */
static void start_waiting(struct dm_sink *s) {
    if (s->waiting) {
        return;
    }
    if (s->epoll_fd < 0) {
        s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        if (s->epoll_fd < 0) {
            return;
        }
    }
    if (!s->poll_ready) {
        if (dm_poll_init(s->loop, &s->poll, s->epoll_fd) != 0) {
            return;
        }
        s->poll.uv.data = s;
        s->poll_ready = true;
    }
    struct epoll_event event = {.events = EPOLLOUT};
    if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->target.fd, &event) < 0) {
        return;
    }
    if (dm_poll_start(&s->poll, UV_READABLE, on_writable) == 0) {
        s->waiting = true;
    } else {
        epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, s->target.fd, NULL);
    }
}

static void after_put(struct dm_sink *s, int err) {
    if (err == -EAGAIN) {
        start_waiting(s);
    } else {
        stop_waiting(s);
    }
}

static void flush_pending(struct dm_sink *s) {
    after_put(s, put_buffer(s));
}

static void tell_drained(struct dm_sink *s) {
    if (s->lost == 0 || s->told || s->on_drain == NULL) {
        return;
    }
    s->told = true;
    s->on_drain(s->ctx);
}

/* ---- opening and closing ---- */

static struct dm_sink *new_sink(uv_loop_t *loop) {
    struct dm_sink *s = calloc(1, sizeof *s);
    if (s != NULL) {
        s->loop = loop;
        s->epoll_fd = -1;
        dm_outqueue_init(&s->lines, BUFFER_MAX + GRAVE_MAX);
    }
    return s;
}

int dm_sink_open_fd(uv_loop_t *loop, int fd, struct dm_sink **sink) {
    struct dm_sink *s = new_sink(loop);
    if (s == NULL) {
        return -ENOMEM;
    }
    int err = dm_target_open(&s->target, fd);
    if (err != 0) {
        free(s);
        return err;
    }
    *sink = s;
    return 0;
}

int dm_sink_open_path(uv_loop_t *loop, const char *path, struct dm_sink **sink) {
    if (path[0] != '/') {
        return -EINVAL;
    }
    int fd = dm_append_open(path);
    if (fd < 0) {
        return fd;
    }
    struct dm_sink *s = new_sink(loop);
    char *copy = strdup(path);
    if (s == NULL || copy == NULL) {
        free(s);
        free(copy);
        close(fd);
        return -ENOMEM;
    }
    dm_target_adopt(&s->target, fd);
    s->path = copy;
    *sink = s;
    return 0;
}

static void on_closed(uv_handle_t *handle) {
    struct dm_sink *s = handle->data;
    close(s->epoll_fd);
    free(s);
}

void dm_sink_close(struct dm_sink *s) {
    stop_waiting(s);
    forget_buffer(s);
    free(s->path);
    s->on_drain = NULL;
    dm_target_close(&s->target);
    if (s->poll_ready) {
        dm_poll_close(&s->poll, on_closed);
        return;
    }
    dm_close(&s->epoll_fd);
    free(s);
}

/* ---- the rest of the interface ---- */

void dm_sink_on_drain(struct dm_sink *s, dm_sink_drain_cb cb, void *ctx) {
    s->on_drain = cb;
    s->ctx = ctx;
}

int dm_sink_write(struct dm_sink *s, const char *record, size_t len, bool grave,
                  const struct dm_sink_then *then) {
    if (is_pending(s) && !s->waiting) {
        flush_pending(s);
    }
    if (is_pending(s)) {
        return keep(s, record, len, grave, 0);
    }
    size_t done;
    int err = put_record(s, record, len, then, &done);
    if (err == 0) {
        tell_drained(s);
        return 0;
    }
    if (!dm_target_may_recover(err)) {
        s->lost++;
        return err;
    }
    err = keep(s, record, len, grave, done);
    if (is_pending(s)) {
        start_waiting(s);
    }
    return err;
}

uint64_t dm_sink_take_lost(struct dm_sink *s) {
    uint64_t lost = s->lost;
    s->lost = 0;
    s->told = false;
    return lost;
}

int dm_sink_flush(struct dm_sink *s, uint64_t ms) {
    uint64_t deadline = dm_now_ms() + ms;
    while (is_pending(s)) {
        const int err = put_buffer(s);
        if (err == 0) {
            break;
        }
        if (err != -EAGAIN) {
            return err;
        }
        uint64_t now = dm_now_ms();
        if (now >= deadline) {
            return -ETIMEDOUT;
        }
        struct pollfd p = {.fd = s->target.fd, .events = POLLOUT};
        poll(&p, 1, (int)(deadline - now));
    }
    stop_waiting(s);
    return 0;
}

int dm_sink_reopen(struct dm_sink *s) {
    if (s->path == NULL) {
        return 0;
    }
    int fd = dm_append_open(s->path);
    if (fd < 0) {
        return fd;
    }
    if (is_pending(s) && !s->waiting) {
        flush_pending(s);
    }
    stop_waiting(s);
    dm_target_close(&s->target);
    dm_target_adopt(&s->target, fd);
    /* The old file keeps a torn last line at worst; the new one gets that line whole. */
    s->written = 0;
    if (is_pending(s)) {
        flush_pending(s);
    }
    return 0;
}

bool dm_sink_is_tty(const struct dm_sink *s) {
    return s->target.tty;
}
