/* server.h: a unix stream socket for our own user and root, and its bounded number of clients. */
#pragma once

#include "service/stream.h"

struct dm_server;

/* A new client; dm_stream_listen() to it now. May close the server. */
typedef void (*dm_server_client_cb)(void *ctx, struct dm_stream *client);

/* The caller holds a lock on this path: a socket nobody listens on is replaced. -EADDRINUSE if
 * somebody does; -EEXIST, with *why, if something else bears that name. A client has request_ms to
 * send its first line. */
/* fd: -1, or that socket of a master that has died, listening. */
int dm_server_open(uv_loop_t *loop, const char *path, int fd, uint64_t request_ms,
                   dm_server_client_cb on_client, void *ctx, struct dm_server **server,
                   const char **why);
int dm_server_fd(const struct dm_server *server);
/* Removes the path if it is still ours; the clients get their on_close soon. */
void dm_server_close(struct dm_server *server);
