/* inherited.h: sockets that whoever started this process passed on (LISTEN_FDS, LISTEN_PID,
 * LISTEN_FDNAMES, as systemd's socket units do). The variables are removed in any case, so that no
 * child sees them, and the descriptors become CLOEXEC.
 */
#pragma once

#include <stddef.h>

struct dm_inherited {
    int count;   /* descriptors 3 .. 3 + count - 1 */
    char *names; /* colon separated, count of them; NULL: each is "unknown" */
};

/* 0, also if there are none; -EINVAL, -ERANGE or -EBADF as sd_listen_fds_with_names gives them. */
int dm_inherited_take(struct dm_inherited *inherited);
void dm_inherited_free(struct dm_inherited *inherited);
