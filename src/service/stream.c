/* stream.c: lines over a unix stream socket, watched with uv_poll.
 *
 * Not uv_pipe_t: that truncates long paths silently and unlinks a path that may be another's by
 * then. The descriptor is closed at once when the stream ends, the memory in the last close
 * callback. Longer than 400 lines: one connection, and its two ends. */
#include "service/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    READ_SIZE = 16384,           /* bytes read at once, and in one turn of the loop */
    QUEUE_MAX = 1 << 20,         /* bytes waiting for a peer that reads slowly */
    WRITE_MAX = 8 << 20,         /* bytes of one answer, if nothing else waits */
    ANSWER_MAX = 8 << 20,        /* bytes of a line that we receive as a client */
    AFTER_STALL_MS = 100,        /* to read what came before the deadline */
    CONNECT_MS = 5000,           /* patience with a server whose backlog is full */
    HALF_CLOSED_CHECK_MS = 1000, /* a peer that only listens cannot be watched, so it is asked */
};

static void on_poll(uv_poll_t *poll, int status, int events);
static void on_timer(uv_timer_t *timer);

static bool is_pending(const struct dm_stream *s) {
    return dm_outqueue_size(&s->out) > 0;
}

/* ---- ending ---- */

static void on_handle_closed(uv_handle_t *handle) {
    struct dm_stream *s = handle->data;
    if (--s->open_handles > 0) {
        return;
    }
    dm_lines_deinit(&s->lines);
    dm_outqueue_clear(&s->out);
    free(s);
}

static void die(struct dm_stream *s) {
    s->dead = true;
    dm_poll_close(&s->poll, on_handle_closed);
    uv_close((uv_handle_t *)&s->timer, on_handle_closed);
    close(s->fd);
    if (s->options.on_gone != NULL) {
        s->options.on_gone(s->options.owner, s);
    }
}

void dm_stream_drop(struct dm_stream *s, const char *reason) {
    if (s->dead) {
        return;
    }
    die(s);
    if (s->events.on_close != NULL) {
        s->events.on_close(s->ctx, reason);
    }
}

/* Ends the stream from the loop: whoever called us may be in the middle of something. */
static void fail_soon(struct dm_stream *s, const char *reason) {
    if (s->failure != NULL) {
        return;
    }
    s->failure = reason;
    dm_poll_stop(&s->poll);
    uv_timer_start(&s->timer, on_timer, 0, 0);
}

void dm_stream_disown(struct dm_stream *s, const char *reason) {
    s->options.on_gone = NULL;
    if (!s->dead) {
        fail_soon(s, reason);
    }
}

/* ---- watching ---- */

static void watch(struct dm_stream *s) {
    int events = (s->half_closed ? 0 : UV_READABLE) | (is_pending(s) ? UV_WRITABLE : 0);
    if (events == 0) {
        dm_poll_stop(&s->poll);
    } else {
        dm_poll_start(&s->poll, events, on_poll);
    }
}

/* ---- sending ---- */

/* Sends what the socket takes now: bytes, or a negative errno other than EAGAIN. */
static ssize_t send_some(const struct dm_stream *s, const char *data, size_t len) {
    size_t done = 0;
    while (done < len) {
        ssize_t n = send(s->fd, data + done, len - done, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno != EAGAIN) {
            return -errno;
        }
        if (n < 0) {
            break;
        }
        done += (size_t)n;
    }
    return (ssize_t)done;
}

/* If the peer has closed, what it said before that is still to be read: only the queue goes. */
static void flush_queue(struct dm_stream *s) {
    ssize_t n = send_some(s, dm_outqueue_data(&s->out), dm_outqueue_size(&s->out));
    if (n > 0) {
        dm_outqueue_take(&s->out, (size_t)n);
        s->last_active = uv_now(s->loop);
    }
    if (n < 0) {
        dm_outqueue_clear(&s->out);
    }
}

