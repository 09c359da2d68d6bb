/* listener.h: an address that is listened on, made of lanes: the members of a SO_REUSEPORT group,
 * or one shared socket. Owns the lanes, the group's order and the steering program in force.
 *
 * The kernel's index of a member is the order of listen(); when member i leaves (close, shutdown)
 * the last one takes its place. lanes[] mirrors that at all times. Whatever changes the order
 * attaches the program anew, and before a removal first one that holds before and after it: at no
 * moment does the program in force name a lane that it should not. Where others have sockets in the
 * group (strangers.h) the order is learnt by measurement (group_order.h) after each change.
 */
#pragma once

#include "net/address.h"
#include "net/lane.h"
#include "net/steering.h"
#include "net/strangers.h"
#include "net/unix_path.h"

struct dm_listener_options {
    int backlog;
    bool reuseport; /* lanes; only for TCP, else shared all the same */
    bool reuse;     /* a datagram port that others have too, who ask for the same */
    int mode;       /* of a unix socket's path, -1: by umask */
    int fd;         /* a socket that came from outside, listening: taken over as shared; or -1 */
    const struct dm_rights *rights; /* with which the address is bound; NULL: ours */
};

enum dm_steered { DM_SHARED, DM_HASH, DM_STEERED, DM_STICKY };

struct dm_steer_lane {
    struct dm_lane *lane;
    uint32_t weight;
};

struct dm_steer_probe {
    struct dm_lane *lane;
    uint16_t port;
};

/* What is asked of dm_listener_steer; the listener keeps a copy. */
struct dm_steer {
    struct dm_steer_lane *lanes;
    size_t count;
    uint16_t *buckets; /* sticky: position in lanes[] of each bucket, NULL if not */
    size_t bucket_count;
    struct dm_steer_probe *probes;
    size_t probe_count;
};

struct dm_listener {
    struct dm_address address; /* with the real port */
    int backlog;
    bool shared;
    bool foreign;  /* came from outside: never shut down, bound or unlinked here */
    bool borrowed; /* the same for now: see dm_listener_kept */
    int guard;     /* holds the port until the first lane listens; -1 after */
    int claim;     /* of a path: keeps other masters away from it until then; -1 after */
    struct dm_unix_path path;
    struct dm_lane **lanes; /* the group's members in order, then those that could not rejoin it */
    size_t count, members, capacity;
    bool
        uncertain; /* several lanes left the group since it was last looked at: see group_order.h */
    struct dm_strangers strangers; /* as they were when last looked for */
    bool told; /* who gets connections; else a former master's program is in force, and stays */
    struct dm_steer steer;
    enum dm_steered in_force;
};

/* Binds; a shared listener also listens. Frees what it took if it fails. */
int dm_listener_open(struct dm_listener *listener, const struct dm_address *address,
                     const struct dm_listener_options *options);
/* Whether it is bound with the rights of whoever asked, who may let it hang: then it is opened so.
 * 0: done() follows, from the loop; or what failed. The listener must stay where it is until then.
 */
bool dm_listener_is_theirs(const struct dm_address *address,
                           const struct dm_listener_options *options);
int dm_listener_open_theirs(struct dm_listener *listener, const struct dm_address *address,
                            const struct dm_listener_options *options, struct dm_helpers *helpers,
                            void (*done)(void *data, int error), void *data);
/* What must be kept of it for another master; lanes[] is there too. */
struct dm_listener_kept {
    const int *fds; /* in the order of the group */
    size_t count;
    bool shared;
    bool borrowed;  /* others serve there still, until dm_listener_own: the order is not known, and
                     * nothing is shut down */
    bool uncertain; /* nobody knows the order */
    const int *indexes; /* of the first lanes in the group, where strangers are */
    size_t index_count;
    uint64_t device, inode; /* of its unix path; 0: none */
    struct dm_helpers *helpers;
};
/* The same listener, after the master that opened it has died. The descriptors are its own from
 * here on, and closed also if this fails. Connections go where they went, until dm_listener_steer;
 * dm_listener_census after that learns an order that is not known. What a lane has lost meanwhile
 * is for dm_lane_repair. */
int dm_listener_resume(struct dm_listener *listener, const struct dm_address *address,
                       const struct dm_listener_options *options,
                       const struct dm_listener_kept *kept);
/* Who served there beside us is gone. */
void dm_listener_own(struct dm_listener *listener);
/* A new lane, listening, last in the group; the one lane of a shared listener. */
int dm_listener_lane(struct dm_listener *listener, struct dm_lane **lane);
/* Removes a lane from the group for all who hold it. -EBUSY if the steering in force cannot do
 * without it, or without the lane that would move into its place: the latter is done regardless, if
 * asked. Until the new program is attached, some microseconds, the kernel then chooses by hash. */
int dm_listener_close_lane(struct dm_lane *lane, bool regardless);
/* Takes a lane that left the group by shutdown() to its end; used by dm_lane_repair. */
int dm_listener_rejoin(struct dm_lane *lane);

/* 0, or why the program could not be attached: then plain hashing is in force. No lanes: hashing.
 */
int dm_listener_steer(struct dm_listener *listener, const struct dm_steer *steer);

/* Looks for members of the group that are not ours. If they are others than before, the order is
 * learnt anew: steering goes to our lanes alone. 0, or why it cannot be known. */
int dm_listener_census(struct dm_listener *listener);

/* Waits for nobody: what is queued is reset. Sockets of this address that workers hold die too. */
void dm_listener_close(struct dm_listener *listener);
