--- Run by dm-spec in a process of its own: from here on the kernel refuses SO_ATTACH_REUSEPORT_CBPF, as a container's
-- seccomp profile may. Says what the listener and the book of sockets make of it. usage: refused_steering.lua

local core = require 'dutch-master.core'
local net = require 'spec.support.net'
local Sockets = require 'dutch-master.listen.sockets'

require('spec.support.seccomp').refuse_steering()

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
local sockets = Sockets.new(require('spec.support.fake_sockets').options { platform = core, log = log })
assert(sockets:open { '127.0.0.1:0' })
local a, b = sockets:take(1)[1], sockets:take(2)[1]
assert(a == b, 'two workers have two sockets, and one may be dead')
assert(sockets:snapshot().balance == 'shared')
assert(messages[1] == 'Steering refused, one socket is shared' and messages[2] == 'Balancing')
local port = sockets:snapshot().listeners[1].address:match '%d+$'
net.abort(assert(net.connect('127.0.0.1', tonumber(port))))
sockets:close()
