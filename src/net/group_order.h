/* group_order.h: finds out by measurement which index each member of a SO_REUSEPORT group has.
 * Needed only when several members have left it unseen, by shutdown(), and nobody knows in which
 * order, and where strangers are in the group (strangers.h).
 */
#pragma once

struct dm_listener;

/* Puts listener->lanes[] into the kernel's order, and sets their indexes. Leaves a program of its
 * own in force: the caller attaches another. Strangers may see a
 * connection that is reset at once; nothing of it comes into a lane.
 */
int dm_group_order_learn(struct dm_listener *listener);
