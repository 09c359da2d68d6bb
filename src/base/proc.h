/* proc.h: what the kernel says of a process. libc alone. */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/types.h>

/* /proc/PID/FILE as text, up to its end or size - 1 bytes: how many. -1: it cannot be read, and the
 * text is empty. */
ssize_t dm_proc_read(pid_t pid, const char *file, char *text, size_t size);

/* The system call waitid, whose fifth argument libc hides: the usage, or NULL. 0 or a negative
 * errno; si_pid is 0 if there is nobody yet. */
int dm_wait(int type, int id, siginfo_t *info, int options, struct rusage *usage);

/* Whether a child of ours lives in the group. Of a leader that has ended, those that it leaves
 * behind are the children of the next subreaper, who may be us. Zombies do not count. */
bool dm_group_lives(pid_t group);

/* A letter as in proc(5); 0: unknown. */
char dm_proc_state(pid_t pid);
