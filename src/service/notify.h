/* notify.h: receives what workers say with sd_notify(3).
 *
 * One socket for each worker is meant: the kernel queues only about ten datagrams, and so a worker
 * that floods its socket delays nobody else.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

struct dm_notify;

struct dm_notify_events {
    /* A datagram that passed all checks: text of KEY=VALUE lines. May close the socket. */
    void (*on_message)(void *ctx, const char *text, size_t len, pid_t pid);
    /* Datagrams were ignored: why the last one was, and how many since the last report. May close.
     */
    void (*on_refused)(void *ctx, const char *reason, uint64_t count);
};

struct dm_notify_field {
    const char *key;
    size_t key_len;
    const char *value;
    size_t value_len;
};

/* Accepts from root, our own user and `uid`. */
int dm_notify_open(uv_loop_t *loop, uid_t uid, const struct dm_notify_events *events, void *ctx,
                   struct dm_notify **notify);
/* The same socket again, after the master that opened it has died. */
int dm_notify_resume(uv_loop_t *loop, uid_t uid, int fd, const char *name,
                     const struct dm_notify_events *events, void *ctx, struct dm_notify **notify);
int dm_notify_fd(const struct dm_notify *notify);
/* What to put into NOTIFY_SOCKET. */
const char *dm_notify_name(const struct dm_notify *notify);
void dm_notify_close(struct dm_notify *notify);

/* Finds the next well-formed field from *text on, and moves *text behind it. */
bool dm_notify_next_field(const char **text, const char *end, struct dm_notify_field *field);
