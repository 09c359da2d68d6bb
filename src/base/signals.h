/* signals.h: signals to this process, read from a signalfd. They stay blocked while listened to, so
 * nothing runs in the middle of anything and no number of them can push another out. */
#pragma once

#include "base/poll.h"

#include <signal.h>
#include <uv.h>

/* From the first instruction of main() until dm_signals_set: whatever would end the program and
 * asks a master for something else waits. TERM, INT and QUIT end it as long as there is nothing to
 * undo. dm_signals_release is for programs that are no master. */
void dm_signals_hold(void);
void dm_signals_release(void);

struct dm_signals;

/* at_ms: when it was read, by a keeper of ours or here. */
typedef void (*dm_signals_cb)(struct dm_signals *signals, int number, pid_t sender,
                              uid_t sender_uid, uint64_t at_ms);

struct dm_signals {
    struct dm_poll poll;
    int fd; /* -1 before the first dm_signals_set */
    sigset_t set;
    dm_signals_cb on_signal;
    void *data;
};

void dm_signals_init(struct dm_signals *signals, void *data, dm_signals_cb on_signal);
/* Replaces the set listened to. What is dropped from it is unblocked, with its old disposition for
 * what comes from now on. */
int dm_signals_set(struct dm_signals *signals, uv_loop_t *loop, const sigset_t *set);
void dm_signals_deinit(struct dm_signals *signals);

int dm_signal_number(const char *name); /* "SIGTERM", "TERM", "SIGRTMIN+2"; 0 if there is none */
const char *dm_signal_name(int number, char buffer[16]); /* "SIGTERM", or NULL */
