/* alarm.c: see alarm.h. A timer of the process, not setitimer: it runs on the monotonic
 * clock, and children do not inherit it. */
#include "sandbox/alarm.h"

#include "process/command.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

/* ns. A signal may come just before the system call that it should interrupt; the next one does. */
enum { AGAIN_NS = 10 * 1000 * 1000 };

static struct dm_alarm *volatile innermost;
static timer_t timer;
static enum { UNTRIED, MADE, FAILED } state;

static void on_signal(int number) {
    (void)number;
    const int saved = errno;
    const struct dm_alarm *alarm = innermost;
    /* Anybody may send a signal. */
    if (alarm && dm_command_clock() >= alarm->deadline_ms) {
        alarm->on_time(alarm->ctx);
    }
    errno = saved;
}

static bool is_made(void) {
    if (state == UNTRIED) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = DM_ALARM_SIGNAL};
        const struct sigaction action = {.sa_handler =
                                             on_signal}; /* no SA_RESTART: that is the use */
        state = timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 &&
                        sigaction(DM_ALARM_SIGNAL, &action, NULL) == 0
                    ? MADE
                    : FAILED;
    }
    return state == MADE;
}

static void set_timer(const struct dm_alarm *alarm) {
    struct itimerspec when = {{0}, {0}};
    if (alarm) {
        when.it_value.tv_sec = (time_t)(alarm->deadline_ms / 1000);
        when.it_value.tv_nsec = (long)(alarm->deadline_ms % 1000) * 1000000;
        when.it_interval.tv_nsec = AGAIN_NS;
    }
    timer_settime(timer, TIMER_ABSTIME, &when, NULL);
}

void dm_alarm_start(struct dm_alarm *alarm) {
    alarm->outer = innermost;
    innermost = alarm;
    if (is_made()) {
        set_timer(alarm);
    }
}

void dm_alarm_stop(struct dm_alarm *alarm) {
    innermost = alarm->outer;
    if (is_made()) {
        set_timer(alarm->outer);
    }
}
