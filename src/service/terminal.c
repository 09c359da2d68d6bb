/* terminal.c: see terminal.h. The terminal is opened by its own name, so that O_NONBLOCK is set on
 * a description of our own and not on the one shared with the shell.
 */
#include "service/terminal.h"

#include "base/poll.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

struct dm_terminal {
    struct dm_poll poll;
    int fd;
    bool closed;
    dm_terminal_read_cb on_read;
    void *ctx;
};

static struct termios before_raw;
static int raw_fd = -1;

int dm_terminal_write(int fd, const char *data, size_t len) {
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n >= 0) {
            data += n;
            len -= (size_t)n;
        } else if (errno == EAGAIN) {
            /* Somebody else set O_NONBLOCK on our output. */
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            poll(&p, 1, -1);
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

static void restore(void) {
    if (raw_fd < 0) {
        return;
    }
    tcsetattr(raw_fd, TCSANOW, &before_raw);
    close(raw_fd);
    raw_fd = -1;
}

int dm_terminal_raw(bool raw) {
    static bool at_exit;
    restore();
    if (!raw) {
        return 0;
    }
    int fd = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        return -errno;
    }
    if (tcgetattr(fd, &before_raw) < 0) {
        int err = -errno;
        close(fd);
        return err;
    }
    struct termios now = before_raw;
    /* Signals from the keyboard and line ends on output stay as they are. */
    now.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    now.c_cc[VMIN] = 1;
    now.c_cc[VTIME] = 0;
    if (!at_exit) {
        at_exit = atexit(restore) == 0;
    }
    raw_fd = fd;
    if (tcsetattr(fd, TCSANOW, &now) < 0) {
        int err = -errno;
        restore();
        return err;
    }
    return 0;
}

static void on_readable(uv_poll_t *poll, int status, int events) {
    struct dm_terminal *t = poll->data;
    char data[256];
    ssize_t n = status < 0 ? 0 : read(t->fd, data, sizeof data);
    if (n > 0) {
        t->on_read(t->ctx, data, (size_t)n);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        dm_poll_stop(&t->poll);
        t->on_read(t->ctx, NULL, 0);
    }
}

static void on_closed(uv_handle_t *handle) {
    struct dm_terminal *t = handle->data;
    close(t->fd);
    free(t);
}

int dm_terminal_open(uv_loop_t *loop, dm_terminal_read_cb on_read, void *ctx,
                     struct dm_terminal **terminal) {
    int fd = open("/dev/tty", O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        return -errno;
    }
    struct dm_terminal *t = calloc(1, sizeof *t);
    int err = t == NULL ? -ENOMEM : dm_poll_init(loop, &t->poll, fd);
    if (err != 0) {
        close(fd);
        free(t);
        return err;
    }
    t->fd = fd;
    t->on_read = on_read;
    t->ctx = ctx;
    t->poll.uv.data = t;
    dm_poll_start(&t->poll, UV_READABLE, on_readable);
    *terminal = t;
    return 0;
}

void dm_terminal_close(struct dm_terminal *t) {
    if (!t->closed) {
        t->closed = true;
        dm_poll_close(&t->poll, on_closed);
    }
}
