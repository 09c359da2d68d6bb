/* reaper.c: see reaper.h. Signals go to a process group only while its leader is unreaped: until
 * then its number cannot belong to anybody else. Never to 0, 1 or a negative number. Longer than
 * 400 lines: one owner of every zombie. */
#include "process/reaper.h"

#include "base/proc.h"
#include "base/timer.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Zombies a tick. A fork storm of orphans must not keep everybody else waiting. */
enum { SWEEP_MAX = 1024 };

/* ms. Whoever leaves a group without ending (setsid) sends no signal: groups that linger are looked
 * at this often. */
enum { LOOK_MS = 100 };

/* Of one whose keeper has died: nobody can say how it ended. */
enum { UNKNOWN_EXIT = 255 };

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

static void set_exit(struct dm_exit *result, const siginfo_t *info) {
    result->code = info->si_status;
    result->signaled = info->si_code != CLD_EXITED;
    result->core = info->si_code == CLD_DUMPED;
}

static void note_end(struct dm_leader *leader) {
    leader->ended = true;
    dm_poll_stop(&leader->poll); /* a zombie's pidfd stays readable */
    if (leader->before_reap) {
        leader->before_reap(leader);
    }
    dm_list_remove(&leader->link);
    dm_list_append(&leader->reaper->ended, &leader->link);
}

static void note_reaped(struct dm_leader *leader) {
    leader->reaped_pidfd = leader->pidfd; /* closed with the handle: see child.c */
    leader->pidfd = -1;
    dm_list_remove(&leader->link);
    dm_list_append(&leader->reaper->reaped, &leader->link);
    leader->reaper->count--;
}

/* -> whether it has ended, and is on the list for that. */
static bool end(struct dm_leader *leader) {
    siginfo_t info;
    if (leader->ended || leader->kept ||
        dm_wait(P_PIDFD, leader->pidfd, &info, WEXITED | WNOHANG | WNOWAIT, NULL) != 0 ||
        info.si_pid == 0) {
        return leader->ended;
    }
    set_exit(&leader->exit, &info);
    const struct dm_exit *exit = &leader->exit;
    if (leader->reaper->kept) {
        dm_kept_exit(leader->reaper->kept, leader->pid, exit->code, exit->signaled, exit->core);
    }
    note_end(leader);
    return true;
}

/* Another one's child: the keeper is asked, once. Without it all that is known is that it ended. */
static bool reap_kept(struct dm_leader *leader) {
    struct dm_kept *kept = leader->reaper->kept;
    if (kept && leader->ended && !leader->reap_asked) {
        leader->reap_asked = true;
        dm_kept_reap(kept, leader->pid, leader->lingers);
    }
    struct pollfd gone = {.fd = leader->pidfd, .events = POLLIN};
    if (kept || poll(&gone, 1, 0) != 1) {
        return false;
    }
    if (!leader->ended) {
        leader->exit = (struct dm_exit){.code = UNKNOWN_EXIT};
        leader->ended = true;
    }
    note_reaped(leader);
    return true;
}

/* False if it has not exited, or others of its group live that are waited for. */
static bool reap(struct dm_leader *leader) {
    siginfo_t info;
    if (leader->kept) {
        return reap_kept(leader);
    }
    if (!end(leader) || (leader->lingers && dm_group_lives(leader->pid))) {
        return false;
    }
    kill_group(leader->pid);
    if (dm_wait(P_PIDFD, leader->pidfd, &info, WEXITED | WNOHANG, &leader->exit.usage) != 0) {
        return false;
    }
    note_reaped(leader);
    return true;
}

static void reap_list(struct dm_link *list) {
    for (struct dm_link *l = list->next, *next; l != list; l = next) {
        next = l->next;
        reap(dm_container(l, struct dm_leader, link));
    }
}

static void on_look(uv_timer_t *timer);

