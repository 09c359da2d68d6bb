/* handoff.c: see handoff.h. */
#include "keeper/handoff.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAGIC = 0x68616e64, VERSION = 1 };

/* "PID HANDOFF FORMER": of that process alone, its children may inherit the variable. */
static const char variable[] = "DUTCH_MASTER_HANDOFF";

static bool parse(int *handoff, int *former) {
    const char *text = getenv(variable);
    int pid;
    char rest;
    return text && sscanf(text, "%d %d %d%c", &pid, handoff, former, &rest) == 3 &&
           pid == (int)getpid() && *handoff > 2;
}

bool dm_handoff_is_there(void) {
    int handoff, former;
    return parse(&handoff, &former);
}

static void keep_open(int fd, bool open) {
    const int flags = fd >= 0 ? fcntl(fd, F_GETFD) : -1;
    if (flags >= 0) {
        fcntl(fd, F_SETFD, open ? flags & ~FD_CLOEXEC : flags | FD_CLOEXEC);
    }
}

static void keep_all_open(const struct dm_handoff *h, const struct dm_keeper_held *held, int former,
                          bool open) {
    keep_open(h->memory, open);
    keep_open(former, open);
    for (uint32_t i = 0; i < h->held_count; i++) {
        keep_open(held[i].fd, open);
    }
}

static int read_whole(int fd, void *to, size_t size, off_t offset) {
    const ssize_t n = pread(fd, to, size, offset);
    return n == (ssize_t)size ? 0 : n < 0 ? -errno : -EBADMSG;
}

int dm_handoff_read(struct dm_handoff *h, struct dm_keeper_held *held, uint32_t most, int *former) {
    int fd;
    if (!parse(&fd, former)) {
        return -ENOENT;
    }
    int error = read_whole(fd, h, sizeof *h, 0);
    if (!error && (h->magic != MAGIC || h->version != VERSION || h->size != sizeof *h ||
                   h->held_size != sizeof *held ||
                   h->memory_size != sizeof(struct dm_keeper_memory) || h->held_count > most)) {
        error = -EPROTO;
    }
    if (!error) {
        error = read_whole(fd, held, h->held_count * sizeof *held, (off_t)sizeof *h);
    }
    if (!error) {
        keep_all_open(h, held, *former, false);
        unsetenv(variable);
        close(fd);
    }
    return error;
}

static int become(int image, int handoff, int former, char **argv) {
    char value[64];
    snprintf(value, sizeof value, "%d %d %d", (int)getpid(), handoff, former);
    if (setenv(variable, value, 1) != 0) {
        return -errno;
    }
    fexecve(image, argv, environ);
    const int error = -errno;
    unsetenv(variable);
    return error;
}

int dm_handoff_exec(int image, int former, char **argv, struct dm_handoff *h,
                    const struct dm_keeper_held *held) {
    const size_t size = h->held_count * sizeof *held;
    h->magic = MAGIC;
    h->version = VERSION;
    h->size = sizeof *h;
    h->held_size = sizeof *held;
    h->memory_size = sizeof(struct dm_keeper_memory);
    const int fd = memfd_create("dutch-master-handoff", 0);
    if (fd < 0) {
        return -errno;
    }
    int error = 0;
    if (write(fd, h, sizeof *h) != (ssize_t)sizeof *h || write(fd, held, size) != (ssize_t)size) {
        error = -ENOSPC;
    }
    if (!error) {
        keep_all_open(h, held, former, true);
        error = become(image, fd, former, argv);
        keep_all_open(h, held, former, false);
    }
    close(fd);
    return error;
}

void dm_handoff_refuse(char **argv) {
    int handoff, former;
    if (parse(&handoff, &former) && former >= 0) {
        keep_open(former, false); /* it is the image then, and needs no descriptor of it */
        become(former, handoff, -1, argv);
    }
}
