/* spawn.c: see spawn.h. Between clone and exec the child is a copy of a process that may have had
 * any lock taken: no malloc, no stdio, nothing but system calls on what was prepared. Longer
 * than 400 lines: one clone: what is prepared before it and what its child does after it are one
 * argument. */
#include "process/spawn.h"

#include "base/proc.h"
#include "process/reaper.h"
#include "process/spawn_memory.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* include/linux/sched.h: "forked but didn't exec"; cleared by exec, readable until reaped. */
static const unsigned long PF_FORKNOEXEC_FLAG = 0x40;

/* glibc's NSIG leaves out its own two; the kernel's size of a signal set, in bytes. */
enum { SIGNALS = 64, KERNEL_SIGSET = 8 };

/* ms. It takes one; a machine that is out of breath is not waited for. */
enum { REHEARSAL_MS = 2000 };

static const char *const step_names[] = {
    [DM_STEP_NONE] = "none",
    [DM_STEP_GROUP] = "pgrp",
    [DM_STEP_DESCRIPTORS] = "descriptors",
    [DM_STEP_UMASK] = "umask",
    [DM_STEP_NICE] = "nice",
    [DM_STEP_AFFINITY] = "affinity",
    [DM_STEP_LIMITS] = "limits",
    [DM_STEP_GROUPS] = "groups",
    [DM_STEP_GID] = "gid",
    [DM_STEP_UID] = "uid",
    [DM_STEP_CHDIR] = "chdir",
    [DM_STEP_SCRIPT] = "script",
    [DM_STEP_EXEC] = "exec",
    [DM_STEP_INTERPRETER] = "interpreter",
};

static const struct {
    const char *name;
    __rlimit_resource_t resource;
} limits[] = {
    {"as", RLIMIT_AS},           {"core", RLIMIT_CORE},         {"cpu", RLIMIT_CPU},
    {"data", RLIMIT_DATA},       {"fsize", RLIMIT_FSIZE},       {"locks", RLIMIT_LOCKS},
    {"memlock", RLIMIT_MEMLOCK}, {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE},
    {"nofile", RLIMIT_NOFILE},   {"nproc", RLIMIT_NPROC},       {"rss", RLIMIT_RSS},
    {"rtprio", RLIMIT_RTPRIO},   {"rttime", RLIMIT_RTTIME},     {"sigpending", RLIMIT_SIGPENDING},
    {"stack", RLIMIT_STACK},
};

const char *dm_step_name(enum dm_step step) {
    return step_names[step];
}

