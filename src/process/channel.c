/* channel.c: see channel.h. The struct is freed in the uv handle's close callback alone, so a
 * callback may close the channel whose line it was given. Longer than 400 lines: one socket, what
 * is read from it and what waits for it. */
#include "process/channel.h"

#include "base/close.h"
#include "base/errors.h"
#include "base/fdpass.h"
#include "base/outqueue.h"
#include "base/poll.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    LINE_MAX_BYTES = 8 << 20,  /* Node's messages may be large; more is a broken worker */
    QUEUE_MAX_BYTES = 4 << 20, /* what a worker that does not read can make us keep */
    QUEUE_MAX_FDS = 256,       /* of these among them: a quarter of the usual limit of a process */
    TICK_BYTES = 64 << 10,     /* read of one channel before the others have their turn */
    TICK_READS = 64,           /* the same for a flood of tiny pieces, each with descriptors */
    READ_BYTES = 16 << 10,     /* at once, before it is asked how long that took */
    TICK_NS = 1000000,         /* the same for lines that take long to handle */
};

/* A descriptor that waits for the line it goes with. */
struct passed {
    struct passed *next;
    uint64_t at; /* the line's first byte, counted from the first that ever waited */
    size_t length;
    int fd; /* a duplicate */
};

struct dm_channel {
    struct dm_poll poll;
    struct dm_timers *timers;
    const struct dm_channel_events *events;
    void *ctx;
    struct dm_lines lines;
    struct dm_mark mark;
    struct dm_outqueue queue;
    uint64_t taken;     /* bytes that have left the queue */
    uint64_t committed; /* so many may leave it: what a snapshot knows, with a keeper */
    struct passed *first, **last;
    size_t passed_count;
    int watched;  /* the events that libuv polls for */
    int fd;       /* -1 once closed */
    int received; /* with the line at hand, or one whose end has not come; -1 for none */
    bool paused, unwritable, had_fd;
};

/* One for all: only ever filled and consumed within one read. */
static char scratch[READ_BYTES];

static void on_poll(uv_poll_t *poll, int status, int events);

/* With a keeper a message goes out at the end of the turn, or at that of a rest (kept.c): nobody
 * may know of anything that the next master would not. */
static bool is_kept(const struct dm_channel *channel) {
    return channel->mark.kept && channel->mark.kept->open;
}

/* How much of the queue may go out now. */
static size_t sendable(const struct dm_channel *channel) {
    return is_kept(channel) ? (size_t)(channel->committed - channel->taken)
                            : dm_outqueue_size(&channel->queue);
}

static void watch(struct dm_channel *channel) {
    const int events =
        (channel->paused ? 0 : UV_READABLE) | (sendable(channel) > 0 ? UV_WRITABLE : 0);
    if (channel->fd < 0 || events == channel->watched) {
        return; /* starting anew would cost two system calls for each message */
    }
    channel->watched = events;
    if (events) {
        dm_poll_start(&channel->poll, events, on_poll);
    } else {
        dm_poll_stop(&channel->poll);
    }
}

static void commit(struct dm_mark *mark);

static bool is_settled(const struct dm_mark *mark) {
    const struct dm_channel *channel = dm_container(mark, struct dm_channel, mark);
    return channel->fd < 0 ||
           (dm_outqueue_size(&channel->lines.partial) == 0 && channel->lines.skipped == 0 &&
            dm_outqueue_size(&channel->queue) == 0 && channel->received < 0);
}

static void drop_first_passed(struct dm_channel *channel) {
    struct passed *passed = channel->first;
    channel->first = passed->next;
    if (!channel->first) {
        channel->last = &channel->first;
    }
    channel->passed_count--;
    dm_close_foreign(&passed->fd);
    free(passed);
}

static void drop_queue(struct dm_channel *channel) {
    dm_outqueue_clear(&channel->queue);
    channel->committed = channel->taken;
    while (channel->first) {
        drop_first_passed(channel);
    }
}

