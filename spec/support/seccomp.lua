--- The kernel refuses something to this process and to all it starts, as a container's seccomp profile may:
-- SO_ATTACH_REUSEPORT_CBPF; or a place in an epoll set, as it does when the table of watches is full. Or as an older one
-- does: close_range with CLOSE_RANGE_CLOEXEC.

local bit = require 'bit'
local ffi = require 'ffi'

ffi.cdef [[
struct dm_filter { uint16_t code; uint8_t jt; uint8_t jf; uint32_t k; };
struct dm_fprog { unsigned short length; const struct dm_filter *filter; };
int prctl(int, ...);
]]

local M = {}

-- seccomp_data: nr at 0, args[1] at 24 (epoll_ctl's operation), args[2] at 32 (the option's name). Numbers on x86-64,
-- and elsewhere (the generic table).
local SETSOCKOPT = ffi.arch == 'x64' and 54 or 208
local CLOSE_RANGE = 436
local EPOLL_CTL = ffi.arch == 'x64' and 233 or 21
local LD, JEQ, RET = 0x20, 0x15, 0x06
local SO_ATTACH_REUSEPORT_CBPF, EPOLL_CTL_ADD, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 51, 1, 38, 22
local CLOSE_RANGE_CLOEXEC = 4
local ERRNO, EPERM, EINVAL, ENOSPC, ALLOW = 0x50000, 1, 22, 28, 0x7fff0000

local function refuse(call, argument_at, argument, errno)
    local filter = ffi.new('struct dm_filter[6]', {
        { LD, 0, 0, 0 }, { JEQ, 0, 3, call }, { LD, 0, 0, argument_at }, { JEQ, 0, 1, argument },
        { RET, 0, 0, bit.bor(ERRNO, errno) }, { RET, 0, 0, ALLOW },
    })
    local program = ffi.new('struct dm_fprog', 6, filter)
    local function long(value)
        return ffi.new('long', value)
    end
    assert(ffi.C.prctl(PR_SET_NO_NEW_PRIVS, long(1), long(0), long(0), long(0)) == 0)
    assert(ffi.C.prctl(PR_SET_SECCOMP, long(2), program) == 0)
end

function M.refuse_steering()
    refuse(SETSOCKOPT, 32, SO_ATTACH_REUSEPORT_CBPF, EPERM)
end

function M.refuse_watches()
    refuse(EPOLL_CTL, 24, EPOLL_CTL_ADD, ENOSPC)
end

function M.refuse_close_range()
    refuse(CLOSE_RANGE, 32, CLOSE_RANGE_CLOEXEC, EINVAL)
end

return M
