/* sysinfo.h: questions about the machine, its users and its processes. */
#pragma once

#include <stddef.h>
#include <sys/types.h>

/* CPUs that this process may use: the affinity mask, capped by the cgroup's quota rounded up; at
 * least
 * 1. `root` is put before /proc and /sys ("" but in specs). */
int dm_cpus(const char *root);

/* PWD if it names the working directory, else what the kernel says. 0 or a negative errno. */
int dm_cwd(char *path, size_t size);

/* This program's file if it still is this program, else /proc/self/exe, which always is. */
void dm_executable(char *path, size_t size);
/* By which a child execs the program that runs, whatever lies at its path by now. */
const char *dm_image(void);

/* Whether a process sleeps in its event loop, waiting for something to happen: 1, 0, or -1 if that
 * cannot be seen (another user's, or the kernel keeps it to itself). */
int dm_proc_idle(pid_t pid);
