/* keeper.c: see keeper.h. A loop around poll(): signals, what the master says, its death.
 *
 * A worker's pid is the kernel's only name for it: while its pidfd is in the store, the keeper
 * leaves it a zombie until a master asks for its end.
 *
 * Longer than 400 lines: the whole of one small program, to be read in one go. */
#include "keeper/keeper.h"

#include "keeper/handoff.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    MAGIC = 0x6b656570,
    VERSION = 1,
    P_PIDFD_ = 3,   /* P_PIDFD; missing in older headers of glibc */
    LATE_MS = 5000, /* for a master that seems to hang: we may have been stopped both */
    FRAMES = 256,   /* of the master's, read in one turn */
    BEFORE = DM_HANDOFF_BEFORE,
    UNKNOWN_EXIT = 255, /* of a child whose end nobody saw */
    STEADY_MS = 1000,   /* a master that has lived so long was no failure */
    FIRST_PAUSE_MS = 100,
    LAST_PAUSE_MS = 30000,
    VAIN_MAX =
        3, /* masters in a row that could not take over: the next one does without the state */
    POISON_MAX =
        3,         /* masters in a row that took over and died of themselves soon after: the same */
    LOOK_MS = 100, /* how often groups are looked at that are waited for */
    AGAIN_MS = 1000,  /* until a fork that failed is tried again */
    TERM_MS = 5000,   /* what nobody can go on with has this long to end by SIGTERM, */
    KILL_MS = 2000,   /* and this long by SIGKILL */
    TRIAL_MS = 10000, /* another program's master has this long to take over */
    NOTIFY_MS = 100,  /* until a full queue of the service manager is tried again, so often: */
    NOTIFY_TRIES = 50,
};

static struct {
    struct dm_keeper_memory *memory;
    int memory_fd;
    int next,
        former; /* programs: to become when the master has left; to go back to, if this fails */
    char **argv;
    struct dm_keeper_upgrade upgrade;
    unsigned starts;               /* of masters */
    int signals, socket, patience; /* a signalfd, the master's socket, a timerfd: see keeper.h */
    int elsewhere;                 /* an epoll: who lives of those that are not our children */
    pid_t master;                  /* 0: none */
    bool supervises, ended_by_itself;
    int died_of, exited_with;
    unsigned deaths, failures; /* all; those in quick succession */
    unsigned vain, poisoned;   /* see VAIN_MAX, POISON_MAX */
    uint64_t started_ms, restart_ms;
    struct signalfd_siginfo pending[NSIG]; /* by number, the newest of each; ssi_signo 0: none */
    struct signalfd_siginfo end_asked;     /* the last SIGTERM, SIGINT, SIGQUIT; 0: none */
    pid_t before_us[BEFORE];               /* children of whoever became us by exec; 0: free */
    sigset_t before;
    struct rlimit descriptors; /* as we were started */
    struct sockaddr_un manager;
    socklen_t manager_size; /* 0: no service manager */
    char notice[DM_KEEPER_TEXT];
    size_t notice_size;
    int notice_tries;
    struct dm_keeper_frame frame;
    uint32_t held_count;
    struct dm_keeper_held held[DM_KEEPER_FDS];
} k; /* all zero until set_up(): it is large, and so is no part of the program's file */

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- snapshots ---- */

uint64_t dm_keeper_sum(const char *text, size_t size) {
    uint64_t sum = 0xcbf29ce484222325u ^ size, word;
    size_t i = 0;
    for (; i + sizeof word <= size; i += sizeof word) {
        memcpy(&word, text + i, sizeof word);
        sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
    }
    for (; i < size; i++) {
        sum = (sum ^ (uint8_t)text[i]) * 0x100000001b3u;
    }
    return sum;
}

const char *dm_keeper_newest(const struct dm_keeper_memory *m, size_t *size) {
    int best = -1;
    for (int i = 0; i < 2; i++) {
        const uint64_t number = m->snapshots[i].number;
        if (number > 0 && m->snapshots[i].size <= DM_KEEPER_STATE &&
            m->snapshots[i].sum == dm_keeper_sum(m->text[i], m->snapshots[i].size) &&
            (best < 0 || number > m->snapshots[best].number)) {
            best = i;
        }
    }
    *size = best < 0 ? 0 : m->snapshots[best].size;
    return best < 0 ? NULL : m->text[best];
}

bool dm_keeper_has_written(const struct dm_keeper_memory *m) {
    return m->snapshots[0].number > 0 || m->snapshots[1].number > 0;
}

/* ---- what people read ---- */

/* Less than a pipe takes at once (PIPE_BUF); if nobody reads, it is lost rather than waited for. */
static void say(const char *format, int a, int b) {
    char line[256];
    const int size = snprintf(line, sizeof line, format, a, b);
    struct pollfd room = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (size > 0 && poll(&room, 1, 0) == 1 && (room.revents & POLLOUT)) {
        (void)!write(STDERR_FILENO, line, (size_t)size);
    }
}

