/* listener.c: see listener.h. Longer than 400 lines: one socket group with its lanes, from bind
 * to close: steering, rights and repair are files of their own. */
#include "net/listener.h"

#include "base/claim.h"
#include "base/close.h"
#include "base/timer.h"
#include "net/group_order.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    CLAIM_MS = 1000,          /* another master needs far less from bind() to listen() */
    CLAIM_PAUSE_NS = 2000000, /* until it is asked again; a question fills a place in its backlog */
};

static int set_flag(int fd, int level, int name, int value) {
    return setsockopt(fd, level, name, &value, sizeof value) == 0 ? 0 : -errno;
}

/* ---- sockets ---- */

/* SO_REUSEADDR on TCP alone, unless asked for: with it two UDP sockets could share a port unseen.
 */
static int bound_socket(const struct dm_address *address, bool reuseport, bool reuse, int *out) {
    const sa_family_t family = address->u.any.sa_family;
    const int fd = socket(family, address->type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    int error = 0;
    if (family != AF_UNIX && (reuse || address->type == SOCK_STREAM)) {
        error = set_flag(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    }
    if (!error && reuseport) {
        error = set_flag(fd, SOL_SOCKET, SO_REUSEPORT, 1);
    }
    if (!error && family == AF_INET6) {
        error = set_flag(fd, IPPROTO_IPV6, IPV6_V6ONLY, !address->dual);
    }
    if (!error && bind(fd, &address->u.any, address->length) != 0) {
        error = -errno;
    }
    if (error) {
        close(fd);
        return error;
    }
    *out = fd;
    return 0;
}

static void use_ipv4(struct dm_address *address) {
    const char *why;
    const int port = dm_address_port(address);
    dm_address_set_host(address, "0.0.0.0", &why);
    dm_address_set_port(address, port);
}

struct asked {
    struct dm_address address;
    int backlog;
    bool reuse;
    bool listens; /* its credentials, which clients ask for, are those of who listens */
};

static int bind_work(void *ctx, int fds[DM_RIGHTS_FDS]) {
    struct asked *asked = ctx;
    int error = bound_socket(&asked->address, false, asked->reuse, &fds[0]);
    if (asked->address.dual && (error == -EAFNOSUPPORT || error == -EADDRNOTAVAIL)) {
        use_ipv4(&asked->address);
        error = bound_socket(&asked->address, false, asked->reuse, &fds[0]);
    }
    if (!error && asked->listens && listen(fds[0], asked->backlog) != 0) {
        error = -errno;
        close(fds[0]);
        fds[0] = -1;
    }
    return error;
}

/* A port that only root may have is refused to anybody else; all others are anybody's. */
static bool may_bind(const struct dm_address *address, const struct dm_rights *rights) {
    const int port = dm_address_port(address);
    int first = 1024;
    FILE *file = NULL;
    if (port == 0 || !rights || rights->owner_only || rights->uid == 0) {
        return true;
    }
    file = fopen("/proc/sys/net/ipv4/ip_unprivileged_port_start", "re");
    if (file) {
        if (fscanf(file, "%d", &first) != 1) {
            first = 1024;
        }
        fclose(file);
    }
    return port >= first;
}

static struct asked ask_for(const struct dm_listener *self,
                            const struct dm_listener_options *options) {
    return (struct asked){.address = self->address,
                          .backlog = self->backlog,
                          .reuse = options->reuse,
                          .listens = dm_address_is_unix(&self->address) &&
                                     self->address.type == SOCK_STREAM &&
                                     dm_rights_matter(options->rights)};
}

static int note_bound(struct dm_listener *self, const struct asked *asked, int fd) {
    self->address = asked->address;
    return dm_address_is_unix(&self->address) ? 0 : dm_address_of(fd, &self->address);
}

/* Binds without SO_REUSEPORT, so that a port that anybody listens on is seen to be taken. A port is
 * bound by us: with another's rights only a unix socket would be another one. */
static int bind_alone(struct dm_listener *self, const struct dm_listener_options *options,
                      int *fd) {
    struct asked asked = ask_for(self, options);
    const struct dm_rights_work work = {bind_work, &asked, sizeof asked, -1};
    const bool is_unix = dm_address_is_unix(&self->address);
    int fds[DM_RIGHTS_FDS] = {-1, -1};
    if (!is_unix && dm_rights_matter(options->rights) &&
        !may_bind(&self->address, options->rights)) {
        return -EACCES;
    }
    const int error = is_unix ? dm_rights_run(options->rights, &work, fds) : bind_work(&asked, fds);
    if (error) {
        return error;
    }
    *fd = fds[0];
    return note_bound(self, &asked, *fd);
}

/* No connection comes to it. Where filters are for root alone (as hardened kernels have it), those
 * that have passed no router could: none sends so, and this machine's own say 64. */
static int refuse_all(int fd) {
    struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
    const struct sock_fprog filter = {1, &nothing};
    const int most = 255;
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) == 0) {
        return 0;
    }
    const bool in_six = setsockopt(fd, IPPROTO_IPV6, IPV6_MINHOPCOUNT, &most, sizeof most) == 0;
    return setsockopt(fd, IPPROTO_IP, IP_MINTTL, &most, sizeof most) == 0 || in_six ? 0 : -errno;
}

