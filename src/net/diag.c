/* diag.c: see diag.h. A connection that nobody has accepted has no inode yet. */
#include "net/diag.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* us. The kernel answers within the send itself; this is for one that does not. */
enum { PATIENCE_US = 100000 };

struct question {
    struct nlmsghdr header;
    struct inet_diag_req_v2 request;
};

static void set_end(const struct dm_address *address, __be32 ip[4], __be16 *port) {
    if (address->u.any.sa_family == AF_INET6) {
        memcpy(ip, &address->u.in6.sin6_addr, 16);
        *port = address->u.in6.sin6_port;
    } else {
        memcpy(ip, &address->u.in.sin_addr, 4);
        *port = address->u.in.sin_port;
    }
}

static enum dm_accepted read_answer(int fd) {
    union {
        struct nlmsghdr header;
        char space[2048];
    } answer;
    const ssize_t n = recv(fd, &answer, sizeof answer, 0);
    if (n < 0 || !NLMSG_OK(&answer.header, (size_t)n) ||
        answer.header.nlmsg_type != SOCK_DIAG_BY_FAMILY ||
        answer.header.nlmsg_len < NLMSG_LENGTH(sizeof(struct inet_diag_msg))) {
        return DM_ACCEPTED_UNKNOWN;
    }
    const struct inet_diag_msg *found = NLMSG_DATA(&answer.header);
    if (found->idiag_state == TCP_LISTEN || found->idiag_state == TCP_TIME_WAIT) {
        return DM_ACCEPTED_UNKNOWN; /* found instead of what is not there */
    }
    return found->idiag_inode != 0 ? DM_ACCEPTED : DM_ACCEPTED_NOT_YET;
}

enum dm_accepted dm_diag_accepted(const struct dm_address *server,
                                  const struct dm_address *client) {
    struct question q = {
        .header = {.nlmsg_len = sizeof q,
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST},
        .request = {.sdiag_family = (__u8)server->u.any.sa_family,
                    .sdiag_protocol = IPPROTO_TCP,
                    .idiag_states = ~0U,
                    .id = {.idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}},
    };
    set_end(server, q.request.id.idiag_src, &q.request.id.idiag_sport);
    set_end(client, q.request.id.idiag_dst, &q.request.id.idiag_dport);
    const int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (fd < 0) {
        return DM_ACCEPTED_UNKNOWN;
    }
    const struct timeval patience = {.tv_usec = PATIENCE_US};
    const struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    enum dm_accepted result = DM_ACCEPTED_UNKNOWN;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0 &&
        sendto(fd, &q, sizeof q, 0, (const struct sockaddr *)&kernel, sizeof kernel) ==
            (ssize_t)sizeof q) {
        result = read_answer(fd);
    }
    close(fd);
    return result;
}
