/* sysinfo.h: questions about the machine, its users and its processes. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
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

struct dm_proc_stat {
    uint64_t rss_kb, cpu_ms, starttime; /* starttime: clock ticks since boot, tells a pid reused */
    bool runnable;                      /* it works, or waits for a processor to work on */
};

bool dm_proc_stat(pid_t pid, struct dm_proc_stat *stat);

/* Whether a process sleeps in its event loop, waiting for something to happen: 1, 0, or -1 if that
 * cannot be seen (another user's, or the kernel keeps it to itself). */
int dm_proc_idle(pid_t pid);

/* The value of a variable in the environment that a process was started with. False if it has none,
 * or nobody may know. */
bool dm_proc_environ(pid_t pid, const char *name, char *value, size_t size);

/* The name of its program, "?" if it has none any more. */
void dm_proc_command(pid_t pid, char *name, size_t size);
