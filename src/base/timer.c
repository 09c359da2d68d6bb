/* timer.c: see timer.h. libuv runs expired timers before it polls, and with a cached time; so one
 * uv timer only marks that something is due, and the check phase, which follows polling, runs it.
 */
#include "base/timer.h"

/* ms. A loop that late was stopped or blocked; below it is the ordinary lateness of a busy machine.
 */
static const uint64_t STALL_MS = 1000;

/* Ticks. A unix socket's 208 KiB, read at 16 KiB a tick at least (READ_BYTES of channel.c), twice
 * over: then the flood is no backlog. A tick of one channel takes a millisecond or one such read.
 */
enum { HOLD_TICKS_MAX = 32 };

/* ms. The same where many flood, so that such ticks are long. */
static const uint64_t HOLD_MAX_MS = 1000;

uint64_t dm_now_ms(void) {
    return uv_hrtime() / 1000000;
}

static struct dm_timer *earliest(const struct dm_timers *timers) {
    return dm_list_empty(&timers->armed) ? NULL
                                         : dm_container(timers->armed.next, struct dm_timer, link);
}

/* ms. A turn of due timers ends after that, so that what became readable is not kept waiting. */
static const uint64_t TURN_MS = 10;

/* Late because the loop stood still, not because many were due at once. */
static bool is_late(const struct dm_timers *timers, uint64_t now) {
    const struct dm_timer *first = earliest(timers);
    return first && now > first->due_ms + STALL_MS && now > timers->alive_ms + STALL_MS;
}

static void on_idle(uv_idle_t *idle) {
}

static void on_clock(uv_timer_t *clock) {
    struct dm_timers *timers = clock->data;
    timers->due = true;
    timers->held_ticks = 0;
    timers->held_ms = uv_now(timers->loop);
    uv_idle_start(&timers->idle, on_idle);
}

static void set_clock(struct dm_timers *timers) {
    const struct dm_timer *first = earliest(timers);
    if (!first) {
        uv_timer_stop(&timers->clock);
        return;
    }
    const uint64_t now = uv_now(timers->loop);
    uv_timer_start(&timers->clock, on_clock, first->due_ms > now ? first->due_ms - now : 0, 0);
}

/* How long the loop stood still is known only to have been between alive_ms and now; the whole of
 * it is taken, since a deadline that comes late is harmless and one that comes early kills a
 * worker. */
static void rebase(struct dm_timers *timers, uint64_t now) {
    const uint64_t stall = now - timers->alive_ms;
    for (struct dm_link *l = timers->armed.next; l != &timers->armed; l = l->next) {
        dm_container(l, struct dm_timer, link)->due_ms += stall;
    }
}

/* Those that were due by `now`, in their order; whether some are left for the next turn. */
static bool run_due(struct dm_timers *timers, uint64_t now) {
    const uint64_t end_ms = dm_now_ms() + TURN_MS;
    struct dm_timer *timer;
    while ((timer = earliest(timers)) && timer->due_ms <= now) {
        dm_list_remove(&timer->link);
        timer->on_due(timer);
        if (dm_now_ms() >= end_ms) {
            break;
        }
    }
    timer = earliest(timers);
    return timer && timer->due_ms <= now;
}

static void on_prepare(uv_prepare_t *prepare) {
    struct dm_timers *timers = prepare->data;
    const uint64_t now = uv_now(timers->loop);
    if (is_late(timers, now)) {
        rebase(timers, now);
        set_clock(timers);
    }
    timers->alive_ms = now;
}

static void on_check(uv_check_t *check) {
    struct dm_timers *timers = check->data;
    const uint64_t now = uv_now(timers->loop); /* when polling ended, before the I/O callbacks */
    const bool hold = timers->hold;
    timers->hold = false;
    if (is_late(timers, now)) {
        return; /* stood still while polling: the next prepare moves the deadlines */
    }
    timers->alive_ms = now;
    if (!timers->due ||
        (hold && ++timers->held_ticks < HOLD_TICKS_MAX && now - timers->held_ms < HOLD_MAX_MS)) {
        return;
    }
    if (!run_due(timers, now)) {
        timers->due = false;
        uv_idle_stop(&timers->idle);
        set_clock(timers);
    }
}

void dm_timers_hold(struct dm_timers *timers) {
    timers->hold = true;
}

void dm_timers_init(struct dm_timers *timers, uv_loop_t *loop) {
    *timers = (struct dm_timers){.loop = loop, .alive_ms = uv_now(loop)};
    dm_list_init(&timers->armed);
    uv_timer_init(loop, &timers->clock);
    uv_idle_init(loop, &timers->idle);
    uv_prepare_init(loop, &timers->prepare);
    uv_check_init(loop, &timers->check);
    timers->clock.data = timers->prepare.data = timers->check.data = timers;
    uv_prepare_start(&timers->prepare, on_prepare);
    uv_check_start(&timers->check, on_check);
    uv_unref((uv_handle_t *)&timers->prepare);
    uv_unref((uv_handle_t *)&timers->check);
}

void dm_timers_deinit(struct dm_timers *timers) {
    while (!dm_list_empty(&timers->armed)) {
        dm_list_remove(timers->armed.next);
    }
    uv_close((uv_handle_t *)&timers->clock, NULL);
    uv_close((uv_handle_t *)&timers->idle, NULL);
    uv_close((uv_handle_t *)&timers->prepare, NULL);
    uv_close((uv_handle_t *)&timers->check, NULL);
}

void dm_timer_init(struct dm_timer *timer, struct dm_timers *timers,
                   void (*on_due)(struct dm_timer *timer)) {
    *timer = (struct dm_timer){.timers = timers, .on_due = on_due};
    dm_list_init(&timer->link);
}

void dm_timer_start(struct dm_timer *timer, uint64_t ms) {
    struct dm_timers *timers = timer->timers;
    dm_list_remove(&timer->link);
    timer->due_ms = dm_now_ms() + ms;
    /* From the end: most deadlines are of one length, so the newest is the last. */
    struct dm_link *where = timers->armed.prev;
    while (where != &timers->armed &&
           dm_container(where, struct dm_timer, link)->due_ms > timer->due_ms) {
        where = where->prev;
    }
    dm_list_insert_after(where, &timer->link);
    if (earliest(timers) == timer) {
        set_clock(timers);
    }
}

void dm_timer_stop(struct dm_timer *timer) {
    dm_list_remove(&timer->link);
}