/* Two masters of one user could both bind a port on which nobody listens yet, and both listen then,
 * in one group. Of sockets outside any group the kernel lets one listen: that one is the guard. No
 * connection may come to it. Lanes can be beside it once it says that it shares the port. */
static int open_guard(struct dm_listener *self, const struct dm_listener_options *options) {
    struct dm_listener_options alone = *options;
    alone.reuse = false;
    int error = bind_alone(self, &alone, &self->guard);
    if (!error && !self->shared) {
        const int fd = self->guard;
        error = refuse_all(fd);
        if (!error) {
            error = listen(fd, 0) == 0 ? set_flag(fd, SOL_SOCKET, SO_REUSEPORT, 1) : -errno;
        }
    }
    return error;
}

static int claim(struct dm_listener *self, const char *name) {
    pid_t holder;
    const uint64_t deadline = dm_now_ms() + CLAIM_MS;
    int error = dm_claim(name, &self->claim, &holder);
    while (error == -EAGAIN && dm_now_ms() < deadline) {
        const struct timespec pause = {.tv_nsec = CLAIM_PAUSE_NS};
        nanosleep(&pause, NULL);
        error = dm_claim(name, &self->claim, &holder);
    }
    return error == -EAGAIN ? -EADDRINUSE : 0;
}

/* Bound and not yet listened on, a path's socket looks like a dead master's, which is replaced:
 * until it listens, the name of the path is held. A path of a worker's is not looked at: its file
 * system may hang. */
static int claim_path(struct dm_listener *self, const struct dm_rights *rights) {
    char directory[DM_PATH_MAX + 1], name[DM_CLAIM_NAME];
    struct stat st;
    if (dm_rights_matter(rights) && !rights->owner_only) {
        return 0;
    }
    snprintf(directory, sizeof directory, "%s", self->address.path);
    char *slash = strrchr(directory, '/');
    if (!slash) {
        return 0; /* binding says what is wrong with it */
    }
    uint64_t hash = 14695981039346656037u; /* FNV-1a: a name may be longer than a claim's */
    for (const char *c = slash + 1; *c; c++) {
        hash = (hash ^ (unsigned char)*c) * 1099511628211u;
    }
    slash[1] = '\0';
    if (stat(directory, &st) != 0) {
        return 0;
    }
    snprintf(name, sizeof name, "path/%llx/%llx/%llx", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino, (unsigned long long)hash);
    return claim(self, name);
}

static void close_guard(struct dm_listener *self) {
    dm_close(&self->guard);
    dm_close(&self->claim);
}

/* ---- lanes ---- */

static int grow(struct dm_listener *self) {
    if (self->count < self->capacity) {
        return 0;
    }
    const size_t capacity = self->capacity ? 2 * self->capacity : 4;
    struct dm_lane **lanes = realloc(self->lanes, capacity * sizeof *lanes);
    if (!lanes) {
        return -ENOMEM;
    }
    self->lanes = lanes;
    self->capacity = capacity;
    return 0;
}

static void place(struct dm_listener *self, struct dm_lane *lane, size_t at) {
    lane->place = at;
    self->lanes[at] = lane;
}

/* Members of the kernel's group, as far as is known. */
static size_t group_size(const struct dm_listener *self) {
    return self->members + self->strangers.count;
}

/* Last in the group, before those outside it. */
static void append_member(struct dm_listener *self, struct dm_lane *lane) {
    if (self->members < self->count) {
        place(self, self->lanes[self->members], self->count);
    }
    lane->index = group_size(self);
    place(self, lane, self->members++);
    self->count++;
}

static void append_outsider(struct dm_listener *self, struct dm_lane *lane) {
    place(self, lane, self->count++);
}

