/* diag.h: what the kernel knows of the other end of a TCP connection within this machine, by one
 * question over netlink (sock_diag), as ss(8) asks. Any user may. */
#pragma once

#include "net/address.h"

enum dm_accepted {
    DM_ACCEPTED_UNKNOWN, /* there is no such connection (any more), or the kernel does not say */
    DM_ACCEPTED_NOT_YET, /* it waits in a queue */
    DM_ACCEPTED,         /* a process has it */
};

/* The connection whose server's end is `server` and whose client's end is `client`. */
enum dm_accepted dm_diag_accepted(const struct dm_address *server, const struct dm_address *client);
