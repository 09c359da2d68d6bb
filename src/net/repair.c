/* repair.c: see repair.h. */
#include "net/repair.h"

#include "net/listener.h"

#include <errno.h>
#include <fcntl.h>

/* cqueues, for one, clears it on every socket that it is given. The kernel then gives all
 * connections to the first member of the group. */
static int repair_reuseport(struct dm_lane *lane) {
    const int on = 1;
    if (lane->shared || dm_socket_option(lane->fd, SOL_SOCKET, SO_REUSEPORT) != 0 ||
        setsockopt(lane->fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) != 0) {
        return 0;
    }
    return DM_LANE_REUSEPORT;
}

/* What was never taken off, or put on, can be told by asking for its length; that of eBPF is
 * refused. */
static int repair_filter(struct dm_lane *lane) {
    const int none = 0;
    socklen_t length = 0;
    if (dm_socket_option(lane->fd, SOL_SOCKET, SO_LOCK_FILTER) > 0) {
        return DM_LANE_LOCKED;
    }
    const int rc = getsockopt(lane->fd, SOL_SOCKET, SO_GET_FILTER, NULL, &length);
    if (lane->shut_out || (rc == 0 ? length == 0 : errno != EACCES)) {
        return 0;
    }
    return setsockopt(lane->fd, SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof none) == 0
               ? DM_LANE_FILTER
               : 0;
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
    int done = repair_reuseport(lane) | repair_filter(lane);
    if (dm_lane_queue(lane, &depth, &limit) == 0 && limit != lane->limit && !lane->shut_out) {
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
    if (lane->shared && !may_block && flags >= 0 && !(flags & O_NONBLOCK)) {
        fcntl(lane->fd, F_SETFL, flags | O_NONBLOCK);
        done |= DM_LANE_NONBLOCK;
    }
    const enum dm_path_state state = dm_unix_path_look(path);
    done |= state == DM_PATH_REPAIRED ? DM_LANE_PATH : 0;
    done |= state == DM_PATH_LOST ? DM_LANE_PATH_LOST : 0;
    return done;
}
