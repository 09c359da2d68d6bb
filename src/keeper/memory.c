/* memory.c: see memory.h. */
#include "keeper/memory.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAGIC = 0x6b656570, VERSION = 1 };

uint64_t dm_keeper_sum(const char *text, size_t size) {
    uint64_t sum = 0xcbf29ce484222325u ^ size, word;
    size_t i = 0;
    for (; i + sizeof word <= size; i += sizeof word) {
        memcpy(&word, text + i, sizeof word);
        sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
    }
    for (; i < size; i++) {
        sum = (sum ^ (uint8_t)text[i]) * 0x100000001b3u;
    }
    return sum;
}

/* -> -1: none is whole */
static int newest(const struct dm_keeper_memory *m) {
    int best = -1;
    for (int i = 0; i < 2; i++) {
        const uint64_t number = m->snapshots[i].number;
        if (number > 0 && m->snapshots[i].size <= DM_KEEPER_STATE &&
            m->snapshots[i].sum == dm_keeper_sum(m->text[i], m->snapshots[i].size) &&
            (best < 0 || number > m->snapshots[best].number)) {
            best = i;
        }
    }
    return best;
}

const char *dm_keeper_newest(const struct dm_keeper_memory *m, size_t *size) {
    const int best = newest(m);
    *size = best < 0 ? 0 : m->snapshots[best].size;
    return best < 0 ? NULL : m->text[best];
}

uint64_t dm_keeper_heard(const struct dm_keeper_memory *m) {
    const int best = newest(m);
    return best < 0 ? 0 : m->heard[best];
}

bool dm_keeper_has_written(const struct dm_keeper_memory *m) {
    return m->snapshots[0].number > 0 || m->snapshots[1].number > 0;
}

struct dm_keeper_memory *dm_keeper_map(int fd) {
    void *memory = mmap(NULL, sizeof(struct dm_keeper_memory), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

struct dm_keeper_memory *dm_keeper_make_memory(int *fd) {
    *fd = memfd_create("dutch-master-state", MFD_CLOEXEC);
    if (*fd >= 0 && ftruncate(*fd, sizeof(struct dm_keeper_memory)) != 0) {
        close(*fd);
        *fd = -1;
    }
    struct dm_keeper_memory *m = dm_keeper_map(*fd);
    if (m) {
        m->magic = MAGIC;
        m->version = VERSION;
    }
    return m;
}

bool dm_keeper_understands(const struct dm_keeper_memory *m) {
    return m->magic == MAGIC && m->version == VERSION;
}
