/* group_order.c: see group_order.h.
 *
 * Every member announces a segment size of its own. A program sends connections from one source
 * port to index i; the segment size that such a connection sees names the member.
 */
#include "net/group_order.h"

#include "base/close.h"
#include "net/dial.h"
#include "net/listener.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>

enum {
    /* Timestamps take 12 bytes of the announced size, so steps are larger. 1024 lanes end at
     * 17,400, below what the loopback device carries. */
    SIZE_BASE = 1000,
    SIZE_STEP = 16,
    /* Connecting to oneself takes microseconds. */
    CONNECT_MS = 100,
};

static int announce(const struct dm_lane *lane, int size) {
    return setsockopt(lane->fd, IPPROTO_TCP, TCP_MAXSEG, &size, sizeof size) == 0 ? 0 : -errno;
}

/* A client socket with a port; the port, or a negative error. */
static int open_client(const struct dm_address *to, int *fd) {
    const struct linger reset = {1, 0};
    int port;
    *fd = dm_dial_socket(to, &port);
    if (*fd < 0) {
        return *fd;
    }
    setsockopt(*fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    return port;
}

/* The segment size the member at the other end announced. */
static int connect_and_ask(int fd, const struct dm_address *to) {
    struct pollfd wait = {.fd = fd, .events = POLLOUT};
    struct tcp_info info;
    socklen_t size = sizeof info;
    if (connect(fd, &to->u.any, to->length) != 0 && errno != EINPROGRESS) {
        return -errno;
    }
    if (poll(&wait, 1, CONNECT_MS) != 1 || (wait.revents & (POLLERR | POLLHUP))) {
        return -ETIMEDOUT;
    }
    memset(&info, 0, sizeof info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) {
        return -errno;
    }
    return (int)info.tcpi_snd_mss;
}

/* Meanwhile connections of others go where they went before, as far as that is known. */
static size_t usual_targets(const struct dm_listener *listener, struct dm_target *targets) {
    const struct dm_steer *steer = &listener->steer;
    for (size_t i = 0; i < steer->count; i++) {
        targets[i] = (struct dm_target){(uint32_t)steer->lanes[i].lane->index, 1};
    }
    if (steer->count) {
        return steer->count;
    }
    for (size_t i = 0; i < listener->members; i++) {
        targets[i] = (struct dm_target){(uint32_t)i, 1};
    }
    return listener->members;
}

static int attach(const struct dm_listener *listener, uint16_t port, size_t index) {
    struct sock_filter code[DM_STEERING_INSTRUCTIONS];
    struct dm_target targets[DM_STEERING_LANES];
    const struct dm_probe probe = {port, (uint32_t)index};
    const struct dm_steering steering = {.targets = targets,
                                         .count = usual_targets(listener, targets),
                                         .probes = &probe,
                                         .probe_count = 1};
    const int length = dm_steering_build(&steering, code);
    return length < 0 ? length : dm_steering_attach(listener->lanes[0]->fd, code, length);
}

/* Which of lanes[] has the index: `members` for one that is a stranger's. */
static int lane_at(const struct dm_listener *listener, size_t index) {
    struct dm_address to = listener->address;
    dm_address_from_here(&to);
    int fd = -1;
    int rc = open_client(&to, &fd);
    if (rc > 0) {
        rc = attach(listener, (uint16_t)rc, index);
    }
    if (rc == 0) {
        rc = connect_and_ask(fd, &to);
    }
    dm_close(&fd);
    if (rc < 0) {
        return rc == -ETIMEDOUT && listener->strangers.count > 0 ? (int)listener->members : rc;
    }
    const int lane = (rc - SIZE_BASE + SIZE_STEP - 1) / SIZE_STEP;
    if (lane >= 0 && (size_t)lane < listener->members) {
        return lane;
    }
    return listener->strangers.count > 0 ? (int)listener->members : -EPROTO;
}

static bool is_known(struct dm_lane *const *order, size_t count, const struct dm_lane *lane) {
    for (size_t i = 0; i < count; i++) {
        if (order[i] == lane) {
            return true;
        }
    }
    return false;
}

/* Members in the kernel's order, and the index of each. */
static int learn(const struct dm_listener *listener, struct dm_lane **order, size_t *indexes) {
    const size_t all = listener->members + listener->strangers.count;
    size_t known = 0;
    for (size_t i = 0; i < all && known < listener->members; i++) {
        const int lane = lane_at(listener, i);
        if (lane < 0) {
            return lane;
        }
        if ((size_t)lane == listener->members) {
            continue;
        }
        if (is_known(order, known, listener->lanes[lane])) {
            return -EPROTO;
        }
        indexes[known] = i;
        order[known++] = listener->lanes[lane];
    }
    return known == listener->members ? 0 : -EPROTO;
}

int dm_group_order_learn(struct dm_listener *listener) {
    struct dm_lane *order[DM_STEERING_LANES];
    size_t indexes[DM_STEERING_LANES];
    int deferred[DM_STEERING_LANES];
    int error = 0;
    for (size_t i = 0; i < listener->members; i++) {
        const int step = announce(listener->lanes[i], SIZE_BASE + SIZE_STEP * (int)i);
        error = error ? error : step;
        /* A connection of ours has sent nothing when it is reset: it never comes into a queue. */
        deferred[i] = dm_lane_defer(listener->lanes[i], 1);
    }
    if (!error) {
        error = learn(listener, order, indexes);
    }
    for (size_t i = 0; i < listener->members; i++) {
        announce(listener->lanes[i], 0);
        dm_lane_defer(listener->lanes[i], deferred[i]);
    }
    for (size_t i = 0; i < listener->members && !error; i++) {
        listener->lanes[i] = order[i];
        order[i]->place = i;
        order[i]->index = indexes[i];
    }
    return error;
}
