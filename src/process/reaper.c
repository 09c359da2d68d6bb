/* reaper.c: see reaper.h. Signals go to a process group only while its leader is unreaped: until
 * then its number cannot belong to anybody else. Never to 0, 1 or a negative number. */
#include "process/reaper.h"

#include "base/timer.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* linux/wait.h; missing in glibc's headers before 2.36. */
enum { DM_P_PIDFD = 3 };

/* Zombies a tick. A fork storm of orphans must not keep everybody else waiting. */
enum { SWEEP_MAX = 1024 };

static void kill_group(pid_t leader) {
    if (leader > 1) {
        kill(-leader, SIGKILL);
    }
}

/* By pidfd; where that is missing or forbidden (old seccomp profiles, valgrind) by number, which is
 * as sure as long as nobody but us reaps. */
static int send_signal(pid_t pid, int pidfd, int number) {
    if (syscall(SYS_pidfd_send_signal, pidfd, number, NULL, 0) == 0) {
        return 0;
    }
    if ((errno != ENOSYS && errno != EPERM) || pid <= 1) {
        return -errno;
    }
    return kill(pid, number) == 0 ? 0 : -errno;
}

int dm_leader_signal(const struct dm_leader *leader, int number) {
    return leader->pidfd < 0 ? -ESRCH : send_signal(leader->pid, leader->pidfd, number);
}

