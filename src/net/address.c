/* address.c: see address.h. */
#include "net/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of a host: an IPv6 address with its scope. */
enum { HOST_MAX = 128 };

static bool skip(const char **text, const char *prefix) {
    const size_t length = strlen(prefix);
    if (strncmp(*text, prefix, length) != 0) {
        return false;
    }
    *text += length;
    return true;
}

bool dm_address_is_unix(const struct dm_address *address) {
    return address->u.any.sa_family == AF_UNIX;
}

bool dm_address_is_path(const struct dm_address *address) {
    return dm_address_is_unix(address) && address->path[0] != '\0';
}

int dm_address_port(const struct dm_address *address) {
    switch (address->u.any.sa_family) {
    case AF_INET:
        return ntohs(address->u.in.sin_port);
    case AF_INET6:
        return ntohs(address->u.in6.sin6_port);
    default:
        return 0;
    }
}

int dm_address_set_port(struct dm_address *address, long port) {
    if (port < 0 || port > 65535) {
        return -EINVAL;
    }
    if (address->u.any.sa_family == AF_INET) {
        address->u.in.sin_port = htons((uint16_t)port);
    } else {
        address->u.in6.sin6_port = htons((uint16_t)port);
    }
    return 0;
}

static bool set_in6(struct dm_address *address, const char *host) {
    char name[HOST_MAX];
    if (strlen(host) >= sizeof name) {
        return false;
    }
    strcpy(name, host);
    char *scope = strchr(name, '%');
    unsigned int id = 0;
    if (scope) {
        *scope++ = '\0';
        id = if_nametoindex(scope);
        if (id == 0) {
            id = (unsigned int)strtoul(scope, NULL, 10);
        }
        if (id == 0) {
            return false;
        }
    }
    if (inet_pton(AF_INET6, name, &address->u.in6.sin6_addr) != 1) {
        return false;
    }
    address->u.in6.sin6_scope_id = id;
    return true;
}

int dm_address_set_host(struct dm_address *address, const char *host, const char **why) {
    memset(&address->u, 0, sizeof address->u);
    address->path[0] = '\0';
    address->dual = false;
    if (host[0] == '\0' || strcmp(host, "*") == 0) {
        address->dual = true;
        address->u.in6.sin6_family = AF_INET6;
        address->length = sizeof address->u.in6;
        return 0;
    }
    if (strcmp(host, "localhost") == 0) {
        host = "127.0.0.1";
    }
    if (inet_pton(AF_INET, host, &address->u.in.sin_addr) == 1) {
        address->u.in.sin_family = AF_INET;
        address->length = sizeof address->u.in;
        return 0;
    }
    if (set_in6(address, host)) {
        address->u.in6.sin6_family = AF_INET6;
        address->length = sizeof address->u.in6;
        return 0;
    }
    *why = "not an IPv4 or IPv6 address, and names are not looked up";
    return -EINVAL;
}

int dm_address_set_path(struct dm_address *address, const char *path, size_t length,
                        const char **why) {
    memset(&address->u, 0, sizeof address->u);
    address->path[0] = '\0';
    address->dual = false;
    address->u.un.sun_family = AF_UNIX;
    const bool is_abstract = length > 0 && path[0] == '@';
    if (length < 2) {
        *why = "expected a path after unix:";
        return -EINVAL;
    }
    if (!is_abstract && path[0] != '/') {
        *why = "the path of a unix socket must be absolute";
        return -EINVAL;
    }
    if (length > DM_PATH_MAX || (is_abstract && length >= sizeof address->u.un.sun_path)) {
        *why = is_abstract ? "longer than the 107 bytes an abstract name can have"
                           : "longer than 1023 bytes";
        return -ENAMETOOLONG;
    }
    if (memchr(path, '\0', length)) {
        *why = "the path contains a NUL byte";
        return -EINVAL;
    }
    if (is_abstract) { /* no NUL at the end: it would be part of the name */
        memcpy(address->u.un.sun_path + 1, path + 1, length - 1);
        address->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
        return 0;
    }
    memcpy(address->path, path, length);
    address->path[length] = '\0';
    address->length = 0;
    if (length < sizeof address->u.un.sun_path) {
        memcpy(address->u.un.sun_path, path, length);
        address->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1);
    }
    return 0;
}

/* Digits alone: no sign, no blank, no octal surprise. -1 for anything else. */
static long parse_port(const char *text) {
    const size_t length = strlen(text);
    if (length == 0 || length > 5 || strspn(text, "0123456789") != length) {
        return -1;
    }
    return strtol(text, NULL, 10);
}

