/* tell.c: see tell.h. */
#include "keeper/tell.h"

#include "base/close.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    AGAIN_MS = 100, /* until a full queue of the service manager is tried again */
    SELDOM_MS = 1000,
    TRIES = 50, /* then it is tried seldom; at an end each takes a millisecond */
};

void dm_say(const char *format, int a, int b) {
    char line[256];
    const int size = snprintf(line, sizeof line, format, a, b);
    struct pollfd room = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (size > 0 && poll(&room, 1, 0) == 1 && (room.revents & POLLOUT)) {
        (void)!write(STDERR_FILENO, line, (size_t)size);
    }
}

int dm_manager_address(const char *name, struct sockaddr_un *address, socklen_t *length) {
    const size_t size = name ? strlen(name) : 0;
    if (size < 2 || (name[0] != '/' && name[0] != '@')) {
        return -EINVAL;
    }
    if (size >= sizeof address->sun_path) {
        return -ENAMETOOLONG;
    }
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address->sun_path, name, size);
    if (name[0] == '@') {
        address->sun_path[0] = '\0';
    }
    *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size);
    return 0;
}

void dm_manager_find(struct dm_manager *manager) {
    dm_manager_address(getenv("NOTIFY_SOCKET"), &manager->address, &manager->size);
}

int dm_manager_post(const struct sockaddr_un *address, socklen_t length, const char *text,
                    size_t size) {
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const ssize_t sent = fd < 0 ? -1
                                : sendto(fd, text, size, MSG_NOSIGNAL | MSG_DONTWAIT,
                                         (const struct sockaddr *)address, length);
    const int error = sent < 0 ? -errno : 0;
    dm_close(&fd);
    return error;
}

static void complain(int error) {
    static bool complained;
    if (!complained) {
        complained = true;
        dm_say("dutch-master: the service manager could not be notified: errno %d\n", -error, 0);
    }
}

static void drop_first(struct dm_manager *manager) {
    manager->first = (manager->first + 1) % DM_NOTICES;
    manager->count--;
    manager->tries = 0;
}

void dm_manager_send(struct dm_manager *manager) {
    while (manager->count > 0) {
        const struct dm_notice *notice = &manager->notices[manager->first];
        const int error = manager->size ? dm_manager_post(&manager->address, manager->size,
                                                          notice->text, notice->size)
                                        : -EINVAL;
        if (error == -EAGAIN || error == -ENOBUFS) {
            manager->tries += manager->tries < TRIES;
            return;
        }
        if (error) {
            complain(error);
        }
        drop_first(manager);
    }
}

static struct dm_notice *at(struct dm_manager *manager, uint32_t place) {
    return &manager->notices[(manager->first + place) % DM_NOTICES];
}

void dm_manager_tell(struct dm_manager *manager, const char *text, size_t size) {
    const bool waits = manager->count > 0;
    const struct dm_notice *last = waits ? at(manager, manager->count - 1) : NULL;
    if (last && last->size == size && memcmp(last->text, text, size) == 0) {
        return;
    }
    if (manager->count == DM_NOTICES) {
        complain(-EAGAIN);
        drop_first(manager);
    }
    struct dm_notice *notice = at(manager, manager->count);
    memcpy(notice->text, text, size);
    notice->size = size;
    manager->count++;
    if (!waits) {
        dm_manager_send(manager);
    }
}

int dm_manager_next(const struct dm_manager *manager) {
    return manager->count == 0 ? -1 : manager->tries < TRIES ? AGAIN_MS : SELDOM_MS;
}

void dm_manager_flush(struct dm_manager *manager) {
    const struct timespec pause = {.tv_nsec = 1000000};
    for (int i = 0; manager->count > 0 && i < TRIES; i++) {
        nanosleep(&pause, NULL);
        dm_manager_send(manager);
    }
}