static void on_handle_closed(uv_handle_t *handle) {
    struct dm_channel *channel = handle->data;
    const struct dm_channel_events *events = channel->events;
    void *ctx = channel->ctx;
    dm_lines_deinit(&channel->lines);
    free(channel);
    events->on_freed(ctx);
}

void dm_channel_close(struct dm_channel *channel) {
    if (channel->fd < 0) {
        return;
    }
    if (channel->mark.kept) {
        commit(&channel->mark); /* what was sent before the close */
    }
    drop_queue(channel);
    dm_close_foreign(&channel->received);
    dm_mark_close(&channel->mark);
    dm_poll_stop(&channel->poll);
    dm_fdpass_end(&channel->fd);
    dm_poll_close(&channel->poll, on_handle_closed);
}

static void close_with(struct dm_channel *channel, const char *reason) {
    if (channel->fd >= 0) {
        dm_channel_close(channel);
        channel->events->on_closed(channel->ctx, reason);
    }
}

/* ---- reading ---- */

static bool on_line(void *ctx, const char *bytes, size_t length) {
    struct dm_channel *channel = ctx;
    if (bytes) {
        channel->events->on_line(channel->ctx, bytes, length, channel->had_fd);
    } else {
        channel->events->on_skipped(channel->ctx, length, channel->had_fd);
    }
    return channel->fd >= 0;
}

/* Bytes received; 0 at the end; or a negative errno. The first descriptor is for the line it came
 * with. Nobody sends more than one with a line: the others are closed. */
static ssize_t receive(struct dm_channel *channel) {
    int fds[DM_FDPASS_MAX];
    size_t count;
    bool lost;
    const ssize_t n = dm_fdpass_receive(channel->fd, scratch, sizeof scratch, fds, &count, &lost);
    const size_t kept = channel->received < 0 && count > 0;
    if (kept) {
        channel->received = fds[0];
    }
    dm_fdpass_close(fds + kept, count - kept);
    /* The kernel ends a read behind the piece that carried descriptors, not before it: the line
     * they came with is among those of this read. */
    channel->had_fd = channel->had_fd || count > 0 || lost;
    return n;
}

static void read_some(struct dm_channel *channel, size_t budget, uint64_t limit_ns) {
    const uint64_t began = uv_hrtime();
    size_t total = 0;
    dm_mark_set(&channel->mark, DM_MARK_TOUCHED);
    for (int i = 0; channel->fd >= 0 && total < budget && i < TICK_READS &&
                    (i == 0 || uv_hrtime() - began < limit_ns);
         i++) {
        const ssize_t n = receive(channel);
        if (n == -EAGAIN) {
            return;
        }
        if (n <= 0) {
            /* Reset: it left without reading everything. Its going is all that counts. */
            close_with(channel,
                       n == 0 || n == -ECONNRESET || n == -EPIPE ? NULL : dm_error_text((int)n));
            return;
        }
        total += (size_t)n;
        const int rc = dm_lines_feed(&channel->lines, scratch, (size_t)n, on_line, channel);
        if (rc == -EMSGSIZE) {
            close_with(channel, "a line that does not end");
        } else if (rc != 0) {
            close_with(channel, dm_error_text(rc));
        }
        if (dm_outqueue_size(&channel->lines.partial) == 0) {
            channel->had_fd = false;
            dm_close_foreign(&channel->received);
        }
    }
    if (channel->fd >= 0 && channel->timers) {
        dm_timers_hold(channel->timers);
    }
}

int dm_channel_take_fd(struct dm_channel *channel) {
    const int fd = channel->received;
    channel->received = -1;
    return fd;
}

void dm_channel_drain(struct dm_channel *channel, size_t budget) {
    for (size_t done = 0; channel->fd >= 0 && done < budget; done += TICK_BYTES) {
        read_some(channel, TICK_BYTES, UINT64_MAX);
    }
}

/* ---- writing ---- */

