/* group_order.c: see group_order.h.
 *
 * Every member announces a segment size of its own. A program sends connections from one source
 * port to index i; the segment size that such a connection sees names the member.
 */
#include "net/group_order.h"

#include "net/listener.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
    struct dm_address from = *to;
    dm_address_set_port(&from, 0);
    *fd = socket(to->u.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (*fd < 0) {
        return -errno;
    }
    const struct linger reset = {1, 0};
    setsockopt(*fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    int error = bind(*fd, &from.u.any, from.length) == 0 ? 0 : -errno;
    if (!error) {
        error = dm_address_of(*fd, &from);
    }
    return error ? error : dm_address_port(&from);
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

static int attach(const struct dm_listener *listener, uint16_t port, size_t index) {
    struct sock_filter code[DM_STEERING_INSTRUCTIONS];
    struct dm_target all[DM_STEERING_LANES];
    const struct dm_probe probe = {port, (uint32_t)index};
    const struct dm_steering steering = {
        .targets = all, .count = listener->members, .probes = &probe, .probe_count = 1};
    for (size_t i = 0; i < listener->members; i++) {
        all[i] = (struct dm_target){(uint32_t)i, 1};
    }
    const int length = dm_steering_build(&steering, code);
    return length < 0 ? length : dm_steering_attach(listener->lanes[0]->fd, code, length);
}

/* Which of lanes[] has the index. */
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
    if (fd >= 0) {
        close(fd);
    }
    if (rc < 0) {
        return rc;
    }
    const int lane = (rc - SIZE_BASE + SIZE_STEP - 1) / SIZE_STEP;
    return lane >= 0 && (size_t)lane < listener->members ? lane : -EPROTO;
}

static int learn(struct dm_listener *listener, struct dm_lane **order) {
    for (size_t i = 0; i < listener->members; i++) {
        const int lane = lane_at(listener, i);
        if (lane < 0) {
            return lane;
        }
        for (size_t j = 0; j < i; j++) {
            if (order[j] == listener->lanes[lane]) {
                return -EPROTO;
            }
        }
        order[i] = listener->lanes[lane];
    }
    return 0;
}

int dm_group_order_learn(struct dm_listener *listener) {
    struct dm_lane *order[DM_STEERING_LANES];
    int error = 0;
    for (size_t i = 0; i < listener->members && !error; i++) {
        error = announce(listener->lanes[i], SIZE_BASE + SIZE_STEP * (int)i);
    }
    if (!error) {
        error = learn(listener, order);
    }
    for (size_t i = 0; i < listener->members; i++) {
        announce(listener->lanes[i], 0);
    }
    for (size_t i = 0; i < listener->members && !error; i++) {
        listener->lanes[i] = order[i];
        order[i]->index = i;
    }
    return error;
}
