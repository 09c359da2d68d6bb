/* sink.c: non-blocking output of whole lines, with a bounded buffer.
 *
 * The descriptor we are given (stdout) is shared with the workers and with the shell that started
 * us, and so is its O_NONBLOCK flag: setting it would break them. A pipe or a terminal is therefore
 * opened a second time through /proc/self/fd, which makes a description of our own; where that is
 * refused each write is guarded, by RWF_NOWAIT or else by poll(). Sockets have MSG_DONTWAIT.
 * libuv too sets O_NONBLOCK on what it watches, so it is given an epoll descriptor of our own that
 * holds the shared one.
 *
 * Nothing runs while nothing is buffered. What fails without a way to be woken (a full disk) is
 * tried again with the next record.
 */
#include "service/sink.h"

#include "base/timer.h"
#include "service/files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* Bytes kept for a reader that does not read: a few thousand records, nothing to worry the host. */
#define BUFFER_MAX ((size_t)1 << 20)
/* First size of the buffer, which is freed as soon as it is empty. */
#define BUFFER_FIRST ((size_t)1 << 14)
/* After POLLOUT a terminal takes at least this much without blocking (the kernel's WAKEUP_CHARS).
 */
#define TERMINAL_CHUNK ((size_t)256)

enum way {
    WAY_WRITE,  /* write(): a regular file, or a description of our own with O_NONBLOCK */
    WAY_SEND,   /* send(MSG_DONTWAIT): a socket */
    WAY_NOWAIT, /* pwritev2(RWF_NOWAIT): a shared pipe on a kernel that can do it */
    WAY_POLL,   /* poll(), then as little as cannot block */
};

struct dm_sink {
    uv_loop_t *loop;
    uv_poll_t poll;
    bool poll_ready; /* poll was initialised, so it needs closing */
    bool waiting;    /* poll runs: the output was full, and we shall be told */
    bool tty;
    bool own_fd;
    enum way way;
    int fd;
    int epoll_fd;
    char *path;
    char *buf; /* [head, end): lines not fully written; [head, next) of them is written */
    size_t cap;
    size_t head;
    size_t next;
    size_t end;
    uint64_t lost;
    bool told; /* on_drain was called for this loss */
    dm_sink_drain_cb on_drain;
    void *ctx;
};

/* Output that may come back when something changes, against output that is gone. */
static bool is_temporary(int err) {
    return err == -EAGAIN || err == -ENOSPC || err == -EDQUOT || err == -EFBIG || err == -EIO ||
           err == -ENOMEM || err == -ENOBUFS;
}

static bool is_pending(const struct dm_sink *s) {
    return s->next < s->end;
}

/* --- writing what can be written --- */

static ssize_t write_polled(const struct dm_sink *s, const char *data, size_t len) {
    struct pollfd p = {.fd = s->fd, .events = POLLOUT};
    int n = poll(&p, 1, 0);
    if (n == 0) {
        errno = EAGAIN;
    }
    if (n <= 0) {
        return -1;
    }
    size_t chunk = s->tty ? TERMINAL_CHUNK : PIPE_BUF;
    return write(s->fd, data, len < chunk ? len : chunk);
}

static ssize_t write_nowait(struct dm_sink *s, const char *data, size_t len) {
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = len};
    ssize_t n = pwritev2(s->fd, &iov, 1, -1, RWF_NOWAIT);
    if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL)) {
        return n;
    }
    s->way = WAY_POLL;
    return write_polled(s, data, len);
}

static ssize_t write_once(struct dm_sink *s, const char *data, size_t len) {
    switch (s->way) {
    case WAY_SEND:
        return send(s->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    case WAY_NOWAIT:
        return write_nowait(s, data, len);
    case WAY_POLL:
        return write_polled(s, data, len);
    case WAY_WRITE:
    default:
        return write(s->fd, data, len);
    }
}

/* Writes until it is all out or will not go on: *done bytes, 0 or the error that stopped it. */
static int put(struct dm_sink *s, const char *data, size_t len, size_t *done) {
    *done = 0;
    while (*done < len) {
        ssize_t n = write_once(s, data + *done, len - *done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        if (n == 0) {
            return -EAGAIN;
        }
        *done += (size_t)n;
    }
    return 0;
}

/* --- the buffer --- */

static void forget_buffer(struct dm_sink *s) {
    free(s->buf);
    s->buf = NULL;
    s->cap = s->head = s->next = s->end = 0;
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
    s->lost += count_lines(s->buf + s->next, s->end - s->next);
    forget_buffer(s);
}

/* Moves head past the lines that are out; a line half out stays whole, for reopen(). */
static void advance(struct dm_sink *s, size_t n) {
    s->next += n;
    if (s->next == s->end) {
        forget_buffer(s);
        return;
    }
    const char *newline = memrchr(s->buf + s->head, '\n', s->next - s->head);
    if (newline != NULL) {
        s->head = (size_t)(newline + 1 - s->buf);
    }
}

static int make_room(struct dm_sink *s, size_t len) {
    size_t used = s->end - s->head;
    if (used + len > BUFFER_MAX) {
        return -ENOBUFS;
    }
    if (s->end + len <= s->cap) {
        return 0;
    }
    if (s->head > 0) {
        memmove(s->buf, s->buf + s->head, used);
        s->next -= s->head;
        s->end = used;
        s->head = 0;
    }
    size_t cap = s->cap == 0 ? BUFFER_FIRST : s->cap;
    while (cap < used + len) {
        cap *= 2;
    }
    if (cap == s->cap) {
        return 0;
    }
    char *grown = realloc(s->buf, cap);
    if (grown == NULL) {
        return -ENOMEM;
    }
    s->buf = grown;
    s->cap = cap;
    return 0;
}

/* Keeps a line of which the first `done` bytes (0 unless the buffer is empty) are out already. */
static int keep(struct dm_sink *s, const char *record, size_t len, size_t done) {
    int err = make_room(s, len);
    if (err != 0) {
        s->lost++;
        return err;
    }
    memcpy(s->buf + s->end, record, len);
    s->next += done;
    s->end += len;
    return 0;
}

/* --- being told when output is possible again --- */

static void flush_pending(struct dm_sink *s);
static void tell_drained(struct dm_sink *s);

static void on_writable(uv_poll_t *poll, int status, int events) {
    struct dm_sink *s = poll->data;
    (void)status;
    (void)events;
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
    uv_poll_stop(&s->poll);
    epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, s->fd, NULL);
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
        if (uv_poll_init(s->loop, &s->poll, s->epoll_fd) != 0) {
            return;
        }
        s->poll.data = s;
        s->poll_ready = true;
    }
    struct epoll_event event = {.events = EPOLLOUT};
    if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->fd, &event) < 0) {
        return;
    }
    if (uv_poll_start(&s->poll, UV_READABLE, on_writable) == 0) {
        s->waiting = true;
    } else {
        epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, s->fd, NULL);
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
    size_t done;
    int err = put(s, s->buf + s->next, s->end - s->next, &done);
    advance(s, done);
    if (err != 0 && !is_temporary(err)) {
        drop_buffer(s);
    }
    after_put(s, err);
}

