/* files.h: the questions policy asks the file system, a private directory, and the pid file.
 *
 * All functions return 0 (or a length) or a negative errno. Where the errno alone would leave a
 * person guessing, *why is set to a constant sentence that says what is wrong and what to do.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/types.h>

struct dm_pid_file;

/* The pid a file of ours holds, 0 if the text is none. */
pid_t dm_parse_pid(const char *text);

/* The private directory for locks and control sockets, made if it is missing; it must be ours
 * alone: 0700, not a symbolic link. for_workers: that for what workers of other users must reach,
 * who can neither list nor change it. */
int dm_runtime_dir(char *path, size_t size, bool for_workers, const char **why);

/* Writes our pid to the file, replacing at most a regular file of our own. */
int dm_pid_file_open(const char *path, struct dm_pid_file **file, const char **why);
/* Removes the file if it is still the one we wrote, and frees. */
void dm_pid_file_close(struct dm_pid_file *file);

/* Opens a file to append to, for the output of workers: created with mode 0640 if it is missing,
 * close-on-exec, never a controlling terminal. Gives the descriptor or a negative errno. */
int dm_open_append(const char *path);
