/* close.h: descriptors that may be there or not: -1 is none. */
#pragma once

#include <sys/socket.h>
#include <unistd.h>

static inline void dm_close(int *fd) {
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

/* One that others, who are not trusted, had or have too. With SO_LINGER the last close() of a TCP
 * connection waits for its peer, O_NONBLOCK or not (socket(7)): an hour, if they want it so. */
static inline void dm_close_foreign(int *fd) {
    struct linger linger;
    socklen_t size = sizeof linger;
    if (*fd >= 0 && getsockopt(*fd, SOL_SOCKET, SO_LINGER, &linger, &size) == 0 && linger.l_onoff &&
        linger.l_linger > 0) {
        linger.l_onoff = 0;
        setsockopt(*fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    dm_close(fd);
}
