/* terminal.h: the terminal as a person's window: single keys, and output that may block.
 * For the verbs that run in the foreground; the master itself writes through a sink.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <uv.h>

struct dm_terminal;

/* Bytes typed; data NULL: the terminal is gone, nothing more will come. */
typedef void (*dm_terminal_read_cb)(void *ctx, const char *data, size_t len);

/* Writes all of it, waiting as long as it takes. */
int dm_terminal_write(int fd, const char *data, size_t len);
/* Keys one by one and without echo, or (false) the way it was; the latter also at exit. */
int dm_terminal_raw(bool raw);

/* Reads the controlling terminal, whatever standard input is. */
int dm_terminal_open(uv_loop_t *loop, dm_terminal_read_cb on_read, void *ctx,
                     struct dm_terminal **terminal);
void dm_terminal_close(struct dm_terminal *terminal);
