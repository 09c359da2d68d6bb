/* poll.c: see poll.h. libuv's own ADD then fails with EEXIST, upon which it changes the entry: that
 * needs no room. (uv__io_poll in libuv's src/unix/epoll.c, linux-core.c before 1.45) */
#include "base/poll.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>

/* One loop in a process, one list of those that are parked. */
static struct {
    struct dm_timers *timers; /* NULL: not there */
    struct dm_timer retry;
    struct dm_link parked;
} polls;

static int add(uv_loop_t *loop, int fd, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    const int rc = epoll_ctl(uv_backend_fd(loop), EPOLL_CTL_ADD, fd, &event);
    return rc == 0 || errno == EEXIST ? 0 : -errno;
}

/* UV_READABLE, UV_WRITABLE, UV_DISCONNECT as epoll and poll(2) have them, which is the same. */
static unsigned wanted(int events) {
    return (events & UV_READABLE ? EPOLLIN : 0U) | (events & UV_WRITABLE ? EPOLLOUT : 0U) |
           (events & UV_DISCONNECT ? EPOLLRDHUP : 0U);
}

static void park(struct dm_poll *self) {
    uv_poll_stop(&self->uv);
    dm_list_append(&polls.parked, &self->parked);
    dm_timer_start(&polls.retry, DM_POLL_PARKED_MS);
}

static int try_start(struct dm_poll *self) {
    const int error = uv_poll_start(&self->uv, self->events, self->on_poll);
    if (error || add(self->uv.loop, self->fd, wanted(self->events)) == 0 || !polls.timers) {
        return error;
    }
    park(self);
    return 0;
}

static void ask(struct dm_poll *self) {
    struct pollfd p = {.fd = self->fd, .events = (short)wanted(self->events)};
    if (self->events == 0 || poll(&p, 1, 0) <= 0) {
        return;
    }
    if (p.revents & (POLLERR | POLLNVAL)) { /* as libuv does */
        dm_poll_stop(self);
        self->on_poll(&self->uv, UV_EBADF, 0);
        return;
    }
    const int hung_up = p.revents & POLLHUP ? self->events : 0;
    const int readable = p.revents & POLLIN ? UV_READABLE : 0;
    const int writable = p.revents & POLLOUT ? UV_WRITABLE : 0;
    const int left = p.revents & POLLRDHUP ? UV_DISCONNECT : 0;
    self->on_poll(&self->uv, 0, (readable | writable | left | hung_up) & self->events);
}

/* A callback may stop, start or close any of them. Those that are parked again come last. */
static void on_retry(struct dm_timer *timer) {
    struct dm_link round;
    dm_list_init(&round);
    while (!dm_list_empty(&polls.parked)) {
        struct dm_link *link = polls.parked.next;
        dm_list_remove(link);
        dm_list_append(&round, link);
    }
    while (!dm_list_empty(&round)) {
        struct dm_poll *self = dm_container(round.next, struct dm_poll, parked);
        dm_list_remove(&self->parked);
        try_start(self);
        if (!dm_list_empty(&self->parked)) {
            ask(self);
        }
    }
}

int dm_polls_init(struct dm_timers *timers) {
    polls.timers = timers;
    dm_list_init(&polls.parked);
    dm_timer_init(&polls.retry, timers, on_retry);
    return add(timers->loop, timers->loop->async_io_watcher.fd, EPOLLIN);
}

void dm_polls_deinit(void) {
    dm_timer_stop(&polls.retry);
    polls.timers = NULL;
}

int dm_poll_init(uv_loop_t *loop, struct dm_poll *self, int fd) {
    dm_list_init(&self->parked);
    self->fd = fd;
    self->events = 0;
    return uv_poll_init(loop, &self->uv, fd);
}

int dm_poll_start(struct dm_poll *self, int events, uv_poll_cb on_poll) {
    dm_list_remove(&self->parked);
    self->events = events;
    self->on_poll = on_poll;
    return try_start(self);
}

void dm_poll_rest(struct dm_poll *self) {
    if (polls.timers && self->events && dm_list_empty(&self->parked)) {
        park(self);
    }
}

void dm_poll_stop(struct dm_poll *self) {
    dm_list_remove(&self->parked);
    self->events = 0;
    uv_poll_stop(&self->uv);
}

void dm_poll_close(struct dm_poll *self, uv_close_cb on_closed) {
    dm_list_remove(&self->parked);
    uv_close((uv_handle_t *)&self->uv, on_closed);
}
