/* inherited.c: see inherited.h. */
#include "net/inherited.h"

#include "base/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST = 3 };

/* As libsystemd reads numbers: blanks may lead, nothing may follow. */
static int parse(const char *text, long *out) {
    char *end;
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (end == text || *end != '\0') {
        return -EINVAL;
    }
    if (errno || value > INT_MAX || value < INT_MIN) {
        return -ERANGE;
    }
    *out = value;
    return 0;
}

static int parse_pid(const char *text, long *out) {
    const char *digits = text + strspn(text, " \t\n\r\f\v");
    const int error = parse(text, out);
    if (error) {
        return error;
    }
    return digits[0] == '0' || digits[0] == '+' || *out <= 0 ? -EINVAL : 0;
}

static int count_names(const char *names) {
    int count = 1;
    for (; *names; names++) {
        count += *names == ':';
    }
    return count;
}

static int take(struct dm_inherited *self, const char *pid_text, const char *count_text,
                const char *names) {
    long pid, count;
    if (!pid_text) {
        return 0;
    }
    int error = parse_pid(pid_text, &pid);
    if (error || pid != dm_identity() || !count_text) {
        return error;
    }
    error = parse(count_text, &count);
    if (error) {
        return error;
    }
    if (count <= 0 || count > INT_MAX - FIRST) {
        return -EINVAL;
    }
    for (int fd = FIRST; fd < FIRST + (int)count; fd++) {
        const int flags = fcntl(fd, F_GETFD);
        if (flags < 0 || fcntl(fd, F_SETFD, flags | FD_CLOEXEC) < 0) {
            return -errno;
        }
    }
    if (names && (names[0] == '\0' || count_names(names) != count)) {
        return -EINVAL;
    }
    if (names && !(self->names = strdup(names))) {
        return -ENOMEM;
    }
    self->count = (int)count;
    return 0;
}

int dm_inherited_take(struct dm_inherited *self) {
    self->count = 0;
    self->names = NULL;
    const int error =
        take(self, getenv("LISTEN_PID"), getenv("LISTEN_FDS"), getenv("LISTEN_FDNAMES"));
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    unsetenv("LISTEN_PIDFDID");
    return error;
}

void dm_inherited_free(struct dm_inherited *self) {
    free(self->names);
    self->names = NULL;
}
