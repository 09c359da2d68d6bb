/* deathwatch.c: see deathwatch.h. The watcher is a fork without exec: it makes system calls only,
 * and what it has of our memory is shared as long as neither writes to it. */
#include "process/deathwatch.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* At most 4096 workers are wanted, and twice as many live in a restart. */
enum { GROUPS_MAX = 16384 };

/* The one signal that wakes it; everything else is blocked. */
enum { DEATH_SIGNAL = SIGUSR1 };

static _Noreturn void watch_over(const pid_t *groups, pid_t master) {
    sigset_t all, death;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigemptyset(&death);
    sigaddset(&death, DEATH_SIGNAL);
    /* A listener that it kept would outlive the master's own end of it. */
    syscall(SYS_close_range, 0, ~0U, 0);
    setsid(); /* signals to the terminal's or the service's group are not for us */
    (void)!chdir("/");
    prctl(PR_SET_NAME, "dutch-watcher");
    prctl(PR_SET_PDEATHSIG, DEATH_SIGNAL);
    while (getppid() == master) {
        siginfo_t info;
        sigwaitinfo(&death, &info);
    }
    for (int i = 0; i < GROUPS_MAX; i++) {
        if (groups[i] > 1) {
            kill(-groups[i], SIGKILL);
        }
    }
    _exit(0);
}

int dm_deathwatch_start(struct dm_deathwatch *watch, struct dm_reaper *reaper) {
    if (reaper->attendant != 0) {
        return 0;
    }
    if (!watch->groups) {
        void *memory = mmap(NULL, GROUPS_MAX * sizeof *watch->groups, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            return -errno;
        }
        watch->groups = memory;
    }
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* no handler of ours may run in it */
    const pid_t master = getpid();
    /* Not fork(): handlers of libraries have no business in it. */
    const pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0);
    if (pid == 0) {
        watch_over(watch->groups, master);
    }
    const int error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) {
        return -error;
    }
    reaper->attendant = pid;
    return 0;
}

void dm_deathwatch_add(struct dm_deathwatch *watch, pid_t group) {
    for (int i = 0; i < GROUPS_MAX; i++) {
        if (watch->groups[i] == 0) {
            watch->groups[i] = group;
            return;
        }
    }
}

void dm_deathwatch_remove(struct dm_deathwatch *watch, pid_t group) {
    for (int i = 0; watch->groups && i < GROUPS_MAX; i++) {
        if (watch->groups[i] == group) {
            watch->groups[i] = 0;
            return;
        }
    }
}

void dm_deathwatch_stop(struct dm_deathwatch *watch, struct dm_reaper *reaper) {
    dm_reaper_end_attendant(reaper);
    if (watch->groups) {
        munmap(watch->groups, GROUPS_MAX * sizeof *watch->groups);
        watch->groups = NULL;
    }
}
