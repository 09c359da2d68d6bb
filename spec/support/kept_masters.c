/* kept_masters.c: masters of a real keeper (src/keeper), each of which does what its argument says,
 * a letter a step, and prints what it hears:
 *
 *   H T I U    sends its keeper that signal: HUP, TERM, INT, USR1
 *   r          waits for a signal, prints "MASTER NAME ORDER"
 *   o          supervises
 *   s          has a snapshot that knows what was read; t: dies in the middle of that one
 *   M          is in the middle of a line of a channel that it opens; m: opens it, prints "MASTER
 *              clear", "MASTER in use", or "MASTER queued"
 *   Q          has a line for a channel that nobody reads, and which must not wait
 *   a          prints "MASTER goes on", or "MASTER does without the state"
 *   c          prints "MASTER MS", by the clock
 *   1          lives a second more
 *   d          dies of SIGKILL; f: of a fault of its own
 *   b          gives place to another program, which is this one
 *   x          ends by itself; e: with code 9; n: as a library that finds no memory, exit(-1)
 */
#include "base/fdpass.h"
#include "base/signals.h"
#include "base/timer.h"
#include "keeper/keeper.h"
#include "keeper/kept.h"
#include "keeper/memory.h"
#include "process/channel.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct dm_keeper_link link_;
static uint64_t heard;
static int number;

static void say(uint32_t op, int fd) {
    struct dm_keeper_frame frame = {.op = op};
    struct iovec part = {&frame, offsetof(struct dm_keeper_frame, text)};
    dm_fdpass_send(link_.socket, &part, 1, &fd, fd >= 0);
}

static void hear(void) {
    struct dm_keeper_frame frame = {.op = 0};
    char buffer[16];
    while (frame.op != DM_KEEPER_SIGNAL) {
        if (recv(link_.socket, &frame, sizeof frame, 0) <= 0) {
            exit(3);
        }
    }
    heard = frame.order > heard ? frame.order : heard;
    printf("%d %s %d\n", number, dm_signal_name(frame.number, buffer), (int)frame.order);
    fflush(stdout);
}

static void write_snapshot(bool whole) {
    struct dm_kept kept = {.link = link_, .open = true, .heard = heard};
    struct iovec part = {"state", 5};
    kept.snapshots = link_.memory->snapshots[0].number > link_.memory->snapshots[1].number
                         ? link_.memory->snapshots[0].number
                         : link_.memory->snapshots[1].number;
    dm_kept_write(&kept, &part, 1);
    if (!whole) {
        link_.memory->snapshots[kept.snapshots % 2].number = 0;
    }
}

static bool is_settled(const struct dm_mark *mark) {
    (void)mark;
    return true;
}

static void commit(struct dm_mark *mark) {
    (void)mark;
}

static enum dm_keeper_mark open_mark(bool in_use) {
    static struct dm_kept kept;
    static struct dm_mark mark;
    kept = (struct dm_kept){.link = link_, .open = true};
    dm_list_init(&kept.touched);
    const enum dm_keeper_mark before = dm_mark_open(&mark, &kept, 5, is_settled, commit);
    if (in_use) {
        dm_mark_set(&mark, DM_MARK_TOUCHED);
    }
    return before;
}

static void on_nothing(void *ctx) {
    (void)ctx;
}

/* At the same place as that of open_mark. */
static void queue_a_line(void) {
    static struct dm_kept kept;
    static struct dm_timers timers;
    static const struct dm_channel_events events = {.on_freed = on_nothing};
    uv_loop_t *loop = uv_default_loop();
    int ends[2];
    kept = (struct dm_kept){.link = link_, .open = true};
    dm_list_init(&kept.touched);
    dm_timers_init(&timers, loop);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        exit(3);
    }
    struct dm_channel *channel = dm_channel_open(loop, &timers, ends[0], &events, NULL);
    dm_channel_keep(channel, &kept, 5);
    while (send(ends[0], "\n", 1, MSG_DONTWAIT) == 1) {
    }
    if (dm_channel_send(channel, "now", 3, -1, true) != 0) {
        exit(3);
    }
}

static void say_line(const char *format, const char *text) {
    printf(format, number, text);
    fflush(stdout);
}

static void step(char letter) {
    char text[32];
    switch (letter) {
    case 'H':
        kill(getppid(), SIGHUP);
        break;
    case 'T':
        kill(getppid(), SIGTERM);
        break;
    case 'I':
        kill(getppid(), SIGINT);
        break;
    case 'U':
        kill(getppid(), SIGUSR1);
        break;
    case 'r':
        hear();
        break;
    case 'o':
        say(DM_KEEPER_HELLO, -1);
        break;
    case 's':
    case 't':
        write_snapshot(letter == 's');
        break;
    case 'b': {
        FILE *image = fopen("/proc/self/exe", "r");
        say(DM_KEEPER_UPGRADE, fileno(image));
        _exit(0);
    }
    case 'a':
        say_line("%d %s\n", link_.set_aside ? "does without the state" : "goes on");
        break;
    case 'M':
        open_mark(true);
        break;
    case 'm':
        switch (open_mark(false)) {
        case DM_MARK_CLEAR:
            say_line("%d %s\n", "clear");
            break;
        case DM_MARK_QUEUED:
            say_line("%d %s\n", "queued");
            break;
        default:
            say_line("%d %s\n", "in use");
        }
        break;
    case 'Q':
        queue_a_line();
        break;
    case 'c':
        snprintf(text, sizeof text, "%llu", (unsigned long long)dm_now_ms());
        say_line("%d %s\n", text);
        break;
    case '1':
        poll(NULL, 0, 1100);
        break;
    case 'f':
        kill(getpid(), SIGABRT);
        break;
    case 'x':
    case 'e':
    case 'n':
        _exit(letter == 'x' ? 0 : letter == 'n' ? -1 : 9);
    default:
        kill(getpid(), SIGKILL);
    }
}

int main(int argc, char **argv) {
    int code = 0;
    if (!dm_keeper_run(&link_, argv, &code)) {
        return code;
    }
    number = ++link_.memory->marks[0];
    heard = dm_keeper_heard(link_.memory);
    for (const char *letter = number < argc ? argv[number] : "d"; *letter; letter++) {
        step(*letter);
    }
    pause();
}