/* The group's last member; NULL if it is a stranger's. */
static struct dm_lane *last_member(const struct dm_listener *self) {
    for (size_t i = self->members; i > 0; i--) {
        if (self->lanes[i - 1]->index == group_size(self) - 1) {
            return self->lanes[i - 1];
        }
    }
    return NULL;
}

/* As the kernel does when a member leaves: the last one moves to its place. */
static void take_out(struct dm_lane *lane) {
    struct dm_listener *self = lane->listener;
    size_t hole = lane->place;
    if (hole < self->members) {
        struct dm_lane *last = last_member(self);
        if (last) {
            last->index = lane->index;
        }
        self->members--;
        place(self, self->lanes[self->members], hole);
        hole = self->members;
    }
    self->count--;
    if (hole < self->count) {
        place(self, self->lanes[self->count], hole);
    }
}

static int start_listening(struct dm_lane *lane) {
    uint32_t depth;
    if (lane->listener->address.type != SOCK_STREAM) {
        return 0;
    }
    /* The backlog of a socket that came from outside is its giver's; the credentials of a unix
     * socket are those of who called listen(). */
    const struct dm_listener *listener = lane->listener;
    const bool listens =
        (listener->foreign || dm_address_is_unix(&listener->address)) && dm_lane_listens(lane) > 0;
    if (!listens && listen(lane->fd, lane->listener->backlog) != 0) {
        return -errno;
    }
    dm_lane_queue(lane, &depth, &lane->limit);
    return 0;
}

/* NULL: no memory. */
static struct dm_lane *new_lane(struct dm_listener *self, int fd) {
    struct stat found;
    struct dm_lane *lane = grow(self) == 0 ? malloc(sizeof *lane) : NULL;
    if (lane) {
        *lane = (struct dm_lane){
            .listener = self,
            .tcp = self->address.type == SOCK_STREAM && !dm_address_is_unix(&self->address),
            .shared = self->shared,
            .fd = fd,
            .inode = fstat(fd, &found) == 0 ? (unsigned long)found.st_ino : 0,
        };
    }
    return lane;
}

/* Takes `fd`, also if it fails. */
static int adopt(struct dm_listener *self, int fd, struct dm_lane **out) {
    struct dm_lane *lane = new_lane(self, fd);
    const int error = lane ? start_listening(lane) : -ENOMEM;
    if (error) {
        free(lane);
        close(fd);
        return error;
    }
    append_member(self, lane);
    close_guard(self);
    *out = lane;
    return 0;
}

static int count_strangers(const struct dm_listener *self, struct dm_strangers *found) {
    unsigned long ours[DM_STEERING_LANES];
    for (size_t i = 0; i < self->count; i++) {
        ours[i] = self->lanes[i]->inode;
    }
    return dm_strangers_find(&self->address, ours, self->count, found);
}

/* Learning needs a program of its own in the group: none, as long as one that is not known is in
 * force. */
static void learn_order(struct dm_listener *self) {
    self->uncertain = !self->told || dm_group_order_learn(self) != 0;
}

/* A lane has come or gone: behind or before others' sockets, which nobody can tell, and of which
 * some may have come or gone as well. */
static void learn_among_strangers(struct dm_listener *self) {
    const bool known = self->strangers.count > 0;
    struct dm_strangers found;
    if (count_strangers(self, &found) == 0) {
        self->strangers = found;
    }
    if (known || self->strangers.count > 0) {
        learn_order(self);
    }
}

int dm_listener_lane(struct dm_listener *self, struct dm_lane **lane) {
    int fd = -1;
    if (self->shared) {
        *lane = self->lanes[0];
        return 0;
    }
    if (self->count == DM_STEERING_LANES) {
        return -E2BIG;
    }
    int error = bound_socket(&self->address, true, false, &fd);
    error = error ? error : adopt(self, fd, lane);
    if (!error && self->strangers.count > 0) {
        learn_among_strangers(self);
    }
    return error;
}

/* ---- steering ---- */

static int by_index(const void *a, const void *b) {
    const struct dm_target *x = a, *y = b;
    return x->index < y->index ? -1 : x->index > y->index;
}

static bool is_target(const struct dm_steer *steer, const struct dm_lane *lane) {
    for (size_t i = 0; i < steer->count; i++) {
        if (steer->lanes[i].lane == lane) {
            return true;
        }
    }
    for (size_t i = 0; i < steer->probe_count; i++) {
        if (steer->probes[i].lane == lane) {
            return true;
        }
    }
    return false;
}

