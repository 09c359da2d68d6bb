/* append.h: a file that is written to, at its end, for as long as the master lives: a log, or the
 * workers' output. Its directory may belong to the workers' user, who may put a symbolic or a hard
 * link in its place: with root's rights that would write to any file of the machine. So as root a
 * symbolic link is followed only if nobody else could have made it, and a file with several names
 * is refused in a directory that others may write. Whoever may edit the script is not another. */
#pragma once

#include <sys/types.h>

/* Whose links are followed beside root's and our own: the script's owner, who could do all of that
 * in the script. Directories of that group may be writable for it. */
void dm_append_trust(uid_t uid, gid_t gid);

/* The descriptor, O_NONBLOCK; or a negative errno: -ELOOP for such a symbolic link, -EMLINK for a
 * hard one. A FIFO that nobody reads: -ENXIO. */
int dm_append_open(const char *path);

/* What to say of these two; NULL of any other error. */
const char *dm_append_why(int error);
