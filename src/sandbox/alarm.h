/* alarm.h: tells that a time is over although the thread is busy: a signal comes, and its
 * handler calls on_time, again and again until the alarm is stopped. The signal also interrupts
 * a system call that would block, such as open() of a fifo. Alarms nest; the innermost alone is
 * awake. For the one thread of the loop. */
#pragma once

#include <signal.h>
#include <stdint.h>

/* Nobody else may use it, so it is no signal to the master. */
#define DM_ALARM_SIGNAL SIGVTALRM

struct dm_alarm {
    uint64_t deadline_ms;       /* as dm_command_clock() */
    void (*on_time)(void *ctx); /* runs in the signal's handler */
    void *ctx;
    struct dm_alarm *outer;
};

/* The struct stays where it is until it is stopped. Where the system has no timer left it sleeps:
 * it may not be the only thing that looks at the clock. */
void dm_alarm_start(struct dm_alarm *alarm);
void dm_alarm_stop(struct dm_alarm *alarm);
