/* notify.h: receives what workers say with sd_notify(3).
 *
 * One socket for each worker is meant: the kernel queues only about ten datagrams, and so a worker
 * that floods its socket delays nobody else.
 */
#pragma once

#include "base/poll.h"

#include <sys/un.h>

/* A datagram from whoever may, KEY=VALUE lines if its sender knows how: no NUL is in it. May close
 * the socket. */
typedef void (*dm_notify_message_cb)(void *ctx, const char *text, size_t len);

struct dm_notify {
    struct dm_poll poll;
    int fd;
    uid_t uid;
    dm_notify_message_cb on_message;
    void *ctx;
    bool closed;
    /* What to put into NOTIFY_SOCKET. */
    char name[sizeof((struct sockaddr_un *)0)->sun_path];
};

/* Accepts from root, our own user and `uid`. */
int dm_notify_open(uv_loop_t *loop, uid_t uid, dm_notify_message_cb on_message, void *ctx,
                   struct dm_notify **notify);
/* The same socket again, after the master that opened it has died: it is ours from here on, and
 * closed also if this fails. */
int dm_notify_resume(uv_loop_t *loop, uid_t uid, int fd, const char *name,
                     dm_notify_message_cb on_message, void *ctx, struct dm_notify **notify);
void dm_notify_close(struct dm_notify *notify);
