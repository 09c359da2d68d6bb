/* identity.c: see identity.h. */
#include "base/identity.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static pid_t known_as;

pid_t dm_identity(void) {
    return known_as > 0 ? known_as : getpid();
}

void dm_identity_set(pid_t pid) {
    known_as = pid;
}

pid_t dm_identity_of(pid_t pid) {
    char path[32], line[64] = "";
    int parent = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file || fscanf(file, "%*d (dutch-master) %*c %d", &parent) != 1) {
        parent = 0;
    }
    if (file) {
        fclose(file);
    }
    snprintf(path, sizeof path, "/proc/%d/comm", parent);
    file = parent > 0 ? fopen(path, "re") : NULL;
    const bool kept =
        file && fgets(line, sizeof line, file) && strcmp(line, DM_KEEPER_COMM "\n") == 0;
    if (file) {
        fclose(file);
    }
    return kept ? parent : pid;
}