/* A member that listens: the kernel takes a program for any other socket and ignores it. */
static const struct dm_lane *listening_lane(const struct dm_listener *self) {
    for (size_t i = 0; i < self->members; i++) {
        if (dm_lane_listens(self->lanes[i]) == 1) {
            return self->lanes[i];
        }
    }
    return NULL;
}

/* The program for self->steer, less one lane; -EBUSY if nothing would be left. */
static int build(const struct dm_listener *self, const struct dm_lane *without,
                 struct sock_filter *code) {
    const struct dm_steer *steer = &self->steer;
    struct dm_target targets[DM_STEERING_LANES];
    uint32_t buckets[DM_STEERING_BUCKETS];
    struct dm_probe probes[DM_STEERING_PROBES];
    struct dm_steering steering = {.targets = targets, .probes = probes};
    for (size_t i = 0; i < steer->count; i++) {
        if (steer->lanes[i].lane != without) {
            targets[steering.count++] =
                (struct dm_target){(uint32_t)steer->lanes[i].lane->index, steer->lanes[i].weight};
        }
    }
    if (steering.count == 0) {
        return -EBUSY;
    }
    for (size_t i = 0; i < steer->bucket_count; i++) {
        const struct dm_lane *lane = steer->lanes[steer->buckets[i]].lane;
        buckets[i] = lane != without ? (uint32_t)lane->index : targets[i % steering.count].index;
    }
    if (steer->bucket_count) {
        steering.buckets = buckets;
        steering.bucket_count = steer->bucket_count;
    }
    for (size_t i = 0; i < steer->probe_count; i++) {
        if (steer->probes[i].lane != without) {
            probes[steering.probe_count++] =
                (struct dm_probe){steer->probes[i].port, (uint32_t)steer->probes[i].lane->index};
        }
    }
    qsort(targets, steering.count, sizeof *targets, by_index);
    return dm_steering_build(&steering, code);
}

/* The program is the group's: any member takes it, but one whose worker has locked its filters. */
static int attach(const struct dm_listener *self, const struct sock_filter *code, int length) {
    int error = -EPERM;
    for (size_t i = 0; i < self->members && error == -EPERM; i++) {
        if (dm_lane_listens(self->lanes[i]) == 1) {
            error = dm_steering_attach(self->lanes[i]->fd, code, length);
        }
    }
    return error;
}

static int apply(struct dm_listener *self, const struct dm_lane *without) {
    struct sock_filter code[DM_STEERING_INSTRUCTIONS];
    const struct dm_lane *member = listening_lane(self);
    if (!self->told) {
        return 0;
    }
    if (self->shared || self->steer.count == 0 || !member) {
        self->in_force = self->shared ? DM_SHARED : DM_HASH;
        return member && !self->shared ? dm_steering_detach(member->fd) : 0;
    }
    int rc = build(self, without, code);
    if (rc > 0) {
        rc = attach(self, code, rc);
    }
    if (rc == 0) {
        self->in_force = self->steer.buckets ? DM_STICKY : DM_STEERED;
    } else if (rc != -EBUSY) {
        self->in_force = DM_HASH;
        dm_steering_detach(member->fd);
    }
    return rc;
}

static void forget_steer(struct dm_steer *steer) {
    free(steer->lanes);
    free(steer->buckets);
    free(steer->probes);
    memset(steer, 0, sizeof *steer);
}

/* NULL for nothing, or if there is no memory: then `*failed`. */
static void *copy(const void *from, size_t size, bool *failed) {
    void *to = size ? malloc(size) : NULL;
    *failed = *failed || (size && !to);
    return to ? memcpy(to, from, size) : NULL;
}

int dm_listener_steer(struct dm_listener *self, const struct dm_steer *steer) {
    struct dm_steer fresh = *steer;
    const size_t bucket_count = steer->count ? steer->bucket_count : 0;
    bool failed = false;
    fresh.lanes = copy(steer->lanes, steer->count * sizeof *steer->lanes, &failed);
    fresh.buckets = copy(steer->buckets, bucket_count * sizeof *steer->buckets, &failed);
    fresh.probes = copy(steer->probes, steer->probe_count * sizeof *steer->probes, &failed);
    if (failed) {
        forget_steer(&fresh);
        return -ENOMEM;
    }
    forget_steer(&self->steer);
    self->steer = fresh;
    self->told = true;
    return apply(self, NULL);
}

/* ---- leaving and coming back ---- */

