/* tell.c: see tell.h. */
#include "keeper/tell.h"

#include "base/close.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TRIES = 50 }; /* a full queue of the service manager is tried so often */

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

void dm_manager_send(struct dm_manager *manager) {
    static bool complained;
    const int error = manager->size ? dm_manager_post(&manager->address, manager->size,
                                                      manager->notice, manager->notice_size)
                                    : -EINVAL;
    if ((error != -EAGAIN && error != -ENOBUFS) || ++manager->tries >= TRIES) {
        manager->notice_size = 0;
    }
    if (error && manager->notice_size == 0 && !complained) {
        complained = true;
        dm_say("dutch-master: the service manager could not be notified: errno %d\n", -error, 0);
    }
}

void dm_manager_tell(struct dm_manager *manager, const char *text, size_t size) {
    memcpy(manager->notice, text, size);
    manager->notice_size = size;
    manager->tries = 0;
    dm_manager_send(manager);
}
