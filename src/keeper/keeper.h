/* keeper.h: the small parent of the master. It holds a copy of every descriptor that must outlive
 * the master, the memory in which the master writes its state, and reaps what a dead master leaves.
 * libc alone; nothing is allocated after its start; it understands nothing but its own frames.
 *
 * Master and keeper share a socket (SOCK_SEQPACKET) and one piece of memory. What was sent into the
 * socket is the keeper's, even if its sender dies the moment after: the kernel keeps it. So the
 * store needs no acknowledgement: a send that has returned is one.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

enum {
    DM_KEEPER_NAME = 48,     /* bytes of a descriptor's name, with its NUL */
    DM_KEEPER_FDS = 32768,   /* descriptors in the store; a worker has up to six */
    DM_KEEPER_MARKS = 16360, /* channels: see dm_keeper_memory */
    DM_KEEPER_TEXT = 4096,   /* of a notification, as systemd's own limit */
    DM_KEEPER_STATE = 32 << 20,
    DM_KEEPER_BEFORE = 64,
    DM_KEEPER_SILENT_MS = 60000, /* see patience */
};

enum dm_keeper_op {
    /* from the master */
    DM_KEEPER_PUT = 1, /* text: name; pid: whose pidfd it is, or 0; with the descriptor */
    DM_KEEPER_DROP,    /* text: name */
    DM_KEEPER_HELLO,   /* I supervise: tell me who has ended */
    DM_KEEPER_REAP,    /* pid, number: its group is waited for */
    DM_KEEPER_KILL,    /* pid, number: a signal for a child of the keeper's that is no worker */
    DM_KEEPER_EXIT,   /* pid, code, signaled, core: a child of the master's, which is reaped next */
    DM_KEEPER_NOTIFY, /* text: for the service manager, who believes the keeper alone */
    DM_KEEPER_UPGRADE, /* with the descriptor of a program: when I have left, become it */
    DM_KEEPER_SETTLED, /* the program that was left is not needed any more */
    /* from the keeper */
    DM_KEEPER_SIGNAL, /* number, pid, uid, order, at_ms */
    DM_KEEPER_ENDED, /* pid, code, signaled, core: a zombie now; number: others of its group live */
    DM_KEEPER_REAPED, /* pid, usage */
};

struct dm_keeper_frame {
    uint32_t op;
    int32_t number, pid, code;
    uint32_t uid;
    uint8_t signaled, core;
    uint64_t order, at_ms; /* of signals: counts them; when the keeper read it */
    struct rusage usage;
    char text[DM_KEEPER_TEXT];
};

/* How a keeper came to run the program that it runs. */
struct dm_keeper_upgrade {
    uint8_t state;  /* of enum dm_keeper_upgraded */
    uint8_t reason; /* of enum dm_keeper_failure */
    int32_t number; /* an errno, a signal, an exit code */
};
enum dm_keeper_upgraded {
    DM_UPGRADE_NONE,
    DM_UPGRADE_TRIAL,   /* it was begun with another program, which waits to be called back */
    DM_UPGRADE_FAILED,  /* it was called back, or never left */
    DM_UPGRADE_RENEWED, /* no upgrade: its keeper had died, and the master became one */
};
enum dm_keeper_failure {
    DM_UPGRADE_NOT_RUN = 1, /* the exec failed: an errno */
    DM_UPGRADE_REFUSED,     /* it does not understand what it was handed */
    DM_UPGRADE_DIED,        /* its master was ended by a signal, */
    DM_UPGRADE_EXITED,      /* by itself, */
    DM_UPGRADE_LATE,        /* or did not take over in time: milliseconds */
};

enum dm_keeper_mark {
    DM_MARK_CLEAR,
    DM_MARK_TOUCHED, /* something was read from it that the newest snapshot does not know */
    DM_MARK_QUEUED,  /* something is to be written that it may know */
    DM_MARK_WRITING, /* and half a line may be out */
    DM_MARK_SENDING, /* or whole lines, or nothing; a program that does not know it takes it for the
                        one before */
};

/* One descriptor of the store. */
struct dm_keeper_held {
    char name[DM_KEEPER_NAME];
    int32_t fd, pid; /* pid: of a pidfd, else 0 */
    int32_t code;
    uint8_t signaled, core;
    uint8_t exit_known, ended, told, wants_reap, lingers, reaped;
    uint8_t elsewhere; /* its parent was a keeper that died: it is somebody else's child now */
    struct rusage usage;
};

/* Shared with the master, who alone writes to it. A snapshot is written over the older one, its
 * number last: whenever the master dies, one of them is whole. */
struct dm_keeper_memory {
    uint32_t magic, version;
    struct {
        volatile uint64_t number; /* 0: nothing whole is in it */
        uint64_t size, sum;
    } snapshots[2];
    /* By channel, of enum dm_keeper_mark. */
    volatile uint8_t marks[DM_KEEPER_MARKS];
    /* The number of the last record of the log that was written: see log/ledger.lua. */
    volatile uint64_t said;
    /* Up to which of the signals that it was told of each snapshot has what they ask for. */
    volatile uint64_t heard[2];
    char text[2][DM_KEEPER_STATE];
};

/* What a master is started with. */
struct dm_keeper_link {
    int socket; /* -1: nobody keeps it */
    /* A timerfd. A master sets it whenever it waits, to when it will move again at the latest, and
     * DM_KEEPER_SILENT_MS more. It wakes the keeper only if a master hangs. */
    int patience;
    struct dm_keeper_memory *memory;
    const struct dm_keeper_held *held; /* as it was when the master was started */
    uint32_t held_count;
    const pid_t *before_us; /* children that the keeper had before it was one, DM_KEEPER_BEFORE */
    pid_t keeper;
    int died_of,
        exited_with; /* what its predecessor ended by: a signal, or a code; 0: there was none */
    unsigned deaths; /* of masters, so far */
    bool succeeds;   /* another one was there before, and has left its state */
    bool set_aside;  /* which has ended so many of them that this one does without it */
    struct dm_keeper_upgrade upgrade;
};

/* Before anything else exists in the process: becomes the keeper and starts a master. Returns true
 * in each master that it starts, with its link; false in the keeper when all is over, with the exit
 * code. argv: with which it becomes another program. */
bool dm_keeper_run(struct dm_keeper_link *link, char **argv, int *exit_code);

/* In a master whose keeper has died: its process becomes a keeper, in place, of this program, which
 * holds these and starts another master. Returns what failed; nothing has changed then. */
int dm_keeper_renew(const struct dm_keeper_held *held, uint32_t count);