int dm_listener_close_lane(struct dm_lane *lane, bool regardless) {
    struct dm_listener *self = lane->listener;
    if (self->shared) {
        return 0;
    }
    if (self->count == 1 || is_target(&self->steer, lane)) {
        return -EBUSY;
    }
    struct dm_lane *last = lane->place < self->members ? last_member(self) : NULL;
    if (last && last != lane && is_target(&self->steer, last)) {
        const int error = apply(self, last);
        if (error && !(error == -EBUSY && regardless)) {
            return error;
        }
    }
    /* shutdown first: a copy that some process still holds would keep the member in the group. */
    shutdown(lane->fd, SHUT_RDWR);
    close(lane->fd);
    take_out(lane);
    free(lane);
    learn_among_strangers(self);
    apply(self, NULL);
    return 0;
}

static size_t members_down(const struct dm_listener *self) {
    size_t down = 0;
    for (size_t i = 0; i < self->members; i++) {
        down += dm_lane_listens(self->lanes[i]) != 1;
    }
    return down;
}

int dm_listener_rejoin(struct dm_lane *lane) {
    struct dm_listener *self = lane->listener;
    self->uncertain = self->uncertain || members_down(self) > 1;
    take_out(lane);
    const int error = start_listening(lane);
    if (error) {
        append_outsider(self, lane);
    } else {
        append_member(self, lane);
    }
    if ((self->uncertain || self->strangers.count > 0) && members_down(self) == 0) {
        learn_order(self);
    }
    if (!self->shared) {
        apply(self, NULL);
    }
    return error;
}

/* ---- strangers ---- */

int dm_listener_census(struct dm_listener *self) {
    struct dm_strangers found;
    if (self->shared || self->members == 0) {
        return 0;
    }
    const int error = count_strangers(self, &found);
    if (error) {
        return error;
    }
    const bool same = found.count == self->strangers.count && found.sum == self->strangers.sum;
    self->strangers = found;
    if ((!same || self->uncertain) && members_down(self) == 0) {
        learn_order(self);
        apply(self, NULL);
    }
    return 0;
}

/* ---- opening and closing ---- */

static int open_path(struct dm_listener *self, const struct dm_listener_options *options, int *fd) {
    struct dm_binding binding =
        dm_unix_path_binding(&self->address, options->mode, self->backlog, options->rights);
    const struct dm_rights_work work = {dm_unix_path_bind, &binding, sizeof binding, -1};
    int fds[DM_RIGHTS_FDS] = {-1, -1};
    int error = claim_path(self, options->rights);
    error = error ? error : dm_rights_run(options->rights, &work, fds);
    if (error) {
        return error;
    }
    error = dm_unix_path_open(&self->path, &binding, fds[1], options->rights, NULL);
    if (error) {
        close(fds[0]);
    }
    *fd = fds[0];
    return error;
}

static int open_shared(struct dm_listener *self, const struct dm_listener_options *options) {
    struct dm_lane *lane;
    int fd = -1;
    int error;
    if (self->foreign) {
        fd = options->fd;
        error = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0 ? 0 : -errno;
    } else if (dm_address_is_path(&self->address)) {
        error = open_path(self, options, &fd);
    } else if (dm_address_is_unix(&self->address) || self->address.type != SOCK_STREAM) {
        error = bind_alone(self, options, &fd);
    } else {
        /* Bound a second time, to the port by number: only then does shutdown() keep the port. */
        error = open_guard(self, options);
        error = error ? error : bound_socket(&self->address, false, false, &fd);
    }
    return error ? error : adopt(self, fd, &lane);
}

static void init(struct dm_listener *self, const struct dm_address *address,
                 const struct dm_listener_options *options) {
    memset(self, 0, sizeof *self);
    self->address = *address;
    self->backlog = options->backlog;
    self->guard = self->claim = self->path.directory = -1;
    self->foreign = options->fd >= 0;
    self->shared = self->foreign || !options->reuseport || address->type != SOCK_STREAM ||
                   dm_address_is_unix(address);
    self->in_force = self->shared ? DM_SHARED : DM_HASH;
    self->told = true;
}

int dm_listener_open(struct dm_listener *self, const struct dm_address *address,
                     const struct dm_listener_options *options) {
    init(self, address, options);
    const int error = self->shared ? open_shared(self, options) : open_guard(self, options);
    if (error) {
        dm_listener_close(self);
    }
    return error;
}

/* ---- opening with the rights of whoever asked ---- */

struct dm_opening {
    struct dm_listener *listener;
    struct dm_rights rights;
    struct dm_helpers *helpers;
    void (*done)(void *data, int error);
    void *data;
};

