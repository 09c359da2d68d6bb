/* helper.c: see helper.h. It is freed when it is reaped and both of its handles are closed. */
#include "process/helper.h"

#include "base/close.h"
#include "base/proc.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct dm_helper {
    struct dm_leader leader;
    struct dm_link link;
    struct dm_poll answer;
    struct dm_timer deadline;
    struct dm_helper_work work;
    uid_t uid;
    int socket; /* -1 once it has answered, or will not */
    uint64_t limit_ms;
    int open; /* handles */
    _Alignas(max_align_t) char ctx[DM_RIGHTS_CONTEXT];
};

void dm_helpers_init(struct dm_helpers *helpers, struct dm_reaper *reaper,
                     struct dm_timers *timers) {
    *helpers = (struct dm_helpers){.reaper = reaper, .timers = timers};
    dm_list_init(&helpers->alive);
}

static void release(struct dm_helper *self) {
    if (--self->open == 0) {
        free(self);
    }
}

static void on_answer_closed(uv_handle_t *handle) {
    release(handle->data);
}

static void on_leader_closed(struct dm_leader *leader) {
    release(dm_container(leader, struct dm_helper, leader));
}

static void close_fds(int fds[DM_RIGHTS_FDS]) {
    for (int i = 0; i < DM_RIGHTS_FDS; i++) {
        dm_close(&fds[i]);
    }
}

/* Last: done() may do anything. */
static void finish(struct dm_helper *self, int result, int fds[DM_RIGHTS_FDS]) {
    _Alignas(max_align_t) char ctx[DM_RIGHTS_CONTEXT];
    const struct dm_helper_work work = self->work;
    memcpy(ctx, self->ctx, work.size);
    dm_timer_stop(&self->deadline);
    dm_poll_stop(&self->answer);
    dm_poll_close(&self->answer, on_answer_closed);
    close(self->socket);
    self->socket = -1;
    dm_leader_signal(&self->leader, SIGKILL);
    if (work.done) {
        work.done(work.data, result, ctx, fds);
    } else {
        close_fds(fds);
    }
}

static void collect(struct dm_helper *self) {
    int fds[DM_RIGHTS_FDS] = {-1, -1};
    const int result = dm_rights_collect(self->socket, self->ctx, self->work.size, fds);
    finish(self, result, fds);
}

static void on_answer(uv_poll_t *poll, int status, int events) {
    collect(poll->data);
}

static void on_due(struct dm_timer *timer) {
    struct dm_helper *self = dm_container(timer, struct dm_helper, deadline);
    int fds[DM_RIGHTS_FDS] = {-1, -1};
    if (self->limit_ms < DM_RIGHTS_BUSY_MS && dm_proc_state(self->leader.pid) == 'R') {
        self->limit_ms += DM_RIGHTS_MS;
        dm_timer_start(timer, DM_RIGHTS_MS);
        return;
    }
    finish(self, -ETIMEDOUT, fds);
}

static void on_reaped(struct dm_leader *leader) {
    struct dm_helper *self = dm_container(leader, struct dm_helper, leader);
    dm_list_remove(&self->link);
    if (self->socket >= 0) {
        collect(self); /* what it said before it ended, or that it said nothing */
    }
    dm_reaper_close(leader);
}

void dm_helpers_cancel(struct dm_helpers *helpers) {
    for (struct dm_link *l = helpers->alive.next, *next; l != &helpers->alive; l = next) {
        struct dm_helper *self = dm_container(l, struct dm_helper, link);
        int fds[DM_RIGHTS_FDS] = {-1, -1};
        next = l->next;
        if (self->socket >= 0 && self->work.done) {
            finish(self, -ECANCELED, fds);
        }
    }
}

static int count_of(const struct dm_helpers *helpers, uid_t uid) {
    int count = 0;
    for (struct dm_link *l = helpers->alive.next; l != &helpers->alive; l = l->next) {
        count += dm_container(l, struct dm_helper, link)->uid == uid;
    }
    return count;
}

/* Its handles; the process is there already. */
static int watch(struct dm_helpers *helpers, struct dm_helper *self) {
    struct dm_leader *leader = &self->leader;
    int error = dm_poll_init(helpers->reaper->loop, &self->answer, self->socket);
    if (error) {
        free(self);
        return error;
    }
    self->answer.uv.data = self;
    self->open = 1;
    error = dm_reaper_add(helpers->reaper, leader);
    if (error) {
        dm_poll_close(&self->answer, on_answer_closed);
        return error;
    }
    self->open = 2;
    dm_poll_start(&self->answer, UV_READABLE, on_answer);
    dm_list_append(&helpers->alive, &self->link);
    dm_timer_init(&self->deadline, helpers->timers, on_due);
    dm_timer_start(&self->deadline, self->limit_ms);
    return 0;
}

int dm_helper_start(struct dm_helpers *helpers, const struct dm_rights *rights,
                    const struct dm_helper_work *work, struct dm_helper **helper) {
    if (work->size > DM_RIGHTS_CONTEXT) {
        return -E2BIG;
    }
    if (count_of(helpers, rights->uid) >= DM_HELPERS_MAX) {
        return -EAGAIN;
    }
    struct dm_helper *self = calloc(1, sizeof *self);
    if (!self) {
        return -ENOMEM;
    }
    self->work = *work;
    memcpy(self->ctx, work->ctx, work->size);
    self->uid = rights->uid;
    self->limit_ms = DM_RIGHTS_MS;
    self->leader.on_reaped = on_reaped;
    self->leader.on_closed = on_leader_closed;
    const struct dm_rights_work there = {work->work, self->ctx, work->size, work->keep};
    int error =
        dm_rights_start(rights, &there, &self->leader.pid, &self->leader.pidfd, &self->socket);
    if (error) {
        free(self);
        return error;
    }
    const pid_t pid = self->leader.pid;
    const int pidfd = self->leader.pidfd, socket = self->socket;
    error = watch(helpers, self);
    if (error) {
        close(socket);
        dm_reaper_abandon(pid, pidfd);
        return error;
    }
    if (helper) {
        *helper = self;
    }
    return 0;
}

void dm_helper_forget(struct dm_helper *helper) {
    helper->work.done = NULL;
}
