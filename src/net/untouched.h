/* untouched.h: whether an accepted TCP connection is still as it was accepted: then any process may
 * serve it, whoever had it before. */
#pragma once

/* 1: nothing was read of it or written to it, and it was not shut down from here. 0: it was, or it
 * has ended. Negative errno: it is no TCP connection. */
int dm_untouched(int fd);
