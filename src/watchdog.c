/* watchdog.c: see watchdog.h. A timer of the process, not setitimer: it runs on the monotonic
 * clock, and children do not inherit it. */
#include "watchdog.h"

#include "command.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

/* ns. A signal may come just before the system call that it should interrupt; the next one does. */
enum { AGAIN_NS = 10 * 1000 * 1000 };

static struct dm_watchdog *volatile innermost;
static timer_t timer;
static enum { UNTRIED, MADE, FAILED } state;

static void on_signal(int number) {
    (void)number;
    const int saved = errno;
    const struct dm_watchdog *watchdog = innermost;
    /* Anybody may send a signal. */
    if (watchdog && dm_command_clock() >= watchdog->deadline_ms) {
        watchdog->on_time(watchdog->ctx);
    }
    errno = saved;
}

static bool is_made(void) {
    if (state == UNTRIED) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = DM_WATCHDOG_SIGNAL};
        const struct sigaction action = {.sa_handler =
                                             on_signal}; /* no SA_RESTART: that is the use */
        state = timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 &&
                        sigaction(DM_WATCHDOG_SIGNAL, &action, NULL) == 0
                    ? MADE
                    : FAILED;
    }
    return state == MADE;
}

static void set_timer(const struct dm_watchdog *watchdog) {
    struct itimerspec when = {{0}, {0}};
    if (watchdog) {
        when.it_value.tv_sec = (time_t)(watchdog->deadline_ms / 1000);
        when.it_value.tv_nsec = (long)(watchdog->deadline_ms % 1000) * 1000000;
        when.it_interval.tv_nsec = AGAIN_NS;
    }
    timer_settime(timer, TIMER_ABSTIME, &when, NULL);
}

void dm_watchdog_start(struct dm_watchdog *watchdog) {
    watchdog->outer = innermost;
    innermost = watchdog;
    if (is_made()) {
        set_timer(watchdog);
    }
}

void dm_watchdog_stop(struct dm_watchdog *watchdog) {
    innermost = watchdog->outer;
    if (is_made()) {
        set_timer(watchdog->outer);
    }
}
