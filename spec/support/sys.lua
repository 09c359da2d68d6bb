--- System calls the specs need and Lua does not have: pipes, sockets, limits, descriptors, clocks.

local ffi = require 'ffi'

ffi.cdef [[
    typedef int dm_pid;
    struct dm_timespec { long sec; long nsec; };
    struct dm_rlimit { unsigned long soft; unsigned long hard; };
    int pipe2(int fds[2], int flags);
    int socketpair(int domain, int type, int protocol, int fds[2]);
    int open(const char *path, int flags, ...);
    int close(int fd);
    long read(int fd, void *buf, size_t len);
    long write(int fd, const void *buf, size_t len);
    int fcntl(int fd, int cmd, ...);
    int mkfifo(const char *path, unsigned mode);
    int mkdir(const char *path, unsigned mode);
    int chmod(const char *path, unsigned mode);
    int chown(const char *path, unsigned uid, unsigned gid);
    int lchown(const char *path, unsigned uid, unsigned gid);
    int symlink(const char *target, const char *path);
    int link(const char *old, const char *new);
    int getpid(void);
    unsigned geteuid(void);
    int posix_openpt(int flags);
    int grantpt(int fd);
    int unlockpt(int fd);
    char *ptsname(int fd);
    char *mkdtemp(char *template);
    int getrlimit(int what, struct dm_rlimit *limit);
    int setrlimit(int what, const struct dm_rlimit *limit);
    void (*signal(int number, void (*handler)(int)))(int);
    int clock_gettime(int clock, struct dm_timespec *ts);
    int setenv(const char *name, const char *value, int overwrite);
    int unsetenv(const char *name);
    int seteuid(unsigned uid);
    int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
    unsigned umask(unsigned mask);
    int umount2(const char *target, int flags);
    char *strerror(int error);
]]

local C = ffi.C
local M = { ffi = ffi, C = C }

M.O_RDONLY, M.O_WRONLY, M.O_RDWR, M.O_NONBLOCK, M.O_CLOEXEC, M.O_NOCTTY = 0, 1, 2, 0x800, 0x80000, 0x100
local F_GETFD, F_GETFL, F_SETFL = 1, 3, 4
local RLIMIT = { fsize = 1, nofile = 7 }
local EAGAIN = 11

local function check(result)
    if result == -1 then error(ffi.string(C.strerror(ffi.errno())), 3) end
    return result
end

--- Reading and writing end of a pipe.
function M.pipe()
    local fds = ffi.new('int[2]')
    check(C.pipe2(fds, M.O_CLOEXEC))
    return fds[0], fds[1]
end

--- Two connected unix sockets; kind 1 = stream (default), 2 = datagram.
function M.socketpair(kind)
    local fds = ffi.new('int[2]')
    check(C.socketpair(1, bit.bor(kind or 1, M.O_CLOEXEC), 0, fds))
    return fds[0], fds[1]
end

--- Master and slave of a new pseudo-terminal.
function M.pty()
    local master = check(C.posix_openpt(bit.bor(M.O_RDWR, M.O_NOCTTY, M.O_CLOEXEC)))
    check(C.grantpt(master))
    check(C.unlockpt(master))
    return master, check(C.open(C.ptsname(master), bit.bor(M.O_RDWR, M.O_NOCTTY, M.O_CLOEXEC)))
end

function M.open(path, flags)
    return check(C.open(path, bit.bor(flags, M.O_CLOEXEC)))
end

function M.close(fd)
    check(C.close(fd))
end

function M.flags(fd)
    return check(C.fcntl(fd, F_GETFL))
end

function M.set_nonblocking(fd)
    check(C.fcntl(fd, F_SETFL, ffi.cast('int', bit.bor(M.flags(fd), M.O_NONBLOCK))))
end

--- What can be read now (the descriptor must be non-blocking); '' at the end, nil if nothing yet.
function M.read(fd, max)
    local size = max or 65536
    local buf = ffi.new('char[?]', size)
    local n = tonumber(C.read(fd, buf, size))
    if n < 0 then
        if ffi.errno() == EAGAIN then return nil end
        check(-1)
    end
    return ffi.string(buf, n)
end

function M.write(fd, data)
    return check(tonumber(C.write(fd, data, #data)))
end

--- Open descriptors of this process.
function M.count_fds()
    local count = 0
    for fd = 0, 2047 do
        if C.fcntl(fd, F_GETFD) ~= -1 then count = count + 1 end
    end
    return count
end

--- Sets the soft limit ('nofile', 'fsize'), returns the old one.
function M.limit(name, soft)
    local limit = ffi.new('struct dm_rlimit')
    check(C.getrlimit(RLIMIT[name], limit))
    local old = limit.soft
    limit.soft = soft
    check(C.setrlimit(RLIMIT[name], limit))
    return old
end

--- Ignores the signal, by number.
function M.ignore(number)
    C.signal(number, ffi.cast('void (*)(int)', 1))
end

--- Monotonic time in ms.
function M.now()
    local ts = ffi.new('struct dm_timespec')
    C.clock_gettime(1, ts)
    return tonumber(ts.sec) * 1000 + tonumber(ts.nsec) / 1e6
end

--- A new directory of our own, and a function that removes it.
function M.temp_dir()
    local template = ffi.new('char[64]', '/tmp/dm-spec-XXXXXX')
    assert(C.mkdtemp(template) ~= nil)
    local dir = ffi.string(template)
    return dir, function()
        os.execute('rm -rf ' .. dir)
    end
end

function M.write_file(path, text)
    local file = assert(io.open(path, 'w'))
    file:write(text)
    file:close()
end

M.read_file = require('spec.support.files').read

function M.setenv(name, value)
    if value == nil then C.unsetenv(name) else C.setenv(name, value, 1) end
end

--- Runs the loop until the condition holds; an error after the limit (5 s, times DM_TIME_SCALE).
function M.await(condition, what, limit_ms)
    local loop = require 'spec.loop'
    local patience = tonumber(os.getenv 'DM_TIME_SCALE') or 1
    local deadline = M.now() + (limit_ms or 5000) * patience
    while true do
        local result = condition()
        if result then return result end
        if M.now() > deadline then error('waited in vain for ' .. (what or 'a condition'), 2) end
        loop.run_once(20)
    end
end

return M
