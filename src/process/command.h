/* command.h: runs a shell command to its end, or to a deadline: what os.execute and io.popen of a
 * user's script become. Blocks the loop meanwhile, so the deadline is the hook's budget. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct dm_output {
    char *data; /* malloc'ed, the caller frees it */
    size_t size;
    size_t capacity;
};

uint64_t dm_command_clock(void); /* monotonic, ms */

/* Runs `/bin/sh -c command` in `directory` (NULL: here) until it exits or the clock reaches
 * `deadline`; then its process group is killed. With `output` its stdout is collected. 0 with the
 * status as of waitpid(2); -ETIMEDOUT, -EFBIG (more than 16 MiB of output) or what failed. */
int dm_command_run(const char *command, const char *directory, uint64_t deadline,
                   struct dm_output *output, int *status);
