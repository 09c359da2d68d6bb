/* Fuzz target: the keeper's end of the master's socket, with descriptors, with children that end,
 * and with a memory that a master has written to wildly. Whatever comes, each descriptor is held
 * once or closed, and nobody is signalled but children of the keeper's. */
#include "../../src/keeper/keeper.c"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { CHILDREN = 2, DESCRIPTORS = 256, FRAMES_MAX = 40, OPS = 16, ENOUGH = 200 };

/* Frames of each kind that were handled, and runs: a fuzzer that never says one of them says so. */
static unsigned long heard[OPS], runs;

struct input {
    const uint8_t *data;
    size_t size;
    uint32_t more; /* behind the end it goes on by chance, from what was there */
};

static uint8_t byte(struct input *in) {
    if (in->size > 0) {
        in->size--;
        in->more = (in->more ^ *in->data) * 0x01000193u;
        return *in->data++;
    }
    in->more ^= in->more << 13;
    in->more ^= in->more >> 17;
    in->more ^= in->more << 5;
    return (uint8_t)(in->more >> 8);
}

static uint64_t word(struct input *in) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) {
        value = value << 8 | byte(in);
    }
    return value;
}

static int open_descriptors(void) {
    int count = 0;
    for (int fd = 3; fd < DESCRIPTORS; fd++) {
        count += fcntl(fd, F_GETFD) >= 0;
    }
    return count;
}

#define require(is_right)                                                                          \
    if (!(is_right)) {                                                                             \
        fprintf(stderr, "line %d: not so: %s\n", __LINE__, #is_right);                             \
        abort();                                                                                   \
    }

/* Half of them end at once, the others wait for a signal. */
static pid_t make_child(int i) {
    const pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        if (i % 2 == 0) {
            pause();
        }
        _exit(i);
    }
    return pid;
}

static void send_one(struct input *in, int master, const pid_t *children_of_ours) {
    static struct dm_keeper_frame frame;
    const uint8_t kind = byte(in);
    const uint8_t about = byte(in);
    const pid_t pids[] = {0, 1, -1, INT32_MAX, children_of_ours[0], children_of_ours[1], getpid()};
    memset(&frame, byte(in), sizeof frame);
    frame.op = kind % OPS; /* there are fewer */
    heard[frame.op]++;
    frame.pid = pids[about % 7];
    frame.number = about >> 6;
    size_t length = byte(in) % (2 * DM_KEEPER_NAME);
    for (size_t i = 0; i < length; i++) {
        frame.text[i] = (char)(byte(in) % 4); /* names that meet again */
    }
    length = about == 255 ? DM_KEEPER_TEXT : length;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec part = {&frame,
                         about == 254 ? length : offsetof(struct dm_keeper_frame, text) + length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    int fds[3];
    const size_t count = (kind >> 4) % 4;
    if (count > 0) {
        for (size_t i = 0; i < count; i++) {
            fds[i] = frame.pid > 1 && kind & 0x80 ? (int)syscall(SYS_pidfd_open, frame.pid, 0) : -1;
            fds[i] = fds[i] >= 0 ? fds[i] : dup(master);
        }
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof *fds);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(count * sizeof *fds);
        memcpy(CMSG_DATA(header), fds, count * sizeof *fds);
    }
    sendmsg(master, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    for (size_t i = 0; i < count; i++) {
        close(fds[i]);
    }
}

static void check_store(void) {
    for (uint32_t i = 0; i < k.children.held.count; i++) {
        const struct dm_keeper_held *held = &k.children.held.items[i];
        require(memchr(held->name, 0, sizeof held->name) != NULL);
        require(fcntl(held->fd, F_GETFD) >= 0);
        require(dm_held_find(&k.children.held, held->name) == held);
    }
}

static void check_memory(struct input *in) {
    size_t size;
    for (int i = 0; i < 2; i++) {
        k.memory->snapshots[i].number = byte(in);
        k.memory->snapshots[i].size = byte(in) & 1 ? byte(in) : word(in);
        k.memory->snapshots[i].sum =
            byte(in) & 1 && k.memory->snapshots[i].size < DM_KEEPER_STATE
                ? dm_keeper_sum(k.memory->text[i], k.memory->snapshots[i].size)
                : word(in);
    }
    const char *text = dm_keeper_newest(k.memory, &size);
    require(!text || size <= DM_KEEPER_STATE);
}

static void check_heard(void) {
    for (int op = DM_KEEPER_PUT; op <= DM_KEEPER_SETTLED && runs > ENOUGH; op++) {
        require(heard[op] > 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, size, 0x811c9dc5u};
    pid_t made[CHILDREN] = {-1, -1};
    int ends[2];
    if (!k.memory) {
        have_none();
        k.memory = dm_keeper_make_memory(&k.memory_fd);
        require(k.memory != NULL);
        k.children.elsewhere = epoll_create1(EPOLL_CLOEXEC);
        atexit(check_heard);
    }
    runs++;
    const int before = open_descriptors();
    const uint8_t how = byte(&in);
    require(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    k.socket = ends[0];
    k.starts = 1 + (how & 1);
    k.supervises = false;
    for (int i = 0; i < CHILDREN && how % 8 == 7; i++) {
        made[i] = make_child(i);
    }
    check_memory(&in);
    for (int i = byte(&in) % FRAMES_MAX; i >= 0; i--) {
        const uint8_t next = byte(&in);
        if (next < 200) {
            send_one(&in, ends[1], made);
            listen_to_master();
        } else if (next < 220) {
            k.pending[next % NSIG].state = DM_SIGNAL_WAITS;
            k.pending[next % NSIG].order = ++k.signals_read;
        } else if (next < 230) { /* as if another keeper had died */
            dm_children_find_elsewhere(&k.children);
            dm_children_look_elsewhere(&k.children, true);
            dm_children_signal_elsewhere(&k.children, 0);
        } else {
            dm_children_sweep(&k.children);
        }
        report();
        check_store();
        while (next % 2 == 0 && recv(ends[1], &k.frame, sizeof k.frame, MSG_DONTWAIT) > 0) {
        }
    }
    require(open_descriptors() == before + 2 + (int)k.children.held.count + (k.next >= 0));
    while (k.children.held.count > 0) {
        dm_children_drop(&k.children, &k.children.held.items[0]);
    }
    dm_close(&k.next);
    close(ends[0]);
    close(ends[1]);
    k.socket = -1;
    k.manager.first = k.manager.count = 0;
    memset(k.pending, 0, sizeof k.pending);
    for (int i = 0; i < CHILDREN; i++) {
        if (made[i] > 0 && waitpid(made[i], NULL, WNOHANG) == 0) { /* else it is reaped */
            kill(made[i], SIGKILL);
            waitpid(made[i], NULL, 0);
        }
    }
    return 0;
}