static void report(struct dm_reaper *reaper) {
    while (!dm_list_empty(&reaper->ended)) {
        struct dm_leader *leader = dm_container(reaper->ended.next, struct dm_leader, link);
        dm_list_remove(&leader->link);
        dm_list_append(&reaper->lingering, &leader->link);
        uv_timer_start(&reaper->look, on_look, LOOK_MS, LOOK_MS);
        if (leader->on_ended) {
            leader->on_ended(leader);
        }
    }
    while (!dm_list_empty(&reaper->reaped)) {
        struct dm_leader *leader = dm_container(reaper->reaped.next, struct dm_leader, link);
        dm_list_remove(&leader->link);
        leader->on_reaped(leader);
    }
}

static struct dm_leader *find(const struct dm_reaper *reaper, pid_t pid) {
    const struct dm_link *const lists[] = {&reaper->alive, &reaper->ended, &reaper->lingering};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        for (struct dm_link *l = lists[i]->next; l != lists[i]; l = l->next) {
            struct dm_leader *leader = dm_container(l, struct dm_leader, link);
            if (leader->pid == pid) {
                return leader;
            }
        }
    }
    return NULL;
}

/* Whoever becomes this program by exec may have had children, which are none of its business. */
static bool was_here(const struct dm_reaper *reaper, pid_t pid) {
    if (pid == reaper->attendant || pid == getpid()) {
        return true;
    }
    for (size_t i = 0; i < DM_KEEPER_BEFORE; i++) {
        if (reaper->inherited[i] == pid) {
            return true;
        }
    }
    return false;
}

static size_t read_children(const struct dm_reaper *reaper, const char *path, pid_t *pids,
                            size_t max, size_t n) {
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

/* Without those of the keeper. */
static size_t adopted_here(const struct dm_reaper *reaper, pid_t *pids, size_t max) {
    DIR *tasks = opendir("/proc/self/task");
    size_t n = 0;
    const struct dirent *entry;
    while (tasks && (entry = readdir(tasks))) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/task/%.20s/children", entry->d_name);
        if (entry->d_name[0] != '.') {
            n = read_children(reaper, path, pids, max, n);
        }
    }
    if (tasks) {
        closedir(tasks);
    }
    return n;
}

/* Its number may come again, for another. */
static void forget_inherited(struct dm_reaper *reaper, pid_t pid) {
    if (reaper->attendant == pid) {
        reaper->attendant = 0;
    }
    for (size_t i = 0; i < DM_KEEPER_BEFORE; i++) {
        if (reaper->inherited[i] == pid) {
            reaper->inherited[i] = 0;
        }
    }
}

/* The same where zombies are kept: WNOWAIT would show them for ever. */
static void reap_adopted(const struct dm_reaper *reaper) {
    pid_t pids[SWEEP_MAX];
    siginfo_t info;
    const size_t count = adopted_here(reaper, pids, SWEEP_MAX);
    size_t reaped = 0;
    for (size_t i = 0; i < count && i < SWEEP_MAX; i++) {
        reaped += dm_wait(P_PID, pids[i], &info, WEXITED | WNOHANG, NULL) == 0 && info.si_pid != 0;
    }
    if (reaped == SWEEP_MAX) {
        kill(getpid(), SIGCHLD); /* more next time */
    }
}

/* WNOWAIT shows the same zombie until it is reaped; so each one seen is. */
static void sweep(struct dm_reaper *reaper) {
    reap_list(&reaper->lingering);
    if (!dm_list_empty(&reaper->lingering)) {
        reap_adopted(reaper);
        reap_list(&reaper->lingering);
    }
    const bool all = dm_list_empty(&reaper->lingering);
    for (int i = 0; all && i < SWEEP_MAX; i++) {
        siginfo_t info;
        if (dm_wait(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT, NULL) != 0 || info.si_pid == 0) {
            break;
        }
        struct dm_leader *leader = find(reaper, info.si_pid);
        if (leader ? !reap(leader) /* or it lingers from now on */
                   : dm_wait(P_PID, info.si_pid, &info, WEXITED | WNOHANG, NULL) != 0) {
            break;
        }
        if (!leader) {
            forget_inherited(reaper, info.si_pid);
        }
        if (i == SWEEP_MAX - 1) {
            kill(getpid(), SIGCHLD); /* more next time */
        }
    }
    report(reaper);
}

