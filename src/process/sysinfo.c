/* sysinfo.c: see sysinfo.h. */
#include "process/sysinfo.h"

#include "base/proc.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- CPUs ---- */

/* -> how many of the two were there */
static int read_numbers(const char *directory, const char *name, int64_t *one, int64_t *other) {
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "re");
    const int count = file ? fscanf(file, "%" SCNd64 " %" SCNd64, one, other) : 0;
    if (file) {
        fclose(file);
    }
    return count;
}

/* CPUs worth of time that one directory of the cgroup tree grants; INT_MAX if it sets no bound. */
static int quota_of(const char *directory, bool v2) {
    int64_t quota = -1, period = -1, none;
    const bool known =
        v2 ? read_numbers(directory, "cpu.max", &quota, &period) == 2 /* not "max 100000" */
           : read_numbers(directory, "cpu.cfs_quota_us", &quota, &none) == 1 &&
                 read_numbers(directory, "cpu.cfs_period_us", &period, &none) == 1;
    if (!known || quota <= 0 || period <= 0 || quota / period >= INT_MAX) {
        return INT_MAX;
    }
    return (int)((quota + period - 1) / period);
}

/* The least of a cgroup and all above it. */
static int quota_along(const char *mount, const char *group, bool v2) {
    char path[PATH_MAX];
    const size_t top = strlen(mount);
    if (snprintf(path, sizeof path, "%s%s", mount, group) >= (int)sizeof path) {
        return INT_MAX;
    }
    int least = INT_MAX;
    while (strlen(path) >= top) {
        const int quota = quota_of(path, v2);
        least = quota < least ? quota : least;
        char *slash = strrchr(path, '/');
        if (!slash || slash < path + top) {
            break;
        }
        *slash = '\0';
    }
    return least;
}

/* Lines are "0::/path" (version 2) or "4:cpu,cpuacct:/path" (version 1). */
static int cgroup_quota(const char *root) {
    char path[PATH_MAX], line[PATH_MAX + 64], mount[PATH_MAX];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    int least = INT_MAX;
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) {
            continue;
        }
        *group++ = '\0';
        controllers++;
        const bool v2 = *controllers == '\0';
        char wrapped[128];
        snprintf(wrapped, sizeof wrapped, ",%.120s,", controllers);
        if (!v2 && !strstr(wrapped, ",cpu,")) {
            continue;
        }
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s", root, v2 ? "" : "/cpu");
        const int quota = quota_along(mount, strcmp(group, "/") == 0 ? "" : group, v2);
        least = quota < least ? quota : least;
    }
    if (file) {
        fclose(file);
    }
    return least;
}

/* The mask may be larger than cpu_set_t: the kernel refuses a buffer that does not hold it. */
static int affinity(void) {
    for (int cpus = 1024; cpus <= 1 << 20; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        const size_t size = CPU_ALLOC_SIZE((size_t)cpus);
        const int rc = set ? sched_getaffinity(0, size, set) : -1;
        const int count = rc == 0 ? CPU_COUNT_S(size, set) : 0;
        const bool larger = set && rc != 0 && errno == EINVAL;
        CPU_FREE(set);
        if (!larger) {
            return count > 0 ? count : 1;
        }
    }
    return 1;
}

int dm_cpus(const char *root) {
    const int mask = affinity(), quota = cgroup_quota(root);
    return quota < mask ? quota : mask;
}

/* ---- this process ---- */

static bool is_same(const char *one, const char *other) {
    struct stat a, b;
    return stat(one, &a) == 0 && stat(other, &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

int dm_cwd(char *path, size_t size) {
    const char *logical = getenv("PWD");
    if (logical && logical[0] == '/' && strlen(logical) < size && is_same(logical, ".")) {
        strcpy(path, logical);
        return 0;
    }
    return getcwd(path, size) ? 0 : -errno;
}

void dm_executable(char *path, size_t size) {
    const ssize_t n = readlink("/proc/self/exe", path, size - 1);
    if (n > 0) {
        path[n] = '\0';
        if (is_same(path, "/proc/self/exe")) {
            return;
        }
    }
    snprintf(path, size, "/proc/self/exe");
}

const char *dm_image(void) {
    static char path[PATH_MAX];
    if (access("/proc/self/exe", X_OK) == 0) {
        return "/proc/self/exe";
    }
    dm_executable(path, sizeof path);
    return path;
}

/* ---- other processes ---- */

/* wchan is the function in which it sleeps: "0" while it runs, and also to who may not know. */
int dm_proc_idle(pid_t pid) {
    char text[64];
    if (dm_proc_read(pid, "wchan", text, sizeof text) <= 0) {
        return -1;
    }
    if (strcmp(text, "0") != 0) {
        return strstr(text, "epoll_wait") || strstr(text, "ep_poll");
    }
    const char state = dm_proc_state(pid);
    return state == 'R' || state == 'T' || state == 't' ? 0 : -1; /* 'T': it is stopped */
}
