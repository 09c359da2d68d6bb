/* fdpass.h: descriptors that travel over a unix socket (SCM_RIGHTS). Nothing here blocks. What is
 * received is CLOEXEC and belongs to the caller, who takes it or closes it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

/* The kernel passes at most this many with one message (SCM_MAX_FD). */
enum { DM_FDPASS_MAX = 253 };

/* Bytes taken, or a negative errno. The descriptors (none: NULL, 0) go with the first byte. */
ssize_t dm_fdpass_send(int socket, struct iovec *parts, size_t part_count, const int *fds,
                       size_t count);

/* Bytes received, 0 at the end, or a negative errno. *lost, if anybody wants to know: descriptors
 * came with them for which this process had no room. */
ssize_t dm_fdpass_receive(int socket, void *data, size_t size, int fds[DM_FDPASS_MAX],
                          size_t *count, bool *lost);

/* Of a message that was received with room for DM_FDPASS_MAX: how many it brought. */
size_t dm_fdpass_take(struct msghdr *message, int fds[DM_FDPASS_MAX]);
/* Of senders that are not trusted: see dm_close_foreign. */
void dm_fdpass_close(const int *fds, size_t count);
/* Closes a unix socket whose other end is not trusted. With the last close the kernel would close
 * what waits in it, too: so nothing more comes, and what is there is closed before. */
void dm_fdpass_end(int *socket);
