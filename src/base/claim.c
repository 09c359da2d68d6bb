/* claim.c: see claim.h. */
#include "base/claim.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Connections that nobody has accepted yet: each is somebody's question who holds the name. */
enum { BACKLOG = 1024 };

static socklen_t address_of(const char *name, struct sockaddr_un *address) {
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    const int length = snprintf(address->sun_path + 1, sizeof address->sun_path - 1,
                                "dutch-master/%u/%s", geteuid(), name);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

/* Connected, and its user may be believed. */
static int ask(const struct sockaddr_un *address, socklen_t length, struct ucred *peer) {
    socklen_t size = sizeof *peer;
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    int error = connect(fd, (const struct sockaddr *)address, length) != 0 ? -errno : 0;
    if (!error && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, peer, &size) != 0) {
        error = -errno;
    }
    if (!error && peer->uid != geteuid() && peer->uid != 0) {
        error = -EPERM;
    }
    if (error) {
        close(fd);
        return error;
    }
    return fd;
}

int dm_claim(const char *name, int *out, pid_t *holder) {
    struct sockaddr_un address;
    struct ucred peer = {.pid = 0};
    const socklen_t length = address_of(name, &address);
    *out = -1;
    *holder = 0;
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    if (bind(fd, (const struct sockaddr *)&address, length) == 0 && listen(fd, BACKLOG) == 0) {
        *out = fd;
        return 0;
    }
    int error = -errno;
    close(fd);
    if (error != -EADDRINUSE) {
        return error;
    }
    const int found = ask(&address, length, &peer);
    if (found >= 0) {
        close(found);
        *holder = peer.pid;
        return -EAGAIN;
    }
    /* Refused: bound and about to listen, or just gone. Permission: another user's. */
    return found == -EPERM ? 0 : -EAGAIN;
}

void dm_claim_resume(int fd) {
    listen(fd, BACKLOG); /* whoever did so last is whom others see */
}