static void on_sigchld(struct dm_signals *signals, int number, pid_t sender, uid_t sender_uid,
                       uint64_t at_ms) {
    sweep(signals->data);
}

static void on_look(uv_timer_t *timer) {
    struct dm_reaper *reaper = timer->data;
    sweep(reaper);
    if (dm_list_empty(&reaper->lingering)) {
        uv_timer_stop(timer);
    }
}

static void on_pidfd(uv_poll_t *poll, int status, int events) {
    struct dm_leader *leader = poll->data;
    if (leader->kept && leader->reaper->kept) {
        dm_poll_stop(&leader->poll); /* the keeper says how it ended */
        return;
    }
    if (leader->pidfd >= 0 && (reap(leader) || leader->ended)) {
        report(leader->reaper);
    }
}

void dm_reaper_kept_ended(struct dm_reaper *reaper, pid_t pid, const struct dm_exit *exit,
                          bool others) {
    struct dm_leader *leader = find(reaper, pid);
    if (!leader || !leader->kept || leader->ended) {
        return;
    }
    leader->exit = *exit;
    note_end(leader);
    reap(leader);
    if (!others || !leader->lingers) { /* the next that is heard of it is that it was reaped */
        dm_list_remove(&leader->link);
        dm_list_append(&reaper->lingering, &leader->link);
    }
    report(reaper);
}

void dm_reaper_kept_reaped(struct dm_reaper *reaper, pid_t pid, const struct rusage *usage) {
    struct dm_leader *leader = find(reaper, pid);
    if (leader && leader->kept && leader->ended) {
        leader->exit.usage = *usage;
        note_reaped(leader);
        report(reaper);
    }
}

void dm_reaper_keeper_lost(struct dm_reaper *reaper) {
    const struct dm_link *const lists[] = {&reaper->ended, &reaper->lingering};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        for (struct dm_link *l = lists[i]->next; l != lists[i]; l = l->next) {
            const struct dm_leader *leader = dm_container(l, struct dm_leader, link);
            const struct dm_exit *exit = &leader->exit;
            dm_kept_exit(reaper->kept, leader->pid, exit->code, exit->signaled, exit->core);
        }
    }
}

void dm_reaper_alone(struct dm_reaper *reaper) {
    reaper->kept = NULL;
    for (struct dm_link *l = reaper->alive.next; l != &reaper->alive; l = l->next) {
        struct dm_leader *leader = dm_container(l, struct dm_leader, link);
        if (leader->kept) {
            dm_poll_start(&leader->poll, UV_READABLE, on_pidfd);
        }
    }
    reap_list(&reaper->lingering);
    report(reaper);
}

int dm_reaper_init(struct dm_reaper *reaper, uv_loop_t *loop) {
    *reaper = (struct dm_reaper){.loop = loop};
    dm_list_init(&reaper->alive);
    dm_list_init(&reaper->ended);
    dm_list_init(&reaper->lingering);
    dm_list_init(&reaper->reaped);
    uv_timer_init(loop, &reaper->look);
    reaper->look.data = reaper;
    dm_signals_init(&reaper->sigchld, reaper, on_sigchld);

    adopted_here(reaper, reaper->inherited, DM_KEEPER_BEFORE);

    /* Ignored by whoever started us, exits would go unseen. */
    signal(SIGCHLD, SIG_DFL);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    return dm_signals_set(&reaper->sigchld, loop, &set);
}

static void let_go(struct dm_link *list) {
    while (!dm_list_empty(list)) {
        struct dm_leader *leader = dm_container(list->next, struct dm_leader, link);
        dm_poll_stop(&leader->poll);
        note_reaped(leader);
    }
}

/* Those whom even SIGKILL did not end in time are let go. */
void dm_reaper_deinit(struct dm_reaper *reaper) {
    let_go(&reaper->alive);
    let_go(&reaper->ended);
    let_go(&reaper->lingering);
    report(reaper);
    uv_close((uv_handle_t *)&reaper->look, NULL);
    dm_signals_deinit(&reaper->sigchld);
}

