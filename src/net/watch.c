/* watch.c: see watch.h. Every descriptor is taken out of epoll at a stop: workers hold the same
 * open files, so closing ours alone would leave them there for ever. */
#include "net/watch.h"

#include "base/close.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

int dm_watch_open(struct dm_watch **watch, uv_loop_t *loop,
                  void (*on_ready)(struct dm_watch *watch)) {
    struct dm_watch *self = calloc(1, sizeof *self);
    if (!self) {
        return UV_ENOMEM;
    }
    self->on_ready = on_ready;
    self->epoll = epoll_create1(EPOLL_CLOEXEC);
    int error = self->epoll < 0 ? -errno : dm_poll_init(loop, &self->poll, self->epoll);
    if (error) { /* a failed init leaves nothing in the loop */
        dm_close(&self->epoll);
        free(self);
        return error;
    }
    *watch = self;
    return 0;
}

static void on_poll(uv_poll_t *poll, int status, int events) {
    struct dm_watch *self = (struct dm_watch *)poll;
    dm_watch_stop(self);
    self->on_ready(self);
}

int dm_watch_start(struct dm_watch *self, const int *fds, size_t count, bool connections) {
    dm_watch_stop(self);
    self->fds = malloc((count ? count : 1) * sizeof *fds);
    if (!self->fds) {
        return UV_ENOMEM;
    }
    for (; self->count < count; self->count++) {
        struct epoll_event event = {.events =
                                        connections ? EPOLLIN : 0}; /* EPOLLHUP always comes */
        if (epoll_ctl(self->epoll, EPOLL_CTL_ADD, fds[self->count], &event) != 0) {
            const int error = -errno;
            dm_watch_stop(self);
            return error;
        }
        self->fds[self->count] = fds[self->count];
    }
    return dm_poll_start(&self->poll, UV_READABLE, on_poll);
}

void dm_watch_stop(struct dm_watch *self) {
    dm_poll_stop(&self->poll);
    while (self->count > 0) {
        epoll_ctl(self->epoll, EPOLL_CTL_DEL, self->fds[--self->count], NULL);
    }
    free(self->fds);
    self->fds = NULL;
}

static void on_closed(uv_handle_t *handle) {
    free(handle);
}

void dm_watch_close(struct dm_watch *self) {
    dm_watch_stop(self);
    dm_poll_close(&self->poll, on_closed);
    close(self->epoll);
}
