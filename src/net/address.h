/* address.h: where a listener listens: TCP, UDP or a unix socket. Text to address and back; no
 * names are looked up, "localhost" is 127.0.0.1.
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

/* The longest path that is taken, more than the kernel's 107 bytes (see unix_path.h), and room for
 * "unixgram:" and '@' before it. */
enum { DM_PATH_MAX = 1023, DM_ADDRESS_TEXT = DM_PATH_MAX + 16 };

struct dm_address {
    int type;         /* SOCK_STREAM, SOCK_DGRAM */
    bool dual;        /* [::] that takes IPv4 as well */
    socklen_t length; /* of the sockaddr; 0: the path does not fit into it */
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_un un;
    } u;
    char path[DM_PATH_MAX + 1]; /* of a unix socket in the file system */
};

/* host:port, :port (dual stack), [v6]:port, unix:/path, unix:@abstract; "udp:" before the first
 * three, "unixgram:" for datagrams, "tcp:" is accepted. On -EINVAL or -ENAMETOOLONG `*why` says
 * what is wrong. */
int dm_address_parse(const char *text, struct dm_address *address, const char **why);
int dm_address_set_host(struct dm_address *address, const char *host, const char **why);
int dm_address_set_port(struct dm_address *address, long port);
/* A leading '@' is an abstract name. */
int dm_address_set_path(struct dm_address *address, const char *path, size_t length,
                        const char **why);

/* The wildcard becomes the loopback address by which it is reached from this machine. */
void dm_address_from_here(struct dm_address *address);

/* An option of a socket that is a number, or a negative errno. */
int dm_socket_option(int fd, int level, int name);
/* The address a socket is bound to. */
int dm_address_of(int fd, struct dm_address *address);

bool dm_address_is_unix(const struct dm_address *address);
bool dm_address_is_path(const struct dm_address *address); /* a unix socket in the file system */
int dm_address_port(const struct dm_address *address);
/* Without brackets; the path or "@name" of a unix socket. */
void dm_address_host(const struct dm_address *address, char out[DM_ADDRESS_TEXT]);
/* What dm_address_parse reads. */
void dm_address_text(const struct dm_address *address, char out[DM_ADDRESS_TEXT]);