/* ---- the service manager ---- */

static void find_manager(void) {
    const char *name = getenv("NOTIFY_SOCKET");
    const size_t size = name ? strlen(name) : 0;
    if (size < 2 || size >= sizeof k.manager.sun_path || (name[0] != '/' && name[0] != '@')) {
        return;
    }
    k.manager.sun_family = AF_UNIX;
    memcpy(k.manager.sun_path, name, size);
    if (name[0] == '@') {
        k.manager.sun_path[0] = '\0';
    }
    k.manager_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size);
}

/* What it does not take now is kept, and the master not listened to so long: nothing overtakes it.
 */
static void notify(void) {
    static bool complained;
    const int fd = k.manager_size ? socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0) : -1;
    const bool is_sent = fd >= 0 && sendto(fd, k.notice, k.notice_size, MSG_NOSIGNAL | MSG_DONTWAIT,
                                           (struct sockaddr *)&k.manager, k.manager_size) >= 0;
    const bool is_full = fd >= 0 && !is_sent && (errno == EAGAIN || errno == ENOBUFS);
    if (!is_full || ++k.notice_tries >= NOTIFY_TRIES) {
        k.notice_size = 0;
    }
    if (!is_sent && k.notice_size == 0 && !complained) {
        complained = true;
        say("dutch-master: the service manager could not be notified: errno %d\n", errno, 0);
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* ---- the store ---- */

static struct dm_keeper_held *find(const char *name) {
    for (uint32_t i = 0; i < k.held_count; i++) {
        if (strcmp(k.held[i].name, name) == 0) {
            return &k.held[i];
        }
    }
    return NULL;
}

static void unwatch(const struct dm_keeper_held *held) {
    if (held->elsewhere) {
        epoll_ctl(k.elsewhere, EPOLL_CTL_DEL, held->fd, NULL);
    }
}

static void drop(struct dm_keeper_held *held) {
    if (held) {
        unwatch(held); /* the master has a copy: to close ours would not do it */
        close(held->fd);
        *held = k.held[--k.held_count];
    }
}

static void put(const struct dm_keeper_frame *frame, int fd) {
    drop(find(frame->text));
    if (fd < 0 || k.held_count == DM_KEEPER_FDS || strlen(frame->text) >= DM_KEEPER_NAME) {
        if (fd >= 0) {
            close(fd);
        }
        return;
    }
    struct dm_keeper_held *held = &k.held[k.held_count];
    memset(held, 0, sizeof *held);
    memcpy(held->name, frame->text, sizeof held->name - 1);
    held->fd = fd;
    held->pid = frame->pid;
    k.held_count++;
}

/* ---- children ---- */

static int wait_for(int type, int id, siginfo_t *info, int options, struct rusage *usage) {
    long rc;
    info->si_pid = 0;
    do {
        rc = syscall(SYS_waitid, type, id, info, options, usage);
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

/* Whether a process of ours lives in the group; a wait without WEXITED passes zombies over. */
static bool has_others(pid_t group) {
    siginfo_t info;
    return wait_for(P_PGID, group, &info, WSTOPPED | WNOHANG | WNOWAIT | __WALL, NULL) == 0;
}

/* Descriptors go nowhere from here. False: no room now. */
static bool tell(const struct dm_keeper_frame *frame) {
    return k.socket < 0 ||
           send(k.socket, frame, offsetof(struct dm_keeper_frame, text),
                MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 ||
           (errno != EAGAIN && errno != ENOBUFS);
}

static void note_exit(struct dm_keeper_held *held, int code, bool signaled, bool core) {
    held->exit_known = 1;
    held->code = code;
    held->signaled = signaled;
    held->core = core;
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
    note_exit(held, signaled ? WTERMSIG(info.status) : WEXITSTATUS(info.status), signaled,
              signaled && WCOREDUMP(info.status));
    return true;
}

/* Of a process that is nobody's here its descriptor alone tells that it has ended. */
static void note_end_elsewhere(struct dm_keeper_held *held) {
    struct pollfd gone = {.fd = held->fd, .events = POLLIN};
    if (poll(&gone, 1, 0) == 1) {
        unwatch(held);
        held->ended = held->reaped = 1;
        if (!held->exit_known && !look_up_exit(held)) {
            note_exit(held, UNKNOWN_EXIT, false, false);
        }
    }
}

static void note_end(struct dm_keeper_held *held) {
    siginfo_t info;
    if (held->pid <= 0 || held->ended) {
        return;
    }
    if (held->elsewhere) {
        note_end_elsewhere(held);
        return;
    }
    const int rc = wait_for(P_PIDFD_, held->fd, &info, WEXITED | WNOHANG | WNOWAIT, &held->usage);
    if (rc == 0 && info.si_pid != 0) {
        held->ended = 1;
        note_exit(held, info.si_status, info.si_code != CLD_EXITED, info.si_code == CLD_DUMPED);
    } else if (rc == -ECHILD && !k.master) { /* it would be ours: a dead master has reaped it */
        held->ended = held->reaped = 1;
        held->code = held->exit_known ? held->code : UNKNOWN_EXIT;
    }
}

static void reap(struct dm_keeper_held *held) {
    siginfo_t info;
    if (!held->reaped) {
        if (held->lingers && has_others(held->pid)) {
            return; /* looked at again */
        }
        kill(-held->pid, SIGKILL); /* its leader is a zombie: the number is its own */
        wait_for(P_PIDFD_, held->fd, &info, WEXITED | WNOHANG, &held->usage);
        held->reaped = 1;
    }
    const struct dm_keeper_frame frame = {
        .op = DM_KEEPER_REAPED, .pid = held->pid, .usage = held->usage};
    if (tell(&frame)) {
        held->wants_reap = 0;
    }
}

/* A successor is told of signals when it supervises: before, it could not do what they ask.
 * -> whether some could not be told */
static bool report_signals(void) {
    bool left = false;
    for (int i = 1; i < NSIG && k.socket >= 0 && (k.supervises || k.starts == 1); i++) {
        struct signalfd_siginfo *info = &k.pending[i];
        const struct dm_keeper_frame frame = {
            .op = DM_KEEPER_SIGNAL, .number = i, .pid = (int)info->ssi_pid, .uid = info->ssi_uid};
        if (info->ssi_signo != 0 && tell(&frame)) {
            info->ssi_signo = 0;
        }
        left = left || info->ssi_signo != 0;
    }
    return left;
}

/* Tells the master whatever it has not heard. -> whether there is something to look at again */
static bool report(void) {
    bool again = report_signals();
    for (uint32_t i = 0; k.supervises && i < k.held_count; i++) {
        struct dm_keeper_held *held = &k.held[i];
        if (held->ended && !held->told) {
            const struct dm_keeper_frame frame = {.op = DM_KEEPER_ENDED,
                                                  .pid = held->pid,
                                                  .code = held->code,
                                                  .number = has_others(held->pid),
                                                  .signaled = held->signaled,
                                                  .core = held->core};
            held->told = tell(&frame);
        }
        if (held->wants_reap) {
            reap(held);
        }
        again = again || (held->ended && !held->told) || held->wants_reap;
    }
    return again;
}

static struct dm_keeper_held *held_pid(pid_t pid) {
    for (uint32_t i = 0; i < k.held_count; i++) {
        if (k.held[i].pid == pid) {
            return &k.held[i];
        }
    }
    return NULL;
}

static bool reap_stranger(pid_t pid) {
    siginfo_t info;
    const struct dm_keeper_held *held = held_pid(pid);
    if (pid == k.master || (held && !held->reaped) ||
        wait_for(P_PID, pid, &info, WEXITED | WNOHANG, NULL) != 0 || info.si_pid == 0) {
        return false;
    }
    for (int i = 0; i < BEFORE; i++) { /* its number may come again, for another */
        k.before_us[i] = k.before_us[i] == pid ? 0 : k.before_us[i];
    }
    return true;
}

/* -> how many children there are for which `each` is true */
static int children(bool (*each)(pid_t pid)) {
    char path[64], text[4096];
    int count = 0;
    pid_t pid = 0;
    ssize_t size;
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && (size = read(fd, text, sizeof text)) > 0) {
        for (ssize_t i = 0; i < size; i++) {
            if (text[i] >= '0' && text[i] <= '9') {
                pid = pid * 10 + (text[i] - '0');
            } else if (pid > 1) {
                count += each(pid);
                pid = 0;
            }
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    return count;
}

/* Strangers are reaped as they come. WNOWAIT shows the same zombie again and again: behind one that
 * is kept, the others are looked for by their numbers. */
static void sweep(void) {
    siginfo_t info;
    while (wait_for(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT, NULL) == 0 && info.si_pid != 0) {
        if (!reap_stranger(info.si_pid)) {
            for (uint32_t i = 0; i < k.held_count; i++) {
                note_end(&k.held[i]);
            }
            while (children(reap_stranger) > 0) {
            }
            return;
        }
    }
}

static void look_elsewhere(bool has_news) {
    for (uint32_t i = 0; has_news && i < k.held_count; i++) {
        if (k.held[i].elsewhere) {
            note_end(&k.held[i]);
        }
    }
}

static bool note_before_us(pid_t pid) {
    for (int i = 0; i < BEFORE; i++) {
        if (k.before_us[i] == 0) {
            k.before_us[i] = pid;
            return true;
        }
    }
    return false;
}

static bool is_ours(pid_t pid) {
    for (int i = 0; i < BEFORE; i++) {
        if (k.before_us[i] == pid) {
            return false;
        }
    }
    return true;
}

/* Children are not reaped in between: the numbers are their own. */
static void signal_group(pid_t pid, int number) {
    kill(getpgid(pid) == pid ? -pid : pid, number);
}

/* -> how many of them live */
static int signal_elsewhere(int number) {
    int count = 0;
    for (uint32_t i = 0; i < k.held_count; i++) {
        const struct dm_keeper_held *held = &k.held[i];
        count += held->elsewhere && syscall(SYS_pidfd_send_signal, held->fd, number, NULL, 0) == 0;
    }
    return count;
}

static bool ask_to_end(pid_t pid) {
    if (is_ours(pid)) {
        signal_group(pid, SIGTERM);
        signal_group(pid, SIGCONT); /* a stopped process acts on SIGTERM only then */
    }
    return is_ours(pid);
}

static bool make_end(pid_t pid) {
    if (is_ours(pid)) {
        signal_group(pid, SIGKILL);
    }
    return is_ours(pid);
}

/* Nobody is left behind. */
static void end_all(uint64_t grace_ms) {
    const uint64_t term_until = now_ms() + grace_ms;
    siginfo_t info;
    if (grace_ms > 0) {
        children(ask_to_end);
        signal_elsewhere(SIGTERM);
        signal_elsewhere(SIGCONT);
    }
    while (now_ms() < term_until + KILL_MS) {
        while (wait_for(P_ALL, 0, &info, WEXITED | WNOHANG, NULL) == 0 && info.si_pid != 0) {
        }
        const bool late = now_ms() >= term_until;
        if (children(late ? make_end : is_ours) + signal_elsewhere(late ? SIGKILL : 0) == 0) {
            return;
        }
        const struct timespec pause = {.tv_nsec = 2000000};
        nanosleep(&pause, NULL);
    }
}

/* ---- the master ---- */

static void set_patience(int ms, int again_ms) {
    const struct itimerspec time = {
        .it_value = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L},
        .it_interval = {.tv_sec = again_ms / 1000},
    };
    timerfd_settime(k.patience, 0, &time, NULL);
}

/* The master sets the timer before it waits, and without an interval: with one, it is as we set it,
 * and the master has not moved since. */
static void look_at_patience(void) {
    uint64_t count;
    struct itimerspec time;
    if (read(k.patience, &count, sizeof count) != (ssize_t)sizeof count || !k.master) {
        return;
    }
    timerfd_gettime(k.patience, &time);
    if (time.it_interval.tv_sec == 0) {
        set_patience(LATE_MS, LATE_MS);
        return;
    }
    set_patience(0, 0);
    say("dutch-master: the master (process %d) gave no sign of life for %d s, killing it\n",
        (int)k.master, (DM_KEEPER_SILENT_MS + LATE_MS) / 1000);
    kill(k.master, SIGKILL);
}

static void close_if_open(int *fd) {
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

/* -> true in the master */
static bool start_master(struct dm_keeper_link *link) {
    int ends[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
        return false;
    }
    k.started_ms = now_ms();
    k.supervises = false;
    set_patience(DM_KEEPER_SILENT_MS, 0);
    const pid_t pid = fork();
    if (pid == 0) {
        *link = (struct dm_keeper_link){.socket = ends[1],
                                        .patience = k.patience,
                                        .memory = k.memory,
                                        .held = k.held,
                                        .held_count = k.held_count,
                                        .before_us = k.before_us,
                                        .keeper = getppid(),
                                        .died_of = k.died_of,
                                        .exited_with = k.exited_with,
                                        .deaths = k.deaths,
                                        .succeeds = k.starts > 0,
                                        .set_aside = k.vain >= VAIN_MAX || k.poisoned >= POISON_MAX,
                                        .upgrade = k.upgrade};
        close(ends[0]);
        close_if_open(&k.next);
        close_if_open(&k.former);
        close_if_open(&k.signals);
        close_if_open(&k.elsewhere);
        setpgid(0, 0); /* a terminal's signals are for the keeper, who passes them on */
        prctl(PR_SET_NAME, "dutch-master");
        setrlimit(RLIMIT_NOFILE, &k.descriptors);
        sigprocmask(SIG_SETMASK, &k.before, NULL);
        return true;
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return false;
    }
    setpgid(pid, pid);
    k.master = pid;
    k.socket = ends[0];
    k.starts++;
    return false;
}

static void set_pause(void) {
    const uint64_t now = now_ms();
    k.failures = now - k.started_ms >= STEADY_MS ? 0 : k.failures + 1;
    uint64_t pause = 0;
    if (k.failures > 1) {
        pause = (uint64_t)FIRST_PAUSE_MS << (k.failures < 12 ? k.failures - 2 : 10);
        pause = pause > LAST_PAUSE_MS ? LAST_PAUSE_MS : pause;
    }
    k.restart_ms = now + pause;
}

/* ---- another program ---- */

/* What another program needs to go on as keeper, but for what is held. */
static void fill_handoff(struct dm_handoff *h) {
    *h = (struct dm_handoff){
        .memory = k.memory_fd,
        .died_of = k.died_of,
        .exited_with = k.exited_with,
        .deaths = k.deaths,
        .failures = k.failures,
        .starts = k.starts,
        .upgrade = k.upgrade,
        .before = k.before,
        .descriptors = k.descriptors,
        .held_count = k.held_count,
    };
}

static void become(int image, int former) {
    struct dm_handoff h;
    fill_handoff(&h);
    for (int i = 1; i < NSIG; i++) {
        const struct signalfd_siginfo *info = &k.pending[i];
        h.pending[i] =
            (struct dm_handoff_signal){(int32_t)info->ssi_pid, info->ssi_uid, info->ssi_signo != 0};
    }
    for (int i = 0; i < BEFORE; i++) {
        h.before_us[i] = k.before_us[i];
    }
    const int error = dm_handoff_exec(image, former, k.argv, &h, k.held);
    k.upgrade = (struct dm_keeper_upgrade){DM_UPGRADE_FAILED, DM_UPGRADE_NOT_RUN, -error};
    say("dutch-master: the program could not be run (errno %d): this one goes on\n", -error, 0);
}

/* `k` is the copy that this master was forked with. */
int dm_keeper_renew(const struct dm_keeper_held *held, uint32_t count) {
    struct dm_handoff h;
    sigset_t all, before;
    const int image = open("/proc/self/exe", O_PATH | O_CLOEXEC);
    if (image < 0 || k.memory_fd < 0) {
        return image < 0 ? -errno : -ENOTSUP;
    }
    fill_handoff(&h);
    h.upgrade = (struct dm_keeper_upgrade){.state = DM_UPGRADE_RENEWED};
    h.starts = k.starts + 1;
    h.died_of = h.exited_with = 0;
    h.held_count = count;
    sigfillset(&all); /* whatever comes meanwhile is the next keeper's */
    sigprocmask(SIG_SETMASK, &all, &before);
    const int error = dm_handoff_exec(image, -1, k.argv, &h, held);
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(image);
    return error;
}

/* Returns if it cannot be done: another master of this program goes on then. */
static void begin_upgrade(void) {
    const int former = open("/proc/self/exe", O_PATH | O_CLOEXEC);
    k.upgrade = (struct dm_keeper_upgrade){.state = DM_UPGRADE_TRIAL};
    if (former < 0 || k.memory_fd < 0) {
        k.upgrade = (struct dm_keeper_upgrade){DM_UPGRADE_FAILED, DM_UPGRADE_NOT_RUN, errno};
    } else {
        become(k.next, former);
    }
    if (former >= 0) {
        close(former);
    }
    close_if_open(&k.next);
}

static void go_back(void) {
    if (k.upgrade.reason == 0) {
        k.upgrade.reason = k.died_of ? DM_UPGRADE_DIED : DM_UPGRADE_EXITED;
        k.upgrade.number = k.died_of ? k.died_of : k.exited_with;
    }
    k.upgrade.state = DM_UPGRADE_FAILED;
    say("dutch-master: the new program did not take over: going back to the former one\n", 0, 0);
    become(k.former, -1);
    close_if_open(&k.former);
}

static bool on_trial(void) {
    return k.former >= 0 && k.upgrade.state == DM_UPGRADE_TRIAL;
}

static void look_at_trial(void) {
    if (k.master && on_trial() && !k.supervises && k.upgrade.reason == 0 &&
        now_ms() >= k.started_ms + TRIAL_MS) {
        k.upgrade.reason = DM_UPGRADE_LATE;
        k.upgrade.number = TRIAL_MS;
        kill(k.master, SIGKILL);
    }
}

/* Whether it died by its own fault, soon: SIGKILL is somebody else's. */
static bool died_early(void) {
    return k.died_of != 0 && k.died_of != SIGKILL && now_ms() - k.started_ms < STEADY_MS;
}

/* -> whether all is over, with the exit code, or the signal to die of as a negative number */
static bool master_ended(const siginfo_t *info, int *code) {
    k.master = 0;
    close(k.socket);
    k.socket = -1;
    k.died_of = info->si_code == CLD_EXITED ? 0 : info->si_status;
    k.exited_with = info->si_code == CLD_EXITED ? info->si_status : 0;
    const bool has_state = dm_keeper_has_written(k.memory);
    /* A successor that gives up before it supervises has failed, whatever it says. */
    const bool by_itself =
        info->si_code == CLD_EXITED && (k.supervises || k.starts == 1) && k.next < 0;
    k.vain = k.supervises || k.starts == 1 ? 0 : k.vain + 1;
    k.poisoned = k.supervises && died_early() ? k.poisoned + 1 : k.supervises ? 0 : k.poisoned;
    if (k.vain == VAIN_MAX || k.poisoned == POISON_MAX) {
        say("dutch-master: %d masters could not go on from the state that was left: the next one "
            "does without it\n",
            VAIN_MAX, 0);
    }
    /* Whoever asks for the end gets it, if no master is there to do it. */
    const bool is_asked = k.vain > VAIN_MAX && k.end_asked.ssi_signo != 0;
    if (by_itself || !has_state || is_asked) {
        k.ended_by_itself = by_itself;
        *code = k.died_of ? -k.died_of : info->si_status;
        return true;
    }
    k.deaths += k.next < 0;
    k.supervises = false; /* what is told now would be told to nobody */
    set_patience(0, 0);
    if (k.end_asked.ssi_signo != 0) { /* the dead one may not have come to it: it stands */
        k.pending[k.end_asked.ssi_signo] = k.end_asked;
    }
    for (uint32_t i = 0; i < k.held_count; i++) {
        note_end(&k.held[i]);
        k.held[i].told = k.held[i].wants_reap = 0;
    }
    if (k.next >= 0) {
        begin_upgrade();
        k.restart_ms = 0;
        return false;
    }
    if (on_trial()) {
        go_back();
    }
    set_pause();
    if (k.died_of) {
        say("dutch-master: the master was ended by signal %d, another one goes on in %d ms; the "
            "workers serve meanwhile\n",
            k.died_of, (int)(k.restart_ms - now_ms()));
    } else {
        say("dutch-master: the master exited with code %d, another one goes on in %d ms; the "
            "workers serve meanwhile\n",
            k.exited_with, (int)(k.restart_ms - now_ms()));
    }
    return false;
}

static void reap_asked(const struct dm_keeper_frame *frame) {
    struct dm_keeper_held *held = held_pid(frame->pid);
    if (held && held->ended) {
        held->wants_reap = 1;
        held->lingers = frame->number != 0;
        reap(held);
    }
}

static void exit_told(const struct dm_keeper_frame *frame) {
    struct dm_keeper_held *held = held_pid(frame->pid);
    if (frame->pid > 0 && held && !held->ended) {
        note_exit(held, frame->code, frame->signaled, frame->core);
    }
}

static void kill_asked(pid_t pid, int number) {
    siginfo_t info;
    /* Ours and unreaped, or the wait says that it is not ours. */
    if (pid > 1 && pid != k.master && !held_pid(pid) && is_ours(pid) &&
        wait_for(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT, NULL) == 0) {
        signal_group(pid, number);
    }
}

static void handle(struct dm_keeper_frame *frame, size_t size, int fd) {
    const size_t head = offsetof(struct dm_keeper_frame, text);
    const size_t length = size > head ? size - head : 0;
    frame->text[length < DM_KEEPER_TEXT ? length : DM_KEEPER_TEXT - 1] = '\0';
    if (size < head) {
        frame->op = 0;
    }
    if (frame->op == DM_KEEPER_PUT) {
        put(frame, fd);
        fd = -1;
    } else if (frame->op == DM_KEEPER_DROP) {
        drop(find(frame->text));
    } else if (frame->op == DM_KEEPER_HELLO) {
        k.supervises = true;
        if (k.upgrade.state == DM_UPGRADE_RENEWED) {
            k.upgrade.state = DM_UPGRADE_NONE;
        }
    } else if (frame->op == DM_KEEPER_REAP) {
        reap_asked(frame);
    } else if (frame->op == DM_KEEPER_EXIT) {
        exit_told(frame);
    } else if (frame->op == DM_KEEPER_KILL) {
        kill_asked(frame->pid, frame->number);
    } else if (frame->op == DM_KEEPER_UPGRADE) {
        close_if_open(&k.next);
        k.next = fd;
        fd = -1;
    } else if (frame->op == DM_KEEPER_SETTLED) {
        k.upgrade = (struct dm_keeper_upgrade){.state = DM_UPGRADE_NONE};
        close_if_open(&k.former);
    } else if (frame->op == DM_KEEPER_NOTIFY) {
        memcpy(k.notice, frame->text, length);
        k.notice_size = length;
        k.notice_tries = 0;
        notify();
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* One frame. -> whether there was one */
static bool listen_to_master(void) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec part = {&k.frame, sizeof k.frame};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    const ssize_t size =
        k.socket < 0 ? -1 : recvmsg(k.socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0) {
        return false;
    }
    int fd = -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof fd; i++) {
            if (fd >= 0) {
                close(fd);
            }
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
        }
    }
    handle(&k.frame, (size_t)size, fd); /* nothing is too short as well */
    return size > 0;
}

/* ---- the loop ---- */

/* ^Z stops the master as well, which is not of the terminal's group. The kernel decides whether we
 * stop: process 1 does not, and nobody without a shell to go on from. */
static void stop_for_a_while(void) {
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTSTP);
    if (k.master) {
        kill(k.master, SIGSTOP);
    }
    raise(SIGTSTP);
    sigprocmask(SIG_UNBLOCK, &stop, NULL);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    if (k.master) {
        kill(k.master, SIGCONT);
    }
}

static void read_signals(void) {
    struct signalfd_siginfo info;
    while (read(k.signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGTSTP) {
            stop_for_a_while();
        } else if (info.ssi_signo < NSIG && info.ssi_signo != SIGCHLD &&
                   info.ssi_signo != SIGPIPE && info.ssi_signo != SIGXFSZ) {
            k.pending[info.ssi_signo] = info;
            if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT ||
                info.ssi_signo == SIGQUIT) {
                k.end_asked = info;
            }
            k.restart_ms = 0; /* whoever asks for something is not kept waiting by a pause */
        }
    }
}

static int shorter(int ms, uint64_t until) {
    const uint64_t now = now_ms();
    const int left = until <= now ? 0 : until - now > INT32_MAX ? INT32_MAX : (int)(until - now);
    return ms < 0 || left < ms ? left : ms;
}

static bool has_ended(siginfo_t *info) {
    return k.master > 0 && wait_for(P_PID, k.master, info, WEXITED | WNOHANG, NULL) == 0 &&
           info->si_pid != 0;
}

enum outcome { GO_ON, OVER, IN_MASTER };

/* What a dead master said last. */
static void hear_the_last(void) {
    while (k.notice_size || listen_to_master()) {
        if (k.notice_size) {
            const struct timespec pause = {.tv_nsec = 1000000};
            nanosleep(&pause, NULL);
            notify();
        }
    }
}

static enum outcome turn(struct dm_keeper_link *link, int *code) {
    const bool again = report();
    struct pollfd fds[] = {
        {.fd = k.signals, .events = POLLIN},
        {.fd = k.patience, .events = POLLIN},
        {.fd = k.notice_size ? -1 : k.socket, .events = POLLIN},
        {.fd = k.elsewhere, .events = POLLIN},
    };
    int ms = again ? LOOK_MS : -1;
    ms = k.notice_size ? shorter(ms, now_ms() + NOTIFY_MS) : ms;
    ms = k.master ? ms : shorter(ms, k.restart_ms);
    ms = on_trial() && k.master && !k.supervises ? shorter(ms, k.started_ms + TRIAL_MS) : ms;
    poll(fds, sizeof fds / sizeof *fds, ms);
    read_signals();
    look_at_patience();
    look_at_trial();
    if (k.notice_size) {
        notify();
    }
    for (int i = 0; i < FRAMES && !k.notice_size && listen_to_master(); i++) {
    }
    siginfo_t info;
    if (has_ended(&info)) {
        hear_the_last();
        if (master_ended(&info, code)) {
            return OVER;
        }
    }
    sweep();
    look_elsewhere(fds[3].revents != 0);
    if (!k.master && now_ms() >= k.restart_ms) {
        if (start_master(link)) {
            return IN_MASTER;
        } else if (!k.master) {
            k.restart_ms = now_ms() + AGAIN_MS;
        }
    }
    return GO_ON;
}

/* Those of a fault of our own end us; all others wait in the descriptor. */
static void listened_signals(sigset_t *set) {
    static const int others[] = {SIGSEGV, SIGBUS, SIGILL,  SIGFPE,  SIGABRT,
                                 SIGTRAP, SIGSYS, SIGKILL, SIGSTOP, SIGCONT};
    sigfillset(set);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        sigdelset(set, others[i]);
    }
}

/* Of a file without a name: it crosses an exec. */
static struct dm_keeper_memory *map_memory(int fd) {
    void *memory = mmap(NULL, sizeof(struct dm_keeper_memory), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static struct dm_keeper_memory *make_memory(void) {
    k.memory_fd = memfd_create("dutch-master-state", MFD_CLOEXEC);
    if (k.memory_fd >= 0 && ftruncate(k.memory_fd, sizeof(struct dm_keeper_memory)) != 0) {
        close_if_open(&k.memory_fd);
    }
    struct dm_keeper_memory *m = map_memory(k.memory_fd); /* without a file: no upgrade */
    if (m) {
        m->magic = MAGIC;
        m->version = VERSION;
    }
    return m;
}

static void raise_descriptors(void) {
    struct rlimit most = k.descriptors;
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
}

static int begin(void) {
    sigprocmask(SIG_BLOCK, NULL, &k.before);
    getrlimit(RLIMIT_NOFILE, &k.descriptors);
    k.memory = make_memory();
    children(note_before_us);
    return k.memory ? 0 : -errno;
}

/* Who is a child of a keeper that died, and so is not ours. */
static void find_elsewhere(void) {
    siginfo_t info;
    for (uint32_t i = 0; i < k.held_count; i++) {
        struct dm_keeper_held *held = &k.held[i];
        struct epoll_event event = {.events = EPOLLIN};
        if (held->pid > 0 &&
            wait_for(P_PIDFD_, held->fd, &info, WEXITED | WNOHANG | WNOWAIT, NULL) == -ECHILD) {
            held->elsewhere = 1;
            k.elsewhere = k.elsewhere < 0 ? epoll_create1(EPOLL_CLOEXEC) : k.elsewhere;
            epoll_ctl(k.elsewhere, EPOLL_CTL_ADD, held->fd, &event);
        }
    }
}

/* What the program had that was here before. */
static int resume(void) {
    static struct dm_handoff h;
    int error = dm_handoff_read(&h, k.held, DM_KEEPER_FDS, &k.former);
    if (error) {
        return error;
    }
    k.held_count = h.held_count;
    k.memory_fd = h.memory;
    k.memory = map_memory(h.memory);
    k.before = h.before;
    k.descriptors = h.descriptors;
    k.died_of = h.died_of;
    k.exited_with = h.exited_with;
    k.deaths = h.deaths;
    k.failures = h.failures;
    k.starts = h.starts;
    k.upgrade = h.upgrade;
    for (int i = 1; i < NSIG; i++) {
        k.pending[i] =
            (struct signalfd_siginfo){.ssi_signo = h.pending[i].is_there ? (unsigned)i : 0,
                                      .ssi_pid = (uint32_t)h.pending[i].pid,
                                      .ssi_uid = h.pending[i].uid};
    }
    for (int i = 0; i < BEFORE; i++) {
        k.before_us[i] = h.before_us[i];
    }
    if (k.upgrade.state == DM_UPGRADE_TRIAL && k.former < 0) { /* the other one has sent us back */
        k.upgrade = (struct dm_keeper_upgrade){DM_UPGRADE_FAILED, DM_UPGRADE_REFUSED, 0};
    }
    find_elsewhere();
    return k.memory && k.memory->magic == MAGIC && k.memory->version == VERSION ? 0 : -EPROTO;
}

static void have_none(void) {
    k.memory_fd = k.next = k.former = k.signals = k.socket = k.patience = k.elsewhere = -1;
}

static int set_up(char **argv) {
    sigset_t set;
    have_none();
    k.argv = argv;
    int error = dm_handoff_is_there() ? resume() : begin();
    if (error && dm_handoff_is_there()) {
        dm_handoff_refuse(argv);
    }
    if (error) {
        return error;
    }
    listened_signals(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGCHLD, SIG_DFL);
    k.signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    k.patience = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (k.signals < 0 || k.patience < 0) {
        return -errno;
    }
    find_manager();
    raise_descriptors();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    return 0;
}

/* As the master died, so that whoever started us sees it. */
static int die_of(int number) {
    const struct rlimit none = {0, 0};
    sigset_t deadly;
    setrlimit(RLIMIT_CORE, &none); /* there is one of the master's, if there is to be one */
    signal(number, SIG_DFL);
    sigemptyset(&deadly);
    sigaddset(&deadly, number);
    raise(number);
    sigprocmask(SIG_UNBLOCK, &deadly, NULL);
    return 128 + number; /* process 1 cannot die of it */
}

bool dm_keeper_run(struct dm_keeper_link *link, char **argv, int *code) {
    *link = (struct dm_keeper_link){.socket = -1};
    const int error = set_up(argv);
    if (error == 0 && start_master(link)) {
        return true;
    }
    if (error != 0 || !k.master) { /* better a master that nobody keeps than none */
        say("dutch-master: no process could be made for the master: it goes without a keeper\n", 0,
            0);
        sigprocmask(SIG_SETMASK, &k.before, NULL);
        setrlimit(RLIMIT_NOFILE, &k.descriptors);
        return true;
    }
    prctl(PR_SET_NAME, "dutch-keeper"); /* DM_KEEPER_COMM */
    enum outcome outcome;
    do {
        outcome = turn(link, code);
    } while (outcome == GO_ON);
    if (outcome == IN_MASTER) {
        return true;
    }
    end_all(k.ended_by_itself ? 0 : TERM_MS); /* at its own end a master has asked its workers */
    if (*code < 0) {
        *code = die_of(-*code);
    }
    return false;
}
