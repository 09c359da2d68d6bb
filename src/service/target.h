/* target.h: a descriptor that others hold too (stdout, stderr, a file), written to without ever
 * blocking and without touching its flags. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum dm_target_way {
    DM_TARGET_WRITE,  /* write(): a regular file, or a description of our own with O_NONBLOCK */
    DM_TARGET_SEND,   /* send(MSG_DONTWAIT): a socket */
    DM_TARGET_NOWAIT, /* pwritev2(RWF_NOWAIT): a shared pipe on a kernel that can do it */
    DM_TARGET_POLL,   /* poll(), then as little as cannot block */
};

struct dm_target {
    int fd; /* -1 once closed */
    enum dm_target_way way;
    bool own; /* fd is a description of ours, to be closed */
    bool tty;
};

/* Finds the way to write to `fd`, which stays the caller's. 0, or a negative errno. */
int dm_target_open(struct dm_target *target, int fd);
/* Takes over a description of our own. */
void dm_target_adopt(struct dm_target *target, int fd);
/* Bytes taken, or a negative errno: EAGAIN when it takes none now. */
ssize_t dm_target_write(struct dm_target *target, const char *data, size_t size);
/* Whether a write that failed so may succeed when something changes: else the output is gone. */
bool dm_target_may_recover(int error);
void dm_target_close(struct dm_target *target);
