/* kept.c: see kept.h. Longer than 400 lines: one connection, what goes over it, and the state that
 * is kept beside it. */
#include "keeper/kept.h"

#include "base/identity.h"
#include "keeper/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    LEAVE_MS = 500,     /* for half a line to be read or written, when we give place */
    PATIENCE_MS = 1000, /* so long what waits for a snapshot waits for a keeper without room */
    FRAMES = 64,        /* read in one turn */
    AT_ONCE = 1024,     /* so many bytes are in a stream socket as a whole, or not at all */

    /* A snapshot takes longer the more workers there are, and in a boot each turn asks for one.
     * What is past a credit for a rush of events may take one part of so many of the time:
     * snapshots are followed by rests then. What waits for the next one (commit, on_write) waits as
     * long. */
    CREDIT_US = 1000,
    SHARE = 25,
    DEBT_MAX_US = CREDIT_US + 800, /* a rest of 20 ms */
};

/* ---- to the keeper ---- */

static void be_alone(struct dm_kept *kept, int error) {
    dm_kept_close(kept);
    dm_identity_set(0);
    kept->events->on_alone(kept->ctx, error);
}

static void lose(struct dm_kept *kept) {
    if (kept->lost) {
        return;
    }
    kept->lost = true;
    kept->full_since = 0;
    kept->refused = false;
    dm_outbox_clear(&kept->outbox);
    dm_poll_stop(&kept->poll);
    kept->events->on_lost(kept->ctx);
    if (kept->open && kept->leave_by == 0) {
        be_alone(kept, 0);
    }
}

/* ---- frames ---- */

static void on_ready(uv_poll_t *poll_handle, int status, int events);

/* The keeper is asked when it has room, if something waits for that. */
static void watch(struct dm_kept *kept) {
    dm_poll_start(&kept->poll, UV_READABLE | (kept->full_since ? UV_WRITABLE : 0), on_ready);
}

static bool is_patient(const struct dm_kept *kept) {
    return kept->full_since && uv_now(kept->prepare.loop) < kept->full_since + PATIENCE_MS;
}

/* With a descriptor: -EAGAIN, soon there may be room; -ETIMEDOUT, there was none for long. */
static int send_frame(struct dm_kept *kept, struct dm_keeper_frame *frame, const char *text,
                      int fd) {
    if (!kept->open) {
        return -ENOTCONN;
    }
    if (kept->lost) {
        return 0; /* to nobody */
    }
    const int error = dm_outbox_send(&kept->outbox, frame, text ? text : "", fd);
    if (!kept->full_since && (error == -EAGAIN || !dm_outbox_is_empty(&kept->outbox))) {
        kept->full_since = uv_now(kept->prepare.loop);
        watch(kept);
    }
    if (error == -EAGAIN) {
        return is_patient(kept) ? error : -ETIMEDOUT;
    }
    /* That it has died we hear from the loop, which asks for all of it again: see lose(). */
    return error == -EPIPE || error == -ECONNRESET ? 0 : error;
}

/* There is room. */
static void catch_up(struct dm_kept *kept) {
    if (dm_outbox_flush(&kept->outbox) == -EAGAIN) {
        kept->full_since = uv_now(kept->prepare.loop);
        return;
    }
    kept->full_since = 0;
    kept->dirty = kept->dirty || kept->refused;
    kept->refused = false;
    watch(kept);
}

int dm_kept_put(struct dm_kept *kept, const char *name, int fd, pid_t pid) {
    struct dm_keeper_frame frame = {.op = DM_KEEPER_PUT, .pid = pid};
    if (strlen(name) >= DM_KEEPER_NAME) {
        return -ENAMETOOLONG;
    }
    if (kept->lost && kept->open) {
        return dm_held_put(&kept->held, name, fd, pid);
    }
    const int error = send_frame(kept, &frame, name, fd);
    kept->refused = kept->refused || error == -EAGAIN || error == -ETIMEDOUT;
    return error;
}

int dm_kept_drop(struct dm_kept *kept, const char *name) {
    struct dm_keeper_frame frame = {.op = DM_KEEPER_DROP};
    dm_held_drop(&kept->held, name);
    const int error = send_frame(kept, &frame, name, -1);
    return error || dm_outbox_is_empty(&kept->outbox) ? error : -EAGAIN;
}

void dm_kept_hello(struct dm_kept *kept) {
    struct dm_keeper_frame frame = {.op = DM_KEEPER_HELLO};
    send_frame(kept, &frame, NULL, -1);
}

