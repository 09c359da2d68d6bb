--- Run by dm-spec in a process of its own: from here on the kernel refuses SO_ATTACH_REUSEPORT_CBPF, as a container's
-- seccomp profile may. Says what the listener and the book of sockets make of it. usage: refused_steering.lua

local bit = require 'bit'
local core = require 'dutch-master.core'
local ffi = require 'ffi'
local net = require 'spec.support.net'
local Sockets = require 'dutch-master.sockets'

ffi.cdef [[
struct dm_filter { uint16_t code; uint8_t jt; uint8_t jf; uint32_t k; };
struct dm_fprog { unsigned short length; const struct dm_filter *filter; };
int prctl(int, ...);
]]

-- seccomp_data: nr at 0, args[2] (the option's name) at 32. x86-64 54, elsewhere (the generic table) 208.
local SETSOCKOPT = ffi.arch == 'x64' and 54 or 208
local LD, JEQ, RET = 0x20, 0x15, 0x06
local filter = ffi.new('struct dm_filter[6]', {
    { LD, 0, 0, 0 }, { JEQ, 0, 3, SETSOCKOPT }, { LD, 0, 0, 32 }, { JEQ, 0, 1, 51 },
    { RET, 0, 0, bit.bor(0x50000, 1) }, { RET, 0, 0, 0x7fff0000 },
})
local program = ffi.new('struct dm_fprog', 6, filter)
assert(ffi.C.prctl(38, ffi.new('long', 1), ffi.new('long', 0), ffi.new('long', 0), ffi.new('long', 0)) == 0)
assert(ffi.C.prctl(22, ffi.new('long', 2), program) == 0)

local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
local lanes = { listener:lane(), listener:lane() }
local force, _, code = listener:steer { { lane = lanes[1] } }
assert(force == 'hash' and code == 'EPERM', force)
listener:close()

local messages = {}
local log = setmetatable({}, {
    __index = function()
        return function(_, _, message)
            messages[#messages + 1] = message
        end
    end,
})
local sockets = Sockets.new { platform = core, log = log, want = 2 }
assert(sockets:open { '127.0.0.1:0' })
local a, b = sockets:take(1)[1], sockets:take(2)[1]
assert(a == b, 'two workers have two sockets, and one may be dead')
assert(sockets:snapshot().balance == 'shared')
assert(messages[1] == 'Steering refused, one socket is shared' and messages[2] == 'Balancing')
local port = sockets:snapshot().listeners[1].address:match '%d+$'
net.abort(assert(net.connect('127.0.0.1', tonumber(port))))
sockets:close()
