/* capture.h: a child's stderr or stdout, copied to a descriptor of the master's and the last of it
 * kept. The copy never blocks and never holds the child up: a target that does not take it loses
 * it, counted. Lines stay whole where they can. */
#pragma once

#include "base/outqueue.h"
#include "base/poll.h"
#include "service/target.h"

struct dm_capture {
    struct dm_poll poll;
    struct dm_timer retry;
    void (*on_freed)(void *ctx);
    /* Shows everything that is read, before it is copied; its owner's, NULL at first. */
    void (*on_data)(void *ctx, const struct dm_capture *c, const char *data, size_t size);
    void *ctx;
    struct dm_outqueue tail; /* the last bytes */
    struct dm_outqueue pending;
    uint64_t lost; /* bytes that the target did not get */
    int fd;        /* until it is closed, with the handle */
    bool ended;
    struct dm_target target; /* its fd is -1 once it failed */
    bool in_lost_line;
};

/* Takes over `fd`, the read end of a pipe; `target` stays the caller's. NULL: no memory. */
struct dm_capture *dm_capture_open(uv_loop_t *loop, struct dm_timers *timers, int fd, int target,
                                   void (*on_freed)(void *ctx), void *ctx);
/* The last bytes, at most 64 KiB, until more come; NULL if there are none. */
const char *dm_capture_tail(const struct dm_capture *capture, size_t *length);
/* The child is dead: takes what is still in the pipe, and stops even if somebody holds it open. */
void dm_capture_finish(struct dm_capture *capture);
void dm_capture_close(struct dm_capture *capture); /* on_freed follows from the loop */