/* Bytes taken, 0 for none at the moment, or a negative errno. */
static ssize_t transmit(int socket, struct iovec *iov, size_t iov_count, int fd) {
    const ssize_t n = dm_fdpass_send(socket, iov, iov_count, &fd, fd >= 0);
    return n == -EAGAIN || n == -ENOBUFS ? 0 : n;
}

/* A descriptor goes with its line alone: the kernel ends a read behind the piece it came with. */
static void transmit_queue(struct dm_channel *channel) {
    size_t most;
    while ((most = sendable(channel)) > 0) {
        struct passed *passed = channel->first;
        const bool turn = passed && passed->at == channel->taken;
        const size_t before = passed ? (size_t)(passed->at - channel->taken) : most;
        struct iovec iov = {
            .iov_base = (void *)(uintptr_t)dm_outqueue_data(&channel->queue),
            .iov_len = turn            ? passed->length
                       : before < most ? before
                                       : most,
        };
        const ssize_t n = transmit(channel->fd, &iov, 1, turn ? passed->fd : -1);
        if (n < 0) {
            /* Nobody reads any more; what was sent to us may still be read. */
            channel->unwritable = true;
            drop_queue(channel);
            return;
        }
        if (n == 0) {
            return;
        }
        if (turn) {
            drop_first_passed(channel);
        }
        channel->taken += (uint64_t)n;
        dm_outqueue_take(&channel->queue, (size_t)n);
    }
}

static void flush(struct dm_channel *channel) {
    if (sendable(channel) > 0) {
        dm_mark_writing(&channel->mark, sendable(channel));
        transmit_queue(channel);
        dm_mark_written(&channel->mark, sendable(channel) == 0);
        if (dm_outqueue_size(&channel->queue) > 0) {
            dm_mark_set(&channel->mark, DM_MARK_QUEUED);
        }
    }
}

static void commit(struct dm_mark *mark) {
    struct dm_channel *channel = dm_container(mark, struct dm_channel, mark);
    if (channel->fd >= 0 && !channel->unwritable) {
        channel->committed = channel->taken + dm_outqueue_size(&channel->queue);
        flush(channel);
        watch(channel);
    }
}

static int enqueue_fd(struct dm_channel *channel, uint64_t at, size_t length, int fd) {
    struct passed *passed = malloc(sizeof *passed);
    if (!passed) {
        return UV_ENOMEM;
    }
    *passed = (struct passed){.at = at, .length = length, .fd = fcntl(fd, F_DUPFD_CLOEXEC, 3)};
    if (passed->fd < 0) {
        const int rc = -errno;
        free(passed);
        return rc;
    }
    *channel->last = passed;
    channel->last = &passed->next;
    channel->passed_count++;
    return 0;
}

/* The rest of a line, from its byte `sent` on: all of it or nothing. */
static int enqueue(struct dm_channel *channel, const char *bytes, size_t length, size_t sent,
                   int fd) {
    const size_t before = dm_outqueue_size(&channel->queue);
    int rc = dm_outqueue_add(&channel->queue, bytes + sent, length - sent);
    if (rc == 0) {
        rc = dm_outqueue_add(&channel->queue, "\n", 1);
    }
    if (rc == 0 && fd >= 0) {
        rc = enqueue_fd(channel, channel->taken + before, length + 1, fd);
    }
    if (rc != 0) {
        dm_outqueue_cut(&channel->queue, before);
    }
    watch(channel);
    return rc;
}

