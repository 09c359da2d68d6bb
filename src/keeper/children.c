/* children.c: see children.h. */
#include "keeper/children.h"

#include "base/close.h"
#include "base/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum {
    UNKNOWN_EXIT = 255, /* of a child whose end nobody saw */
    KILL_MS = 2000,     /* what SIGTERM does not end has so long to end by SIGKILL */
};

static void unwatch(const struct dm_children *c, const struct dm_keeper_held *held) {
    if (held->elsewhere) {
        epoll_ctl(c->elsewhere, EPOLL_CTL_DEL, held->fd, NULL);
    }
}

void dm_children_drop(struct dm_children *c, struct dm_keeper_held *held) {
    if (held) {
        unwatch(c, held); /* the master has a copy: to close ours would not do it */
        dm_close_foreign(&held->fd);
        dm_held_remove(&c->held, held);
    }
}

void dm_children_put(struct dm_children *c, const char *name, int fd, pid_t pid) {
    dm_children_drop(c, dm_held_find(&c->held, name));
    const bool is_held =
        fd >= 0 && strlen(name) < DM_KEEPER_NAME && dm_held_put(&c->held, name, fd, pid) == 0;
    if (!is_held) {
        dm_close_foreign(&fd);
    }
}

/* What the kernel tells of a process that somebody else has reaped (Linux 6.15; its header is
 * younger than most). */
static bool look_up_exit(struct dm_keeper_held *held) {
    enum { EXIT = 8 };
    struct {
        uint64_t mask, cgroup;
        uint32_t ids[11];
        int32_t status;
    } info = {.mask = EXIT};
    if (ioctl(held->fd, _IOWR(0xFF, 11, char[64]), &info) != 0 || !(info.mask & EXIT)) {
        return false;
    }
    const bool signaled = WIFSIGNALED(info.status);
    dm_held_note_exit(held, signaled ? WTERMSIG(info.status) : WEXITSTATUS(info.status), signaled,
                      signaled && WCOREDUMP(info.status));
    return true;
}

/* Of a process that is nobody's here its descriptor alone tells that it has ended. */
static void note_end_elsewhere(const struct dm_children *c, struct dm_keeper_held *held) {
    struct pollfd gone = {.fd = held->fd, .events = POLLIN};
    if (poll(&gone, 1, 0) == 1) {
        unwatch(c, held);
        held->ended = held->reaped = 1;
        if (!held->exit_known && !look_up_exit(held)) {
            dm_held_note_exit(held, UNKNOWN_EXIT, false, false);
        }
    }
}

void dm_children_note_end(struct dm_children *c, struct dm_keeper_held *held) {
    siginfo_t info;
    if (held->pid <= 0 || held->ended) {
        return;
    }
    if (held->elsewhere) {
        note_end_elsewhere(c, held);
        return;
    }
    const int rc = dm_wait(P_PIDFD, held->fd, &info, WEXITED | WNOHANG | WNOWAIT, &held->usage);
    if (rc == 0 && info.si_pid != 0) {
        held->ended = 1;
        dm_held_note_exit(held, info.si_status, info.si_code != CLD_EXITED,
                          info.si_code == CLD_DUMPED);
    } else if (rc == -ECHILD && !c->master) { /* it would be ours: a dead master has reaped it */
        held->ended = held->reaped = 1;
        held->code = held->exit_known ? held->code : UNKNOWN_EXIT;
    }
}

static bool reap_stranger(struct dm_children *c, pid_t pid) {
    siginfo_t info;
    const struct dm_keeper_held *held = dm_held_pid(&c->held, pid);
    if (pid == c->master || (held && !held->reaped) ||
        dm_wait(P_PID, pid, &info, WEXITED | WNOHANG, NULL) != 0 || info.si_pid == 0) {
        return false;
    }
    for (int i = 0; i < DM_KEEPER_BEFORE; i++) { /* its number may come again, for another */
        c->before_us[i] = c->before_us[i] == pid ? 0 : c->before_us[i];
    }
    return true;
}

/* -> how many children there are for which `each` is true */
static int count(struct dm_children *c, bool (*each)(struct dm_children *c, pid_t pid)) {
    char path[64], text[4096];
    int found = 0;
    pid_t pid = 0;
    ssize_t size;
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && (size = read(fd, text, sizeof text)) > 0) {
        for (ssize_t i = 0; i < size; i++) {
            if (text[i] >= '0' && text[i] <= '9') {
                pid = pid * 10 + (text[i] - '0');
            } else if (pid > 1) {
                found += each(c, pid);
                pid = 0;
            }
        }
    }
    dm_close(&fd);
    return found;
}

/* Strangers are reaped as they come. WNOWAIT shows the same zombie again and again: behind one that
 * is kept, the others are looked for by their numbers. */
