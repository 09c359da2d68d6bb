/* command.c: see command.h. The child is reaped here, before control returns to the loop, by its
 * pidfd: the reaper of workers never sees it. It has a process group of its own, so that at the
 * deadline whatever it started goes with it. A process it leaves in the background after a normal
 * end lives on, as with system(3). */
#include "process/command.h"

#include "process/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

enum {
    OUTPUT_MAX = 16 << 20, /* bytes: what a hook may reasonably read, far below its memory */
    OUTPUT_STEP = 64 << 10,
    EXIT_NO_SHELL = 127, /* as sh itself and system(3) do */
};

uint64_t dm_command_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* In the child: only what is safe between fork and exec. */
static _Noreturn void become(const char *command, const char *directory, int out, pid_t master) {
    struct sigaction plain = {.sa_handler = SIG_DFL};
    sigset_t none;
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != master) {
        _exit(EXIT_NO_SHELL);
    }
    for (int i = 1; i < NSIG; i++) {
        sigaction(i, &plain, NULL);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    const int null = open("/dev/null", O_RDONLY);
    if (null >= 0) {
        dup2(null, 0);
    }
    if (out >= 0) {
        dup2(out, 1);
    }
    syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC);
    dm_spawn_restore_descriptors();
    if (directory && chdir(directory) != 0) {
        _exit(EXIT_NO_SHELL);
    }
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(EXIT_NO_SHELL);
}

/* Reads what is there. 1: more may come; 0: end; negative: failed. */
static int collect(int fd, struct dm_output *output) {
    for (;;) {
        if (output->size >= OUTPUT_MAX) {
            return -EFBIG;
        }
        if (output->size + OUTPUT_STEP > output->capacity) {
            const size_t capacity = 2 * output->capacity + OUTPUT_STEP;
            char *data = realloc(output->data, capacity);
            if (!data) {
                return -ENOMEM;
            }
            output->data = data;
            output->capacity = capacity;
        }
        const ssize_t n = read(fd, output->data + output->size, OUTPUT_STEP);
        if (n == 0) {
            return 0;
        } else if (n > 0) {
            output->size += (size_t)n;
        } else if (errno != EINTR) {
            return errno == EAGAIN ? 1 : -errno;
        }
    }
}

/* Until the child has exited. What it wrote before is in the pipe by then. */
static int await(int pidfd, int in, uint64_t deadline, struct dm_output *output) {
    struct pollfd fds[2] = {{.fd = pidfd, .events = POLLIN}, {.fd = in, .events = POLLIN}};
    for (;;) {
        const uint64_t now = dm_command_clock();
        if (now >= deadline) {
            return -ETIMEDOUT;
        }
        const uint64_t left = deadline - now;
        if (poll(fds, 2, left > 60000 ? 60000 : (int)left) < 0 && errno != EINTR) {
            return -errno;
        }
        if (fds[1].fd >= 0 && fds[1].revents) {
            const int rc = collect(in, output);
            if (rc < 0) {
                return rc;
            } else if (rc == 0) {
                fds[1].fd = -1;
            }
        }
        if (fds[0].revents) {
            return fds[1].fd >= 0 && output ? (collect(in, output) < 0 ? -EFBIG : 0) : 0;
        }
    }
}

static int reap(int pidfd, int *status) {
    siginfo_t info = {0};
    int rc;
    do {
        rc = waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED);
    } while (rc < 0 && errno == EINTR);
    if (rc < 0) {
        return -errno;
    }
    *status = info.si_code == CLD_EXITED   ? info.si_status << 8
              : info.si_code == CLD_DUMPED ? info.si_status | 0x80
                                           : info.si_status;
    return 0;
}

int dm_command_run(const char *command, const char *directory, uint64_t deadline,
                   struct dm_output *output, int *status) {
    int pipe_fds[2] = {-1, -1};
    int pidfd = -1;
    if (output && pipe2(pipe_fds, O_CLOEXEC) != 0) {
        return -errno;
    }
    if (output) {
        fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK);
    }
    const pid_t master = getpid();
    /* Not fork(3): it has no pidfd, and between two calls a number could change hands. */
    const long pid = syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, &pidfd, NULL, NULL);
    if (pid == 0) {
        become(command, directory, pipe_fds[1], master);
    }
    int rc = pid < 0 ? -errno : 0;
    if (output) {
        close(pipe_fds[1]);
    }
    if (rc == 0) {
        setpgid((pid_t)pid, (pid_t)pid); /* in both, whoever comes first */
        rc = await(pidfd, pipe_fds[0], deadline, output);
        if (rc != 0) {
            kill((pid_t)-pid, SIGKILL); /* not reaped yet, so the number is still its own */
            syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
        }
        const int reaped = reap(pidfd, status);
        rc = rc ? rc : reaped;
        close(pidfd);
    }
    if (output) {
        close(pipe_fds[0]);
    }
    return rc;
}
