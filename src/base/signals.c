/* signals.c: see signals.h. */
#include "base/signals.h"

#include "base/timer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

/* Records of 128 bytes a tick; pending standard signals are 31 at most, the rest waits. */
enum { SIGNALS_PER_TICK = 32 };

static void on_readable(uv_poll_t *poll, int status, int events) {
    struct dm_signals *signals = poll->data;
    struct signalfd_siginfo info[SIGNALS_PER_TICK];
    const ssize_t n = read(signals->fd, info, sizeof info);
    for (size_t i = 0; n > 0 && i < (size_t)n / sizeof *info && signals->fd >= 0; i++) {
        signals->on_signal(signals, (int)info[i].ssi_signo, (pid_t)info[i].ssi_pid, info[i].ssi_uid,
                           dm_now_ms());
    }
}

/* What asks a process for something, as far as it would end it by default. */
static void held_signals(sigset_t *set) {
    static const int numbers[] = {SIGHUP,  SIGUSR1,   SIGUSR2, SIGTTIN,
                                  SIGTTOU, SIGVTALRM, SIGALRM, SIGIO};
    sigemptyset(set);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        sigaddset(set, numbers[i]);
    }
    for (int n = SIGRTMIN; n <= SIGRTMAX; n++) {
        sigaddset(set, n);
    }
}

void dm_signals_hold(void) {
    sigset_t set;
    held_signals(&set);
    pthread_sigmask(SIG_SETMASK, &set, NULL); /* whoever started us may have blocked others */
}

void dm_signals_release(void) {
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
}

void dm_signals_init(struct dm_signals *signals, void *data, dm_signals_cb on_signal) {
    *signals = (struct dm_signals){.fd = -1, .on_signal = on_signal, .data = data};
    held_signals(&signals->set); /* dropped by dm_signals_set where nobody wants them */
}

int dm_signals_set(struct dm_signals *signals, uv_loop_t *loop, const sigset_t *set) {
    const int fd = signalfd(signals->fd, set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    if (signals->fd < 0) {
        const int rc = dm_poll_init(loop, &signals->poll, fd);
        if (rc != 0) {
            close(fd);
            return rc;
        }
        signals->fd = fd;
        signals->poll.uv.data = signals;
        dm_poll_start(&signals->poll, UV_READABLE, on_readable);
    }
    sigset_t dropped;
    sigemptyset(&dropped);
    for (int n = 1; n < NSIG; n++) {
        if (sigismember(&signals->set, n) == 1 && sigismember(set, n) != 1) {
            sigaddset(&dropped, n);
        }
    }
    signals->set = *set;
    pthread_sigmask(SIG_BLOCK, set, NULL);
    /* What came before the change would end us now. */
    const struct timespec at_once = {0};
    while (sigtimedwait(&dropped, NULL, &at_once) > 0) {
    }
    pthread_sigmask(SIG_UNBLOCK, &dropped, NULL);
    return 0;
}

void dm_signals_deinit(struct dm_signals *signals) {
    if (signals->fd >= 0) {
        dm_poll_stop(&signals->poll);
        close(signals->fd);
        signals->fd = -1;
        dm_poll_close(&signals->poll, NULL);
    }
}

int dm_signal_number(const char *name) {
    if (strncmp(name, "SIG", 3) == 0) {
        name += 3;
    }
    if (strncmp(name, "RTMIN", 5) == 0) {
        char *end = (char *)(uintptr_t)(name + 5);
        const bool given = end[0] == '+' && end[1] >= '0' && end[1] <= '9';
        const long offset = given ? strtol(end + 1, &end, 10) : 0;
        const bool valid = *end == '\0' && offset >= 0 && offset <= SIGRTMAX - SIGRTMIN;
        return valid ? SIGRTMIN + (int)offset : 0;
    }
    for (int n = 1; n < SIGRTMIN; n++) {
        const char *known = sigabbrev_np(n);
        if (known && strcmp(known, name) == 0) {
            return n;
        }
    }
    return 0;
}

const char *dm_signal_name(int number, char buffer[16]) {
    if (number >= SIGRTMIN && number <= SIGRTMAX) {
        snprintf(buffer, 16, "SIGRTMIN+%d", number - SIGRTMIN);
        return buffer;
    }
    const char *known = number > 0 ? sigabbrev_np(number) : NULL;
    if (!known) {
        return NULL;
    }
    snprintf(buffer, 16, "SIG%s", known);
    return buffer;
}
