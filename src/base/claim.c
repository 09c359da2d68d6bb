/* claim.c: see claim.h. */
#include "base/claim.h"

#include "base/close.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Connections that nobody has accepted yet: each is somebody's question who holds the name. */
enum {
    BACKLOG = 1024,
    TRIES = 100, /* a name that becomes free while it is looked at is had by others in turn */
};

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

/* Whether one of the sockets in an answer has that name; then *uid is whose it is. */
static bool find_owner(const struct nlmsghdr *answer, const struct sockaddr_un *address,
                       size_t length, uid_t *uid) {
    const struct unix_diag_msg *found = NLMSG_DATA(answer);
    size_t left = answer->nlmsg_len - NLMSG_LENGTH(sizeof *found);
    bool is_named = false, has_user = false;
    for (const struct rtattr *field = (const struct rtattr *)(found + 1); RTA_OK(field, left);
         field = RTA_NEXT(field, left)) {
        if (field->rta_type == UNIX_DIAG_NAME) {
            is_named = RTA_PAYLOAD(field) == length &&
                       memcmp(RTA_DATA(field), address->sun_path, length) == 0;
        } else if (field->rta_type == UNIX_DIAG_UID) {
            has_user = true;
            memcpy(uid, RTA_DATA(field), sizeof *uid);
        }
    }
    return is_named && has_user;
}

/* Whose the name is, though nobody listens there, or so many have asked that no more can: as ss(8)
 * asks the kernel. -ENOENT: nobody's by now; else the kernel does not say. */
static int ask_kernel(const struct sockaddr_un *address, socklen_t length, uid_t *uid) {
    enum { DONE = 1, PATIENCE_US = 100000 }; /* it answers at once */
    const struct {
        struct nlmsghdr header;
        struct unix_diag_req request;
    } question = {
        .header = {.nlmsg_len = sizeof question,
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .request = {.sdiag_family = AF_UNIX,
                    .udiag_states = 1U << TCP_CLOSE | 1U << TCP_LISTEN,
                    .udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_UID},
    };
    const struct timeval patience = {.tv_usec = PATIENCE_US};
    union {
        struct nlmsghdr header;
        char space[32768];
    } answer;
    int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    int result = fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) ||
                         send(fd, &question, sizeof question, 0) < 0
                     ? -errno
                     : 0;
    while (result == 0) {
        const ssize_t n = recv(fd, &answer, sizeof answer, 0);
        size_t left = n > 0 ? (size_t)n : 0;
        result = n > 0 ? 0 : -EIO;
        for (const struct nlmsghdr *one = &answer.header; result == 0 && NLMSG_OK(one, left);
             one = NLMSG_NEXT(one, left)) {
            if (one->nlmsg_type != SOCK_DIAG_BY_FAMILY) {
                result = one->nlmsg_type == NLMSG_DONE ? -ENOENT : -EOPNOTSUPP;
            } else if (find_owner(one, address, length - offsetof(struct sockaddr_un, sun_path),
                                  uid)) {
                result = DONE;
            }
        }
    }
    dm_close(&fd);
    return result < 0 ? result : 0;
}

/* 0: it is *out, or another user's, whose claim counts for nothing; -EAGAIN: *holder has it, 0 if
 * that one does not listen; -ENOENT: it has become free. */
static int attempt(const struct sockaddr_un *address, socklen_t length, int *out, pid_t *holder) {
    struct ucred peer = {.pid = 0};
    uid_t uid = (uid_t)-1;
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    if (bind(fd, (const struct sockaddr *)address, length) == 0 && listen(fd, BACKLOG) == 0) {
        *out = fd;
        return 0;
    }
    int error = -errno;
    close(fd);
    if (error != -EADDRINUSE) {
        return error;
    }
    const int found = ask(address, length, &peer);
    if (found >= 0) {
        close(found);
        *holder = peer.pid;
        return -EAGAIN;
    }
    if (found == -EPERM) {
        return 0;
    }
    error = ask_kernel(address, length, &uid);
    return error == -ENOENT ? error : error == 0 && uid != geteuid() && uid != 0 ? 0 : -EAGAIN;
}

int dm_claim(const char *name, int *out, pid_t *holder) {
    struct sockaddr_un address;
    const socklen_t length = address_of(name, &address);
    *out = -1;
    *holder = 0;
    int error = -ENOENT;
    for (int i = 0; i < TRIES && error == -ENOENT; i++) {
        error = attempt(&address, length, out, holder);
    }
    return error == -ENOENT ? -EAGAIN : error;
}

void dm_claim_resume(int fd) {
    listen(fd, BACKLOG); /* whoever did so last is whom others see */
}
