/* dial.c: see dial.h. uv_poll and not uv_tcp_t, which closes its descriptor only when the loop
 * turns: a connection that is given up must be gone before its rule is.
 */
#include "net/dial.h"

#include "base/close.h"
#include "net/diag.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { READ_SIZE = 16384 }; /* bytes in one turn of the loop */

static void on_poll(uv_poll_t *poll, int status, int events);

int dm_dial_socket(const struct dm_address *to, int *port) {
    struct dm_address from = *to;
    dm_address_set_port(&from, 0);
    const int fd = socket(to->u.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    int error = bind(fd, &from.u.any, from.length) == 0 ? 0 : -errno;
    if (!error) {
        error = dm_address_of(fd, &from);
    }
    if (error) {
        close(fd);
        return error;
    }
    *port = dm_address_port(&from);
    return fd;
}

int dm_dial_open(uv_loop_t *loop, const struct dm_address *to, const struct dm_dial_events *events,
                 void *ctx, struct dm_dial **dial) {
    if (dm_address_is_unix(to) || to->type != SOCK_STREAM) {
        return -EINVAL;
    }
    struct dm_dial *self = calloc(1, sizeof *self);
    if (!self) {
        return -ENOMEM;
    }
    self->to = *to;
    self->events = *events;
    self->ctx = ctx;
    dm_address_from_here(&self->to);
    self->fd = dm_dial_socket(&self->to, &self->port);
    int error = self->fd < 0 ? self->fd : dm_poll_init(loop, &self->poll, self->fd);
    if (error) {
        dm_close(&self->fd);
        free(self);
        return error;
    }
    *dial = self;
    return 0;
}

int dm_dial_start(struct dm_dial *self, const char *text, size_t size, bool finish) {
    if (self->text) {
        return -EISCONN;
    }
    self->text = malloc(size + 1);
    if (!self->text) {
        return -ENOMEM;
    }
    memcpy(self->text, text, size);
    self->size = size;
    self->finish = finish;
    if (connect(self->fd, &self->to.u.any, self->to.length) != 0 && errno != EINPROGRESS) {
        return -errno;
    }
    return dm_poll_start(&self->poll, UV_WRITABLE, on_poll);
}

enum dm_accepted dm_dial_accepted(const struct dm_dial *self) {
    struct dm_address here;
    if (!self->connected || dm_address_of(self->fd, &here) != 0) {
        return DM_ACCEPTED_UNKNOWN;
    }
    return dm_diag_accepted(&self->to, &here);
}

static void end(struct dm_dial *self, int error) {
    dm_poll_stop(&self->poll);
    self->events.on_end(self->ctx, error);
}

static int send_rest(struct dm_dial *self) {
    while (self->sent < self->size) {
        const ssize_t n =
            send(self->fd, self->text + self->sent, self->size - self->sent, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR) {
            return errno == EAGAIN ? 0 : -errno;
        }
        self->sent += n > 0 ? (size_t)n : 0;
    }
    if (self->finish && shutdown(self->fd, SHUT_WR) != 0) {
        return -errno;
    }
    return dm_poll_start(&self->poll, UV_READABLE, on_poll);
}

/* A poll that failed (status < 0) is stopped, but what came before that is still to be read. */
static void receive(struct dm_dial *self, int status) {
    char data[READ_SIZE];
    const ssize_t n = recv(self->fd, data, sizeof data, 0);
    if (n > 0) {
        self->events.on_data(self->ctx, data, (size_t)n);
        if (status < 0 && !uv_is_closing((uv_handle_t *)&self->poll)) {
            dm_poll_start(&self->poll, UV_READABLE, on_poll);
        }
    } else if (n == 0) {
        end(self, 0);
    } else if (status < 0 || (errno != EAGAIN && errno != EINTR)) {
        end(self, -errno);
    }
}

static void on_poll(uv_poll_t *poll, int status, int events) {
    struct dm_dial *self = (struct dm_dial *)poll;
    int error = 0;
    bool fresh = false;
    if (!self->connected) {
        const int why = dm_socket_option(self->fd, SOL_SOCKET, SO_ERROR);
        error = why > 0 ? -why : why;
        self->connected = fresh = !error;
    }
    if (!error && status == 0 && (fresh || self->sent < self->size)) {
        error = send_rest(self);
    } else if (!error) {
        receive(self, status);
    }
    if (error) {
        end(self, error);
    }
}

static void on_closed(uv_handle_t *handle) {
    struct dm_dial *self = (struct dm_dial *)handle;
    free(self->text);
    free(self);
}

void dm_dial_close(struct dm_dial *self) {
    dm_poll_stop(&self->poll);
    close(self->fd);
    dm_poll_close(&self->poll, on_closed);
}
