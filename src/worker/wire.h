/* wire.h: the worker's end of the channel and what it does with the sockets that arrive on it.
 * Non-blocking; 0 or a count on success, a negative libuv code on failure. */
#pragma once

#include "base/fdpass.h"

#include <stdbool.h>
#include <stddef.h>

struct dm_wire_name {
    const char *family; /* "inet", "inet6", "unix" */
    char address[108];
    int port;
};

/* Makes the channel ours alone: O_NONBLOCK, and closed at exec. */
int dm_wire_open(int fd);

/* Bytes sent; `pass` is a descriptor that rides on the first of them, or -1. */
int dm_wire_send(int fd, const char *data, size_t size, int pass);

/* Bytes received, UV_EOF at the end. The caller owns the descriptors. */
int dm_wire_receive(int fd, char *data, size_t size, int fds[DM_FDPASS_MAX], size_t *count);

int dm_wire_listen(int fd, int backlog);
bool dm_wire_is_listening(int fd);
int dm_wire_duplicate(int fd);
int dm_wire_name(int fd, struct dm_wire_name *name);