int dm_channel_send(struct dm_channel *channel, const char *bytes, size_t length, int fd,
                    bool now) {
    if (channel->fd < 0 || channel->unwritable) {
        return UV_EPIPE;
    }
    const size_t waiting = dm_outqueue_size(&channel->queue);
    if (length >= QUEUE_MAX_BYTES || waiting + length + 1 > QUEUE_MAX_BYTES ||
        (fd >= 0 && channel->passed_count == QUEUE_MAX_FDS)) {
        return UV_ENOBUFS;
    }
    size_t sent = 0;
    dm_mark_set(&channel->mark, DM_MARK_QUEUED);
    if (waiting == 0 && (now || !is_kept(channel))) {
        struct iovec iov[2] = {{.iov_base = (void *)(uintptr_t)bytes, .iov_len = length},
                               {.iov_base = (char[]){'\n'}, .iov_len = 1}};
        dm_mark_writing(&channel->mark, length + 1);
        const ssize_t n = transmit(channel->fd, iov, 2, fd);
        dm_mark_written(&channel->mark, n <= 0 || (size_t)n > length);
        if (n < 0 && n != -EPIPE && n != -ECONNRESET) {
            return (int)n; /* EBADF, ETOOMANYREFS: the descriptor's fault, not the channel's */
        }
        if (n < 0) {
            channel->unwritable = true;
            return UV_EPIPE;
        }
        sent = (size_t)n;
        if (sent == length + 1) {
            return 0;
        }
    }
    const int rc = enqueue(channel, bytes, length, sent, sent > 0 ? -1 : fd);
    if (rc == 0) {
        dm_mark_set(&channel->mark, DM_MARK_QUEUED); /* more than what was written said */
    }
    if (rc == 0 && waiting == 0 && now) {
        channel->committed = channel->taken + dm_outqueue_size(&channel->queue);
        watch(channel);
    }
    if (rc != 0 && sent > 0) {
        /* Half a line is out and its other half lost: no later line could be told from it. */
        channel->unwritable = true;
    }
    return rc;
}

/* ---- the handle ---- */

static void on_poll(uv_poll_t *poll, int status, int events) {
    struct dm_channel *channel = poll->data;
    if (status < 0) {
        /* libuv's word for POLLERR, after which it has stopped polling. Reading tells more. */
        channel->watched = 0;
        events = UV_READABLE | UV_WRITABLE;
    }
    if (events & UV_WRITABLE) {
        flush(channel);
    }
    if ((events & UV_READABLE) && (!channel->paused || status < 0)) {
        read_some(channel, TICK_BYTES, TICK_NS);
    }
    watch(channel);
}

struct dm_channel *dm_channel_open(uv_loop_t *loop, struct dm_timers *timers, int fd,
                                   const struct dm_channel_events *events, void *ctx) {
    struct dm_channel *channel = calloc(1, sizeof *channel);
    if (!channel || dm_poll_init(loop, &channel->poll, fd) != 0) {
        free(channel);
        return NULL;
    }
    channel->poll.uv.data = channel;
    channel->timers = timers;
    channel->events = events;
    channel->ctx = ctx;
    channel->fd = fd;
    channel->received = -1;
    channel->last = &channel->first;
    dm_outqueue_init(&channel->queue, QUEUE_MAX_BYTES);
    dm_lines_init(&channel->lines, LINE_MAX_BYTES);
    dm_mark_open(&channel->mark, NULL, -1, is_settled, commit);
    channel->lines.skips_long = true;
    watch(channel);
    return channel;
}

void dm_channel_pause(struct dm_channel *channel, bool paused) {
    channel->paused = paused;
    watch(channel);
}

enum dm_keeper_mark dm_channel_keep(struct dm_channel *channel, struct dm_kept *kept, int index) {
    const enum dm_keeper_mark before =
        dm_mark_open(&channel->mark, kept, index, is_settled, commit);
    channel->unwritable = before == DM_MARK_WRITING;
    channel->lines.skipped = before != DM_MARK_CLEAR;
    return before;
}

bool dm_channel_is_unread(const struct dm_channel *channel) {
    int unread = 0;
    return channel->fd >= 0 && ioctl(channel->fd, SIOCOUTQ, &unread) == 0 && unread > 0;
}

int dm_channel_mark(const struct dm_channel *channel) {
    return channel->mark.index;
}

int dm_channel_fd(const struct dm_channel *channel) {
    return channel->fd;
}
