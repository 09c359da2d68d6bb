/* master.c: the life of masters: how one is started, killed for its silence, and followed by
 * another.
 */
#include "keeper/memory.h"
#include "keeper/state.h"

#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    LATE_MS = 5000,   /* for a master that seems to hang: we may have been stopped both */
    STEADY_MS = 1000, /* a master that has lived so long was no failure */
    FIRST_PAUSE_MS = 100,
    LAST_PAUSE_MS = 30000,
    /* Masters in a row that could not take over, or took over and died of themselves soon after:
     * the next one does without the state. */
    VAIN_MAX = 3,
    POISON_MAX = 3,
    /* exit(-1): a library that finds no memory (lua-cjson). No master ends so. */
    GAVE_UP = 255,
};

static void set_patience(const struct dm_keeper *k, int ms, int again_ms) {
    const struct itimerspec time = {
        .it_value = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L},
        .it_interval = {.tv_sec = again_ms / 1000},
    };
    timerfd_settime(k->patience, 0, &time, NULL);
}

/* The master sets the timer before it waits, and without an interval: with one, it is as we set it,
 * and the master has not moved since. */
void dm_master_look_at_patience(struct dm_keeper *k) {
    uint64_t count;
    struct itimerspec time;
    if (read(k->patience, &count, sizeof count) != (ssize_t)sizeof count || !k->children.master) {
        return;
    }
    timerfd_gettime(k->patience, &time);
    if (time.it_interval.tv_sec == 0) {
        set_patience(k, LATE_MS, LATE_MS);
        return;
    }
    set_patience(k, 0, 0);
    dm_say("dutch-master: the master (process %d) gave no sign of life for %d s, killing it\n",
           (int)k->children.master, (DM_KEEPER_SILENT_MS + LATE_MS) / 1000);
    kill(k->children.master, SIGKILL);
}

bool dm_master_start(struct dm_keeper *k, struct dm_keeper_link *link) {
    int ends[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
        return false;
    }
    k->started_ms = dm_now_ms();
    k->supervises = false;
    set_patience(k, DM_KEEPER_SILENT_MS, 0);
    const pid_t pid = fork();
    if (pid == 0) {
        *link =
            (struct dm_keeper_link){.socket = ends[1],
                                    .patience = k->patience,
                                    .memory = k->memory,
                                    .held = k->children.held.items,
                                    .held_count = k->children.held.count,
                                    .before_us = k->children.before_us,
                                    .keeper = getppid(),
                                    .died_of = k->died_of,
                                    .exited_with = k->exited_with,
                                    .deaths = k->deaths,
                                    .succeeds = k->starts > 0,
                                    .set_aside = k->vain >= VAIN_MAX || k->poisoned >= POISON_MAX,
                                    .upgrade = k->upgrade};
        close(ends[0]);
        dm_close(&k->next);
        dm_close(&k->former);
        dm_close(&k->signals);
        dm_close(&k->children.elsewhere);
        setpgid(0, 0); /* a terminal's signals are for the keeper, who passes them on */
        prctl(PR_SET_NAME, "dutch-master");
        setrlimit(RLIMIT_NOFILE, &k->descriptors);
        sigprocmask(SIG_SETMASK, &k->before, NULL);
        return true;
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return false;
    }
    setpgid(pid, pid);
    k->children.master = pid;
    k->socket = ends[0];
    k->starts++;
    return false;
}

/* A service manager that misses the pings of a master ends us all: half of its patience at most. */
static uint64_t longest_pause(void) {
    const char *usec = getenv("WATCHDOG_USEC");
    const uint64_t half = usec ? strtoull(usec, NULL, 10) / 2000 : 0;
    return half > 0 && half < LAST_PAUSE_MS ? half : LAST_PAUSE_MS;
}

static void set_pause(struct dm_keeper *k) {
    const uint64_t now = dm_now_ms(), most = longest_pause();
    k->failures = now - k->started_ms >= STEADY_MS ? 0 : k->failures + 1;
    uint64_t pause = 0;
    if (k->failures > 1) {
        pause = (uint64_t)FIRST_PAUSE_MS << (k->failures < 12 ? k->failures - 2 : 10);
        pause = pause > most ? most : pause;
    }
    k->next_start_ms = now + pause;
}

/* Whether it died by its own fault, soon: SIGKILL is somebody else's. */
static bool died_early(const struct dm_keeper *k) {
    return k->died_of != 0 && k->died_of != SIGKILL && dm_now_ms() - k->started_ms < STEADY_MS;
}

/* What the dead one may not have come to. Who asks for the end is heard by each master, for the
 * state may be of no use to it: where it is, it says that the end was asked for then. */
static void tell_signals_again(struct dm_keeper *k) {
    const uint64_t heard = dm_keeper_heard(k->memory);
    for (int i = 1; i < NSIG; i++) {
        struct dm_keeper_signal *s = &k->pending[i];
        if (s->state == DM_SIGNAL_TOLD) {
            s->state = s->order > heard || dm_asks_for_end(i) ? DM_SIGNAL_WAITS : DM_SIGNAL_NONE;
        }
    }
}

bool dm_master_ended(struct dm_keeper *k, const siginfo_t *info, int *code) {
    k->children.master = 0;
    close(k->socket);
    k->socket = -1;
    k->died_of = info->si_code == CLD_EXITED ? 0 : info->si_status;
    k->exited_with = info->si_code == CLD_EXITED ? info->si_status : 0;
    const bool has_state = dm_keeper_has_written(k->memory);
    /* A successor that gives up before it supervises has failed, whatever it says. */
    const bool by_itself = info->si_code == CLD_EXITED && info->si_status != GAVE_UP &&
                           (k->supervises || k->starts == 1) && k->next < 0;
    k->vain = k->supervises || k->starts == 1 ? 0 : k->vain + 1;
    k->poisoned = k->supervises && died_early(k) ? k->poisoned + 1
                  : k->supervises                ? 0
                                                 : k->poisoned;
    if (k->vain == VAIN_MAX || k->poisoned == POISON_MAX) {
        dm_say(
            "dutch-master: %d masters could not go on from the state that was left: the next one "
            "does without it\n",
            VAIN_MAX, 0);
    }
    /* Whoever asks for the end gets it, if no master is there to do it. */
    const bool is_asked = k->vain > VAIN_MAX && k->end_asked;
    if (by_itself || !has_state || is_asked) {
        k->ended_by_itself = by_itself;
        *code = k->died_of ? -k->died_of : info->si_status;
        return true;
    }
    k->deaths += k->next < 0;
    k->supervises = false; /* what is told now would be told to nobody */
    set_patience(k, 0, 0);
    tell_signals_again(k);
    for (uint32_t i = 0; i < k->children.held.count; i++) {
        struct dm_keeper_held *held = &k->children.held.items[i];
        dm_children_note_end(&k->children, held);
        held->told = held->wants_reap = 0;
    }
    if (k->next >= 0) {
        dm_upgrade_begin(k);
        k->next_start_ms = 0;
        return false;
    }
    if (dm_upgrade_on_trial(k)) {
        dm_upgrade_go_back(k);
    }
    set_pause(k);
    if (k->died_of) {
        dm_say("dutch-master: the master was ended by signal %d, another one goes on in %d ms; the "
               "workers serve meanwhile\n",
               k->died_of, (int)(k->next_start_ms - dm_now_ms()));
    } else {
        dm_say("dutch-master: the master exited with code %d, another one goes on in %d ms; the "
               "workers serve meanwhile\n",
               k->exited_with, (int)(k->next_start_ms - dm_now_ms()));
    }
    return false;
}
