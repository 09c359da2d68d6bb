/* fdpass.c: see fdpass.h. */
#include "base/fdpass.h"

#include "base/close.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(DM_FDPASS_MAX * sizeof(int))];
};

ssize_t dm_fdpass_send(int socket, struct iovec *parts, size_t part_count, const int *fds,
                       size_t count) {
    union control control = {.bytes = {0}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = part_count};
    if (count > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof *fds);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(count * sizeof *fds);
        memcpy(CMSG_DATA(header), fds, count * sizeof *fds);
    }
    ssize_t sent;
    do {
        sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}

size_t dm_fdpass_take(struct msghdr *message, int fds[DM_FDPASS_MAX]) {
    size_t count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            const size_t bytes = c->cmsg_len - CMSG_LEN(0);
            memcpy(fds + count, CMSG_DATA(c), bytes);
            count += bytes / sizeof *fds;
        }
    }
    return count;
}

ssize_t dm_fdpass_receive(int socket, void *data, size_t size, int fds[DM_FDPASS_MAX],
                          size_t *count, bool *lost) {
    union control control;
    struct iovec part = {.iov_base = data, .iov_len = size};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t received;
    *count = 0;
    if (lost) {
        *lost = false;
    }
    do {
        received = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (received < 0 && errno == EINTR);
    if (received < 0) {
        return -errno;
    }
    *count = dm_fdpass_take(&message, fds);
    if (lost) {
        *lost = (message.msg_flags & MSG_CTRUNC) != 0;
    }
    return received;
}

void dm_fdpass_close(const int *fds, size_t count) {
    for (size_t i = 0; i < count; i++) {
        int fd = fds[i];
        dm_close_foreign(&fd);
    }
}

void dm_fdpass_end(int *socket) {
    enum { MOST = 4096 }; /* reads: more than any queue has messages */
    char bytes[16384];
    int fds[DM_FDPASS_MAX], type = SOCK_STREAM;
    socklen_t length = sizeof type;
    shutdown(*socket, SHUT_RD);
    getsockopt(*socket, SOL_SOCKET, SO_TYPE, &type, &length);
    for (int i = 0; i < MOST; i++) {
        size_t count;
        const ssize_t n = dm_fdpass_receive(*socket, bytes, sizeof bytes, fds, &count, NULL);
        dm_fdpass_close(fds, count);
        if (n < 0 || (n == 0 && type == SOCK_STREAM)) {
            break;
        }
    }
    dm_close(socket);
}
