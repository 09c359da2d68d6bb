/* sdnotify.h: tells the service manager that started us (NOTIFY_SOCKET) how we are. */
#pragma once

#include <stdbool.h>

/* Notes $NOTIFY_SOCKET; once, at start, before anything changes the environment. */
void dm_sd_notify_init(void);
bool dm_sd_notify_is_set(void);
/* Sends KEY=VALUE lines. 0 also if there is nobody to tell; an error must never be fatal. */
int dm_sd_notify(const char *text);
