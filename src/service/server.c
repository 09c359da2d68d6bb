/* server.c: the listening end of the control socket.
 *
 * Two things keep strangers out, the mode of the path and SO_PEERCRED. Whoever has the right uid is
 * trusted with commands but not with our time: clients are few, those that ask nothing give way to
 * newcomers, and a descriptor is kept in reserve so that one can be accepted, told and closed when
 * no other is left.
 */
#include "service/server.h"

#include "base/close.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    CLIENTS = 64,           /* at once */
    RESERVED = 2,           /* and more, if all of those have asked for something */
    ACCEPTS = 16,           /* in one turn of the loop; fewer than CLIENTS, see choose_victim */
    BACKLOG = 128,          /* waiting to be accepted */
    REQUEST_MAX = 64 << 10, /* bytes of a line */
};

struct dm_server {
    uv_loop_t *loop;
    struct dm_poll poll;
    int fd;
    int spare_fd;
    bool closed;
    dev_t dev;
    ino_t ino;
    struct dm_stream *clients[CLIENTS + RESERVED];
    size_t count;
    struct dm_server_options options;
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
};

/* ---- clients ---- */

static void on_gone(void *owner, struct dm_stream *client) {
    struct dm_server *server = owner;
    for (size_t i = 0; i < server->count; i++) {
        if (server->clients[i] == client) {
            server->clients[i] = server->clients[--server->count];
            return;
        }
    }
}

/* The client that can best be done without: first those that never asked, then by idleness. Those
 * that wait for what a restart comes to are not among them. NULL: there is none. */
static struct dm_stream *choose_victim(const struct dm_server *server) {
    struct dm_stream *victim = NULL;
    for (size_t i = 0; i < server->count; i++) {
        struct dm_stream *client = server->clients[i];
        if (client->held > 0) {
            continue;
        }
        if (victim == NULL || client->asked < victim->asked ||
            (client->asked == victim->asked && client->last_active < victim->last_active)) {
            victim = client;
        }
    }
    return victim;
}

static bool make_room(struct dm_server *server) {
    if (server->count < CLIENTS) {
        return true;
    }
    struct dm_stream *victim = choose_victim(server);
    const bool is_full = server->count == CLIENTS + RESERVED;
    if (victim != NULL && (is_full || !victim->asked)) {
        dm_stream_drop(victim, "too many clients");
    }
    return victim != NULL || !is_full;
}

static void admit(struct dm_server *server, int fd) {
    struct ucred peer;
    socklen_t len = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 ||
        (peer.uid != 0 && peer.uid != geteuid())) {
        dm_stream_complain(fd, "EPERM", "only the user of the master and root may ask");
        close(fd);
        return;
    }
    if (!make_room(server)) {
        dm_stream_complain(fd, "EBUSY", "too many clients, and all wait for an answer");
        close(fd);
        return;
    }
    if (server->closed) {
        close(fd);
        return;
    }
    struct dm_stream_options options = {.line_max = REQUEST_MAX,
                                        .first_line_ms = server->options.request_ms,
                                        .silent_ms = server->options.silent_ms,
                                        .complain = true,
                                        .on_gone = on_gone,
                                        .owner = server};
    struct dm_stream *client;
    if (dm_stream_open(server->loop, fd, &options, &client) != 0) {
        dm_stream_complain(fd, "ENOMEM", "out of memory");
        close(fd);
        return;
    }
    server->clients[server->count++] = client;
    server->options.on_client(server->options.ctx, client);
}