bool dm_listener_is_theirs(const struct dm_address *address,
                           const struct dm_listener_options *options) {
    return options->fd < 0 && dm_address_is_unix(address) && dm_rights_matter(options->rights) &&
           !options->rights->owner_only;
}

static int take_bound(const struct dm_opening *opening, const void *ctx, const int *fds) {
    struct dm_listener *self = opening->listener;
    struct dm_lane *lane;
    int error;
    if (dm_address_is_path(&self->address)) {
        error = dm_unix_path_open(&self->path, ctx, fds[1], &opening->rights, opening->helpers);
    } else {
        error = note_bound(self, ctx, fds[0]);
    }
    if (error) {
        close(fds[0]);
    }
    return error ? error : adopt(self, fds[0], &lane);
}

static void on_bound(void *data, int error, void *ctx, int fds[DM_RIGHTS_FDS]) {
    struct dm_opening *opening = data;
    void (*done)(void *, int) = opening->done;
    void *owner = opening->data;
    error = error ? error : take_bound(opening, ctx, fds);
    if (error) {
        dm_listener_close(opening->listener);
    }
    free(opening);
    done(owner, error);
}

int dm_listener_open_theirs(struct dm_listener *self, const struct dm_address *address,
                            const struct dm_listener_options *options, struct dm_helpers *helpers,
                            void (*done)(void *data, int error), void *data) {
    struct dm_opening *opening = malloc(sizeof *opening);
    if (!opening) {
        return -ENOMEM;
    }
    init(self, address, options);
    *opening = (struct dm_opening){self, *options->rights, helpers, done, data};
    const struct asked asked = ask_for(self, options);
    const struct dm_binding binding =
        dm_unix_path_binding(&self->address, options->mode, self->backlog, options->rights);
    const bool is_path = dm_address_is_path(&self->address);
    const struct dm_helper_work work = {is_path ? dm_unix_path_bind : bind_work,
                                        is_path ? (const void *)&binding : &asked,
                                        is_path ? sizeof binding : sizeof asked,
                                        -1,
                                        on_bound,
                                        opening};
    const int error = dm_helper_start(helpers, options->rights, &work, NULL);
    if (error) {
        free(opening);
    }
    return error;
}

/* In the group's order; one that has left it by shutdown() did so as the kernel does it. */
int dm_listener_resume(struct dm_listener *self, const struct dm_address *address,
                       const struct dm_listener_options *options,
                       const struct dm_listener_kept *kept) {
    init(self, address, options);
    self->shared = kept->shared;
    self->borrowed = kept->borrowed;
    self->told = self->shared;
    self->in_force = self->shared ? DM_SHARED : DM_HASH;
    for (size_t i = 0; i < kept->count; i++) {
        uint32_t depth;
        struct dm_lane *lane = new_lane(self, kept->fds[i]);
        if (!lane) {
            while (self->count > 0) {
                free(self->lanes[--self->count]);
            }
            free(self->lanes);
            for (i = 0; i < kept->count; i++) {
                close(kept->fds[i]);
            }
            return -ENOMEM;
        }
        append_member(self, lane);
        lane->index = i < kept->index_count ? (size_t)kept->indexes[i] : lane->index;
        dm_lane_queue(lane, &depth, &lane->limit);
    }
    if (kept->inode && dm_address_is_path(address)) {
        dm_unix_path_resume(&self->path, address, options->rights, (dev_t)kept->device,
                            (ino_t)kept->inode, kept->helpers);
    }
    for (size_t i = 0; i < self->count && address->type == SOCK_STREAM && !self->shared; i++) {
        if (dm_lane_listens(self->lanes[i]) != 1) {
            dm_listener_rejoin(self->lanes[i]);
        }
    }
    self->uncertain = (self->borrowed || kept->uncertain) && self->members > 1;
    return 0;
}

void dm_listener_own(struct dm_listener *self) {
    self->borrowed = false;
}

void dm_listener_close(struct dm_listener *self) {
    close_guard(self);
    for (size_t i = 0; i < self->count; i++) {
        if (!self->foreign && !self->borrowed && self->address.type == SOCK_STREAM) {
            shutdown(self->lanes[i]->fd, SHUT_RDWR);
        }
        close(self->lanes[i]->fd);
        free(self->lanes[i]);
    }
    free(self->lanes);
    self->lanes = NULL;
    self->count = self->members = self->capacity = 0;
    forget_steer(&self->steer);
    dm_unix_path_close(&self->path);
}