/* The system call has a fifth argument that libc's waitid hides: the usage. */
static int wait_for(int type, int id, siginfo_t *info, int options, struct rusage *usage) {
    info->si_pid = 0;
    long rc;
    do {
        rc = syscall(SYS_waitid, type, id, info, options, usage);
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

static void set_exit(struct dm_exit *result, const siginfo_t *info) {
    result->code = info->si_status;
    result->signaled = info->si_code != CLD_EXITED;
    result->core = info->si_code == CLD_DUMPED;
}

/* False if it has not exited. Nothing of its group outlives it. */
static bool reap(struct dm_leader *leader) {
    siginfo_t info;
    if (wait_for(DM_P_PIDFD, leader->pidfd, &info, WEXITED | WNOHANG | WNOWAIT, NULL) != 0 ||
        info.si_pid == 0) {
        return false;
    }
    if (leader->before_reap) {
        leader->before_reap(leader);
    }
    kill_group(leader->pid);
    if (wait_for(DM_P_PIDFD, leader->pidfd, &info, WEXITED | WNOHANG, &leader->exit.usage) != 0) {
        return false;
    }
    set_exit(&leader->exit, &info);
    uv_poll_stop(&leader->poll);
    close(leader->pidfd);
    leader->pidfd = -1;
    dm_list_remove(&leader->link);
    dm_list_append(&leader->reaper->reaped, &leader->link);
    leader->reaper->count--;
    return true;
}

static void report(struct dm_reaper *reaper) {
    while (!dm_list_empty(&reaper->reaped)) {
        struct dm_leader *leader = dm_container(reaper->reaped.next, struct dm_leader, link);
        dm_list_remove(&leader->link);
        leader->on_reaped(leader);
    }
}

static struct dm_leader *find(struct dm_reaper *reaper, pid_t pid) {
    for (struct dm_link *l = reaper->alive.next; l != &reaper->alive; l = l->next) {
        struct dm_leader *leader = dm_container(l, struct dm_leader, link);
        if (leader->pid == pid) {
            return leader;
        }
    }
    return NULL;
}

struct orphan {
    pid_t pid;
    struct dm_exit exit;
};

/* Its number may come again, for another. */
static void forget_brought(struct dm_reaper *reaper, pid_t pid) {
    for (size_t i = 0; i < reaper->brought_count; i++) {
        if (reaper->brought[i] == pid) {
            reaper->brought[i] = 0;
        }
    }
}

/* WNOWAIT shows the same zombie until it is reaped; so each one seen is. */
static void sweep(struct dm_reaper *reaper) {
    struct orphan orphans[64];
    size_t n = 0;
    for (int i = 0; i < SWEEP_MAX && n < sizeof orphans / sizeof *orphans; i++) {
        siginfo_t info;
        if (wait_for(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT, NULL) != 0 || info.si_pid == 0) {
            break;
        }
        struct dm_leader *leader = find(reaper, info.si_pid);
        if (leader ? !reap(leader)
                   : wait_for(P_PID, info.si_pid, &info, WEXITED | WNOHANG,
                              &orphans[n].exit.usage) != 0) {
            break;
        }
        if (!leader) {
            forget_brought(reaper, info.si_pid);
            orphans[n].pid = info.si_pid;
            set_exit(&orphans[n++].exit, &info);
        }
        if (i == SWEEP_MAX - 1 || n == sizeof orphans / sizeof *orphans) {
            kill(getpid(), SIGCHLD); /* more next time */
        }
    }
    report(reaper);
    for (size_t i = 0; i < n && reaper->on_orphan; i++) {
        reaper->on_orphan(reaper, orphans[i].pid, &orphans[i].exit);
    }
}

static void on_sigchld(struct dm_signals *signals, int number, pid_t sender, uid_t sender_uid) {
    (void)number;
    (void)sender;
    (void)sender_uid;
    sweep(signals->data);
}

static void on_pidfd(uv_poll_t *poll, int status, int events) {
    (void)status;
    (void)events;
    struct dm_leader *leader = poll->data;
    if (leader->pidfd >= 0 && reap(leader)) {
        report(leader->reaper);
    }
}

int dm_reaper_init(struct dm_reaper *reaper, uv_loop_t *loop) {
    *reaper = (struct dm_reaper){.loop = loop};
    dm_list_init(&reaper->alive);
    dm_list_init(&reaper->reaped);
    dm_signals_init(&reaper->sigchld, reaper, on_sigchld);

    const size_t brought = dm_reaper_adopted(reaper, reaper->brought, DM_BROUGHT_MAX);
    reaper->brought_count = brought < DM_BROUGHT_MAX ? brought : DM_BROUGHT_MAX;

    /* Ignored by whoever started us, exits would go unseen. */
    signal(SIGCHLD, SIG_DFL);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    return dm_signals_set(&reaper->sigchld, loop, &set);
}

/* Those whom even SIGKILL did not end in time are let go. */
void dm_reaper_deinit(struct dm_reaper *reaper) {
    while (!dm_list_empty(&reaper->alive)) {
        struct dm_leader *leader = dm_container(reaper->alive.next, struct dm_leader, link);
        uv_poll_stop(&leader->poll);
        close(leader->pidfd);
        leader->pidfd = -1;
        dm_list_remove(&leader->link);
        dm_list_append(&reaper->reaped, &leader->link);
        reaper->count--;
    }
    report(reaper);
    dm_signals_deinit(&reaper->sigchld);
}

static void on_closed(uv_handle_t *handle) {
    struct dm_leader *leader = handle->data;
    leader->on_closed(leader);
}

int dm_reaper_add(struct dm_reaper *reaper, struct dm_leader *leader) {
    const int rc = uv_poll_init(reaper->loop, &leader->poll, leader->pidfd);
    if (rc != 0) {
        return rc;
    }
    leader->poll.data = leader;
    leader->reaper = reaper;
    dm_list_append(&reaper->alive, &leader->link);
    reaper->count++;
    uv_poll_start(&leader->poll, UV_READABLE, on_pidfd);
    return 0;
}

void dm_reaper_close(struct dm_leader *leader) {
    uv_close((uv_handle_t *)&leader->poll, on_closed);
}

void dm_reaper_abandon(pid_t pid, int pidfd) {
    siginfo_t info;
    send_signal(pid, pidfd, SIGKILL);
    kill_group(pid);
    /* WNOWAIT is not needed: nobody knows of it yet. */
    wait_for(P_PID, pid, &info, WEXITED, NULL);
    close(pidfd);
}

static void signal_all(struct dm_reaper *reaper, int number) {
    for (struct dm_link *l = reaper->alive.next; l != &reaper->alive; l = l->next) {
        const struct dm_leader *leader = dm_container(l, struct dm_leader, link);
        if (number == SIGKILL) {
            kill_group(leader->pid);
        }
        dm_leader_signal(leader, number);
    }
}

static void reap_until(struct dm_reaper *reaper, uint64_t deadline_ms) {
    while (!dm_list_empty(&reaper->alive)) {
        for (struct dm_link *l = reaper->alive.next, *next; l != &reaper->alive; l = next) {
            next = l->next;
            reap(dm_container(l, struct dm_leader, link));
        }
        const uint64_t now = dm_now_ms();
        if (dm_list_empty(&reaper->alive) || now >= deadline_ms) {
            return;
        }
        struct pollfd first = {
            .fd = dm_container(reaper->alive.next, struct dm_leader, link)->pidfd,
            .events = POLLIN,
        };
        poll(&first, 1, (int)(deadline_ms - now));
    }
}

void dm_reaper_stop_all(struct dm_reaper *reaper, uint64_t grace_ms) {
    if (dm_list_empty(&reaper->alive)) {
        return;
    }
    signal_all(reaper, SIGTERM);
    signal_all(reaper, SIGCONT); /* a stopped process acts on SIGTERM only then */
    reap_until(reaper, dm_now_ms() + grace_ms);
    signal_all(reaper, SIGKILL);
    /* ms. An unkillable process (state D) must not hold up the end. */
    reap_until(reaper, dm_now_ms() + 2000);
}

/* Whoever becomes this program by exec may have had children, which are none of its business. */
static bool was_here(const struct dm_reaper *reaper, pid_t pid) {
    for (size_t i = 0; i < reaper->brought_count; i++) {
        if (reaper->brought[i] == pid) {
            return true;
        }
    }
    return false;
}

static size_t read_children(struct dm_reaper *reaper, const char *task, pid_t *pids, size_t max,
                            size_t n) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%.20s/children", task);
    FILE *file = fopen(path, "re");
    int pid;
    while (file && fscanf(file, "%d", &pid) == 1) {
        if (pid > 1 && !find(reaper, pid) && !was_here(reaper, pid)) {
            if (n < max) {
                pids[n] = pid;
            }
            n++;
        }
    }
    if (file) {
        fclose(file);
    }
    return n;
}

size_t dm_reaper_adopted(struct dm_reaper *reaper, pid_t *pids, size_t max) {
    DIR *tasks = opendir("/proc/self/task");
    size_t n = 0;
    const struct dirent *entry;
    while (tasks && (entry = readdir(tasks))) {
        if (entry->d_name[0] != '.') {
            n = read_children(reaper, entry->d_name, pids, max, n);
        }
    }
    if (tasks) {
        closedir(tasks);
    }
    return n;
}

static void end_orphan(pid_t pid, uint64_t deadline_ms) {
    struct pollfd gone = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};
    kill(pid, SIGKILL); /* it is ours and unreaped, so the number is its own */
    const uint64_t now = dm_now_ms();
    if (gone.fd >= 0) {
        poll(&gone, 1, now < deadline_ms ? (int)(deadline_ms - now) : 0);
        close(gone.fd);
    }
    siginfo_t info;
    wait_for(P_PID, pid, &info, WEXITED | WNOHANG, NULL);
}

size_t dm_reaper_kill_adopted(struct dm_reaper *reaper, uint64_t limit_ms) {
    const uint64_t deadline_ms = dm_now_ms() + limit_ms;
    pid_t pids[64];
    size_t killed = 0;
    size_t n;
    /* The children of one that dies become ours. */
    while ((n = dm_reaper_adopted(reaper, pids, sizeof pids / sizeof *pids)) > 0) {
        n = n < sizeof pids / sizeof *pids ? n : sizeof pids / sizeof *pids;
        for (size_t i = 0; i < n; i++, killed++) {
            end_orphan(pids[i], deadline_ms);
        }
        if (dm_now_ms() >= deadline_ms) {
            break;
        }
    }
    return killed;
}
