/* steering.h: the classic BPF program that tells the kernel which member of a SO_REUSEPORT group
 * gets a new connection. Pure but for attach and detach: indexes in, instructions out. It runs once
 * for each SYN. An index that no member has makes the kernel fall back to its hash, so a stale
 * program never loses a connection, it only misplaces one: who renumbers the group re-attaches.
 */
#pragma once

#include <linux/filter.h>
#include <stddef.h>
#include <stdint.h>

enum {
    /* The kernel's limit for a program is 4096 instructions (BPF_MAXINSNS). A lane of its own
     * weight takes at most three, so this many fit with room to spare. */
    DM_STEERING_LANES = 1024,
    DM_STEERING_BUCKETS = 1024,
    DM_STEERING_PROBES = 64, /* two instructions each, which are within the jump over all of them */
    DM_STEERING_INSTRUCTIONS = 4096,
};

struct dm_target {
    uint32_t index;  /* in the group */
    uint32_t weight; /* > 0; only ratios count; their sum fits 32 bits */
};

/* Connections from this port, and from the address they go to: so they come from this machine. */
struct dm_probe {
    uint16_t port;
    uint32_t index;
};

struct dm_steering {
    const struct dm_target *targets; /* sorted by index */
    size_t count;
    /* Sticky: index of the lane of each bucket, instead of targets. A client's bucket is a hash of
     * its address, see dm_steering_bucket. */
    const uint32_t *buckets;
    size_t bucket_count;
    const struct dm_probe *probes;
    size_t probe_count;
};

/* Number of instructions written to out[DM_STEERING_INSTRUCTIONS], or -E2BIG, -EINVAL. */
int dm_steering_build(const struct dm_steering *steering, struct sock_filter *out);

/* `fd` must be a listening member: on any other socket the kernel accepts the program and ignores
 * it. */
int dm_steering_attach(int fd, const struct sock_filter *program, int length);
int dm_steering_detach(int fd); /* 0 also if there was none */

/* The bucket of an address of 4 or 16 bytes, as the program computes it. */
uint32_t dm_steering_bucket(const uint8_t *address, size_t size, size_t bucket_count);