int dm_limit_find(const char *name) {
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        if (strcmp(limits[i].name, name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

/* -- in the child -------------------------------------------------------------------------------
 */

static _Noreturn void fail(int error_fd, enum dm_step step, int error, const char *path) {
    struct dm_spawn_error record = {.step = step, .error = error};
    size_t n = 0;
    while (path && path[n] && n < sizeof record.path - 1) {
        record.path[n] = path[n];
        n++;
    }
    ssize_t written;
    do {
        written = write(error_fd, &record, sizeof record);
    } while (written < 0 && errno == EINTR);
    _exit(127);
}

/* All of them, also 32 and 33, which libc keeps to itself but a starter may have ignored. */
static void reset_signals(void) {
    const char as_default[64] = {0}; /* at least a kernel sigaction, all zero: SIG_DFL */
    for (int n = 1; n <= SIGNALS; n++) {
        syscall(SYS_rt_sigaction, n, as_default, NULL, KERNEL_SIGSET);
    }
}

/* Above every target first, so that no placing overwrites what is needed later. */
static int place_descriptors(const struct dm_spawn *s, int *error_fd) {
    *error_fd = fcntl(*error_fd, F_DUPFD_CLOEXEC, s->fd_count);
    if (*error_fd < 0) {
        return -1;
    }
    for (int i = 0; i < s->fd_count; i++) {
        if (s->fds[i] < s->fd_count) {
            s->fds[i] = fcntl(s->fds[i], F_DUPFD_CLOEXEC, s->fd_count);
        }
        if (s->fds[i] < 0) {
            return -1;
        }
    }
    for (int i = 0; i < s->fd_count; i++) {
        if (dup2(s->fds[i], i) < 0) {
            return -1;
        }
    }
    return 0;
}

/* What the master was started with, for its children; see dm_spawn_raise_descriptors(). */
static struct rlimit descriptors_before;
static bool descriptors_raised;

/* In a child, before exec: a program that uses select() cannot live with more than 1024. */
static int restore_descriptors(void) {
    return descriptors_raised ? setrlimit(RLIMIT_NOFILE, &descriptors_before) : 0;
}

static int set_limits(const struct dm_spawn *s, const char **name) {
    if (restore_descriptors() != 0) {
        return -1;
    }
    for (size_t i = 0; i < s->limit_count; i++) {
        *name = limits[s->limits[i].which].name;
        if (setrlimit(limits[s->limits[i].which].resource, &s->limits[i].value) != 0) {
            return -1;
        }
    }
    return 0;
}

/* Whoever gives a uid but no groups does not mean "root's groups". */
static int set_groups(const struct dm_spawn *s) {
    if (s->has_groups) {
        return setgroups(s->group_count, s->groups);
    }
    return s->has_uid && geteuid() == 0 ? setgroups(0, NULL) : 0;
}

static int set_uid(uid_t uid) {
    uid_t real, effective, saved;
    if (setresuid(uid, uid, uid) != 0 || getresuid(&real, &effective, &saved) != 0) {
        return -1;
    }
    if (real != uid || effective != uid || saved != uid || (uid != 0 && setuid(0) == 0)) {
        errno = EPERM;
        return -1;
    }
    return 0;
}

static int set_gid(gid_t gid) {
    gid_t real, effective, saved;
    if (setresgid(gid, gid, gid) != 0 || getresgid(&real, &effective, &saved) != 0) {
        return -1;
    }
    if (real != gid || effective != gid || saved != gid) {
        errno = EPERM;
        return -1;
    }
    return 0;
}

/* Not by opening it: the limit of descriptors may be below the numbers that are free by now. Real
 * and effective user are the same here, so that access() tells the truth. */
static int check_script(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0) {
        return -1;
    }
    if (!S_ISREG(st.st_mode)) {
        errno = S_ISDIR(st.st_mode) ? EISDIR : EINVAL;
        return -1;
    }
    return access(path, R_OK);
}

/* The value was filled with as many places as any pid needs; the rest of it is cut off. */
static void write_pid(char *text, pid_t pid) {
    char digits[20];
    int n = 0;
    do {
        digits[n++] = (char)('0' + pid % 10);
        pid /= 10;
    } while (pid > 0);
    while (n > 0) {
        *text++ = digits[--n];
    }
    *text = '\0';
}

/* What the kernel could not find although it found the file: the #! line's program or ELF's loader.
 * Leaves "" where it cannot tell. */
static void read_interpreter(const char *file, char *path, size_t size) {
    union {
        char text[256];
        Elf64_Ehdr elf;
    } head = {{0}};
    path[0] = '\0';
    const int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    const ssize_t n = fd < 0 ? -1 : read(fd, &head, sizeof head - 1);
    if (n > 2 && head.text[0] == '#' && head.text[1] == '!') {
        const char *from = head.text + 2;
        while (*from == ' ' || *from == '\t') {
            from++;
        }
        size_t i = 0;
        while (i < size - 1 && from[i] && !strchr(" \t\n", from[i])) {
            path[i] = from[i];
            i++;
        }
        path[i] = '\0';
    } else if (n >= (ssize_t)sizeof(Elf64_Ehdr) && memcmp(head.text, ELFMAG, SELFMAG) == 0 &&
               head.text[EI_CLASS] == ELFCLASS64) {
        Elf64_Phdr segment;
        for (int i = 0; i < head.elf.e_phnum; i++) {
            const off_t at = (off_t)(head.elf.e_phoff + (Elf64_Off)i * sizeof segment);
            if (pread(fd, &segment, sizeof segment, at) != sizeof segment) {
                break;
            }
            if (segment.p_type == PT_INTERP && segment.p_filesz < size) {
                const ssize_t got = pread(fd, path, segment.p_filesz, (off_t)segment.p_offset);
                path[got > 0 ? got : 0] = '\0';
                break;
            }
        }
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* Like execvp, except that a text file without #! is an error and not a shell script. */
static _Noreturn void run(const struct dm_spawn *s, int error_fd) {
    int error = ENOENT;
    const char *denied = NULL;
    for (char *const *file = s->files; *file; file++) {
        execve(*file, s->argv, s->env);
        error = errno;
        if (error == ENOENT && access(*file, F_OK) == 0) {
            char interpreter[256];
            /* Room for one descriptor more, whatever the limit is now. */
            syscall(SYS_close_range, s->fd_count, (unsigned)error_fd - 1, 0);
            syscall(SYS_close_range, (unsigned)error_fd + 1, ~0U, 0);
            read_interpreter(*file, interpreter, sizeof interpreter);
            fail(error_fd, DM_STEP_INTERPRETER, error, interpreter);
        }
        if (error == EACCES && !denied) {
            denied = *file;
        }
        if (error != ENOENT && error != ENOTDIR && error != EACCES) {
            fail(error_fd, DM_STEP_EXEC, error, *file);
        }
    }
    if (denied) {
        fail(error_fd, DM_STEP_EXEC, EACCES, denied);
    }
    /* Searched in many places: the name alone says more than the last of them. */
    fail(error_fd, DM_STEP_EXEC, error, s->files[0] && !s->files[1] ? s->files[0] : s->argv[0]);
}

static _Noreturn void child(const struct dm_spawn *s, int error_fd, pid_t master) {
    reset_signals();
#define STEP(what, condition, path)                                                                \
    if ((condition) != 0) {                                                                        \
        fail(error_fd, what, errno, path);                                                         \
    }
    STEP(DM_STEP_GROUP, setpgid(0, 0), NULL)
    /* The pipe's own number may be among the targets: it moves first. */
    const int original = error_fd;
    if (place_descriptors(s, &error_fd) != 0) {
        fail(error_fd < 0 ? original : error_fd, DM_STEP_DESCRIPTORS, errno, NULL);
    }
    STEP(DM_STEP_DESCRIPTORS, syscall(SYS_close_range, s->fd_count, ~0U, CLOSE_RANGE_CLOEXEC), NULL)
    if (s->has_umask) {
        umask(s->umask);
    }
    STEP(DM_STEP_NICE, s->has_nice && setpriority(PRIO_PROCESS, 0, s->nice), NULL)
    STEP(DM_STEP_AFFINITY, s->cpus && sched_setaffinity(0, sizeof *s->cpus, s->cpus), NULL)
    const char *limit = NULL;
    STEP(DM_STEP_LIMITS, set_limits(s, &limit), limit)
    STEP(DM_STEP_GROUPS, set_groups(s), NULL)
    STEP(DM_STEP_GID, s->has_gid && set_gid(s->gid), NULL)
    STEP(DM_STEP_UID, s->has_uid && set_uid(s->uid), NULL)
    if (s->die_with_master) {
        /* After the change of user, which clears it; a master that died before sends nothing. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != master) {
            _exit(127);
        }
    }
    if (s->rehearse) {
        _exit(0);
    }
    STEP(DM_STEP_CHDIR, s->cwd && chdir(s->cwd), s->cwd)
    STEP(DM_STEP_SCRIPT, s->must_read && check_script(s->must_read), s->must_read)
#undef STEP
    if (s->listen_pid) {
        write_pid(s->listen_pid, getpid());
    }
    if (s->watchdog_pid) {
        write_pid(s->watchdog_pid, getpid());
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    run(s, error_fd);
}

/* -- in the master ------------------------------------------------------------------------------
 */

void dm_spawn_raise_descriptors(void) {
    struct rlimit most;
    if (descriptors_raised || getrlimit(RLIMIT_NOFILE, &descriptors_before) != 0 ||
        descriptors_before.rlim_cur == descriptors_before.rlim_max) {
        return;
    }
    most = descriptors_before;
    most.rlim_cur = most.rlim_max;
    descriptors_raised = setrlimit(RLIMIT_NOFILE, &most) == 0;
}

/* A plain fork by the one system call that gives the pidfd with it. Not clone3: fault injection in
 * the specs, and older seccomp profiles, know clone. */
static pid_t fork_with_pidfd(int *pidfd) {
    return (pid_t)syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, pidfd, NULL, 0);
}

int dm_spawn(const struct dm_spawn *spawn, pid_t *pid, int *pidfd, int *error_fd) {
    int error_pipe[2];
    if (pipe2(error_pipe, O_CLOEXEC) != 0) {
        return -errno;
    }
    fcntl(error_pipe[0], F_SETFL, O_NONBLOCK);
    struct dm_spawn_memory memory;
    const int rc = dm_spawn_memory_take(&memory, spawn);
    if (rc != 0) {
        close(error_pipe[0]);
        close(error_pipe[1]);
        return rc;
    }

    /* No signal may run a handler of the master's, or be lost, in the child. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const pid_t master = getpid();
    *pidfd = -1;
    dm_spawn_memory_hide_heap();
    const pid_t forked = fork_with_pidfd(pidfd);
    if (forked == 0) {
        child(&memory.spawn, error_pipe[1], master);
    }
    const int error = errno;
    dm_spawn_memory_show_heap();
    dm_spawn_memory_free(&memory);
    pthread_sigmask(SIG_SETMASK, &before, NULL);

    *pid = forked;
    close(error_pipe[1]);
    if (forked < 0) {
        close(error_pipe[0]);
        return -error;
    }
    /* In both processes, so that it is true at once for whoever comes first. */
    setpgid(*pid, *pid);
    *error_fd = error_pipe[0];
    return 0;
}

int dm_spawn_rehearse(const struct dm_spawn *spawn, struct dm_spawn_error *failure) {
    struct dm_spawn rehearsal = *spawn;
    int fds[] = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}, pidfd, error_fd;
    pid_t pid;
    rehearsal.rehearse = true;
    rehearsal.die_with_master = false;
    rehearsal.fds = fds;
    rehearsal.fd_count = 3;
    *failure = (struct dm_spawn_error){.step = DM_STEP_NONE};
    const int rc = dm_spawn(&rehearsal, &pid, &pidfd, &error_fd);
    if (rc != 0) {
        return rc;
    }
    struct pollfd outcome = {.fd = error_fd, .events = POLLIN};
    poll(&outcome, 1, REHEARSAL_MS);
    if (read(error_fd, failure, sizeof *failure) != (ssize_t)sizeof *failure) {
        failure->step = DM_STEP_NONE;
    }
    close(error_fd);
    dm_reaper_abandon(pid, pidfd);
    return 0;
}

bool dm_spawn_has_execed(pid_t pid) {
    char text[512];
    if (dm_proc_read(pid, "stat", text, sizeof text) <= 0) {
        return true; /* no /proc: the pipe's word is all there is */
    }
    /* pid (comm) state ppid pgrp session tty tpgid flags; comm may hold anything, also ")". */
    const char *after = strrchr(text, ')');
    unsigned long flags = 0;
    if (!after || sscanf(after, ") %*c %*d %*d %*d %*d %*d %lu", &flags) != 1) {
        return true;
    }
    return (flags & PF_FORKNOEXEC_FLAG) == 0;
}
