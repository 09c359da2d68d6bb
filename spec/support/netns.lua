-- A network namespace of our own, for kernel settings that belong to one: this process and those that it starts from now
-- on have nothing but a loopback device.

local ffi = require 'ffi'

ffi.cdef [[
int unshare(int); int setns(int, int); int socket(int, int, int); int ioctl(int, unsigned long, void *);
int open(const char *, int, ...); int close(int);
struct dm_ifreq { char name[16]; short flags; char rest[32]; };
]]

local CLONE_NEWNET, O_RDONLY, O_CLOEXEC, SIOCSIFFLAGS, IFF_UP = 0x40000000, 0, 0x80000, 0x8914, 1

local M = {}

--- @return function that goes back; or nil where this user may not
function M.enter()
    local before = ffi.C.open('/proc/self/ns/net', O_RDONLY + O_CLOEXEC)
    if before < 0 or ffi.C.unshare(CLONE_NEWNET) ~= 0 then
        return nil
    end
    local fd = ffi.C.socket(2, 2 + O_CLOEXEC, 0)
    local request = ffi.new('struct dm_ifreq')
    ffi.copy(request.name, 'lo')
    request.flags = IFF_UP
    assert(ffi.C.ioctl(fd, SIOCSIFFLAGS, request) == 0)
    ffi.C.close(fd)
    return function()
        assert(ffi.C.setns(before, CLONE_NEWNET) == 0)
        ffi.C.close(before)
    end
end

--- Sets a kernel setting: "net/ipv4/tcp_migrate_req". @return whether it is there
function M.set(name, value)
    local file = io.open('/proc/sys/' .. name, 'w')
    if not file then
        return false
    end
    file:write(tostring(value))
    file:close()
    return true
end

return M
