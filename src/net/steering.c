/* steering.c: see steering.h.
 *
 * Layout: [probe rules] [a number: random % n, or the client's bucket] [binary search over
 * segments]. A segment is a stretch of numbers with one answer: one lane, or a run of lanes with
 * consecutive indexes. Every leaf returns, so no code follows a subtree and jumps only go forward.
 */
#include "net/steering.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

/* Odd constants that mix well: 2^32 / golden ratio, and murmur3's second finaliser. */
static const uint32_t MIX_1 = 0x9e3779b1, MIX_2 = 0x85ebca6b;

static const uint32_t NETWORK = (uint32_t)SKF_NET_OFF; /* start of the IP header */

struct segment {
    uint32_t start; /* first number */
    uint32_t index; /* lane of the first number */
    bool run;       /* the numbers after it mean the lanes after it */
};

struct program {
    struct sock_filter *code;
    size_t length;
    bool overflow;
};

static void jump(struct program *p, uint16_t code, uint32_t k, uint8_t jt, uint8_t jf) {
    if (p->length == DM_STEERING_INSTRUCTIONS) {
        p->overflow = true;
        return;
    }
    p->code[p->length++] = (struct sock_filter){code, jt, jf, k};
}

static void op(struct program *p, uint16_t code, uint32_t k) {
    jump(p, code, k, 0, 0);
}

static void emit_leaf(struct program *p, const struct segment *segment) {
    if (!segment->run) {
        op(p, BPF_RET | BPF_K, segment->index);
        return;
    }
    if (segment->index != segment->start) {
        op(p, BPF_ALU | BPF_ADD | BPF_K, segment->index - segment->start);
    }
    op(p, BPF_RET | BPF_A, 0);
}

/* Conditional jumps reach 255 instructions; over a longer left half a BPF_JA carries. */
static void emit_search(struct program *p, const struct segment *segments, size_t count) {
    if (count == 1) {
        emit_leaf(p, segments);
        return;
    }
    const size_t half = count / 2, node = p->length;
    jump(p, BPF_JMP | BPF_JGE | BPF_K, segments[half].start, 0, 0);
    emit_search(p, segments, half);
    const size_t left = p->length - node - 1;
    if (left <= UINT8_MAX) {
        p->code[node].jt = (uint8_t)left;
    } else {
        op(p, 0, 0);
        if (p->overflow) {
            return;
        }
        memmove(&p->code[node + 2], &p->code[node + 1], left * sizeof *p->code);
        p->code[node].jf = 1;
        p->code[node + 1] = (struct sock_filter){BPF_JMP | BPF_JA, 0, 0, (uint32_t)left};
    }
    emit_search(p, segments + half, count - half);
}

/* Jumps over `six` instructions if the packet is IPv6, falls through if it is IPv4. */
static void emit_version(struct program *p, uint8_t six) {
    op(p, BPF_LD | BPF_B | BPF_ABS, NETWORK);
    op(p, BPF_ALU | BPF_RSH | BPF_K, 4);
    jump(p, BPF_JMP | BPF_JEQ | BPF_K, 6, six, 0);
}

/* Goes on if a word of the packet equals another one, else jumps over `unequal` instructions. */
static void emit_compare(struct program *p, uint32_t a, uint32_t b, size_t unequal) {
    op(p, BPF_LD | BPF_W | BPF_ABS, NETWORK + a);
    op(p, BPF_MISC | BPF_TAX, 0);
    op(p, BPF_LD | BPF_W | BPF_ABS, NETWORK + b);
    jump(p, BPF_JMP | BPF_JEQ | BPF_X, 0, 0, (uint8_t)unequal);
}

/* A client elsewhere may have the port of a probe; it cannot have the address that it connects to.
 */
static void emit_probes(struct program *p, const struct dm_steering *steering) {
    const size_t rules = 2 * steering->probe_count;
    const size_t compare = 4, six = 4 * compare + 1; /* instructions */
    emit_version(p, (uint8_t)(compare + 3));
    emit_compare(p, 12, 16, 3 + six + rules);
    op(p, BPF_LDX | BPF_B | BPF_MSH, NETWORK); /* length of the IPv4 header */
    op(p, BPF_LD | BPF_H | BPF_IND, NETWORK);
    op(p, BPF_JMP | BPF_JA, (uint32_t)six);
    for (uint32_t word = 0; word < 4; word++) {
        emit_compare(p, 8 + 4 * word, 24 + 4 * word, (3 - word) * compare + 1 + rules);
    }
    op(p, BPF_LD | BPF_H | BPF_ABS, NETWORK + 40); /* the IPv6 header's is fixed */
    for (size_t i = 0; i < steering->probe_count; i++) {
        jump(p, BPF_JMP | BPF_JEQ | BPF_K, steering->probes[i].port, 0, 1);
        op(p, BPF_RET | BPF_K, steering->probes[i].index);
    }
}

