/* capture.h: a child's stderr or stdout, copied to a descriptor of the master's and the last of it
 * kept. The copy never blocks and never holds the child up: a target that does not take it loses
 * it, counted. Lines stay whole where they can. */
#pragma once

#include "base/timer.h"

struct dm_capture;

/* Takes over `fd`, the read end of a pipe; `target` stays the caller's. NULL: no memory. */
struct dm_capture *dm_capture_open(uv_loop_t *loop, struct dm_timers *timers, int fd, int target,
                                   void (*on_freed)(void *ctx), void *ctx);
/* From now on everything that is read is shown here too, before it is copied. */
void dm_capture_listen(struct dm_capture *capture,
                       void (*on_data)(void *ctx, const struct dm_capture *capture,
                                       const char *data, size_t size));
/* The last bytes, at most 64 KiB, until more come; NULL if there are none. */
const char *dm_capture_tail(const struct dm_capture *capture, size_t *length);
uint64_t dm_capture_lost(const struct dm_capture *capture); /* bytes that `target` did not get */
/* The child is dead: takes what is still in the pipe, and stops even if somebody holds it open. */
void dm_capture_finish(struct dm_capture *capture);
void dm_capture_close(struct dm_capture *capture); /* on_freed follows from the loop */
int dm_capture_fd(const struct dm_capture *c);     /* the same until it is closed */
