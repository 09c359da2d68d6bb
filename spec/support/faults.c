/* faults.c: for LD_PRELOAD: the master dies of SIGKILL just before the so-manieth of its system
 * calls that matter: those that fork, that give something to its keeper, that signal, that write a
 * record of the log, and the one that ends each turn of its loop, before the snapshot; or just
 * after it has read what its keeper says. DM_FAULTS names a file with numbers of 8 bytes. Each call
 * counts the first one down: at 0 it happens, whichever master it is by then, and the second one
 * takes its place. 0: nothing happens. The third one takes the first one's place when a master
 * accepts a TCP connection, the fifth one when a message brings it one. From then on reading a
 * message counts too, and process number four is stopped just before a worker is sent a connection.
 * What a master's second process does (base/outlive.h) counts as well, and it is the master who
 * dies. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT = 5 };
static volatile int64_t *left;
static bool accepted;
static pid_t keeper;         /* who was started; its master is forked from it */
static pid_t master, second; /* the one has the other's memory, and outlives it */

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("DM_FAULTS");
    keeper = getpid();
    const int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *memory = mmap(NULL, COUNT * sizeof *left, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        left = memory == MAP_FAILED ? NULL : memory;
        close(fd);
    }
}

static bool is_master(void) {
    char name[16] = "";
    if (!master && getppid() == keeper && prctl(PR_GET_NAME, name) == 0 &&
        strcmp(name, "dutch-master") == 0) {
        master = getpid();
    }
    return master == getpid();
}

static void step(void) {
    const bool is_one = is_master() || second == getpid();
    if (is_one && left && left[0] > 0 && __sync_sub_and_fetch(left, 1) == 0) {
        left[0] = left[1];
        left[1] = 0;
        kill(master, SIGKILL);
    }
}

#define NEXT(name)                                                                                 \
    static __typeof__(&name) next;                                                                 \
    if (!next) {                                                                                   \
        *(void **)&next = dlsym(RTLD_NEXT, #name);                                                 \
    }                                                                                              \
    step()

long syscall(long number, ...) {
    NEXT(syscall);
    va_list list;
    va_start(list, number);
    long a[6];
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(list, long);
    }
    va_end(list);
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static bool is_connection(int fd) {
    int domain;
    socklen_t length = sizeof domain;
    return fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 &&
           domain != AF_UNIX;
}

/* Who made the pair of sockets is at its other end, for all the kernel knows: the keeper, or we. */
static void stop_taker(int fd, const struct msghdr *message) {
    struct ucred peer;
    socklen_t length = sizeof peer;
    const struct cmsghdr *control = CMSG_FIRSTHDR(message);
    if (accepted && left[3] > 0 && control && control->cmsg_type == SCM_RIGHTS &&
        is_connection(*(const int *)CMSG_DATA(control)) &&
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.pid != keeper) {
        kill((pid_t)left[3], SIGSTOP);
        left[3] = 0;
    }
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    NEXT(sendmsg);
    stop_taker(fd, message);
    return next(fd, message, flags);
}

/* It begins, if that number says so and `fd` is a TCP connection. */
static void begin_with(int fd, int number) {
    if (left && left[number] > 0 && (is_master() || second == getpid()) && is_connection(fd)) {
        left[0] = left[number];
        left[number] = 0;
        accepted = true;
    }
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
    static __typeof__(&recvmsg) next;
    if (!next) {
        *(void **)&next = dlsym(RTLD_NEXT, "recvmsg");
    }
    if (accepted) {
        step();
    }
    const ssize_t got = next(fd, message, flags);
    const struct cmsghdr *control = got > 0 ? CMSG_FIRSTHDR(message) : NULL;
    if (control && control->cmsg_type == SCM_RIGHTS) {
        begin_with(*(const int *)CMSG_DATA(control), 4);
    }
    return got;
}

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags) {
    static __typeof__(&accept4) next;
    if (!next) {
        *(void **)&next = dlsym(RTLD_NEXT, "accept4");
    }
    const int got = next(fd, address, size, flags);
    second = master && getppid() == master ? getpid() : 0;
    begin_with(got, 2);
    return got;
}

ssize_t recv(int fd, void *buffer, size_t size, int flags) {
    static __typeof__(&recv) next;
    if (!next) {
        *(void **)&next = dlsym(RTLD_NEXT, "recv");
    }
    const ssize_t got = next(fd, buffer, size, flags);
    if (got > 0) {
        step();
    }
    return got;
}

int socketpair(int domain, int type, int protocol, int ends[2]) {
    NEXT(socketpair);
    return next(domain, type, protocol, ends);
}

int pipe2(int ends[2], int flags) {
    NEXT(pipe2);
    return next(ends, flags);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    NEXT(pwritev2);
    return next(fd, parts, count, offset, flags);
}

int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old) {
    NEXT(timerfd_settime);
    return next(fd, flags, new, old);
}
