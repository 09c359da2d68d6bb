/* channel.h: lines to and from a child over a stream socketpair. The other end is not trusted: its
 * lines are bounded, its descriptors closed unless they are taken, what it does not read waits in a
 * bounded queue, and it is read by a budget so that its siblings are served. It closes once,
 * whatever the cause, and no failure here ever ends a process. */
#pragma once

#include "base/lines.h"
#include "base/timer.h"
#include "keeper/kept.h"

struct dm_channel;

struct dm_channel_events {
    void (*on_line)(void *ctx, const char *line, size_t length, bool had_fd);
    /* A line of `length` bytes was too long, and is lost. */
    void (*on_skipped)(void *ctx, size_t length, bool had_fd);
    /* `reason` NULL: the other end closed. Not called for dm_channel_close. */
    void (*on_closed)(void *ctx, const char *reason);
    void (*on_freed)(void *ctx);
};

/* Takes over `fd`. NULL: no memory, and `fd` is still the caller's. */
struct dm_channel *dm_channel_open(uv_loop_t *loop, struct dm_timers *timers, int fd,
                                   const struct dm_channel_events *events, void *ctx);

/* Adds the newline. `fd` (or -1) goes with the line's first byte and stays the caller's. now: a
 * keeper does not have to know of it first. 0, UV_EPIPE (closed), UV_ENOBUFS (too much is waiting),
 * or UV_ENOMEM, UV_EMFILE. */
int dm_channel_send(struct dm_channel *channel, const char *line, size_t length, int fd, bool now);
void dm_channel_pause(struct dm_channel *channel, bool paused);
/* In on_line with had_fd: the descriptor that came with the line, the caller's from now on; -1 if
 * it was taken before. */
int dm_channel_take_fd(struct dm_channel *channel);
/* Reads what is there now, paused or not, up to `budget` bytes. */
void dm_channel_drain(struct dm_channel *channel, size_t budget);
/* What it is in the middle of is marked for the next master: see kept.h. index -1: a new mark; or
 * that of the channel of a dead master. That may have read half of a line: then what comes is
 * skipped to the end of its line; or written half of one: then nothing more is sent. */
enum dm_keeper_mark dm_channel_keep(struct dm_channel *channel, struct dm_kept *kept, int index);
/* Whether the other end has not read all that was sent to it, by a former master too. */
bool dm_channel_is_unread(const struct dm_channel *channel);
int dm_channel_mark(const struct dm_channel *channel); /* its index, -1 if there is none */
int dm_channel_fd(const struct dm_channel *channel);
/* At once: no event follows but on_freed, from the loop. */
void dm_channel_close(struct dm_channel *channel);
