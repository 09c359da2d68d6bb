--- acceptance.lua: whether a starting worker accepts connections from the sockets that it was given. READY=1 does not
-- say that (gunicorn sends it before the app is loaded), and being alive does not either.
--
-- The master connects to each address, through the public port, in a way that reaches the worker's lane alone. The
-- connection says nothing and is finished at once: whoever accepts it finds its end and closes it, which is no request.
-- It waits in the lane's queue until then: one connection, not one for each look. Only if nobody has it and that queue
-- is empty, another one is made: it came to another queue, for the places in the kernel's group had just changed.

local Knock = require 'dutch-master.cluster.knock'

local Acceptance = {}
Acceptance.__index = Acceptance

-- How often it is looked whether a process has the connection, ms: mostly its end comes first.
local LOOK_MS = 25
-- Looks in a row that find a connection nowhere, until it is held to be astray.
local ASTRAY_LOOKS = 4
-- Until the next try, where one could not be made, ms.
local RETRY_MS = 100

--- @param options {platform, id (the worker's), doors (rotations, see sockets.lua), on_done = function()}
function Acceptance.new(options)
    local self = setmetatable(options, Acceptance)
    self.at = 1 -- the door at which it knocks
    self.why = nil -- what came of the last try, if that was not what is waited for
    self.timer = self.platform.timer(function()
        self:look()
    end)
    self.timer:start(0)
    return self
end

local function hang_up(self)
    if self.knock then
        self.knock:close()
        self.knock = nil
    end
end

local function again(self, why, after_ms)
    hang_up(self)
    self.why = why
    self.timer:start(after_ms or RETRY_MS)
end

local function accepted(self)
    local alone = self.knock:answered()
    self.knock = nil
    if not alone then
        return again(self, 'it may have been accepted by another worker')
    end
    self.at, self.why = self.at + 1, nil
    if not self.doors[self.at] then
        self:close()
        return self.on_done()
    end
    self.timer:start(0)
end

local function knock(self)
    local why, code
    self.looks, self.astray = 0, 0
    self.knock, why, code = Knock.new {
        platform = self.platform, rotation = self.doors[self.at], id = self.id, text = '', shut = true,
        on_data = function()
            accepted(self)
        end,
        on_end = function(reason)
            if reason then
                return again(self, reason)
            end
            accepted(self)
        end,
    }
    if not self.knock then
        return again(self, why, code == 'EAGAIN' and Knock.BUSY_MS or nil)
    end
    self.timer:start(LOOK_MS)
end

-- Where the kernel does not say whose the connection is, an empty queue says that it is somebody's.
-- @return whether it is accepted; whether it is astray
local function is_accepted(self)
    local is = self.knock:accepted()
    local gone = not is and self.knock:is_taken()
    self.looks = self.looks + 1
    self.astray = is == false and gone and self.astray + 1 or 0
    return is or is == nil and gone and self.looks > 2, self.astray >= ASTRAY_LOOKS
end

--- The timer's: knocks, or looks what has become of that.
function Acceptance:look()
    self.timer:start(RETRY_MS) -- first: whatever becomes of this look
    if not self.knock then
        return knock(self)
    end
    local is, is_astray = is_accepted(self)
    if is then
        accepted(self)
    elseif is_astray then
        again(self, 'a connection came to another queue')
    else
        self.timer:start(LOOK_MS)
    end
end

--- What is waited for, in words; nil when nothing is.
function Acceptance:words()
    local door = self.doors[self.at]
    if not door then
        return nil
    end
    local why = self.why and ' (' .. self.why .. ')' or ''
    return ('nobody accepted a connection at %s%s'):format(door.address.text, why)
end

--- Nothing is asked any more.
function Acceptance:close()
    hang_up(self)
    if self.timer then
        self.timer:close()
        self.timer = nil
    end
end

return Acceptance
