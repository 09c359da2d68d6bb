/* keeper.c: see keeper.h. A loop around poll(): signals, what the master says, its death.
 *
 * What it holds, and whose parent it is, is in children.c; the life of masters in master.c; how it
 * becomes another program in upgrade.c; the memory in memory.c; what it tells others in tell.c. */
#include "keeper/keeper.h"

#include "base/fdpass.h"
#include "base/proc.h"
#include "keeper/handoff.h"
#include "keeper/memory.h"
#include "keeper/state.h"

#include <errno.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>

enum {
    FRAMES = 256,    /* of the master's, read in one turn */
    LOOK_MS = 100,   /* how often groups are looked at that are waited for */
    AGAIN_MS = 1000, /* until a fork that failed is tried again */
    LAST_WORDS_MS = 500,
    TERM_MS = 5000, /* what nobody can go on with has this long to end by SIGTERM */
};

static struct dm_keeper k; /* zero until set_up(): so it is no part of the program's file */

/* ---- to the master ---- */

/* Descriptors go nowhere from here. False: no room now. */
static bool tell(const struct dm_keeper_frame *frame) {
    return k.socket < 0 ||
           send(k.socket, frame, offsetof(struct dm_keeper_frame, text),
                MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 ||
           (errno != EAGAIN && errno != ENOBUFS);
}

static struct dm_keeper_signal *first_that_waits(void) {
    struct dm_keeper_signal *first = NULL;
    for (int i = 1; i < NSIG; i++) {
        struct dm_keeper_signal *s = &k.pending[i];
        first = s->state == DM_SIGNAL_WAITS && (!first || s->order < first->order) ? s : first;
    }
    return first;
}

/* A successor is told of signals when it supervises: before, it could not do what they ask.
 * -> whether some could not be told */
static bool report_signals(void) {
    const bool is_able = k.socket >= 0 && (k.supervises || k.starts == 1);
    struct dm_keeper_signal *s;
    while (is_able && (s = first_that_waits())) {
        const struct dm_keeper_frame frame = {.op = DM_KEEPER_SIGNAL,
                                              .number = (int)(s - k.pending),
                                              .pid = s->pid,
                                              .uid = s->uid,
                                              .order = s->order,
                                              .at_ms = s->at_ms};
        if (!tell(&frame)) {
            return true;
        }
        s->state = DM_SIGNAL_TOLD;
    }
    return false;
}

static void reap(struct dm_keeper_held *held) {
    const bool is_reaped = dm_children_reap(held);
    const struct dm_keeper_frame frame = {
        .op = DM_KEEPER_REAPED, .pid = held->pid, .usage = held->usage};
    held->wants_reap = !is_reaped || !tell(&frame);
}

/* Tells the master whatever it has not heard. -> whether there is something to look at again */
static bool report(void) {
    bool again = report_signals();
    for (uint32_t i = 0; k.supervises && i < k.children.held.count; i++) {
        struct dm_keeper_held *held = &k.children.held.items[i];
        if (held->ended && !held->told) {
            const struct dm_keeper_frame frame = {.op = DM_KEEPER_ENDED,
                                                  .pid = held->pid,
                                                  .code = held->code,
                                                  .number = dm_group_lives(held->pid),
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

/* ---- from the master ---- */

static void reap_asked(const struct dm_keeper_frame *frame) {
    struct dm_keeper_held *held = dm_held_pid(&k.children.held, frame->pid);
    if (held && held->ended) {
        held->wants_reap = 1;
        held->lingers = frame->number != 0;
        reap(held);
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
        dm_children_put(&k.children, frame->text, fd, frame->pid);
        fd = -1;
    } else if (frame->op == DM_KEEPER_DROP) {
        dm_children_drop(&k.children, dm_held_find(&k.children.held, frame->text));
    } else if (frame->op == DM_KEEPER_HELLO) {
        k.supervises = true;
        if (k.upgrade.state == DM_UPGRADE_RENEWED) {
            k.upgrade.state = DM_UPGRADE_NONE;
        }
    } else if (frame->op == DM_KEEPER_REAP) {
        reap_asked(frame);
    } else if (frame->op == DM_KEEPER_EXIT) {
        dm_held_exit(&k.children.held, frame->pid, frame->code, frame->signaled, frame->core);
    } else if (frame->op == DM_KEEPER_KILL) {
        dm_children_kill(&k.children, frame->pid, frame->number);
    } else if (frame->op == DM_KEEPER_UPGRADE) {
        dm_close(&k.next);
        k.next = fd;
        fd = -1;
    } else if (frame->op == DM_KEEPER_SETTLED) {
        k.upgrade = (struct dm_keeper_upgrade){.state = DM_UPGRADE_NONE};
        dm_close(&k.former);
    } else if (frame->op == DM_KEEPER_NOTIFY) {
        dm_manager_tell(&k.manager, frame->text, length);
    }
    dm_close(&fd);
}

/* One frame. -> whether there was one */
static bool listen_to_master(void) {
    int fds[DM_FDPASS_MAX], fd = -1;
    size_t count = 0;
    const ssize_t size =
        k.socket < 0 ? -1
                     : dm_fdpass_receive(k.socket, &k.frame, sizeof k.frame, fds, &count, NULL);
    if (size < 0) {
        return false;
    }
    if (count > 0) {
        fd = fds[--count];
        dm_fdpass_close(fds, count);
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
    if (k.children.master) {
        kill(k.children.master, SIGSTOP);
    }
    raise(SIGTSTP);
    sigprocmask(SIG_UNBLOCK, &stop, NULL);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    if (k.children.master) {
        kill(k.children.master, SIGCONT);
    }
}

static void read_signals(void) {
    struct signalfd_siginfo info;
    while (read(k.signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGTSTP) {
            stop_for_a_while();
        } else if (info.ssi_signo < NSIG && info.ssi_signo != SIGCHLD &&
                   info.ssi_signo != SIGPIPE && info.ssi_signo != SIGXFSZ) {
            k.pending[info.ssi_signo] = (struct dm_keeper_signal){
                DM_SIGNAL_WAITS, (int)info.ssi_pid, info.ssi_uid, ++k.signals_read, dm_now_ms()};
            k.end_asked = k.end_asked || dm_asks_for_end((int)info.ssi_signo);
            k.next_start_ms = 0; /* whoever asks for something is not kept waiting by a pause */
        }
    }
}

static int shorter(int ms, uint64_t until) {
    const uint64_t now = dm_now_ms();
    const int left = until <= now ? 0 : until - now > INT32_MAX ? INT32_MAX : (int)(until - now);
    return ms < 0 || left < ms ? left : ms;
}

enum outcome { GO_ON, OVER, IN_MASTER };

/* What a dead master said last, or what it had begun says for it (base/outlive.h): until nobody is
 * left who could say anything. */
static void hear_the_last(void) {
    const uint64_t until = dm_now_ms() + LAST_WORDS_MS;
    struct pollfd end = {.fd = k.socket, .events = POLLIN};
    do {
        while (listen_to_master()) {
        }
    } while (!(end.revents & POLLHUP) && dm_now_ms() < until &&
             poll(&end, 1, shorter(-1, until)) > 0);
    dm_manager_flush(&k.manager);
}

static enum outcome turn(struct dm_keeper_link *link, int *code) {
    const bool again = report();
    struct pollfd fds[] = {
        {.fd = k.signals, .events = POLLIN},
        {.fd = k.patience, .events = POLLIN},
        {.fd = k.socket, .events = POLLIN},
        {.fd = k.children.elsewhere, .events = POLLIN},
    };
    const uint64_t trial_until = dm_upgrade_trial_until(&k);
    int ms = again ? LOOK_MS : -1;
    const int notify_ms = dm_manager_next(&k.manager);
    ms = notify_ms >= 0 ? shorter(ms, dm_now_ms() + (uint64_t)notify_ms) : ms;
    ms = k.children.master ? ms : shorter(ms, k.next_start_ms);
    ms = trial_until ? shorter(ms, trial_until) : ms;
    poll(fds, sizeof fds / sizeof *fds, ms);
    read_signals();
    dm_master_look_at_patience(&k);
    dm_upgrade_look_at_trial(&k);
    dm_manager_send(&k.manager);
    for (int i = 0; i < FRAMES && listen_to_master(); i++) {
    }
    siginfo_t info;
    if (dm_children_master_ended(&k.children, &info)) {
        hear_the_last();
        if (dm_master_ended(&k, &info, code)) {
            return OVER;
        }
    }
    dm_children_sweep(&k.children);
    dm_children_look_elsewhere(&k.children, fds[3].revents != 0);
    if (!k.children.master && dm_now_ms() >= k.next_start_ms) {
        if (dm_master_start(&k, link)) {
            return IN_MASTER;
        } else if (!k.children.master) {
            k.next_start_ms = dm_now_ms() + AGAIN_MS;
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

static void raise_descriptors(void) {
    struct rlimit most = k.descriptors;
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
}

static int begin(void) {
    sigprocmask(SIG_BLOCK, NULL, &k.before);
    getrlimit(RLIMIT_NOFILE, &k.descriptors);
    k.memory = dm_keeper_make_memory(&k.memory_fd);
    dm_children_begin(&k.children);
    return k.memory ? 0 : -errno;
}

static void have_none(void) {
    k.memory_fd = k.next = k.former = k.signals = k.socket = k.patience = k.children.elsewhere = -1;
    k.children.held = (struct dm_held){.items = k.store, .room = DM_KEEPER_FDS};
}

static int set_up(char **argv) {
    sigset_t set;
    have_none();
    k.argv = argv;
    int error = dm_handoff_is_there() ? dm_upgrade_resume(&k) : begin();
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
    dm_manager_find(&k.manager);
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

int dm_keeper_renew(const struct dm_keeper_held *held, uint32_t count) {
    return dm_upgrade_renew(&k, held, count);
}

bool dm_keeper_run(struct dm_keeper_link *link, char **argv, int *code) {
    *link = (struct dm_keeper_link){.socket = -1};
    const int error = set_up(argv);
    if (error == 0 && dm_master_start(&k, link)) {
        return true;
    }
    if (error != 0 || !k.children.master) { /* better a master that nobody keeps than none */
        dm_say("dutch-master: no process could be made for the master: it goes without a keeper\n",
               0, 0);
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
    /* At its own end a master has asked its workers. */
    dm_children_end_all(&k.children, k.ended_by_itself ? 0 : TERM_MS);
    if (*code < 0) {
        *code = die_of(-*code);
    }
    return false;
}