static void on_closed(uv_handle_t *handle) {
    struct dm_leader *leader = handle->data;
    leader->on_closed(leader);
}

int dm_reaper_add(struct dm_reaper *reaper, struct dm_leader *leader) {
    const int rc = dm_poll_init(reaper->loop, &leader->poll, leader->pidfd);
    if (rc != 0) {
        return rc;
    }
    leader->poll.uv.data = leader;
    leader->reaper = reaper;
    dm_list_append(&reaper->alive, &leader->link);
    reaper->count++;
    dm_poll_start(&leader->poll, UV_READABLE, on_pidfd);
    return 0;
}

void dm_reaper_close(struct dm_leader *leader) {
    close(leader->reaped_pidfd);
    dm_poll_close(&leader->poll, on_closed);
}

void dm_reaper_abandon(pid_t pid, int pidfd) {
    siginfo_t info;
    send_signal(pid, pidfd, SIGKILL);
    kill_group(pid);
    /* WNOWAIT is not needed: nobody knows of it yet. */
    dm_wait(P_PID, pid, &info, WEXITED, NULL);
    close(pidfd);
}

void dm_reaper_end_attendant(struct dm_reaper *reaper) {
    siginfo_t info;
    if (reaper->attendant > 1) {
        kill(reaper->attendant, SIGKILL); /* unreaped, so the number is its own */
        dm_wait(P_PID, reaper->attendant, &info, WEXITED, NULL);
        reaper->attendant = 0;
    }
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
        reap_list(&reaper->alive);
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
    reaper->kept = NULL;
    /* The rest of a group is waited for no longer. */
    for (struct dm_link *l = reaper->alive.next; l != &reaper->alive; l = l->next) {
        dm_container(l, struct dm_leader, link)->lingers = false;
    }
    for (struct dm_link *l = reaper->lingering.next; l != &reaper->lingering; l = l->next) {
        dm_container(l, struct dm_leader, link)->lingers = false;
    }
    reap_list(&reaper->lingering);
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

size_t dm_reaper_adopted(struct dm_reaper *reaper, pid_t *pids, size_t max) {
    const size_t n = adopted_here(reaper, pids, max);
    if (!reaper->kept) {
        return n;
    }
    char path[64];
    const int keeper = (int)reaper->kept->link.keeper;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", keeper, keeper);
    return read_children(reaper, path, pids, max, n);
}

size_t dm_leader_others(const struct dm_leader *leader, pid_t *pids, size_t max) {
    pid_t adopted[SWEEP_MAX];
    size_t n = dm_reaper_adopted(leader->reaper, adopted, SWEEP_MAX), found = 0;
    n = n < SWEEP_MAX ? n : SWEEP_MAX;
    for (size_t i = 0; i < n; i++) {
        if (getpgid(adopted[i]) == leader->pid) {
            if (found < max) {
                pids[found] = adopted[i];
            }
            found++;
        }
    }
    return found;
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
    dm_wait(P_PID, pid, &info, WEXITED | WNOHANG, NULL);
}

size_t dm_reaper_kill_adopted(struct dm_reaper *reaper, uint64_t limit_ms) {
    const uint64_t deadline_ms = dm_now_ms() + limit_ms;
    pid_t pids[64];
    size_t killed = 0;
    size_t n;
    /* The children of one that dies become ours. */
    while ((n = adopted_here(reaper, pids, sizeof pids / sizeof *pids)) > 0) {
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

/* Alive and a child of ours, so nobody else can have the number before we have reaped it. */
bool dm_reaper_signal_adopted(const struct dm_reaper *reaper, pid_t pid, int number) {
    siginfo_t info;
    if (pid <= 1 || find(reaper, pid) || was_here(reaper, pid)) {
        return false;
    }
    const int error = dm_wait(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT, NULL);
    if (error == -ECHILD && reaper->kept) {
        dm_kept_kill(reaper->kept, pid, number); /* who looks whether it is its own */
        return true;
    }
    if (error != 0 || info.si_pid != 0) {
        return false;
    }
    return kill(getpgid(pid) == pid ? -pid : pid, number) == 0;
}
