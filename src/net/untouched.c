/* untouched.c: see untouched.h. */
#include "net/untouched.h"

#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* Of a connection (linux/tcp.h has no names for them): open, and ended by its client alone. */
enum { ESTABLISHED = 1, CLOSE_WAIT = 8 };

/* Times that it is asked, while more comes in between two questions. */
enum { TRIES = 8 };

static int ask(int fd, struct tcp_info *info, int *waiting) {
    socklen_t size = sizeof *info;
    memset(info, 0, sizeof *info);
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &size) != 0 ||
                   (waiting && ioctl(fd, SIOCINQ, waiting) != 0)
               ? -errno
               : 0;
}

int dm_untouched(int fd) {
    struct tcp_info info, later;
    int waiting = 0, error = 0;
    for (int i = 0; i < TRIES; i++) {
        error = ask(fd, &info, &waiting);
        if (!error) {
            error = ask(fd, &later, NULL);
        }
        if (error || later.tcpi_bytes_received == info.tcpi_bytes_received) {
            break;
        }
    }
    if (error) {
        return error;
    }
    const bool has_end = later.tcpi_state == CLOSE_WAIT; /* which is counted as a byte */
    return (later.tcpi_state == ESTABLISHED || has_end) && later.tcpi_bytes_sent == 0 &&
           later.tcpi_notsent_bytes == 0 &&
           later.tcpi_bytes_received <= (unsigned)waiting + has_end;
}