static void emit_bucket(struct program *p, size_t count) {
    emit_version(p, 2);
    op(p, BPF_LD | BPF_W | BPF_ABS, NETWORK + 12);
    op(p, BPF_JMP | BPF_JA, 13);
    op(p, BPF_LD | BPF_W | BPF_ABS, NETWORK + 8);
    for (uint32_t word = 1; word < 4; word++) {
        op(p, BPF_ALU | BPF_MUL | BPF_K, MIX_1);
        op(p, BPF_MISC | BPF_TAX, 0);
        op(p, BPF_LD | BPF_W | BPF_ABS, NETWORK + 8 + 4 * word);
        op(p, BPF_ALU | BPF_XOR | BPF_X, 0);
    }
    for (int round = 0; round < 2; round++) {
        op(p, BPF_ALU | BPF_MUL | BPF_K, round == 0 ? MIX_1 : MIX_2);
        op(p, BPF_MISC | BPF_TAX, 0);
        op(p, BPF_ALU | BPF_RSH | BPF_K, 15);
        op(p, BPF_ALU | BPF_XOR | BPF_X, 0);
    }
    op(p, BPF_ALU | BPF_RSH | BPF_K, 16);
    op(p, BPF_ALU | BPF_MUL | BPF_K, (uint32_t)count);
    op(p, BPF_ALU | BPF_RSH | BPF_K, 16);
}

static uint32_t mix(uint32_t a) {
    a *= MIX_1;
    a ^= a >> 15;
    a *= MIX_2;
    return a ^ (a >> 15);
}

uint32_t dm_steering_bucket(const uint8_t *address, size_t size, size_t bucket_count) {
    uint32_t a = 0;
    for (size_t i = 0; i + 4 <= size; i += 4) {
        const uint32_t word = (uint32_t)address[i] << 24 | (uint32_t)address[i + 1] << 16 |
                              (uint32_t)address[i + 2] << 8 | address[i + 3];
        a = a * MIX_1 ^ word;
    }
    return (mix(a) >> 16) * (uint32_t)bucket_count >> 16;
}

static size_t sticky_segments(const struct dm_steering *steering, struct segment *segments) {
    size_t count = 0;
    for (size_t i = 0; i < steering->bucket_count; i++) {
        if (count == 0 || segments[count - 1].index != steering->buckets[i]) {
            segments[count++] = (struct segment){(uint32_t)i, steering->buckets[i], false};
        }
    }
    return count;
}

static bool equal_weights(const struct dm_steering *steering) {
    for (size_t i = 1; i < steering->count; i++) {
        if (steering->targets[i].weight != steering->targets[0].weight) {
            return false;
        }
    }
    return true;
}

/* `*total` is what the random number is taken modulo. */
static size_t random_segments(const struct dm_steering *steering, struct segment *segments,
                              uint32_t *total) {
    const bool equal = equal_weights(steering);
    size_t count = 0;
    *total = 0;
    for (size_t i = 0; i < steering->count; i++) {
        const struct dm_target *target = &steering->targets[i];
        if (equal && i > 0 && target->index == target[-1].index + 1) {
            segments[count - 1].run = true;
        } else {
            segments[count++] = (struct segment){*total, target->index, false};
        }
        *total += equal ? 1 : target->weight;
    }
    return count;
}

int dm_steering_build(const struct dm_steering *steering, struct sock_filter *out) {
    struct segment segments[DM_STEERING_BUCKETS];
    struct program p = {out, 0, false};
    if (steering->count > DM_STEERING_LANES || steering->bucket_count > DM_STEERING_BUCKETS ||
        steering->probe_count > DM_STEERING_PROBES) {
        return -E2BIG;
    }
    if (steering->count == 0 && steering->bucket_count == 0) {
        return -EINVAL;
    }
    if (steering->probe_count) {
        emit_probes(&p, steering);
    }
    if (steering->bucket_count) {
        emit_bucket(&p, steering->bucket_count);
        emit_search(&p, segments, sticky_segments(steering, segments));
    } else if (steering->count == 1) {
        op(&p, BPF_RET | BPF_K, steering->targets[0].index);
    } else {
        uint32_t total;
        const size_t count = random_segments(steering, segments, &total);
        op(&p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_RANDOM));
        op(&p, BPF_ALU | BPF_MOD | BPF_K, total);
        emit_search(&p, segments, count);
    }
    return p.overflow ? -E2BIG : (int)p.length;
}

int dm_steering_attach(int fd, const struct sock_filter *program, int length) {
    struct sock_fprog prog = {(unsigned short)length, (struct sock_filter *)program};
    const int rc = setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &prog, sizeof prog);
    return rc == 0 ? 0 : -errno;
}

int dm_steering_detach(int fd) {
    const int one = 1;
    const int rc = setsockopt(fd, SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, &one, sizeof one);
    return rc == 0 || errno == ENOENT || errno == EINVAL ? 0 : -errno;
}
