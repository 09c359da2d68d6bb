/* upgrade.c: a keeper that becomes another program, and goes back to the former one if no master of
 * the new one takes over; and a master that becomes a keeper. */
#include "keeper/handoff.h"
#include "keeper/memory.h"
#include "keeper/state.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { TRIAL_MS = 10000 }; /* another program's master has this long to take over */

/* What another program needs to go on as keeper, but for what is held. */
static void fill_handoff(const struct dm_keeper *k, struct dm_handoff *h) {
    *h = (struct dm_handoff){
        .memory = k->memory_fd,
        .died_of = k->died_of,
        .exited_with = k->exited_with,
        .deaths = k->deaths,
        .failures = k->failures,
        .starts = k->starts,
        .upgrade = k->upgrade,
        .before = k->before,
        .descriptors = k->descriptors,
        .held_count = k->children.held.count,
    };
}

static void become(struct dm_keeper *k, int image, int former) {
    struct dm_handoff h;
    fill_handoff(k, &h);
    const uint64_t heard = dm_keeper_heard(k->memory);
    for (int i = 1; i < NSIG; i++) {
        const struct dm_keeper_signal *s = &k->pending[i];
        h.pending[i] = (struct dm_handoff_signal){s->pid, s->uid,
                                                  s->state == DM_SIGNAL_WAITS && s->order > heard};
    }
    for (int i = 0; i < DM_KEEPER_BEFORE; i++) {
        h.before_us[i] = k->children.before_us[i];
    }
    const int error = dm_handoff_exec(image, former, k->argv, &h, k->children.held.items);
    k->upgrade = (struct dm_keeper_upgrade){DM_UPGRADE_FAILED, DM_UPGRADE_NOT_RUN, -error};
    dm_say("dutch-master: the program could not be run (errno %d): this one goes on\n", -error, 0);
}

int dm_upgrade_renew(const struct dm_keeper *k, const struct dm_keeper_held *held, uint32_t count) {
    struct dm_handoff h;
    sigset_t all, before;
    const int image = open("/proc/self/exe", O_PATH | O_CLOEXEC);
    if (image < 0 || k->memory_fd < 0) {
        return image < 0 ? -errno : -ENOTSUP;
    }
    fill_handoff(k, &h);
    h.upgrade = (struct dm_keeper_upgrade){.state = DM_UPGRADE_RENEWED};
    h.starts = k->starts + 1;
    h.died_of = h.exited_with = 0;
    h.held_count = count;
    sigfillset(&all); /* whatever comes meanwhile is the next keeper's */
    sigprocmask(SIG_SETMASK, &all, &before);
    const int error = dm_handoff_exec(image, -1, k->argv, &h, held);
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(image);
    return error;
}

void dm_upgrade_begin(struct dm_keeper *k) {
    int former = open("/proc/self/exe", O_PATH | O_CLOEXEC);
    k->upgrade = (struct dm_keeper_upgrade){.state = DM_UPGRADE_TRIAL};
    if (former < 0 || k->memory_fd < 0) {
        k->upgrade = (struct dm_keeper_upgrade){DM_UPGRADE_FAILED, DM_UPGRADE_NOT_RUN, errno};
    } else {
        become(k, k->next, former);
    }
    dm_close(&former);
    dm_close(&k->next);
}

void dm_upgrade_go_back(struct dm_keeper *k) {
    if (k->upgrade.reason == 0) {
        k->upgrade.reason = k->died_of ? DM_UPGRADE_DIED : DM_UPGRADE_EXITED;
        k->upgrade.number = k->died_of ? k->died_of : k->exited_with;
    }
    k->upgrade.state = DM_UPGRADE_FAILED;
    dm_say("dutch-master: the new program did not take over: going back to the former one\n", 0, 0);
    become(k, k->former, -1);
    dm_close(&k->former);
}

bool dm_upgrade_on_trial(const struct dm_keeper *k) {
    return k->former >= 0 && k->upgrade.state == DM_UPGRADE_TRIAL;
}

uint64_t dm_upgrade_trial_until(const struct dm_keeper *k) {
    const bool is_awaited = k->children.master && dm_upgrade_on_trial(k) && !k->supervises;
    return is_awaited ? k->started_ms + TRIAL_MS : 0;
}

void dm_upgrade_look_at_trial(struct dm_keeper *k) {
    const uint64_t until = dm_upgrade_trial_until(k);
    if (until && k->upgrade.reason == 0 && dm_now_ms() >= until) {
        k->upgrade.reason = DM_UPGRADE_LATE;
        k->upgrade.number = TRIAL_MS;
        kill(k->children.master, SIGKILL);
    }
}

int dm_upgrade_resume(struct dm_keeper *k) {
    static struct dm_handoff h;
    int error = dm_handoff_read(&h, k->children.held.items, DM_KEEPER_FDS, &k->former);
    if (error) {
        return error;
    }
    k->children.held.count = h.held_count;
    k->memory_fd = h.memory;
    k->memory = dm_keeper_map(h.memory);
    k->before = h.before;
    k->descriptors = h.descriptors;
    k->died_of = h.died_of;
    k->exited_with = h.exited_with;
    k->deaths = h.deaths;
    k->failures = h.failures;
    k->starts = h.starts;
    k->upgrade = h.upgrade;
    k->signals_read = k->memory ? dm_keeper_heard(k->memory) : 0;
    for (int i = 1; i < NSIG; i++) {
        const struct dm_handoff_signal *s = &h.pending[i];
        if (s->is_there) {
            k->pending[i] = (struct dm_keeper_signal){DM_SIGNAL_WAITS, s->pid, s->uid,
                                                      ++k->signals_read, dm_now_ms()};
        }
    }
    for (int i = 0; i < DM_KEEPER_BEFORE; i++) {
        k->children.before_us[i] = h.before_us[i];
    }
    if (k->upgrade.state == DM_UPGRADE_TRIAL &&
        k->former < 0) { /* the other one has sent us back */
        k->upgrade = (struct dm_keeper_upgrade){DM_UPGRADE_FAILED, DM_UPGRADE_REFUSED, 0};
    }
    dm_children_find_elsewhere(&k->children);
    return k->memory && dm_keeper_understands(k->memory) ? 0 : -EPROTO;
}