int dm_stream_write(struct dm_stream *s, const char *data, size_t len) {
    if (s->dead || s->failure != NULL) {
        return -EPIPE;
    }
    size_t queued = dm_outqueue_size(&s->out);
    if (len > WRITE_MAX || (queued > 0 && queued + len > QUEUE_MAX)) {
        fail_soon(s, "does not read its answers");
        return -ENOBUFS;
    }
    ssize_t n = queued > 0 ? 0 : send_some(s, data, len);
    if (n < 0) {
        return (int)n;
    }
    if (n > 0) {
        s->last_active = uv_now(s->loop);
    }
    if ((size_t)n == len) {
        return 0;
    }
    int err = dm_outqueue_add(&s->out, data + n, len - (size_t)n);
    if (err != 0) {
        fail_soon(s, "out of memory");
        return err;
    }
    watch(s);
    return 0;
}

void dm_stream_complain(int fd, const char *code, const char *message) {
    char line[256];
    int n = snprintf(line, sizeof line,
                     "{\"v\":1,\"ok\":false,\"error\":{\"code\":\"%s\",\"message\":\"%s\"}}\n",
                     code, message);
    if (n > 0 && (size_t)n < sizeof line) {
        (void)send(fd, line, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
}

void dm_stream_close(struct dm_stream *s) {
    if (s->dead) {
        return;
    }
    if (is_pending(s) && s->failure == NULL) {
        flush_queue(s);
    }
    s->events = (struct dm_stream_events){NULL, NULL};
    die(s);
}

/* ---- receiving ---- */

static bool can_go_on(const struct dm_stream *s) {
    return !s->dead && s->failure == NULL;
}

static bool on_line(void *ctx, const char *line, size_t len) {
    struct dm_stream *s = ctx;
    if (!s->asked) {
        s->asked = true;
        uv_timer_stop(&s->timer);
    }
    if (s->events.on_line != NULL) {
        s->events.on_line(s->ctx, line, len);
    }
    return can_go_on(s);
}

/* True if nobody is left at the other end, not even to listen. */
static bool has_hung_up(const struct dm_stream *s) {
    struct pollfd p = {.fd = s->fd, .events = 0};
    return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
}

static void on_end_of_input(struct dm_stream *s) {
    if (has_hung_up(s)) {
        dm_stream_drop(s, NULL);
        return;
    }
    s->half_closed = true;
    uv_timer_start(&s->timer, on_timer, HALF_CLOSED_CHECK_MS, HALF_CLOSED_CHECK_MS);
    watch(s);
}

static void drop_too_long(struct dm_stream *s) {
    (void)snprintf(s->reason, sizeof s->reason, "line longer than %zu bytes", s->options.line_max);
    if (s->options.complain && !is_pending(s)) {
        dm_stream_complain(s->fd, "EMSGSIZE", s->reason);
    }
    dm_stream_drop(s, s->reason);
}

/* False if there was nothing to read. */
static bool receive(struct dm_stream *s) {
    char data[READ_SIZE];
    ssize_t n = recv(s->fd, data, sizeof data, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return false;
    }
    if (n < 0) {
        dm_stream_drop(s, errno == ECONNRESET ? NULL : strerror(errno));
        return false;
    }
    if (n == 0) {
        on_end_of_input(s);
        return false;
    }
    s->last_active = uv_now(s->loop);
    int err = dm_lines_feed(&s->lines, data, (size_t)n, on_line, s);
    if (err != 0 && can_go_on(s)) {
        if (err == -EMSGSIZE) {
            drop_too_long(s);
        } else {
            dm_stream_drop(s, "out of memory");
        }
    }
    return true;
}

static void on_poll(uv_poll_t *poll, int status, int events) {
    struct dm_stream *s = poll->data;
    if (status < 0) {
        /* The peer is gone, perhaps with our words unread; its own may still be there. */
        while (can_go_on(s) && !s->half_closed && receive(s)) {
        }
        if (can_go_on(s)) {
            dm_stream_drop(s, NULL);
        }
        return;
    }
    if ((events & UV_WRITABLE) != 0 && is_pending(s)) {
        flush_queue(s);
        watch(s);
    }
    if ((events & UV_READABLE) != 0 && !s->half_closed) {
        receive(s);
    }
}

static bool is_readable(const struct dm_stream *s) {
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

/* One that said its last, and to whom nothing was said since, and nothing is owed. */
static bool is_forgotten(const struct dm_stream *s) {
    return s->held == 0 && uv_now(s->loop) - s->last_active > s->options.silent_ms;
}

static void on_timer(uv_timer_t *timer) {
    struct dm_stream *s = timer->data;
    if (s->failure != NULL) {
        dm_stream_drop(s, s->failure);
    } else if (!s->half_closed) {
        /* After a stall of the loop a request may be waiting: what came in time counts. */
        if (is_readable(s)) {
            uv_timer_start(&s->timer, on_timer, AFTER_STALL_MS, 0);
            return;
        }
        if (s->options.complain) {
            dm_stream_complain(s->fd, "ETIMEDOUT", "no request came");
        }
        dm_stream_drop(s, "no request came");
    } else if (has_hung_up(s) || is_forgotten(s)) {
        dm_stream_drop(s, NULL);
    }
}

/* ---- opening ---- */

int dm_stream_open(uv_loop_t *loop, int fd, const struct dm_stream_options *options,
                   struct dm_stream **stream) {
    struct dm_stream *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return -ENOMEM;
    }
    s->loop = loop;
    s->fd = fd;
    s->options = *options;
    s->last_active = uv_now(loop);
    dm_lines_init(&s->lines, options->line_max);
    dm_outqueue_init(&s->out, WRITE_MAX);
    socklen_t len = sizeof s->peer;
    int err = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &s->peer, &len) < 0 ? -errno : 0;
    if (err == 0) {
        err = dm_poll_init(loop, &s->poll, fd);
    }
    if (err != 0) {
        free(s);
        return err;
    }
    uv_timer_init(loop, &s->timer);
    s->open_handles = 2;
    s->poll.uv.data = s->timer.data = s;
    watch(s);
    if (options->first_line_ms > 0) {
        uv_timer_start(&s->timer, on_timer, options->first_line_ms, 0);
    }
    *stream = s;
    return 0;
}

int dm_stream_address(const char *path, struct sockaddr_un *addr) {
    size_t len = strlen(path);
    if (len == 0) {
        return -EINVAL;
    }
    if (len >= sizeof addr->sun_path) {
        return -ENAMETOOLONG;
    }
    *addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(addr->sun_path, path, len);
    return 0;
}

/* Connects with patience: a full backlog is a busy server, not an absent one. */
static int connect_socket(const char *path, unsigned patience_ms) {
    struct sockaddr_un addr;
    int err = dm_stream_address(path, &addr);
    if (err != 0) {
        return err;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    const struct timeval patience = {.tv_sec = patience_ms / 1000,
                                     .tv_usec = (suseconds_t)(patience_ms % 1000) * 1000};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0 ||
        fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
        err = -errno;
        close(fd);
        return err;
    }
    return fd;
}

int dm_stream_connect(uv_loop_t *loop, const char *path, unsigned patience_ms,
                      struct dm_stream **stream) {
    int fd = connect_socket(path, patience_ms > 0 ? patience_ms : CONNECT_MS);
    if (fd < 0) {
        return fd;
    }
    struct dm_stream_options options = {.line_max = ANSWER_MAX};
    int err = dm_stream_open(loop, fd, &options, stream);
    if (err != 0) {
        close(fd);
    }
    return err;
}

void dm_stream_listen(struct dm_stream *s, const struct dm_stream_events *events, void *ctx) {
    s->events = *events;
    s->ctx = ctx;
}
