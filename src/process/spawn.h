/* spawn.h: from a description to a process that runs a program, or to the one step that failed. The
 * description is complete before the clone; the child only makes system calls on it. */
#pragma once

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/types.h>

enum dm_step {
    DM_STEP_NONE,
    DM_STEP_GROUP,
    DM_STEP_DESCRIPTORS,
    DM_STEP_UMASK,
    DM_STEP_NICE,
    DM_STEP_AFFINITY,
    DM_STEP_LIMITS,
    DM_STEP_GROUPS,
    DM_STEP_GID,
    DM_STEP_UID,
    DM_STEP_CHDIR,
    DM_STEP_SCRIPT,
    DM_STEP_EXEC,
    DM_STEP_INTERPRETER,
};

struct dm_limit {
    int which; /* as dm_limit_find says */
    struct rlimit value;
};

struct dm_spawn {
    char *const *files; /* tried in this order, as execvp does; ends with NULL */
    char *const *argv;  /* ends with NULL */
    char **env;         /* ends with NULL */
    /* The places in env of values that are to be the child's pid, at least 20 bytes, or NULL. */
    char *listen_pid, *watchdog_pid;
    const char *cwd;       /* NULL: stay */
    const char *must_read; /* NULL, or what must be a readable regular file, seen from cwd */
    int *fds;              /* become 0, 1, 2, ...; the child's copy is scratch */
    int fd_count;
    const struct dm_limit *limits;
    size_t limit_count;
    const gid_t *groups;
    size_t group_count;
    const cpu_set_t *cpus; /* NULL: as they are */
    uid_t uid;
    gid_t gid;
    mode_t umask;
    int nice;
    bool has_uid, has_gid, has_groups, has_umask, has_nice, die_with_master;
    bool rehearse; /* end before chdir and exec */
};

/* What comes through the error pipe. At most PIPE_BUF, so that it comes whole. */
struct dm_spawn_error {
    enum dm_step step;
    int error; /* a positive errno */
    char path[2048];
};

/* The master needs a few descriptors for each worker: its soft limit becomes the hard one. Children
 * get the limit it was started with. */
void dm_spawn_raise_descriptors(void);
/* 0 or a negative errno. *error_fd is non-blocking: a record if a step failed, EOF once the program
 * runs or the process is dead. */
int dm_spawn(const struct dm_spawn *spawn, pid_t *pid, int *pidfd, int *error_fd);

/* Tries in a process that ends then whether the user, limits and the rest may be set by us. 0 or a
 * negative errno if there was no process; failure->step is DM_STEP_NONE if they may. Waits for it.
 */
int dm_spawn_rehearse(const struct dm_spawn *spawn, struct dm_spawn_error *failure);

/* Has the process, which may be a zombie, replaced its image? */
bool dm_spawn_has_execed(pid_t pid);

const char *dm_step_name(enum dm_step step);
int dm_limit_find(const char *name); /* "nofile"; -1 if there is none */
