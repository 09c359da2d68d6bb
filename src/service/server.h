/* server.h: a unix stream socket for our own user and root, and its bounded number of clients. */
#pragma once

#include "service/stream.h"

struct dm_server;

/* A new client; dm_stream_listen() to it now. May close the server. */
typedef void (*dm_server_client_cb)(void *ctx, struct dm_stream *client);

struct dm_server_options {
    /* -1, or that socket of a master that has died, listening: it is the server's from the call on,
     * and closed also if that fails. */
    int fd;
    uint64_t request_ms; /* a client has this long to send its first line */
    uint64_t silent_ms;  /* see stream.h */
    dm_server_client_cb on_client;
    void *ctx;
};

/* The caller holds a lock on this path: a socket nobody listens on is replaced. -EADDRINUSE if
 * somebody does; -EEXIST, with *why, if something else bears that name. */
int dm_server_open(uv_loop_t *loop, const char *path, const struct dm_server_options *options,
                   struct dm_server **server, const char **why);
int dm_server_fd(const struct dm_server *server);
/* Removes the path if it is still ours; the clients get their on_close soon. */
void dm_server_close(struct dm_server *server);
