/* timer.h: deadlines that are judged fairly. A timer fires after the poll phase, when whatever was
 * readable before has been dispatched: a message that came in time counts even if the loop was
 * late. If the loop itself stood still (stopped process, blocked callback), all deadlines move by
 * as much. */
#pragma once

#include "base/list.h"

#include <stdint.h>
#include <uv.h>

struct dm_timers {
    uv_loop_t *loop;
    uv_timer_t clock; /* runs for the earliest deadline */
    uv_idle_t idle;   /* keeps the poll phase from blocking once a deadline has passed */
    uv_prepare_t prepare;
    uv_check_t check;
    struct dm_link armed; /* ordered by deadline */
    uint64_t alive_ms;    /* last time at which the loop was known not to stand still */
    uint64_t held_ms;     /* when it was first known that something is due */
    int held_ticks;
    bool due, hold;
};

struct dm_timer {
    struct dm_link link;
    struct dm_timers *timers;
    uint64_t due_ms;
    void (*on_due)(struct dm_timer *timer);
};

uint64_t dm_now_ms(void); /* monotonic, read afresh */

void dm_timers_init(struct dm_timers *timers, uv_loop_t *loop);
void dm_timers_deinit(struct dm_timers *timers);
/* Somebody had more to read than one tick allows: due timers wait for the next, a few times at
 * most. */
void dm_timers_hold(struct dm_timers *timers);

void dm_timer_init(struct dm_timer *timer, struct dm_timers *timers,
                   void (*on_due)(struct dm_timer *timer));
void dm_timer_start(struct dm_timer *timer, uint64_t ms); /* replaces an earlier start */
void dm_timer_stop(struct dm_timer *timer);