void dm_children_sweep(struct dm_children *c) {
    siginfo_t info;
    while (dm_wait(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT, NULL) == 0 && info.si_pid != 0) {
        if (!reap_stranger(c, info.si_pid)) {
            for (uint32_t i = 0; i < c->held.count; i++) {
                dm_children_note_end(c, &c->held.items[i]);
            }
            while (count(c, reap_stranger) > 0) {
            }
            return;
        }
    }
}

void dm_children_look_elsewhere(struct dm_children *c, bool has_news) {
    for (uint32_t i = 0; has_news && i < c->held.count; i++) {
        if (c->held.items[i].elsewhere) {
            dm_children_note_end(c, &c->held.items[i]);
        }
    }
}

static bool note_before_us(struct dm_children *c, pid_t pid) {
    for (int i = 0; i < DM_KEEPER_BEFORE; i++) {
        if (c->before_us[i] == 0) {
            c->before_us[i] = pid;
            return true;
        }
    }
    return false;
}

void dm_children_begin(struct dm_children *c) {
    count(c, note_before_us);
}

static bool is_ours(struct dm_children *c, pid_t pid) {
    for (int i = 0; i < DM_KEEPER_BEFORE; i++) {
        if (c->before_us[i] == pid) {
            return false;
        }
    }
    return true;
}

/* Children are not reaped in between: the numbers are their own. */
static void signal_group(pid_t pid, int number) {
    kill(getpgid(pid) == pid ? -pid : pid, number);
}

int dm_children_signal_elsewhere(const struct dm_children *c, int number) {
    int count = 0;
    for (uint32_t i = 0; i < c->held.count; i++) {
        const struct dm_keeper_held *held = &c->held.items[i];
        count += held->elsewhere && syscall(SYS_pidfd_send_signal, held->fd, number, NULL, 0) == 0;
    }
    return count;
}

static bool ask_to_end(struct dm_children *c, pid_t pid) {
    if (is_ours(c, pid)) {
        signal_group(pid, SIGTERM);
        signal_group(pid, SIGCONT); /* a stopped process acts on SIGTERM only then */
    }
    return is_ours(c, pid);
}

static bool make_end(struct dm_children *c, pid_t pid) {
    if (is_ours(c, pid)) {
        signal_group(pid, SIGKILL);
    }
    return is_ours(c, pid);
}

void dm_children_end_all(struct dm_children *c, uint64_t grace_ms) {
    const uint64_t term_until = dm_now_ms() + grace_ms;
    siginfo_t info;
    if (grace_ms > 0) {
        count(c, ask_to_end);
        dm_children_signal_elsewhere(c, SIGTERM);
        dm_children_signal_elsewhere(c, SIGCONT);
    }
    while (dm_now_ms() < term_until + KILL_MS) {
        while (dm_wait(P_ALL, 0, &info, WEXITED | WNOHANG, NULL) == 0 && info.si_pid != 0) {
        }
        const bool late = dm_now_ms() >= term_until;
        if (count(c, late ? make_end : is_ours) +
                dm_children_signal_elsewhere(c, late ? SIGKILL : 0) ==
            0) {
            return;
        }
        const struct timespec pause = {.tv_nsec = 2000000};
        nanosleep(&pause, NULL);
    }
}

void dm_children_find_elsewhere(struct dm_children *c) {
    siginfo_t info;
    for (uint32_t i = 0; i < c->held.count; i++) {
        struct dm_keeper_held *held = &c->held.items[i];
        struct epoll_event event = {.events = EPOLLIN};
        if (held->pid > 0 &&
            dm_wait(P_PIDFD, held->fd, &info, WEXITED | WNOHANG | WNOWAIT, NULL) == -ECHILD) {
            held->elsewhere = 1;
            c->elsewhere = c->elsewhere < 0 ? epoll_create1(EPOLL_CLOEXEC) : c->elsewhere;
            epoll_ctl(c->elsewhere, EPOLL_CTL_ADD, held->fd, &event);
        }
    }
}

void dm_children_kill(struct dm_children *c, pid_t pid, int number) {
    siginfo_t info;
    /* Ours and unreaped, or the wait says that it is not ours. */
    if (pid > 1 && pid != c->master && !dm_held_pid(&c->held, pid) && is_ours(c, pid) &&
        dm_wait(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT, NULL) == 0) {
        signal_group(pid, number);
    }
}

bool dm_children_master_ended(const struct dm_children *c, siginfo_t *info) {
    return c->master > 0 && dm_wait(P_PID, c->master, info, WEXITED | WNOHANG, NULL) == 0 &&
           info->si_pid != 0;
}

bool dm_children_reap(struct dm_keeper_held *held) {
    siginfo_t info;
    if (!held->reaped) {
        if (held->lingers && dm_group_lives(held->pid)) {
            return false;
        }
        kill(-held->pid, SIGKILL); /* its leader is a zombie: the number is its own */
        dm_wait(P_PIDFD, held->fd, &info, WEXITED | WNOHANG, &held->usage);
        held->reaped = 1;
    }
    return true;
}
