/* outlive.c: see outlive.h. */
#include "base/outlive.h"

#include "base/proc.h"

#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <sys/wait.h>
#include <time.h>

enum { STACK = 256 * 1024, LONGEST_S = 5 };

struct job {
    void (*work)(void *arg);
    void *arg;
};

/* Signals are blocked here, but this one comes through. Timers of a process end with it. */
static void end_in_time(void) {
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    const struct itimerspec time = {.it_value = {.tv_sec = LONGEST_S}};
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) == 0) {
        timer_settime(timer, 0, &time, NULL);
    }
}

static int run(void *data) {
    const struct job *job = data;
    end_in_time();
    job->work(job->arg);
    return 0;
}

void dm_outlive(void (*work)(void *arg), void *arg) {
    static alignas(64) char stack[STACK]; /* ours has to stay as it is */
    struct job job = {work, arg};
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before); /* a handler of ours must not run there */
    /* CLONE_VFORK: we go on when it is done. No signal says so: nobody else here waits for it. */
    const pid_t pid = clone(run, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_FILES, &job);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) {
        work(arg);
        return;
    }
    siginfo_t info;
    dm_wait(P_PID, pid, &info, WEXITED | __WALL, NULL);
}
