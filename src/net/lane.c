/* lane.c: see lane.h. */
#include "net/lane.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int dm_lane_listens(const struct dm_lane *lane) {
    int listens = 0;
    socklen_t size = sizeof listens;
    if (getsockopt(lane->fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0) {
        return -errno;
    }
    return listens;
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

int dm_lane_hand_out(const struct dm_lane *lane, bool may_block) {
    const int flags = fcntl(lane->fd, F_GETFL);
    if (!(may_block && lane->shared) && flags >= 0 && !(flags & O_NONBLOCK)) {
        fcntl(lane->fd, F_SETFL, flags | O_NONBLOCK);
    }
    return lane->fd;
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
