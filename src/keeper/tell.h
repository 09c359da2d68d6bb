/* tell.h: what the keeper tells: people by standard error, and the service manager. libc alone. */
#pragma once

#include "keeper/keeper.h"

#include <sys/socket.h>
#include <sys/un.h>

/* Less than a pipe takes at once (PIPE_BUF); if nobody reads, it is lost rather than waited for. */
void dm_say(const char *format, int a, int b);

enum { DM_NOTICES = 32 }; /* that wait for a busy service manager: more than a restart has */

struct dm_manager {
    struct sockaddr_un address;
    socklen_t size;        /* 0: no service manager */
    uint32_t first, count; /* of those that wait */
    int tries;             /* of the first one */
    struct dm_notice {
        size_t size;
        char text[DM_KEEPER_TEXT];
    } notices[DM_NOTICES];
};

/* Of the name in NOTIFY_SOCKET, a path or "@abstract". 0, -EINVAL or -ENAMETOOLONG. */
int dm_manager_address(const char *name, struct sockaddr_un *address, socklen_t *length);
/* One notification, without waiting. 0 or a negative errno. */
int dm_manager_post(const struct sockaddr_un *address, socklen_t length, const char *text,
                    size_t size);
void dm_manager_find(struct dm_manager *manager);
/* What it does not take now waits, in order, for dm_manager_send; the same again, such as a ping,
 * waits once. If too many do, the oldest is lost: a manager that does not listen holds nobody up.
 */
void dm_manager_tell(struct dm_manager *manager, const char *text, size_t size);
void dm_manager_send(struct dm_manager *manager);
/* When to try again, in ms from now. -1: nothing waits. */
int dm_manager_next(const struct dm_manager *manager);
/* Before somebody ends: what waits, if it is taken within some milliseconds. */
void dm_manager_flush(struct dm_manager *manager);
