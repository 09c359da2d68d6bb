/* spawn_memory.c: see spawn_memory.h. Only the heap that libc grows by brk is hidden: where memory
 * comes from elsewhere (sanitizers, another libc), a fork costs more, and is the same. */
#include "process/spawn_memory.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    ALIGNMENT = 16,
    PID_ROOM = 20, /* bytes: LISTEN_PID= and WATCHDOG_PID= get their value in the child */
};

static uintptr_t heap_start;

void dm_spawn_memory_init(void) {
    if (heap_start == 0) {
        const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
        heap_start = ((uintptr_t)sbrk(0) + page - 1) & ~(page - 1);
    }
}

static void advise(int advice) {
    const uintptr_t end = (uintptr_t)sbrk(0);
    if (heap_start != 0 && end > heap_start) {
        madvise((void *)heap_start, end - heap_start, advice);
    }
}

void dm_spawn_memory_hide_heap(void) {
    advise(MADV_DONTFORK);
}

void dm_spawn_memory_show_heap(void) {
    advise(MADV_DOFORK);
}

static void *put(struct dm_spawn_memory *memory, const void *from, size_t size) {
    void *to = memory->bytes ? memory->bytes + memory->used : NULL;
    if (to && size > 0) {
        memcpy(to, from, size);
    }
    memory->used += (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    return to;
}

static char *put_string(struct dm_spawn_memory *memory, const char *string) {
    return string ? put(memory, string, strlen(string) + 1) : NULL;
}

/* A list that ends with NULL. */
static char **put_strings(struct dm_spawn_memory *memory, char *const *list) {
    size_t n = 0;
    while (list[n]) {
        n++;
    }
    char **to = put(memory, list, (n + 1) * sizeof *to);
    for (size_t i = 0; i < n; i++) {
        char *string = put_string(memory, list[i]);
        if (to) {
            to[i] = string;
        }
    }
    return to;
}

/* The variable whose value, still empty, is at `value`, with room for it. -> the place of its copy
 */
static char *put_pid(struct dm_spawn_memory *memory, const struct dm_spawn *from, char **env,
                     const char *value) {
    for (size_t i = 0; value && from->env[i]; i++) {
        const size_t length = strlen(from->env[i]);
        if (from->env[i] + length == value) {
            char *variable = put(memory, from->env[i], length + 1);
            memory->used += PID_ROOM;
            if (env) {
                env[i] = variable;
            }
            return variable ? variable + length : NULL;
        }
    }
    return NULL;
}

static void put_all(struct dm_spawn_memory *memory, const struct dm_spawn *from) {
    struct dm_spawn *to = &memory->spawn;
    *to = *from;
    to->files = put_strings(memory, from->files);
    to->argv = put_strings(memory, from->argv);
    to->env = put_strings(memory, from->env);
    to->listen_pid = put_pid(memory, from, to->env, from->listen_pid);
    to->watchdog_pid = put_pid(memory, from, to->env, from->watchdog_pid);
    to->cwd = put_string(memory, from->cwd);
    to->must_read = put_string(memory, from->must_read);
    to->fds = put(memory, from->fds, (size_t)from->fd_count * sizeof *from->fds);
    to->limits = put(memory, from->limits, from->limit_count * sizeof *from->limits);
    to->groups = put(memory, from->groups, from->group_count * sizeof *from->groups);
    to->cpus = from->cpus ? put(memory, from->cpus, sizeof *from->cpus) : NULL;
}

int dm_spawn_memory_take(struct dm_spawn_memory *memory, const struct dm_spawn *spawn) {
    *memory = (struct dm_spawn_memory){.bytes = NULL};
    put_all(memory, spawn);
    memory->size = memory->used;
    void *bytes =
        mmap(NULL, memory->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED) {
        return -errno;
    }
    memory->bytes = bytes;
    memory->used = 0;
    put_all(memory, spawn);
    return 0;
}

void dm_spawn_memory_free(struct dm_spawn_memory *memory) {
    munmap(memory->bytes, memory->size);
}