void dm_kept_reap(struct dm_kept *kept, pid_t pid, bool lingers) {
    struct dm_keeper_frame frame = {.op = DM_KEEPER_REAP, .pid = pid, .number = lingers};
    send_frame(kept, &frame, NULL, -1);
}

void dm_kept_exit(struct dm_kept *kept, pid_t pid, int code, bool signaled, bool core) {
    struct dm_keeper_frame frame = {
        .op = DM_KEEPER_EXIT, .pid = pid, .code = code, .signaled = signaled, .core = core};
    dm_held_exit(&kept->held, pid, code, signaled, core);
    send_frame(kept, &frame, NULL, -1);
}

void dm_kept_kill(struct dm_kept *kept, pid_t pid, int number) {
    struct dm_keeper_frame frame = {.op = DM_KEEPER_KILL, .pid = pid, .number = number};
    send_frame(kept, &frame, NULL, -1);
}

int dm_kept_notify(struct dm_kept *kept, const char *text) {
    struct dm_keeper_frame frame = {.op = DM_KEEPER_NOTIFY};
    return send_frame(kept, &frame, text, -1);
}

int dm_kept_become(struct dm_kept *kept, const char *path) {
    struct dm_keeper_frame frame = {.op = DM_KEEPER_UPGRADE};
    const int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    const int error = send_frame(kept, &frame, NULL, fd);
    close(fd);
    if (!error) {
        kept->leave_by = uv_now(kept->prepare.loop) + LEAVE_MS;
        kept->dirty = true;
    }
    return error;
}

void dm_kept_settled(struct dm_kept *kept) {
    struct dm_keeper_frame frame = {.op = DM_KEEPER_SETTLED};
    send_frame(kept, &frame, NULL, -1);
}

void dm_kept_renew(struct dm_kept *kept) {
    if (kept->open && kept->lost) {
        kept->leave_by = uv_now(kept->prepare.loop) + LEAVE_MS;
        kept->dirty = true;
    }
}

/* ---- snapshots ---- */

uint64_t dm_kept_said(const struct dm_kept *kept) {
    return kept->open ? kept->link.memory->said : 0;
}

void dm_kept_say(struct dm_kept *kept, uint64_t number) {
    if (kept->open) {
        kept->link.memory->said = number;
    }
}

void dm_kept_touch(struct dm_kept *kept) {
    kept->dirty = true;
}

int dm_kept_write(struct dm_kept *kept, const struct iovec *parts, size_t count) {
    struct dm_keeper_memory *memory = kept->link.memory;
    size_t size = 0;
    for (size_t i = 0; i < count; i++) {
        size += parts[i].iov_len;
    }
    if (!kept->open) {
        return -ENOTCONN;
    }
    if (size > DM_KEEPER_STATE) {
        return -EFBIG;
    }
    const uint64_t number = ++kept->snapshots;
    const int half = (int)(number % 2);
    memory->snapshots[half].number = 0;
    __sync_synchronize();
    char *end = memory->text[half];
    for (size_t i = 0; i < count; i++) {
        memcpy(end, parts[i].iov_base, parts[i].iov_len);
        end += parts[i].iov_len;
    }
    memory->snapshots[half].size = size;
    memory->snapshots[half].sum = dm_keeper_sum(memory->text[half], size);
    memory->heard[half] = kept->heard;
    __sync_synchronize();
    memory->snapshots[half].number = number;
    return 0;
}

/* Somebody who waits for an event alone has nothing to be late for. */
static void set_patience(const struct dm_kept *kept) {
    const int wait_ms = uv_backend_timeout(kept->prepare.loop);
    const uint64_t ms = wait_ms < 0 ? 0 : (uint64_t)wait_ms + DM_KEEPER_SILENT_MS;
    const struct itimerspec time = {
        .it_value = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000},
    };
    timerfd_settime(kept->link.patience, 0, &time, NULL);
}

/* What we hold is the keeper's as well, or will be. */
static void give_place(struct dm_kept *kept) {
    if (!kept->lost) {
        _exit(0);
    }
    be_alone(kept, dm_keeper_renew(kept->held.items, kept->held.count));
}

static void on_again(uv_timer_t *timer) {
    /* on_prepare looks again */
}

