/* sdnotify.h: tells the service manager that started us (NOTIFY_SOCKET) how we are. */
#pragma once

#include "keeper/kept.h"

#include <stdbool.h>

/* Through the keeper, where there is one: the manager believes its main process alone.
 * Notes $NOTIFY_SOCKET; once, at start, before anything changes the environment. */
void dm_sd_notify_init(struct dm_kept *kept);
bool dm_sd_notify_is_set(void);
/* Sends KEY=VALUE lines. 0 also if there is nobody to tell; an error must never be fatal. */
int dm_sd_notify(const char *text);
