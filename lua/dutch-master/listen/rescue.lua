--- rescue.lua: takes connections that wait in a lane which nobody serves, or whose worker is stuck, out of it and gives
-- them to other workers over their channels. One for each listener. Owns the connections on their way: those given to
-- a worker that has not said yet whether it takes them, and those that nobody could be given so far (`unplaced`).

local Rescue = {}
Rescue.__index = Rescue

-- A connection that so many workers refused is closed; one whose worker ended instead was not refused. So many at a
-- time are on their way to workers.
local MAX_TRIES, MAX_IN_FLIGHT = 8, 256
-- A worker that has not answered for so many gets no more: they would wait in its channel, and cannot be had back.
local MAX_UNANSWERED = 32

--- @param options {platform, log, address = text, give = function(fd, done, worker_id, request), see sockets.lua,
--   or nil: nobody can be given anything; takers = function(except a lane) -> list of { worker, request } that take;
--   keep_ms = how long a connection is kept for another one while a worker does not say whether it takes it}
function Rescue.new(options)
    return setmetatable({
        platform = options.platform, log = options.log, address = options.address, give_to = options.give,
        takers = options.takers, keep_ms = options.keep_ms,
        turn = 0, -- whose turn it is
        total = 0, -- connections that were taken by others, ever
        in_flight = 0,
        given = {}, -- {fd, at} -> true: those in flight
        unanswered = {}, -- worker id -> those given to it that it has not taken yet
        unplaced = {},
    }, Rescue)
end

local function takers_of(self, except)
    local list = {}
    for _, taker in ipairs(self.takers(except)) do
        list[#list + 1] = (self.unanswered[taker.worker] or 0) < MAX_UNANSWERED and taker or nil
    end
    return list
end

--- Whether somebody can be given what waits in a lane. What was accepted cannot be put back, so this is asked first.
function Rescue:possible(lane)
    return self.give_to ~= nil and #takers_of(self, lane) > 0
end

local give

-- @return whether it was given the connection
local function give_to(self, fd, taker, tries)
    local worker = taker.worker
    local entry = { fd = fd, at = self.platform.now() }
    local function count(by)
        self.given[entry] = by > 0 or nil
        self.in_flight = self.in_flight + (entry.fd and by or 0)
        local unanswered = (self.unanswered[worker] or 0) + by
        self.unanswered[worker] = unanswered > 0 and unanswered or nil
    end
    local function done(accepted, ended)
        count(-1)
        self.total = self.total + (accepted and 1 or 0)
        if not entry.fd then
            return -- see let_go
        end
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
    count(1)
    if self.give_to(fd, done, worker, taker.request) then
        return true
    end
    count(-1)
    return false
end

-- Gives a connection to one live worker after the other until one takes it. The worker may still refuse it later (its
-- server has just closed), then it goes to the next. Nobody at all: it waits, for it cannot be put back.
function give(self, fd, except, tries)
    for _ = 1, #takers_of(self, except) do
        local takers = takers_of(self, except) -- whoever was asked may be gone by now
        if #takers == 0 then
            break
        end
        self.turn = self.turn % #takers + 1 -- in turn, so that they are spread
        if give_to(self, fd, takers[self.turn], tries) then
            return true
        end
    end
    self.unplaced[#self.unplaced + 1] = fd
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

-- A worker that has not said for so long whether it takes a connection may have it, and then serves it. Whether or not,
-- nobody else is given it any more.
local function let_go(self)
    local now = self.platform.now()
    for entry in pairs(self.given) do
        if entry.fd and now - entry.at >= self.keep_ms then
            self.platform.close_fd(entry.fd)
            entry.fd = nil
            self.in_flight = self.in_flight - 1
        end
    end
end

--- Whether connections are on their way to workers, or kept for them.
function Rescue:is_at_work()
    return self.in_flight > 0 or #self.unplaced > 0
end

--- Tries again with those that nobody took, and lets go of those that nobody speaks of.
function Rescue:retry()
    let_go(self)
    local list = self.unplaced
    self.unplaced = {}
    for _, fd in ipairs(list) do
        give(self, fd, nil, 1)
    end
end

--- How many wait here for somebody who takes them.
function Rescue:waiting()
    return #self.unplaced
end

--- Gives away what waits in a lane. @return how many
function Rescue:empty(lane)
    local count = 0
    while #self.unplaced == 0 and self.in_flight < MAX_IN_FLIGHT and self:possible(lane) do
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

--- Gives a connection each of those that wait in a lane to workers that have nothing else to do.
-- @param idle list of { worker, request }
function Rescue:relieve(lane, idle)
    for _, taker in ipairs(idle) do
        if self.in_flight >= MAX_IN_FLIGHT then
            break
        end
        local fd = not self.unanswered[taker.worker] and lane:accept()
        if fd == nil then
            break
        elseif fd and not give_to(self, fd, taker, 1) then
            give(self, fd, lane, 1)
        end
    end
end

--- Whether a worker has been given something that it has not taken yet.
function Rescue:awaits(worker_id)
    return self.unanswered[worker_id] ~= nil
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

--- Ends those that nobody took. @return how many
function Rescue:turn_away()
    local list = self.unplaced
    self.unplaced = {}
    for _, fd in ipairs(list) do
        self.platform.close_fd(fd)
    end
    return #list
end

function Rescue:close()
    self.closed = true
    self:turn_away()
end

return Rescue
