/* tell.h: what the keeper tells: people by standard error, and the service manager. libc alone. */
#pragma once

#include "keeper/keeper.h"

#include <sys/socket.h>
#include <sys/un.h>

/* Less than a pipe takes at once (PIPE_BUF); if nobody reads, it is lost rather than waited for. */
void dm_say(const char *format, int a, int b);

struct dm_manager {
    struct sockaddr_un address;
    socklen_t size; /* 0: no service manager */
    char notice[DM_KEEPER_TEXT];
    size_t notice_size; /* 0: nothing waits */
    int tries;
};

/* Of the name in NOTIFY_SOCKET, a path or "@abstract". 0, -EINVAL or -ENAMETOOLONG. */
int dm_manager_address(const char *name, struct sockaddr_un *address, socklen_t *length);
/* One notification, without waiting. 0 or a negative errno. */
int dm_manager_post(const struct sockaddr_un *address, socklen_t length, const char *text,
                    size_t size);
void dm_manager_find(struct dm_manager *manager);
/* What it does not take now is kept, and tried again by dm_manager_send. Nothing may overtake it:
 * its owner does not listen to the master so long. */
void dm_manager_tell(struct dm_manager *manager, const char *text, size_t size);
void dm_manager_send(struct dm_manager *manager);