static int parse_host_port(const char *text, struct dm_address *address, const char **why) {
    char host[HOST_MAX];
    const char *colon = strrchr(text, ':');
    if (!colon || (size_t)(colon - text) >= sizeof host) {
        *why = "expected host:port, :port, [address]:port or unix:/path";
        return -EINVAL;
    }
    size_t length = (size_t)(colon - text);
    const bool bracketed = length >= 2 && text[0] == '[' && colon[-1] == ']';
    if (bracketed) {
        text++;
        length -= 2;
    }
    memcpy(host, text, length);
    host[length] = '\0';
    if (bracketed != (strchr(host, ':') != NULL)) {
        *why = bracketed ? "only an IPv6 address goes in brackets"
                         : "an IPv6 address goes in brackets, as in [::1]:80";
        return -EINVAL;
    }
    const int error = dm_address_set_host(address, host, why);
    if (error) {
        return error;
    }
    if (dm_address_set_port(address, parse_port(colon + 1)) != 0) {
        *why = "expected a port from 0 to 65535 after the last colon";
        return -EINVAL;
    }
    return 0;
}

int dm_address_parse(const char *text, struct dm_address *address, const char **why) {
    memset(address, 0, sizeof *address);
    address->type = SOCK_STREAM;
    if (skip(&text, "unix:")) {
        return dm_address_set_path(address, text, strlen(text), why);
    }
    if (skip(&text, "unixgram:")) {
        address->type = SOCK_DGRAM;
        return dm_address_set_path(address, text, strlen(text), why);
    }
    if (skip(&text, "udp:")) {
        address->type = SOCK_DGRAM;
    } else {
        skip(&text, "tcp:");
    }
    return parse_host_port(text, address, why);
}

void dm_address_from_here(struct dm_address *address) {
    const char *why;
    const int port = dm_address_port(address);
    const bool six = address->u.any.sa_family == AF_INET6;
    if (six && IN6_IS_ADDR_UNSPECIFIED(&address->u.in6.sin6_addr)) {
        /* A machine without IPv6 addresses can have a [::] that takes IPv4. */
        dm_address_set_host(address, address->dual ? "127.0.0.1" : "::1", &why);
    } else if (!six && address->u.in.sin_addr.s_addr == INADDR_ANY) {
        dm_address_set_host(address, "127.0.0.1", &why);
    }
    dm_address_set_port(address, port);
}

int dm_socket_option(int fd, int level, int name) {
    int value = 0;
    socklen_t size = sizeof value;
    return getsockopt(fd, level, name, &value, &size) == 0 ? value : -errno;
}

int dm_address_of(int fd, struct dm_address *address) {
    memset(address, 0, sizeof *address);
    address->length = sizeof address->u;
    if (getsockname(fd, &address->u.any, &address->length) != 0) {
        return -errno;
    }
    address->type = dm_socket_option(fd, SOL_SOCKET, SO_TYPE);
    if (address->type < 0) {
        return address->type;
    }
    if (address->u.any.sa_family == AF_INET6 &&
        IN6_IS_ADDR_UNSPECIFIED(&address->u.in6.sin6_addr)) {
        address->dual = dm_socket_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) == 0;
    }
    const size_t name = offsetof(struct sockaddr_un, sun_path);
    if (dm_address_is_unix(address) && address->length > name) {
        memcpy(address->path, address->u.un.sun_path,
               strnlen(address->u.un.sun_path, address->length - name));
    }
    return 0;
}

static void path_text(const struct dm_address *address, char out[DM_ADDRESS_TEXT]) {
    const size_t start = offsetof(struct sockaddr_un, sun_path);
    if (address->path[0] == '\0' && address->length > start) {
        const size_t length = address->length - start;
        out[0] = '@';
        memcpy(out + 1, address->u.un.sun_path + 1, length - 1);
        out[length] = '\0';
    } else {
        strcpy(out, address->path);
    }
}

void dm_address_host(const struct dm_address *address, char out[DM_ADDRESS_TEXT]) {
    out[0] = '\0';
    switch (address->u.any.sa_family) {
    case AF_INET:
        inet_ntop(AF_INET, &address->u.in.sin_addr, out, DM_ADDRESS_TEXT);
        break;
    case AF_INET6: {
        inet_ntop(AF_INET6, &address->u.in6.sin6_addr, out, DM_ADDRESS_TEXT);
        char scope[IF_NAMESIZE];
        if (address->u.in6.sin6_scope_id && if_indextoname(address->u.in6.sin6_scope_id, scope)) {
            strcat(strcat(out, "%"), scope);
        }
        break;
    }
    case AF_UNIX:
        path_text(address, out);
        break;
    default:
        break;
    }
}

void dm_address_text(const struct dm_address *address, char out[DM_ADDRESS_TEXT]) {
    char host[DM_ADDRESS_TEXT];
    dm_address_host(address, host);
    const bool dgram = address->type == SOCK_DGRAM;
    if (dm_address_is_unix(address)) {
        snprintf(out, DM_ADDRESS_TEXT, "%s%.1024s", dgram ? "unixgram:" : "unix:", host);
        return;
    }
    const char *prefix = dgram ? "udp:" : "";
    const int port = dm_address_port(address);
    if (address->dual) {
        snprintf(out, DM_ADDRESS_TEXT, "%s:%d", prefix, port);
    } else if (address->u.any.sa_family == AF_INET6) {
        snprintf(out, DM_ADDRESS_TEXT, "%s[%.80s]:%d", prefix, host, port);
    } else {
        snprintf(out, DM_ADDRESS_TEXT, "%s%.80s:%d", prefix, host, port);
    }
}
