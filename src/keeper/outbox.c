/* outbox.c: see outbox.h. */
#include "keeper/outbox.h"

#include "base/fdpass.h"

#include <errno.h>
#include <string.h>

/* Bytes: some ten thousand frames. A keeper that stands still while more than that happens does not
 * hear all of it. */
enum { WAITING_MAX = 4 << 20 };

void dm_outbox_init(struct dm_outbox *box, int socket) {
    box->socket = socket;
    dm_outqueue_init(&box->waiting, WAITING_MAX);
}

void dm_outbox_clear(struct dm_outbox *box) {
    dm_outqueue_clear(&box->waiting);
}

/* 0, or a negative errno. A frame goes whole or not at all. */
static int transmit(int socket, const void *head, size_t head_size, const void *text, size_t length,
                    int fd) {
    struct iovec parts[] = {
        {(void *)(uintptr_t)head, head_size},
        {(void *)(uintptr_t)text, length},
    };
    const ssize_t sent = dm_fdpass_send(socket, parts, 2, &fd, fd >= 0);
    return sent == -ENOBUFS ? -EAGAIN : sent < 0 ? (int)sent : 0;
}

static int enqueue(struct dm_outqueue *waiting, const void *head, size_t head_size,
                   const char *text, size_t length) {
    const size_t before = dm_outqueue_size(waiting), size = head_size + length;
    int error = dm_outqueue_add(waiting, (const char *)&size, sizeof size);
    error = error ? error : dm_outqueue_add(waiting, head, head_size);
    error = error ? error : dm_outqueue_add(waiting, text, length);
    if (error) {
        dm_outqueue_cut(waiting, before);
    }
    return error;
}

int dm_outbox_send(struct dm_outbox *box, const struct dm_keeper_frame *frame, const char *text,
                   int fd) {
    const size_t length = strlen(text), head_size = offsetof(struct dm_keeper_frame, text);
    if (length >= DM_KEEPER_TEXT) {
        return -EMSGSIZE;
    }
    const int error = dm_outbox_is_empty(box)
                          ? transmit(box->socket, frame, head_size, text, length, fd)
                          : -EAGAIN;
    return error == -EAGAIN && fd < 0 ? enqueue(&box->waiting, frame, head_size, text, length)
                                      : error;
}

int dm_outbox_flush(struct dm_outbox *box) {
    while (!dm_outbox_is_empty(box)) {
        const char *data = dm_outqueue_data(&box->waiting);
        size_t size;
        memcpy(&size, data, sizeof size);
        const int error = transmit(box->socket, data + sizeof size, size, "", 0, -1);
        if (error) {
            return error;
        }
        dm_outqueue_take(&box->waiting, sizeof size + size);
    }
    return 0;
}
