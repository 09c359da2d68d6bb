/* wire.c: see wire.h. Plain system calls on the channel's descriptor: readiness comes from a
 * uv_poll of the worker's loop, so nothing here may ever block. */
#include "worker/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
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
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    return (int)dm_fdpass_send(fd, &part, 1, &pass, pass >= 0);
}

int dm_wire_receive(int fd, char *data, size_t size, int fds[DM_FDPASS_MAX], size_t *count) {
    const ssize_t received = dm_fdpass_receive(fd, data, size, fds, count);
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
