--- rescue.lua: takes connections that wait in a lane which nobody serves, or whose worker is stuck, out of it and gives
-- them to other workers over their channels. One for each listener. Owns the connections on their way: those given to
-- a worker that has not said yet whether it takes them, and those that nobody could be given so far (`homeless`).

local Rescue = {}
Rescue.__index = Rescue

-- A connection that so many workers refused is closed; one whose worker ended instead was not refused. So many at a
-- time are on their way to workers.
local MAX_TRIES, MAX_IN_FLIGHT = 8, 256

--- @param options {platform, log, address = text, give = function(fd, done, worker_id, request), see sockets.lua,
--   or nil: nobody can be given anything; heirs = function(except a lane) -> list of { worker, request } that take}
function Rescue.new(options)
    return setmetatable({
        platform = options.platform, log = options.log, address = options.address, give_to = options.give,
        heirs = options.heirs,
        turn = 0, -- whose turn it is
        in_flight = 0,
        homeless = {},
    }, Rescue)
end

--- Whether somebody can be given what waits in a lane. What was accepted cannot be put back, so this is asked first.
function Rescue:possible(lane)
    return self.give_to ~= nil and #self.heirs(lane) > 0
end

-- Gives a connection to one live worker after the other until one takes it. The worker may still refuse it later (its
-- server has just closed), then it goes to the next. Nobody at all: it waits, for it cannot be put back.
local function give(self, fd, except, tries)
    local function done(accepted, ended)
        self.in_flight = self.in_flight - 1
        local refused = not accepted and not ended and tries >= MAX_TRIES
        if refused then
            self.log:warn({ address = self.address, tries = tries }, 'Waiting connection closed, no worker takes it')
        end
        if accepted or refused or self.closed then
            self.platform.close_fd(fd)
        else
            give(self, fd, nil, ended and tries or tries + 1)
        end
    end
    for _ = 1, #self.heirs(except) do
        local heirs = self.heirs(except) -- whoever was asked may be gone by now
        if #heirs == 0 then
            break
        end
        self.turn = self.turn % #heirs + 1 -- in turn, so that they are spread
        local heir = heirs[self.turn]
        self.in_flight = self.in_flight + 1
        if self.give_to(fd, done, heir.worker, heir.request) then
            return true
        end
        self.in_flight = self.in_flight - 1
    end
    self.homeless[#self.homeless + 1] = fd
    return false
end

--- Gives away a connection that was accepted elsewhere, but not to the worker of the lane `except`. The descriptor is
-- ours now.
function Rescue:adopt(fd, except)
    if self:possible(except) then
        give(self, fd, except, 1)
    else
        self.platform.close_fd(fd) -- all are full, or there is no other: as Node does
    end
end

--- Tries again with those that nobody took.
function Rescue:retry()
    local list = self.homeless
    self.homeless = {}
    for _, fd in ipairs(list) do
        give(self, fd, nil, 1)
    end
end

--- How many wait here for somebody who takes them.
function Rescue:waiting()
    return #self.homeless
end

--- Gives away what waits in a lane. @return how many
function Rescue:empty(lane)
    local count = 0
    while #self.homeless == 0 and self.in_flight < MAX_IN_FLIGHT and self:possible(lane) do
        local fd = lane:accept()
        if not fd then
            break
        end
        if give(self, fd, lane, 1) then
            count = count + 1
        end
    end
    if count > 0 then
        self.log:info({ address = self.address, connections = count, workerId = lane:worker() },
            'Waiting connections handed to other workers')
    end
    return count
end

--- Gives away the oldest connection of a lane; if that had waited long, the rest too.
-- @return how long its client had been waiting, in ms
function Rescue:head_ms(lane)
    local fd = lane:accept()
    if not fd then
        return 0
    end
    local waited = self.platform.quiet_ms(fd) or math.huge
    give(self, fd, lane, 1)
    return waited
end

function Rescue:close()
    self.closed = true
    for _, fd in ipairs(self.homeless) do
        self.platform.close_fd(fd)
    end
    self.homeless = {}
end

return Rescue
