--- The kernel refuses SO_ATTACH_REUSEPORT_CBPF to this process and to all it starts, as a container's seccomp profile
-- may.

local bit = require 'bit'
local ffi = require 'ffi'

ffi.cdef [[
struct dm_filter { uint16_t code; uint8_t jt; uint8_t jf; uint32_t k; };
struct dm_fprog { unsigned short length; const struct dm_filter *filter; };
int prctl(int, ...);
]]

local M = {}

-- seccomp_data: nr at 0, args[2] (the option's name) at 32. x86-64 54, elsewhere (the generic table) 208.
local SETSOCKOPT = ffi.arch == 'x64' and 54 or 208
local LD, JEQ, RET = 0x20, 0x15, 0x06
local SO_ATTACH_REUSEPORT_CBPF, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 51, 38, 22
local EPERM, ALLOW = bit.bor(0x50000, 1), 0x7fff0000

function M.refuse_steering()
    local filter = ffi.new('struct dm_filter[6]', {
        { LD, 0, 0, 0 }, { JEQ, 0, 3, SETSOCKOPT }, { LD, 0, 0, 32 }, { JEQ, 0, 1, SO_ATTACH_REUSEPORT_CBPF },
        { RET, 0, 0, EPERM }, { RET, 0, 0, ALLOW },
    })
    local program = ffi.new('struct dm_fprog', 6, filter)
    local function long(value)
        return ffi.new('long', value)
    end
    assert(ffi.C.prctl(PR_SET_NO_NEW_PRIVS, long(1), long(0), long(0), long(0)) == 0)
    assert(ffi.C.prctl(PR_SET_SECCOMP, long(2), program) == 0)
end

return M
