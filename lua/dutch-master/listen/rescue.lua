--- rescue.lua: takes connections that wait in a lane which nobody serves, or whose worker is stuck, out of it and gives
-- them to other workers over their channels. One for each listener. Says what becomes of the connections on their way:
-- those given to a worker that has not said yet whether it takes them, and those that nobody could be given so far
-- (`unplaced`). Their descriptors are hand.lua's.

local Rescue = {}
Rescue.__index = Rescue

-- A connection that so many workers refused is closed; one whose worker ended instead was not refused. So many at a
-- time are on their way to workers.
local MAX_TRIES, MAX_IN_FLIGHT = 8, 256
-- A worker that has not answered for so many gets no more: they would wait in its channel, and cannot be had back.
local MAX_UNANSWERED = 32

--- @param options {platform, log, hand, doubts, listener = its number, address = text,
--   give = function(fd, done, worker_id, request), see sockets.lua, or nil: nobody can be given anything;
--   takers = function(except a lane) -> list of { worker, request } that take;
--   keep_ms = how long a connection is kept for another one while a worker does not say whether it takes it}
function Rescue.new(options)
    return setmetatable({
        platform = options.platform, log = options.log, address = options.address, give_to = options.give,
        hand = options.hand, doubts = options.doubts, listener = options.listener,
        takers = options.takers, keep_ms = options.keep_ms,
        turn = 0, -- whose turn it was
        total = 0, -- connections that were taken by others, ever
        in_flight = 0,
        given = {}, -- {connection, at} -> true: those in flight
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

-- @return whose turn it is, and of whom that will have been the turn; or nil: nobody can be given anything
local function next_taker(self, except)
    local takers = self.give_to and takers_of(self, except) or {}
    local turn = self.turn % math.max(#takers, 1) + 1
    return takers[turn], turn
end

local give

-- @return whether it was given the connection
local function give_to(self, connection, taker, tries)
    local worker = taker.worker
    local entry = { connection = connection, at = self.platform.now() }
    local function count(by)
        self.given[entry] = by > 0 or nil
        self.in_flight = self.in_flight + (entry.connection and by or 0)
        local unanswered = (self.unanswered[worker] or 0) + by
        self.unanswered[worker] = unanswered > 0 and unanswered or nil
    end
    local function done(accepted, ended)
        count(-1)
        self.total = self.total + (accepted and 1 or 0)
        if not entry.connection then
            return -- see let_go
        end
        -- A worker that has ended may have read of it before it could say that it has it.
        local served = accepted or ended and not self.hand:is_untouched(connection)
        local refused = not accepted and not ended and tries >= MAX_TRIES
        if refused then
            self.log:warn({ address = self.address, tries = tries }, 'Waiting connection closed, no worker takes it')
        end
        if served or refused or self.closed then
            self.hand:close(connection)
        else
            give(self, connection, nil, ended and tries or tries + 1)
        end
    end
    count(1)
    if self.hand:give(connection, worker) and self.give_to(connection.fd, done, worker, taker.request) then
        return true
    end
    count(-1)
    return false
end

-- Gives a connection to one live worker after the other until one takes it. The worker may still refuse it later (its
-- server has just closed), then it goes to the next. Nobody at all: it waits, for it cannot be put back.
function give(self, connection, except, tries)
    for _ = 1, #takers_of(self, except) do
        local taker, turn = next_taker(self, except) -- whoever was asked may be gone by now
        if not taker then
            break
        end
        self.turn = turn -- in turn, so that they are spread
        if give_to(self, connection, taker, tries) then
            return true
        end
    end
    self.unplaced[#self.unplaced + 1] = connection
    return false
end

-- The same of one that was accepted for somebody whose turn it is.
local function give_first(self, connection, except, taker, turn)
    self.turn = turn
    return give_to(self, connection, taker, 1) or give(self, connection, except, 1)
end

--- Gives away a connection that was accepted elsewhere, but not to the worker of the lane `except`. The descriptor is
-- ours now.
function Rescue:adopt(fd, except)
    local taker, turn = next_taker(self, except)
    if taker then
        give_first(self, self.hand:adopt(fd, self.listener, taker.worker), except, taker, turn)
    else
        self.platform.close_fd(fd) -- all are full, or there is no other: as Node does
    end
end

-- A worker that has not said for so long whether it takes a connection may have it, and then serves it. Whether or not,
-- nobody else is given it any more.
local function let_go(self)
    local now = self.platform.now()
    for entry in pairs(self.given) do
        if entry.connection and now - entry.at >= self.keep_ms then
            self.hand:close(entry.connection)
            entry.connection = nil
            self.in_flight = self.in_flight - 1
        end
    end
end

--- Whether connections are on their way to workers, or kept for them.
function Rescue:is_at_work()
    return self.in_flight > 0 or #self.unplaced > 0 or self.doubts:count(self.listener) > 0
end

--- Tries again with those that nobody took, and lets go of those that nobody speaks of.
function Rescue:retry()
    let_go(self)
    local list = self.unplaced
    self.unplaced = {}
    for _, connection in ipairs(list) do
        give(self, connection, nil, 1)
    end
end

--- How many wait here for somebody who takes them.
function Rescue:waiting()
    return #self.unplaced
end

--- Gives away what waits in a lane. @return how many
function Rescue:empty(lane)
    local count = 0
    while #self.unplaced == 0 and self.in_flight < MAX_IN_FLIGHT do
        local taker, turn = next_taker(self, lane)
        local connection = taker and self.hand:accept(lane, self.listener, taker.worker)
        if not connection then
            break
        end
        if give_first(self, connection, lane, taker, turn) then
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
        local connection = not self.unanswered[taker.worker]
            and self.hand:accept(lane, self.listener, taker.worker)
        if connection == nil then
            break
        elseif connection and not give_to(self, connection, taker, 1) then
            give(self, connection, lane, 1)
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
    local taker, turn = next_taker(self, lane)
    local connection = taker and self.hand:accept(lane, self.listener, taker.worker)
    if not connection then
        return 0
    end
    local waited = self.platform.quiet_ms(connection.fd) or math.huge
    give_first(self, connection, lane, taker, turn)
    return waited
end

--- Those that a former master had in hand. Whoever has none of them yet gets it.
function Rescue:resume(former)
    for _, connection in ipairs(self.hand:resume(former, self.listener)) do
        self.doubts:add(connection, function()
            give(self, connection, nil, 1)
        end)
    end
end

--- Ends those that nobody took. @return how many
function Rescue:turn_away()
    local list = self.unplaced
    self.unplaced = {}
    for _, connection in ipairs(list) do
        self.hand:close(connection)
    end
    return #list
end

function Rescue:close()
    self.closed = true
    self.doubts:drop(self.listener)
    self:turn_away()
end

return Rescue
