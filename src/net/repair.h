/* repair.h: puts right what a worker did to a lane. Copies that workers hold share the lane's
 * state, so what one does to its copy is done to all; where it left the group, the listener takes
 * it back.
 */
#pragma once

#include "net/lane.h"

/* What a worker had done. */
enum {
    DM_LANE_REVIVED = 1,    /* shutdown() */
    DM_LANE_BACKLOG = 2,    /* listen() with another backlog */
    DM_LANE_NONBLOCK = 4,   /* O_NONBLOCK cleared */
    DM_LANE_PATH = 8,       /* the socket's path removed or taken */
    DM_LANE_PATH_LOST = 16, /* and it could not be put back */
    DM_LANE_REUSEPORT = 32, /* SO_REUSEPORT cleared: its group would not be asked any more */
    DM_LANE_FILTER = 64,    /* SO_ATTACH_FILTER: packets of whoever connects could be dropped */
    DM_LANE_LOCKED = 128    /* SO_LOCK_FILTER: it stays as it is, nothing can be attached */
};

/* What was repaired, as DM_LANE_ bits, or a negative error if the lane stays broken. With may_block
 * a worker may have cleared O_NONBLOCK, also of a socket that others share. */
int dm_lane_repair(struct dm_lane *lane, bool may_block);