static void write_snapshot(struct dm_kept *kept) {
    const uint64_t start = uv_hrtime();
    const uint64_t paid_us = (start - kept->written_at) / 1000 / SHARE;
    kept->dirty = kept->refused = false;
    kept->events->on_write(kept->ctx);
    kept->written_at = uv_hrtime();
    kept->spent_us -= paid_us < kept->spent_us ? paid_us : kept->spent_us;
    kept->spent_us += (kept->written_at - start) / 1000;
    kept->spent_us = kept->spent_us < DEBT_MAX_US ? kept->spent_us : DEBT_MAX_US;
    const uint64_t past_us = kept->spent_us > CREDIT_US ? kept->spent_us - CREDIT_US : 0;
    kept->rest_until = kept->written_at + past_us * SHARE * 1000;
}

/* Whether the keeper may soon have room for what it has refused. */
static bool awaits_room(struct dm_kept *kept) {
    const uint64_t now = uv_now(kept->prepare.loop), until = kept->full_since + PATIENCE_MS;
    const bool leaves_first = kept->leave_by && kept->leave_by < until;
    if (!kept->refused || !is_patient(kept) || (leaves_first && now >= kept->leave_by)) {
        return false;
    }
    uv_timer_start(&kept->again, on_again, (leaves_first ? kept->leave_by : until) - now, 0);
    return true;
}

/* Whether what is dirty has to stay so for a moment. */
static bool rests(struct dm_kept *kept) {
    const uint64_t now = uv_hrtime();
    if (awaits_room(kept)) {
        return true;
    }
    if (!kept->dirty || kept->leave_by || now >= kept->rest_until) {
        return false;
    }
    uv_timer_start(&kept->again, on_again, 1 + (kept->rest_until - now) / 1000000, 0);
    return true;
}

static void on_prepare(uv_prepare_t *prepare) {
    struct dm_kept *kept = prepare->data;
    const uv_loop_t *loop = prepare->loop;
    const bool is_resting = rests(kept);
    set_patience(kept);
    if (is_resting) {
        return;
    }
    if (kept->dirty) {
        write_snapshot(kept);
    }
    if (awaits_room(kept)) {
        return;
    }
    for (struct dm_link *l = kept->touched.next, *next; l != &kept->touched; l = next) {
        next = l->next;
        struct dm_mark *mark = dm_container(l, struct dm_mark, link);
        mark->commit(mark);
        volatile uint8_t *byte = &kept->link.memory->marks[mark->index];
        /* Half a line that a former master has written is never made whole. */
        if (!kept->refused && *byte != DM_MARK_WRITING && mark->is_settled(mark)) {
            dm_list_remove(&mark->link);
            *byte = DM_MARK_CLEAR;
        }
    }
    const bool is_done = dm_list_empty(&kept->touched) && !kept->full_since;
    if (kept->leave_by && (is_done || uv_now(loop) >= kept->leave_by)) {
        give_place(kept);
    } else if (kept->leave_by) {
        uv_timer_start(&kept->again, on_again, 10, 0);
    }
}

/* ---- marks ---- */

static int free_index(const struct dm_kept *kept) {
    const uint8_t *found = memchr(kept->used, 0, sizeof kept->used);
    return found ? (int)(found - kept->used) : -1;
}

enum dm_keeper_mark dm_mark_open(struct dm_mark *mark, struct dm_kept *kept, int index,
                                 bool (*is_settled)(const struct dm_mark *mark),
                                 void (*commit)(struct dm_mark *mark)) {
    *mark = (struct dm_mark){.index = -1, .is_settled = is_settled, .commit = commit};
    dm_list_init(&mark->link);
    if (!kept || !kept->open || index >= DM_KEEPER_MARKS) {
        return DM_MARK_CLEAR;
    }
    mark->index = index >= 0 ? index : free_index(kept);
    if (mark->index < 0) {
        return DM_MARK_CLEAR;
    }
    mark->kept = kept;
    kept->used[mark->index] = 1;
    volatile uint8_t *byte = &kept->link.memory->marks[mark->index];
    const enum dm_keeper_mark before = index < 0                 ? DM_MARK_CLEAR
                                       : *byte > DM_MARK_SENDING ? DM_MARK_WRITING
                                                                 : (enum dm_keeper_mark) * byte;
    *byte = (uint8_t)before; /* until a snapshot knows what we make of it */
    if (before != DM_MARK_CLEAR) {
        dm_list_append(&kept->touched, &mark->link);
    }
    return before;
}

