/* state.h: the whole state of a keeper, which its files share: keeper.c is the loop, master.c the
 * life of masters, upgrade.c how it becomes another program. No other file includes this. */
#pragma once

#include "base/close.h"
#include "keeper/children.h"
#include "keeper/tell.h"

#include <signal.h>
#include <sys/signalfd.h>

/* The newest signal of its number. It stays here until the master has a snapshot that knows it:
 * if the master dies before that, the next one is told of it. */
struct dm_keeper_signal {
    enum { DM_SIGNAL_NONE, DM_SIGNAL_WAITS, DM_SIGNAL_TOLD } state;
    int32_t pid;
    uint32_t uid;
    uint64_t order, at_ms; /* see dm_keeper_frame */
};

struct dm_keeper {
    struct dm_keeper_memory *memory;
    int memory_fd;
    int next,
        former; /* programs: to become when the master has left; to go back to, if this fails */
    char **argv;
    struct dm_keeper_upgrade upgrade;
    unsigned starts;               /* of masters */
    int signals, socket, patience; /* a signalfd, the master's socket, a timerfd: see keeper.h */
    bool supervises, ended_by_itself;
    int died_of, exited_with;
    unsigned deaths, failures; /* all; those in quick succession */
    unsigned vain, poisoned;   /* see VAIN_MAX, POISON_MAX */
    uint64_t started_ms, next_start_ms;
    struct dm_keeper_signal pending[NSIG];
    uint64_t signals_read;
    bool end_asked; /* see dm_asks_for_end */
    sigset_t before;
    struct rlimit descriptors; /* as we were started */
    struct dm_manager manager;
    struct dm_keeper_frame frame;
    struct dm_children children;
    struct dm_keeper_held store[DM_KEEPER_FDS]; /* the items of children.held */
};

static inline bool dm_asks_for_end(int number) {
    return number == SIGTERM || number == SIGINT || number == SIGQUIT;
}

/* master.c. start: true in the master. */
bool dm_master_start(struct dm_keeper *k, struct dm_keeper_link *link);
void dm_master_look_at_patience(struct dm_keeper *k);
/* -> whether all is over, with the exit code, or the signal to die of as a negative number */
bool dm_master_ended(struct dm_keeper *k, const siginfo_t *info, int *code);

/* upgrade.c. begin and go_back return if it cannot be done: this program goes on then. */
void dm_upgrade_begin(struct dm_keeper *k);
void dm_upgrade_go_back(struct dm_keeper *k);
/* Whether this program is another one's successor, which waits to be called back. */
bool dm_upgrade_on_trial(const struct dm_keeper *k);
/* By when its master has to take over; 0: none is on trial, or it has taken over. */
uint64_t dm_upgrade_trial_until(const struct dm_keeper *k);
void dm_upgrade_look_at_trial(struct dm_keeper *k);
/* k is the copy that this master was forked with: see dm_keeper_renew. */
int dm_upgrade_renew(const struct dm_keeper *k, const struct dm_keeper_held *held, uint32_t count);
/* What the program had that was here before; 0 or a negative errno. */
int dm_upgrade_resume(struct dm_keeper *k);