static void tell_drained(struct dm_sink *s) {
    if (s->lost == 0 || s->told || s->on_drain == NULL) {
        return;
    }
    s->told = true;
    s->on_drain(s->ctx);
}

/* --- opening and closing --- */

/* Finds the way to write to a descriptor that others hold too. */
static int choose_way(struct dm_sink *s, int fd) {
    struct stat st;
    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    s->fd = fd;
    s->tty = isatty(fd) == 1;
    s->way = WAY_WRITE;
    if (S_ISSOCK(st.st_mode)) {
        s->way = WAY_SEND;
    }
    if (!S_ISFIFO(st.st_mode) && !S_ISCHR(st.st_mode)) {
        return 0;
    }
    int own = dm_open_again(fd);
    if (own >= 0) {
        s->fd = own;
        s->own_fd = true;
    } else {
        s->way = WAY_NOWAIT;
    }
    return 0;
}

static int open_path(const char *path) {
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    int fd = open(path, flags, 0640);
    return fd < 0 ? -errno : fd;
}

static struct dm_sink *new_sink(uv_loop_t *loop) {
    struct dm_sink *s = calloc(1, sizeof *s);
    if (s != NULL) {
        s->loop = loop;
        s->fd = -1;
        s->epoll_fd = -1;
    }
    return s;
}

int dm_sink_open_fd(uv_loop_t *loop, int fd, struct dm_sink **sink) {
    struct dm_sink *s = new_sink(loop);
    if (s == NULL) {
        return -ENOMEM;
    }
    int err = choose_way(s, fd);
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
    int fd = open_path(path);
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
    s->fd = fd;
    s->own_fd = true;
    s->tty = isatty(fd) == 1;
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
    if (s->own_fd) {
        close(s->fd);
    }
    if (s->poll_ready) {
        uv_close((uv_handle_t *)&s->poll, on_closed);
        return;
    }
    if (s->epoll_fd >= 0) {
        close(s->epoll_fd);
    }
    free(s);
}

/* --- the rest of the interface --- */

void dm_sink_on_drain(struct dm_sink *s, dm_sink_drain_cb cb, void *ctx) {
    s->on_drain = cb;
    s->ctx = ctx;
}

int dm_sink_write(struct dm_sink *s, const char *record, size_t len) {
    if (is_pending(s) && !s->waiting) {
        flush_pending(s);
    }
    if (is_pending(s)) {
        return keep(s, record, len, 0);
    }
    size_t done;
    int err = put(s, record, len, &done);
    if (err == 0) {
        tell_drained(s);
        return 0;
    }
    if (!is_temporary(err)) {
        s->lost++;
        return err;
    }
    err = keep(s, record, len, done);
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
        size_t done;
        int err = put(s, s->buf + s->next, s->end - s->next, &done);
        advance(s, done);
        if (err == 0) {
            break;
        }
        if (err != -EAGAIN) {
            if (!is_temporary(err)) {
                drop_buffer(s);
            }
            return err;
        }
        uint64_t now = dm_now_ms();
        if (now >= deadline) {
            return -ETIMEDOUT;
        }
        struct pollfd p = {.fd = s->fd, .events = POLLOUT};
        poll(&p, 1, (int)(deadline - now));
    }
    stop_waiting(s);
    return 0;
}

int dm_sink_reopen(struct dm_sink *s) {
    if (s->path == NULL) {
        return 0;
    }
    int fd = open_path(s->path);
    if (fd < 0) {
        return fd;
    }
    if (is_pending(s) && !s->waiting) {
        flush_pending(s);
    }
    stop_waiting(s);
    close(s->fd);
    s->fd = fd;
    /* The old file keeps a torn last line at worst; the new one gets that line whole. */
    s->next = s->head;
    if (is_pending(s)) {
        flush_pending(s);
    }
    return 0;
}

bool dm_sink_is_tty(const struct dm_sink *s) {
    return s->tty;
}
