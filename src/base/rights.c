/* rights.c: see rights.h. */
#include "base/rights.h"

#include "base/fdpass.h"
#include "base/proc.h"
#include "base/timer.h"

#include <errno.h>
#include <grp.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

bool dm_rights_matter(const struct dm_rights *rights) {
    return rights && geteuid() == 0 && (rights->uid != 0 || rights->gid != getegid());
}

/* Ours, and files are made as theirs: the capabilities must survive the change of the user. */
static int become_owner(const struct dm_rights *rights) {
    if (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP) != 0) {
        return -errno;
    }
    setfsgid(rights->gid);
    setfsuid(rights->uid);
    const bool done =
        (gid_t)setfsgid((gid_t)-1) == rights->gid && (uid_t)setfsuid((uid_t)-1) == rights->uid;
    return done ? 0 : -EPERM;
}

static int become(const struct dm_rights *rights) {
    if (rights->owner_only) {
        return become_owner(rights);
    }
    if (setgroups(rights->group_count, rights->groups) != 0 ||
        setresgid(rights->gid, rights->gid, rights->gid) != 0 ||
        setresuid(rights->uid, rights->uid, rights->uid) != 0) {
        return -errno;
    }
    return 0;
}

/* A listener or a client of ours that it kept would outlive our end of it, if it hangs. */
static void close_others(int one, int other) {
    const unsigned low = (unsigned)(one < other ? one : other);
    const unsigned high = (unsigned)(one < other ? other : one);
    if (low > 0) {
        syscall(SYS_close_range, 0, low - 1, 0);
    }
    if (high > low + 1) {
        syscall(SYS_close_range, low + 1, high - 1, 0);
    }
    syscall(SYS_close_range, high + 1, ~0U, 0);
}

/* In the child, with all signals blocked: the handlers are the master's. */
static _Noreturn void perform(const struct dm_rights *rights, const struct dm_rights_work *work,
                              int socket) {
    int fds[DM_RIGHTS_FDS] = {-1, -1};
    close_others(socket, work->keep >= 0 ? work->keep : socket);
    int result = become(rights);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (result == 0) {
        result = work->work(work->ctx, fds);
    }
    struct iovec parts[2] = {{.iov_base = &result, .iov_len = sizeof result},
                             {.iov_base = work->ctx, .iov_len = work->size}};
    size_t count = 0;
    while (count < DM_RIGHTS_FDS && fds[count] >= 0) {
        count++;
    }
    dm_fdpass_send(socket, parts, 2, fds, count);
    _exit(0);
}

/* > 0 once it has answered, or has ended. One that only waits for a processor, on a busy machine,
 * is held up by nobody. */
static int await_answer(int socket, pid_t pid) {
    struct pollfd answered = {.fd = socket, .events = POLLIN};
    const uint64_t began = dm_now_ms();
    uint64_t limit = DM_RIGHTS_MS;
    int ready = 0;
    for (uint64_t spent = 0; ready <= 0 && spent < limit; spent = dm_now_ms() - began) {
        ready = poll(&answered, 1, (int)(limit - spent));
        if (ready == 0 && limit < DM_RIGHTS_BUSY_MS && dm_proc_state(pid) == 'R') {
            limit += DM_RIGHTS_MS;
        }
    }
    return ready;
}

int dm_rights_collect(int socket, void *ctx, size_t size, int fds[DM_RIGHTS_FDS]) {
    int result, received[DM_FDPASS_MAX];
    char answer[sizeof result + DM_RIGHTS_CONTEXT];
    size_t count = 0;
    bool lost;
    const ssize_t n =
        dm_fdpass_receive(socket, answer, sizeof result + size, received, &count, &lost);
    if (lost || n != (ssize_t)(sizeof result + size) || count > DM_RIGHTS_FDS) {
        dm_fdpass_close(received, count);
        return lost ? -EMFILE : -ECHILD; /* somebody of that user has killed it */
    }
    memcpy(&result, answer, sizeof result);
    memcpy(ctx, answer + sizeof result, size);
    memcpy(fds, received, count * sizeof *fds);
    return result;
}

int dm_rights_start(const struct dm_rights *rights, const struct dm_rights_work *work, pid_t *pid,
                    int *pidfd, int *socket) {
    int pair[2];
    sigset_t all, before;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
        return -errno;
    }
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    *pidfd = -1;
    *pid = (pid_t)syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, pidfd, NULL, NULL);
    if (*pid == 0) {
        perform(rights, work, pair[1]);
    }
    const int error = *pid < 0 ? -errno : 0;
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(pair[1]);
    if (error) {
        close(pair[0]);
        return error;
    }
    *socket = pair[0];
    return 0;
}

int dm_rights_run(const struct dm_rights *rights, const struct dm_rights_work *work,
                  int fds[DM_RIGHTS_FDS]) {
    int pidfd, socket;
    pid_t pid;
    siginfo_t info = {0};
    fds[0] = fds[1] = -1;
    if (work->size > DM_RIGHTS_CONTEXT) {
        return -E2BIG;
    }
    if (!dm_rights_matter(rights)) {
        return work->work(work->ctx, fds);
    }
    int result = dm_rights_start(rights, work, &pid, &pidfd, &socket);
    if (result) {
        return result;
    }
    result = await_answer(socket, pid) > 0 ? dm_rights_collect(socket, work->ctx, work->size, fds)
                                           : -ETIMEDOUT;
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
    /* It may take its time to die, in a file system that hangs: then the reaper finds it. */
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    if (poll(&ended, 1, result == -ETIMEDOUT ? 0 : DM_RIGHTS_MS) > 0) {
        waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED);
    }
    close(pidfd);
    close(socket);
    return result;
}
