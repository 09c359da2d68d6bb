/* lane.c: see lane.h. */
#include "net/lane.h"

#include "net/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
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
    if (dm_address_is_unix(&lane->listener->address) ||
        lane->listener->address.type != SOCK_STREAM) {
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
    if (!(may_block && lane->listener->shared) && flags >= 0 && !(flags & O_NONBLOCK)) {
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

/* cqueues, for one, clears it on every socket that it is given. The kernel then gives all
 * connections to the first member of the group. */
static int repair_reuseport(struct dm_lane *lane) {
    const int on = 1;
    int is_on = 1;
    socklen_t size = sizeof is_on;
    if (lane->listener->shared ||
        getsockopt(lane->fd, SOL_SOCKET, SO_REUSEPORT, &is_on, &size) != 0 || is_on ||
        setsockopt(lane->fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) != 0) {
        return 0;
    }
    return DM_LANE_REUSEPORT;
}

static int repair_listening(struct dm_lane *lane) {
    uint32_t depth, limit;
    const int listens = dm_lane_listens(lane);
    if (listens < 0) {
        return listens;
    }
    if (!listens) {
        const int error = dm_listener_rejoin(lane);
        return error ? error : DM_LANE_REVIVED;
    }
    int done = repair_reuseport(lane);
    if (dm_lane_queue(lane, &depth, &limit) == 0 && limit != lane->limit) {
        const bool foreign = lane->listener->foreign;
        if (listen(lane->fd, foreign ? (int)lane->limit : lane->listener->backlog) != 0) {
            return -errno;
        }
        done |= DM_LANE_BACKLOG;
    }
    return done;
}

int dm_lane_repair(struct dm_lane *lane, bool may_block) {
    struct dm_unix_path *path = &lane->listener->path;
    int done = 0;
    if (lane->listener->address.type == SOCK_STREAM) {
        done = repair_listening(lane);
        if (done < 0) {
            return done;
        }
    }
    /* On a lane of its own a worker may block; on a socket that others have too they would hang,
     * unless all of them are of a kind that blocks. */
    const int flags = fcntl(lane->fd, F_GETFL);
    if (lane->listener->shared && !may_block && flags >= 0 && !(flags & O_NONBLOCK)) {
        fcntl(lane->fd, F_SETFL, flags | O_NONBLOCK);
        done |= DM_LANE_NONBLOCK;
    }
    if (!dm_unix_path_intact(path)) {
        done |= dm_unix_path_repair(path) == 0 ? DM_LANE_PATH : DM_LANE_PATH_LOST;
    }
    return done;
}
