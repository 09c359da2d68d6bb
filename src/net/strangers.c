/* strangers.c: see strangers.h. The tables of /proc/net begin with the sockets that listen, so the
 * connections, however many, are not read. */
#include "net/strangers.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LISTENS = 0x0A, ENTRY = 48 /* 32 digits, ':', 4 digits */ };

/* The address as the table has it: words in the machine's order. */
static void entry_of(const struct dm_address *address, char out[ENTRY]) {
    const int port = dm_address_port(address);
    if (address->u.any.sa_family == AF_INET6) {
        uint32_t words[4];
        memcpy(words, &address->u.in6.sin6_addr, sizeof words);
        snprintf(out, ENTRY, "%08X%08X%08X%08X:%04X", words[0], words[1], words[2], words[3],
                 (unsigned)port);
    } else {
        snprintf(out, ENTRY, "%08X:%04X", address->u.in.sin_addr.s_addr, (unsigned)port);
    }
}

static int compare(const void *a, const void *b) {
    const unsigned long x = *(const unsigned long *)a, y = *(const unsigned long *)b;
    return x < y ? -1 : x > y;
}

static void note(struct dm_strangers *found, unsigned long inode) {
    if (found->count < DM_STRANGERS) {
        found->inodes[found->count] = inode;
    }
    found->count++;
    found->sum += inode * 0x9e3779b97f4a7c15U;
}

int dm_strangers_find(const struct dm_address *address, unsigned long *ours, size_t count,
                      struct dm_strangers *found) {
    char wanted[ENTRY], line[512], local[ENTRY];
    const bool six = address->u.any.sa_family == AF_INET6;
    FILE *file = fopen(six ? "/proc/net/tcp6" : "/proc/net/tcp", "re");
    memset(found, 0, sizeof *found);
    if (!file) {
        return -errno;
    }
    entry_of(address, wanted);
    qsort(ours, count, sizeof *ours, compare);
    while (fgets(line, sizeof line, file)) {
        unsigned state;
        unsigned long inode;
        if (sscanf(line, " %*d: %47s %*s %x %*s %*s %*s %*u %*d %lu", local, &state, &inode) != 3) {
            continue; /* the heading */
        }
        if (state != LISTENS) {
            break;
        }
        if (strcmp(local, wanted) == 0 && inode != 0 &&
            !bsearch(&inode, ours, count, sizeof inode, compare)) {
            note(found, inode);
        }
    }
    fclose(file);
    return 0;
}
