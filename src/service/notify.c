/* notify.c: the receiving end of sd_notify, with the rules of systemd's own.
 *
 * Whoever can reach the socket is untrusted. Credentials come
 * from the kernel; every descriptor sent along is closed, on every path (a sender of BARRIER=1
 * waits for just that); whatever is wrong with a datagram, the next one is read (CVE-2016-7796 was
 * a watcher that stopped at an empty one).
 */
#include "service/notify.h"

#include "service/files.h"

#include "base/close.h"
#include "base/fdpass.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* systemd's bound on a message, NOTIFY_BUFFER_MAX: bytes. */
#define MESSAGE_MAX 4096
/* Datagrams read before others get their turn; more than the kernel queues by default. */
#define BUDGET 16

static const char PREFIX[] = "/notify-";

/* Entries looked at for sockets of masters that were killed. */
#define SWEEP_MAX 4096
static bool swept;

/* ---- one datagram ---- */

/* Who sent it; pid 0 if that is not known. */
static struct ucred sender_of(struct msghdr *msg) {
    struct ucred sender = {.pid = 0};
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS &&
            c->cmsg_len == CMSG_LEN(sizeof sender)) {
            memcpy(&sender, CMSG_DATA(c), sizeof sender);
        }
    }
    return sender;
}

/* Whether the datagram counts. A NUL at its end is allowed, and taken off. */
static bool is_acceptable(const struct dm_notify *n, const struct msghdr *msg, const char *text,
                          size_t *len, const struct ucred *sender) {
    if (sender->pid <= 0 ||
        (sender->uid != 0 && sender->uid != geteuid() && sender->uid != n->uid) ||
        (msg->msg_flags & MSG_TRUNC) != 0 || *len >= MESSAGE_MAX) {
        return false;
    }
    if (*len > 0 && text[*len - 1] == '\0') {
        --*len;
    }
    return *len > 0 && memchr(text, '\0', *len) == NULL;
}

/* False if there was nothing to read. */
static bool receive(struct dm_notify *n) {
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(DM_FDPASS_MAX * sizeof(int))];
    } control;
    char text[MESSAGE_MAX];
    struct iovec iov = {.iov_base = text, .iov_len = sizeof text};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.space,
                         .msg_controllen = sizeof control.space};
    ssize_t got = recvmsg(n->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) {
        return errno == EINTR;
    }
    int fds[DM_FDPASS_MAX];
    const size_t fd_count = dm_fdpass_take(&msg, fds);
    const struct ucred sender = sender_of(&msg);
    size_t len = (size_t)got;
    if (is_acceptable(n, &msg, text, &len, &sender)) {
        n->on_message(n->ctx, text, len);
    }
    /* Only now: a barrier is passed when everything sent before it was dealt with. */
    dm_fdpass_close(fds, fd_count);
    return true;
}

static void on_readable(uv_poll_t *poll, int status, int events) {
    struct dm_notify *n = poll->data;
    for (int i = 0; i < BUDGET && !n->closed && receive(n); i++) {
    }
}

/* ---- life ---- */

/* Removes what masters that were killed have left: sockets that nobody reads. */
static void sweep(const char *directory) {
    DIR *dir = opendir(directory);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    for (int i = 0; dir != NULL && fd >= 0 && i < SWEEP_MAX; i++) {
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            break;
        }
        struct sockaddr_un addr = {.sun_family = AF_UNIX};
        const int n =
            snprintf(addr.sun_path, sizeof addr.sun_path, "%s/%s", directory, entry->d_name);
        if (strncmp(entry->d_name, PREFIX + 1, sizeof PREFIX - 2) == 0 && n > 0 &&
            (size_t)n < sizeof addr.sun_path &&
            connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0 && errno == ECONNREFUSED) {
            unlink(addr.sun_path);
        }
    }
    dm_close(&fd);
    if (dir != NULL) {
        closedir(dir);
    }
}

/* Its name, and behind it what nobody can guess. */
static int set_name(struct dm_notify *n, const char *prefix) {
    unsigned char random[12];
    size_t at = strlen(n->name), left = sizeof n->name - at;
    if (strlen(prefix) + 2 * sizeof random >= left) {
        return -ENAMETOOLONG;
    }
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) {
        return -EIO;
    }
    at += (size_t)snprintf(n->name + at, left, "%s", prefix);
    for (size_t i = 0; i < sizeof random; i++) {
        at += (size_t)snprintf(n->name + at, 3, "%02x", random[i]);
    }
    return 0;
}

