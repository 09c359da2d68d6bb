/* sdnotify.c: sd_notify(3) without libsystemd. The socket's name is noted at start: what a worker
 * gets as NOTIFY_SOCKET is another one. Never blocks; a full queue is an error that the caller may
 * report.
 */
#include "service/sdnotify.h"

#include "keeper/tell.h"

#include <stdlib.h>
#include <string.h>

static char *name;
static struct dm_kept *through;

void dm_sd_notify_init(struct dm_kept *kept) {
    through = kept;
    const char *value = getenv("NOTIFY_SOCKET");
    free(name);
    name = value == NULL || value[0] == '\0' ? NULL : strdup(value);
}

bool dm_sd_notify_is_set(void) {
    return name != NULL;
}

int dm_sd_notify(const char *text) {
    if (name == NULL) {
        return 0;
    }
    if (through->open) {
        return dm_kept_notify(through, text);
    }
    struct sockaddr_un addr;
    socklen_t len;
    const int err = dm_manager_address(name, &addr, &len);
    return err != 0 ? err : dm_manager_post(&addr, len, text, strlen(text));
}
