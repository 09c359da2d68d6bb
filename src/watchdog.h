/* watchdog.h: tells that a time is over although the thread is busy: a signal comes, and its
 * handler calls on_time, again and again until the watchdog is stopped. The signal also interrupts
 * a system call that would block, such as open() of a fifo. Watchdogs nest; the innermost alone is
 * awake. For the one thread of the loop. */
#pragma once

#include <signal.h>
#include <stdint.h>

/* Nobody else may use it, so it is no signal to the master. */
#define DM_WATCHDOG_SIGNAL SIGVTALRM

struct dm_watchdog {
    uint64_t deadline_ms;       /* as dm_command_clock() */
    void (*on_time)(void *ctx); /* runs in the signal's handler */
    void *ctx;
    struct dm_watchdog *outer;
};

/* The struct stays where it is until it is stopped. Where the system has no timer left it sleeps:
 * it may not be the only thing that looks at the clock. */
void dm_watchdog_start(struct dm_watchdog *watchdog);
void dm_watchdog_stop(struct dm_watchdog *watchdog);