/* A path, as systemd's own: some clients know nothing else. */
static int make_path(struct dm_notify *n) {
    const char *why;
    /* Workers of our own user reach what is ours alone. */
    const int err = dm_runtime_dir(n->name, sizeof n->name, n->uid != geteuid(), &why);
    if (err != 0) {
        return err;
    }
    if (!swept) {
        swept = true;
        sweep(n->name);
    }
    return set_name(n, PREFIX);
}

/* Nobody but us can write to the directory: what is there now is what we have bound. */
static int bind_path(struct dm_notify *n) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    memcpy(addr.sun_path, n->name, strlen(n->name));
    const mode_t mask = umask(0177);
    int err = bind(n->fd, (struct sockaddr *)&addr, sizeof addr) < 0 ? -errno : 0;
    umask(mask);
    if (err == 0 && n->uid != geteuid() && lchown(n->name, n->uid, (gid_t)-1) < 0) {
        err = -errno;
        unlink(n->name);
    }
    return err;
}

/* Where no directory can be had: an abstract name, which has no permissions, but nobody can guess.
 */
static int bind_abstract(struct dm_notify *n) {
    n->name[0] = '\0';
    const int err = set_name(n, "@dutch-master/");
    if (err != 0) {
        return err;
    }
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    const size_t size = strlen(n->name);
    memcpy(addr.sun_path, n->name, size);
    addr.sun_path[0] = '\0';
    const socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size);
    return bind(n->fd, (struct sockaddr *)&addr, len) < 0 ? -errno : 0;
}

static int open_socket(struct dm_notify *n) {
    n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (n->fd < 0) {
        return -errno;
    }
    int on = 1;
    if (setsockopt(n->fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) < 0) {
        return -errno;
    }
    /* Twice: another master may have removed the directory, which was empty, in between. */
    int err = -ENOENT;
    for (int i = 0; i < 2 && err == -ENOENT; i++) {
        err = make_path(n);
        err = err == 0 ? bind_path(n) : err;
    }
    return err == 0 ? 0 : bind_abstract(n);
}

static void remove_path(struct dm_notify *n) {
    if (n->name[0] != '/') {
        return;
    }
    unlink(n->name);
    if (n->uid != geteuid()) { /* the last one takes the directory with it */
        *strrchr(n->name, '/') = '\0';
        rmdir(n->name);
    }
}

static void on_closed(uv_handle_t *handle) {
    struct dm_notify *n = handle->data;
    dm_fdpass_end(&n->fd);
    free(n);
}

static int start(struct dm_notify *n, uv_loop_t *loop, int err, struct dm_notify **notify) {
    if (err == 0) {
        err = dm_poll_init(loop, &n->poll, n->fd);
    }
    if (err != 0) {
        if (n->fd >= 0) {
            close(n->fd);
            remove_path(n);
        }
        free(n);
        return err;
    }
    n->poll.uv.data = n;
    err = dm_poll_start(&n->poll, UV_READABLE, on_readable);
    if (err != 0) {
        dm_notify_close(n);
        return err;
    }
    *notify = n;
    return 0;
}

static struct dm_notify *make(uid_t uid, dm_notify_message_cb on_message, void *ctx) {
    struct dm_notify *n = calloc(1, sizeof *n);
    if (n != NULL) {
        n->uid = uid;
        n->fd = -1;
        n->on_message = on_message;
        n->ctx = ctx;
    }
    return n;
}

int dm_notify_open(uv_loop_t *loop, uid_t uid, dm_notify_message_cb on_message, void *ctx,
                   struct dm_notify **notify) {
    struct dm_notify *n = make(uid, on_message, ctx);
    return n == NULL ? -ENOMEM : start(n, loop, open_socket(n), notify);
}

int dm_notify_resume(uv_loop_t *loop, uid_t uid, int fd, const char *name,
                     dm_notify_message_cb on_message, void *ctx, struct dm_notify **notify) {
    struct dm_notify *n = make(uid, on_message, ctx);
    if (n == NULL) {
        close(fd);
        return -ENOMEM;
    }
    n->fd = fd;
    snprintf(n->name, sizeof n->name, "%s", name);
    return start(n, loop, 0, notify);
}

void dm_notify_close(struct dm_notify *n) {
    if (n->closed) {
        return;
    }
    n->closed = true;
    remove_path(n);
    dm_poll_close(&n->poll, on_closed);
}
