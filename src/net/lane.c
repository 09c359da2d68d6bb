/* lane.c: see lane.h. */
#include "net/lane.h"

#include "net/address.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

int dm_lane_listens(const struct dm_lane *lane) {
    return dm_socket_option(lane->fd, SOL_SOCKET, SO_ACCEPTCONN);
}

int dm_lane_queue(const struct dm_lane *lane, uint32_t *depth, uint32_t *limit) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    memset(&info, 0, sizeof info);
    if (!lane->tcp) {
        return -ENOTSUP;
    }
    if (getsockopt(lane->fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) {
        return -errno;
    }
    if (info.tcpi_state != TCP_LISTEN) {
        return -EINVAL;
    }
    *depth = info.tcpi_unacked;
    *limit = info.tcpi_sacked;
    return 0;
}

static int accept_now(const struct dm_lane *lane) {
    for (;;) {
        const int fd = accept4(lane->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            return fd;
        }
        /* A client that has gone, or a network error of one connection: the next may be well. */
        if (errno != ECONNABORTED && errno != EINTR && errno != EPROTO) {
            return -errno;
        }
    }
}

int dm_lane_hand_out(const struct dm_lane *lane, enum dm_hand_out how) {
    const int flags = fcntl(lane->fd, F_GETFL);
    const int wanted = how == DM_BLOCKING ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
    if (how != DM_AS_IT_IS && flags >= 0 && flags != wanted) {
        fcntl(lane->fd, F_SETFL, wanted);
    }
    return lane->fd;
}

int dm_lane_defer(const struct dm_lane *lane, int seconds) {
    const int before =
        lane->tcp ? dm_socket_option(lane->fd, IPPROTO_TCP, TCP_DEFER_ACCEPT) : -ENOTSUP;
    if (before >= 0 && seconds >= 0 &&
        setsockopt(lane->fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds) != 0) {
        return -errno;
    }
    return before;
}

/* A filter of a listening socket sees the TCP header. Kernels since June 2026 want
 * CAP_NET_ADMIN for it. Backlog 0 is a poor way to do it: it lets one in whenever the queue is
 * empty, and who is shaking hands meanwhile has to try again. */
int dm_lane_shut_out(struct dm_lane *lane) {
    enum { FLAGS_AT = 13, SYN = 2, SYN_ACK = 0x12 };
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, FLAGS_AT),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, SYN_ACK),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYN, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
    };
    const struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (!lane->tcp) {
        return -ENOTSUP;
    }
    lane->shut_out =
        setsockopt(lane->fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0 ||
        listen(lane->fd, 0) == 0;
    return lane->shut_out ? 0 : -errno;
}

bool dm_lane_is_empty(const struct dm_lane *lane) {
    struct pollfd look = {.fd = lane->fd, .events = POLLIN};
    return poll(&look, 1, 0) == 0;
}

/* That a worker has made its lane blocking is its own affair until the master accepts there. */
int dm_lane_accept(const struct dm_lane *lane) {
    const int flags = fcntl(lane->fd, F_GETFL);
    if (flags < 0 || flags & O_NONBLOCK) {
        return accept_now(lane);
    }
    fcntl(lane->fd, F_SETFL, flags | O_NONBLOCK);
    const int fd = accept_now(lane);
    fcntl(lane->fd, F_SETFL, flags);
    return fd;
}