void dm_mark_set(struct dm_mark *mark, enum dm_keeper_mark value) {
    if (mark->kept && mark->kept->open) {
        volatile uint8_t *byte = &mark->kept->link.memory->marks[mark->index];
        *byte = *byte < value ? (uint8_t)value : *byte;
        if (dm_list_empty(&mark->link)) {
            dm_list_append(&mark->kept->touched, &mark->link);
        }
    }
}

void dm_mark_writing(struct dm_mark *mark, size_t size) {
    if (mark->kept && mark->kept->open) {
        volatile uint8_t *byte = &mark->kept->link.memory->marks[mark->index];
        const bool may_be_half = size > AT_ONCE || *byte == DM_MARK_WRITING;
        dm_mark_set(mark, may_be_half ? DM_MARK_WRITING : DM_MARK_SENDING);
        *byte = may_be_half ? DM_MARK_WRITING : *byte;
    }
}

void dm_mark_written(struct dm_mark *mark, bool all) {
    if (mark->kept && mark->kept->open) {
        mark->kept->link.memory->marks[mark->index] = all ? DM_MARK_TOUCHED : DM_MARK_WRITING;
    }
}

void dm_mark_close(struct dm_mark *mark) {
    dm_list_remove(&mark->link);
    if (mark->kept) {
        mark->kept->used[mark->index] = 0;
        mark->kept = NULL;
    }
}

/* ---- from the keeper ---- */

static void handle(struct dm_kept *kept, const struct dm_keeper_frame *frame) {
    if (frame->op == DM_KEEPER_SIGNAL) {
        kept->heard = frame->order > kept->heard ? frame->order : kept->heard;
        kept->events->on_signal(kept->ctx, frame);
    } else if (frame->op == DM_KEEPER_ENDED) {
        kept->events->on_ended(kept->ctx, frame);
    } else if (frame->op == DM_KEEPER_REAPED) {
        kept->events->on_reaped(kept->ctx, frame->pid, &frame->usage);
    }
}

static void on_ready(uv_poll_t *poll_handle, int status, int events) {
    struct dm_kept *kept = poll_handle->data;
    struct dm_keeper_frame frame;
    if (events & UV_WRITABLE) {
        catch_up(kept);
    }
    for (int i = 0; i < FRAMES && kept->open; i++) {
        const ssize_t size = recv(kept->link.socket, &frame, sizeof frame, MSG_DONTWAIT);
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        } else if (size <= 0) {
            lose(kept);
            return;
        } else if ((size_t)size >= offsetof(struct dm_keeper_frame, text)) {
            handle(kept, &frame);
        }
    }
}

/* ---- life ---- */

int dm_kept_open(struct dm_kept *kept, uv_loop_t *loop, const struct dm_keeper_link *link,
                 const struct dm_kept_events *events, void *ctx) {
    *kept = (struct dm_kept){.link = *link, .events = events, .ctx = ctx};
    dm_list_init(&kept->touched);
    if (link->socket < 0) {
        return 0;
    }
    for (int i = 0; i < 2; i++) {
        const uint64_t number = link->memory->snapshots[i].number;
        kept->snapshots = number > kept->snapshots ? number : kept->snapshots;
    }
    kept->heard = dm_keeper_heard(link->memory);
    const int rc = dm_poll_init(loop, &kept->poll, link->socket);
    if (rc != 0) {
        return rc;
    }
    uv_prepare_init(loop, &kept->prepare);
    uv_timer_init(loop, &kept->again);
    kept->poll.uv.data = kept->prepare.data = kept;
    kept->open = true;
    dm_outbox_init(&kept->outbox, link->socket);
    watch(kept);
    uv_prepare_start(&kept->prepare, on_prepare);
    dm_identity_set(link->keeper);
    return 0;
}

void dm_kept_close(struct dm_kept *kept) {
    if (!kept->open) {
        return;
    }
    kept->open = false;
    for (struct dm_link *l = kept->touched.next; l != &kept->touched; l = l->next) {
        struct dm_mark *mark = dm_container(l, struct dm_mark, link);
        mark->commit(mark); /* what waited for a snapshot waits for nothing now */
    }
    dm_held_clear(&kept->held);
    dm_outbox_flush(&kept->outbox);
    dm_outbox_clear(&kept->outbox);
    dm_poll_stop(&kept->poll);
    close(kept->link.socket);
    close(kept->link.patience);
    dm_poll_close(&kept->poll, NULL);
    uv_close((uv_handle_t *)&kept->prepare, NULL);
    uv_close((uv_handle_t *)&kept->again, NULL);
}
