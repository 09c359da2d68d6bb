/* holder.c: see holder.h. */
#include "net/holder.h"

#include "base/close.h"
#include "base/proc.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_INODES = 64, /* sockets of one address: a group of lanes has many */
    WORK_MS = 100,   /* for a name in a message: some thousand processes */
};

struct inodes {
    unsigned long list[MAX_INODES];
    int count;
};

static void add(struct inodes *found, unsigned long inode) {
    if (inode != 0 && found->count < MAX_INODES) {
        found->list[found->count++] = inode;
    }
}

/* Lines of /proc/net/tcp and the like: "sl: LOCAL:PORT REMOTE:PORT ST tx:rx tr:when retr uid
 * timeout inode". */
static void read_port_table(const char *path, int port, bool listening, struct inodes *found) {
    FILE *file = fopen(path, "re");
    char line[512];
    while (file && fgets(line, sizeof line, file)) {
        unsigned local, state;
        unsigned long inode;
        if (sscanf(line, " %*d: %*[0-9A-F]:%x %*[0-9A-F]:%*x %x %*x:%*x %*x:%*x %*x %*u %*d %lu",
                   &local, &state, &inode) == 3 &&
            (int)local == port && (!listening || state == 0x0A)) {
            add(found, inode);
        }
    }
    if (file) {
        fclose(file);
    }
}

/* "num refs proto flags type st inode path" */
static void read_unix_table(const char *path, struct inodes *found) {
    FILE *file = fopen("/proc/net/unix", "re");
    char line[512];
    while (file && fgets(line, sizeof line, file)) {
        unsigned long inode;
        char name[256];
        if (sscanf(line, "%*s %*s %*s %*s %*s %*s %lu %255[^\n]", &inode, name) == 2 &&
            strcmp(name, path) == 0) {
            add(found, inode);
        }
    }
    if (file) {
        fclose(file);
    }
}

static bool is_one_of(const struct inodes *found, const char *link) {
    unsigned long inode;
    if (sscanf(link, "socket:[%lu]", &inode) != 1) {
        return false;
    }
    for (int i = 0; i < found->count; i++) {
        if (found->list[i] == inode) {
            return true;
        }
    }
    return false;
}

/* 1, 0, or -1: its descriptors cannot be seen. */
static int holds(int proc, const char *pid, const struct inodes *found) {
    char path[NAME_MAX + 8], link[64];
    bool result = false;
    snprintf(path, sizeof path, "%s/fd", pid);
    int fd = openat(proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (!dir) {
        dm_close(&fd);
        return -1;
    }
    for (struct dirent *entry = readdir(dir); entry && !result; entry = readdir(dir)) {
        const ssize_t length = readlinkat(fd, entry->d_name, link, sizeof link - 1);
        if (length > 0) {
            link[length] = '\0';
            result = is_one_of(found, link);
        }
    }
    closedir(dir);
    return result;
}

static void read_name(pid_t pid, char name[DM_HOLDER_NAME]) {
    dm_proc_read(pid, "comm", name, DM_HOLDER_NAME);
    name[strcspn(name, "\n")] = '\0';
    for (char *c = name; *c; c++) {
        if (!isprint((unsigned char)*c)) {
            *c = '?';
        }
    }
}

/* Time that this thread has worked, so that a busy machine does not shorten the search. */
static long worked_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static size_t find_all(const struct inodes *found, struct dm_holder *list, size_t room,
                       long allowed_ms) {
    size_t count = 0;
    const long begun = worked_ms();
    DIR *dir = found->count > 0 ? opendir("/proc") : NULL;
    if (!dir) {
        return 0;
    }
    for (struct dirent *entry = readdir(dir);
         entry && count < room && worked_ms() - begun <= allowed_ms; entry = readdir(dir)) {
        if (isdigit((unsigned char)entry->d_name[0]) &&
            holds(dirfd(dir), entry->d_name, found) == 1) {
            struct dm_holder *holder = &list[count++];
            holder->pid = (pid_t)strtol(entry->d_name, NULL, 10);
            holder->group = getpgid(holder->pid);
            read_name(holder->pid, holder->name);
        }
    }
    closedir(dir);
    return count;
}

bool dm_holder_find(const struct dm_address *address, struct dm_holder *holder) {
    struct inodes found = {.count = 0};
    if (dm_address_is_unix(address)) {
        char host[DM_ADDRESS_TEXT];
        dm_address_host(address, host);
        read_unix_table(host, &found);
    } else {
        const bool tcp = address->type == SOCK_STREAM;
        const int port = dm_address_port(address);
        read_port_table(tcp ? "/proc/net/tcp" : "/proc/net/udp", port, tcp, &found);
        read_port_table(tcp ? "/proc/net/tcp6" : "/proc/net/udp6", port, tcp, &found);
    }
    return find_all(&found, holder, 1, WORK_MS) == 1;
}

size_t dm_holder_list(const unsigned long *inodes, size_t count, struct dm_holder *list,
                      size_t room) {
    struct inodes found = {.count = 0};
    for (size_t i = 0; i < count; i++) {
        add(&found, inodes[i]);
    }
    return find_all(&found, list, room, LONG_MAX);
}

int dm_holder_group_has(pid_t group, unsigned long inode) {
    const struct inodes wanted = {.list = {inode}, .count = 1};
    int result = -1;
    DIR *dir = opendir("/proc");
    if (!dir) {
        return -1;
    }
    for (struct dirent *entry = readdir(dir); entry && result != 1; entry = readdir(dir)) {
        if (isdigit((unsigned char)entry->d_name[0]) &&
            getpgid((pid_t)strtol(entry->d_name, NULL, 10)) == group) {
            const int has = holds(dirfd(dir), entry->d_name, &wanted);
            if (has < 0) {
                result = -1; /* this one may be it */
                break;
            }
            result = has;
        }
    }
    closedir(dir);
    return result;
}
