/* proc.c: see proc.h. */
#include "base/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

ssize_t dm_proc_read(pid_t pid, const char *file, char *text, size_t size) {
    char path[64];
    size_t n = 0;
    ssize_t more = -1;
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, file);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        /* Long ones come in pages. */
        while (n < size - 1 && (more = read(fd, text + n, size - 1 - n)) > 0) {
            n += (size_t)more;
        }
        close(fd);
    }
    text[n] = '\0';
    return n == 0 && more < 0 ? -1 : (ssize_t)n;
}

char dm_proc_state(pid_t pid) {
    char text[256];
    dm_proc_read(pid, "stat", text, sizeof text);
    const char *end = strrchr(text, ')'); /* the name before it may hold anything */
    return end && end[1] == ' ' ? end[2] : 0;
}

int dm_wait(int type, int id, siginfo_t *info, int options, struct rusage *usage) {
    long rc;
    info->si_pid = 0;
    do {
        rc = syscall(SYS_waitid, type, id, info, options, usage);
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

bool dm_group_lives(pid_t group) {
    siginfo_t info; /* a wait without WEXITED passes zombies over */
    return dm_wait(P_PGID, group, &info, WSTOPPED | WNOHANG | WNOWAIT | __WALL, NULL) == 0;
}
