/* wire.c: see wire.h. Plain system calls on the channel's descriptor: readiness comes from a
 * uv_poll of the worker's loop, so nothing here may ever block. */
#include "worker/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>

int dm_wire_open(int fd) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        return -errno;
    }
    return 0;
}

int dm_wire_send(int fd, const char *data, size_t size, int pass) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {.iov_base = (void *)data, .iov_len = size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (pass >= 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof pass);
        memcpy(CMSG_DATA(header), &pass, sizeof pass);
    }
    ssize_t sent;
    do {
        sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : (int)sent;
}

static size_t take_fds(struct msghdr *message, int *fds) {
    size_t count = 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header;
         header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
            size_t bytes = header->cmsg_len - CMSG_LEN(0);
            memcpy(fds + count, CMSG_DATA(header), bytes);
            count += bytes / sizeof *fds;
        }
    }
    return count;
}

int dm_wire_receive(int fd, char *data, size_t size, int fds[DM_WIRE_MAX_FDS], size_t *count) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(DM_WIRE_MAX_FDS * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = data, .iov_len = size};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control.bytes};
    ssize_t received;
    *count = 0;
    do {
        received = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (received < 0 && errno == EINTR);
    if (received < 0) {
        return -errno;
    }
    *count = take_fds(&message, fds);
    return received == 0 ? UV_EOF : (int)received;
}

int dm_wire_listen(int fd, int backlog) {
    return listen(fd, backlog) < 0 ? -errno : 0;
}

bool dm_wire_is_listening(int fd) {
    int listening = 0;
    socklen_t size = sizeof listening;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening;
}

int dm_wire_duplicate(int fd) {
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return copy < 0 ? -errno : copy;
}

static void name_unix(const struct sockaddr_un *from, socklen_t size, struct dm_wire_name *name) {
    size_t length = size - offsetof(struct sockaddr_un, sun_path);
    bool abstract = length > 0 && from->sun_path[0] == '\0';
    name->family = "unix";
    if (length >= sizeof name->address) {
        length = sizeof name->address - 1;
    }
    memcpy(name->address, from->sun_path, length);
    name->address[length] = '\0';
    if (abstract) {
        name->address[0] = '@';
    }
}

int dm_wire_name(int fd, struct dm_wire_name *name) {
    union {
        struct sockaddr any;
        struct sockaddr_in inet;
        struct sockaddr_in6 inet6;
        struct sockaddr_un local;
    } from;
    socklen_t size = sizeof from;
    memset(&from, 0, sizeof from);
    memset(name, 0, sizeof *name);
    if (getsockname(fd, &from.any, &size) < 0) {
        return -errno;
    }
    switch (from.any.sa_family) {
    case AF_INET:
        name->family = "inet";
        name->port = ntohs(from.inet.sin_port);
        inet_ntop(AF_INET, &from.inet.sin_addr, name->address, sizeof name->address);
        return 0;
    case AF_INET6:
        name->family = "inet6";
        name->port = ntohs(from.inet6.sin6_port);
        inet_ntop(AF_INET6, &from.inet6.sin6_addr, name->address, sizeof name->address);
        return 0;
    case AF_UNIX:
        name_unix(&from.local, size, name);
        return 0;
    default:
        return UV_EAFNOSUPPORT;
    }
}