static void reserve_descriptor(struct dm_server *server) {
    if (server->spare_fd < 0) {
        server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
}

/* accept4 wants a descriptor first, and looks then whether there is somebody. */
static bool is_awaited(const struct dm_server *server) {
    struct pollfd p = {.fd = server->fd, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

/* No descriptor is left: a client that asks nothing gives way, or else the newcomer is told and
 * closed. False: neither, the whole system may have none. */
static bool free_descriptor(struct dm_server *server) {
    struct dm_stream *victim = choose_victim(server);
    if (victim != NULL && !victim->asked) {
        dm_stream_drop(victim, "no descriptors left");
        return true;
    }
    dm_close(&server->spare_fd);
    int fd = accept4(server->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        dm_stream_complain(fd, "EMFILE", "the master has no descriptors left");
        close(fd);
    }
    reserve_descriptor(server);
    return fd >= 0;
}

static void on_readable(uv_poll_t *poll, int status, int events) {
    struct dm_server *server = poll->data;
    reserve_descriptor(server); /* the system had none */
    for (int i = 0; i < ACCEPTS && !server->closed; i++) {
        int fd = accept4(server->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            admit(server, fd);
        } else if (errno == EMFILE || errno == ENFILE) {
            if (!is_awaited(server)) {
                return;
            }
            if (!free_descriptor(server)) {
                dm_poll_rest(&server->poll);
                return;
            }
        } else if (errno == ENOMEM || errno == ENOBUFS) {
            dm_poll_rest(&server->poll);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
}

/* ---- the path ---- */

/* Whether somebody listens: 0 if nobody does, else why the path must be left alone. */
static int check_listener(const struct sockaddr_un *addr) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -errno;
    }
    int err = -EADDRINUSE;
    if (connect(fd, (const struct sockaddr *)addr, sizeof *addr) < 0 && errno != EAGAIN) {
        err = errno == ECONNREFUSED ? 0 : -errno;
    }
    close(fd);
    return err;
}

static int remove_stale(const struct sockaddr_un *addr, const char **why) {
    struct stat st;
    if (lstat(addr->sun_path, &st) < 0) {
        return errno == ENOENT ? 0 : -errno;
    }
    if (!S_ISSOCK(st.st_mode)) {
        *why = "something that is not a socket is in its place: remove it";
        return -EEXIST;
    }
    int err = check_listener(addr);
    if (err == 0 && unlink(addr->sun_path) < 0) {
        err = -errno;
    }
    return err;
}

/* The mode is right from the first moment; the umask is ours alone, there is one thread. */
static int bind_private(int fd, const struct sockaddr_un *addr) {
    mode_t old = umask(0177);
    int err = bind(fd, (const struct sockaddr *)addr, sizeof *addr) < 0 ? -errno : 0;
    umask(old);
    return err;
}

static int open_path(struct dm_server *server, const struct sockaddr_un *addr, const char **why) {
    int err = bind_private(server->fd, addr);
    if (err == -EADDRINUSE) {
        err = remove_stale(addr, why);
        if (err == 0) {
            err = bind_private(server->fd, addr);
        }
    }
    if (err != 0) {
        return err;
    }
    struct stat st;
    if (lstat(addr->sun_path, &st) < 0 || listen(server->fd, BACKLOG) < 0) {
        err = -errno;
        unlink(addr->sun_path);
        return err;
    }
    server->dev = st.st_dev;
    server->ino = st.st_ino;
    memcpy(server->path, addr->sun_path, sizeof server->path);
    return 0;
}

static void remove_path(const struct dm_server *server) {
    struct stat st;
    if (server->path[0] != '\0' && lstat(server->path, &st) == 0 && st.st_dev == server->dev &&
        st.st_ino == server->ino) {
        unlink(server->path);
    }
}

/* ---- life ---- */

static void free_server(struct dm_server *server) {
    remove_path(server);
    dm_close(&server->fd);
    dm_close(&server->spare_fd);
    free(server);
}

/* Another's name is not removed at the end: if that is there now, ours was made for nobody. */
static int resume(struct dm_server *server, const struct sockaddr_un *addr) {
    struct stat st;
    if (lstat(addr->sun_path, &st) == 0 && S_ISSOCK(st.st_mode)) {
        server->dev = st.st_dev;
        server->ino = st.st_ino;
        memcpy(server->path, addr->sun_path, sizeof server->path);
    }
    return dm_poll_init(server->loop, &server->poll, server->fd);
}

static int open_sockets(struct dm_server *server, const struct sockaddr_un *addr,
                        const char **why) {
    const bool resumes = server->fd >= 0;
    if (!resumes) {
        server->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    }
    if (server->fd < 0) {
        return -errno;
    }
    reserve_descriptor(server);
    if (server->spare_fd < 0) {
        return -errno;
    }
    if (resumes) {
        return resume(server, addr);
    }
    int err = open_path(server, addr, why);
    return err == 0 ? dm_poll_init(server->loop, &server->poll, server->fd) : err;
}

int dm_server_open(uv_loop_t *loop, const char *path, const struct dm_server_options *options,
                   struct dm_server **server, const char **why) {
    int fd = options->fd;
    *why = NULL;
    struct sockaddr_un addr;
    int err = dm_stream_address(path, &addr);
    if (err == -ENAMETOOLONG) {
        *why = "a socket's path has 107 bytes at most: choose a shorter one";
    }
    struct dm_server *s = err == 0 ? calloc(1, sizeof *s) : NULL;
    if (s == NULL) {
        dm_close(&fd);
        return err != 0 ? err : -ENOMEM;
    }
    s->fd = fd;
    s->spare_fd = -1;
    s->loop = loop;
    s->options = *options;
    err = open_sockets(s, &addr, why);
    if (err != 0) {
        free_server(s);
        return err;
    }
    s->poll.uv.data = s;
    dm_poll_start(&s->poll, UV_READABLE, on_readable);
    *server = s;
    return 0;
}

static void on_closed(uv_handle_t *handle) {
    free(handle->data);
}

int dm_server_fd(const struct dm_server *server) {
    return server->fd;
}

void dm_server_close(struct dm_server *server) {
    if (server->closed) {
        return;
    }
    server->closed = true;
    for (size_t i = 0; i < server->count; i++) {
        dm_stream_disown(server->clients[i], "the server was closed");
    }
    server->count = 0;
    dm_poll_close(&server->poll, on_closed);
    remove_path(server);
    dm_close(&server->fd);
    dm_close(&server->spare_fd);
}
