--- Blocking sockets for specs, by ffi: clients with chosen source address and port, descriptor counts.

local ffi = require 'ffi'

ffi.cdef [[
struct dm_sockaddr_in { uint16_t family; uint16_t port; uint8_t address[4]; char zero[8]; };
struct dm_sockaddr_in6 { uint16_t family; uint16_t port; uint32_t flow; uint8_t address[16]; uint32_t scope; };
struct dm_sockaddr_un { uint16_t family; char path[108]; };
struct dm_linger { int on; int seconds; };
struct dm_timeval { long seconds; long microseconds; };
int socket(int, int, int);
int bind(int, const void *, unsigned);
int connect(int, const void *, unsigned);
int listen(int, int);
int shutdown(int, int);
int close(int);
int fcntl(int, int, ...);
int inet_pton(int, const char *, void *);
int setsockopt(int, int, int, const void *, unsigned);
int getsockopt(int, int, int, void *, unsigned *);
uint16_t htons(uint16_t);
int setenv(const char *, const char *, int);
int unsetenv(const char *);
int getpid(void);
unsigned getuid(void);
int getsockname(int, void *, unsigned *);
int unlink(const char *);
long send(int, const void *, size_t, int);
long recv(int, void *, size_t, int);
int dup(int);
int dup2(int, int);
]]

local C = ffi.C
local M = { C = C, STREAM = 1, DGRAM = 2 }

local AF_UNIX, AF_INET, AF_INET6, SOCK_CLOEXEC = 1, 2, 10, 0x80000
local ERRNO = { [11] = 'EAGAIN', [104] = 'ECONNRESET', [110] = 'ETIMEDOUT', [111] = 'ECONNREFUSED', [2] = 'ENOENT',
    [115] = 'EINPROGRESS', [98] = 'EADDRINUSE', [13] = 'EACCES' }

local function errno()
    return ERRNO[ffi.errno()] or ffi.errno()
end

--- The sockaddr of a host and port, or of a unix path ('@name' is abstract).
function M.sockaddr(host, port)
    if not port then
        local name = ffi.new('struct dm_sockaddr_un')
        name.family = AF_UNIX
        ffi.copy(name.path, host, #host)
        if host:sub(1, 1) == '@' then
            name.path[0] = 0
            return name, 2 + #host, AF_UNIX
        end
        return name, 3 + #host, AF_UNIX
    end
    local six = host:find(':', 1, true)
    local name = ffi.new(six and 'struct dm_sockaddr_in6' or 'struct dm_sockaddr_in')
    name.family = six and AF_INET6 or AF_INET
    name.port = C.htons(port)
    assert(C.inet_pton(name.family, host, name.address) == 1, host)
    return name, ffi.sizeof(name), tonumber(name.family)
end

function M.set_option(fd, level, name, value)
    return C.setsockopt(fd, level, name, ffi.new('int[1]', value), 4) == 0
end

--- A filter that drops whatever comes. Newer kernels take it from root alone, if the socket is of TCP.
function M.drop_all(fd)
    local code = ffi.new('uint16_t[4]', 6, 0, 0, 0) -- BPF_RET, 0
    return C.setsockopt(fd, 1, 26, ffi.new('struct { unsigned short length; const void *code; }', 1, code), 16) == 0
end

function M.option(fd, level, name)
    local value, size = ffi.new('int[1]'), ffi.new('unsigned[1]', 4)
    assert(C.getsockopt(fd, level, name, value, size) == 0)
    return value[0]
end

--- Connects: fd | nil, code. options: source (address), source_port, type.
function M.connect(host, port, options)
    options = options or {}
    local name, size, family = M.sockaddr(host, port)
    local fd = C.socket(family, (options.type or M.STREAM) + SOCK_CLOEXEC, 0)
    assert(fd >= 0)
    C.setsockopt(fd, 1, 21, ffi.new('struct dm_timeval', 2, 0), 16) -- SO_SNDTIMEO: no spec waits for ever
    if options.source then
        M.set_option(fd, 1, 2, 1) -- SO_REUSEADDR: the port may be in TIME_WAIT
        local from, length = M.sockaddr(options.source, options.source_port or 0)
        if C.bind(fd, from, length) ~= 0 then
            local code = errno()
            C.close(fd)
            return nil, code
        end
    end
    if C.connect(fd, name, size) ~= 0 then
        local code = errno()
        C.close(fd)
        return nil, code
    end
    return fd
end

--- Closes with a reset, so that no port stays in TIME_WAIT.
function M.abort(fd)
    C.setsockopt(fd, 1, 13, ffi.new('struct dm_linger', 1, 0), 8)
    C.close(fd)
end

--- A socket of another program on the address: fd | nil, code.
function M.bind(host, port, reuseport)
    local name, size, family = M.sockaddr(host, port)
    local fd = C.socket(family, M.STREAM + SOCK_CLOEXEC, 0)
    M.set_option(fd, 1, 2, 1)
    if reuseport then
        M.set_option(fd, 1, 15, 1)
    end
    if C.bind(fd, name, size) ~= 0 or C.listen(fd, 16) ~= 0 then
        local code = errno()
        C.close(fd)
        return nil, code
    end
    return fd
end

--- A port nobody listens on.
function M.free_port(host)
    local fd = assert(M.bind(host or '127.0.0.1', 0))
    local name, size = M.sockaddr(host or '127.0.0.1', 0)
    assert(C.getsockname(fd, name, ffi.new('unsigned[1]', size)) == 0)
    C.close(fd)
    return C.htons(name.port)
end

--- How many descriptors this process has.
function M.descriptors()
    local count = 0
    for fd = 0, 1023 do
        if C.fcntl(fd, 1) >= 0 then
            count = count + 1
        end
    end
    return count
end

--- The user whom a client of a unix path sees behind it (SO_PEERCRED).
function M.peer_uid(path)
    local fd = M.connect(path)
    local credentials, size = ffi.new 'unsigned[3]', ffi.new('unsigned[1]', 12)
    assert(C.getsockopt(fd, 1, 17, credentials, size) == 0)
    M.abort(fd)
    return credentials[1]
end

return M
