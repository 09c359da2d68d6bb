/* group_order.h: finds out by measurement which index each member of a SO_REUSEPORT group has.
 * Needed only when several members have left it unseen, by shutdown(), and nobody knows in which
 * order.
 */
#pragma once

struct dm_listener;

/* Puts listener->lanes[] into the kernel's order. Leaves a program in force that chooses among all
 * members: the caller attaches its own. Workers see a connection each that is reset at once. */
int dm_group_order_learn(struct dm_listener *listener);
