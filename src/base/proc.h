/* proc.h: what /proc says of a process. libc alone. */
#pragma once

#include <sys/types.h>

/* /proc/PID/FILE as text, up to its end or size - 1 bytes: how many. -1: it cannot be read, and the
 * text is empty. */
ssize_t dm_proc_read(pid_t pid, const char *file, char *text, size_t size);

/* A letter as in proc(5); 0: unknown. */
char dm_proc_state(pid_t pid);
