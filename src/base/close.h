/* close.h: descriptors that may be there or not: -1 is none. */
#pragma once

#include <unistd.h>

static inline void dm_close(int *fd) {
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}
