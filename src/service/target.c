/* target.c: see target.h.
 *
 * The descriptor we are given (stdout) is shared with the workers and with the shell that started
 * us, and so is its O_NONBLOCK flag: setting it would break them. A pipe or a terminal is therefore
 * opened a second time through /proc/self/fd, which makes a description of our own. Where that is
 * refused each write is guarded, by RWF_NOWAIT or else by poll(), whose answer is worth little: a
 * terminal takes less than it promised, and what a pipe had room for another may have filled by
 * then. Sockets have MSG_DONTWAIT.
 */
#include "service/target.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* After POLLOUT a terminal takes at least this much without blocking (the kernel's WAKEUP_CHARS).
 */
#define TERMINAL_CHUNK ((size_t)256)

void dm_target_adopt(struct dm_target *target, int fd) {
    *target =
        (struct dm_target){.fd = fd, .way = DM_TARGET_WRITE, .own = true, .tty = isatty(fd) == 1};
}

/* What fd refers to (pipe, terminal), opened a second time to write to. */
static int open_again(int fd) {
    char self[32];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    return open(self, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
}

int dm_target_open(struct dm_target *target, int fd) {
    struct stat st;
    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    *target = (struct dm_target){.fd = fd, .way = DM_TARGET_WRITE, .tty = isatty(fd) == 1};
    if (S_ISSOCK(st.st_mode)) {
        target->way = DM_TARGET_SEND;
    } else if (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode)) {
        const int own = open_again(fd);
        if (own >= 0) {
            target->fd = own;
            target->own = true;
        } else {
            target->way = DM_TARGET_NOWAIT;
        }
    }
    return 0;
}

static ssize_t write_polled(const struct dm_target *target, const char *data, size_t size) {
    struct pollfd p = {.fd = target->fd, .events = POLLOUT};
    const int n = poll(&p, 1, 0);
    if (n == 0) {
        errno = EAGAIN;
    }
    if (n <= 0) {
        return -1;
    }
    const size_t chunk = target->tty ? TERMINAL_CHUNK : PIPE_BUF;
    return write(target->fd, data, size < chunk ? size : chunk);
}

static ssize_t write_nowait(struct dm_target *target, const char *data, size_t size) {
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    const ssize_t n = pwritev2(target->fd, &iov, 1, -1, RWF_NOWAIT);
    if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL)) {
        return n;
    }
    target->way = DM_TARGET_POLL;
    return write_polled(target, data, size);
}

static ssize_t write_once(struct dm_target *target, const char *data, size_t size) {
    switch (target->way) {
    case DM_TARGET_SEND:
        return send(target->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    case DM_TARGET_NOWAIT:
        return write_nowait(target, data, size);
    case DM_TARGET_POLL:
        return write_polled(target, data, size);
    case DM_TARGET_WRITE:
    default:
        return write(target->fd, data, size);
    }
}

ssize_t dm_target_write(struct dm_target *target, const char *data, size_t size) {
    ssize_t n;
    do {
        n = write_once(target, data, size);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return -errno;
    }
    return n > 0 || size == 0 ? n : -EAGAIN;
}

bool dm_target_may_recover(int error) {
    return error == -EAGAIN || error == -ENOSPC || error == -EDQUOT || error == -EFBIG ||
           error == -EIO || error == -ENOMEM || error == -ENOBUFS;
}

void dm_target_close(struct dm_target *target) {
    if (target->own) {
        close(target->fd);
    }
    target->fd = -1;
    target->own = false;
}
