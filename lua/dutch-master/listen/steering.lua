--- steering.lua: who gets the new connections of a listener, for the kernel. Chooses among the lanes, keeps the
-- clients' buckets (sticky) and the probes: connections of the master's own that reach one worker's lane, whether it is
-- in rotation or not, by the port that they come from. One for each listener with lanes; the lanes are its rotation's.

local Buckets = require 'dutch-master.listen.sticky'

local Steering = {}
Steering.__index = Steering

-- DM_STEERING_PROBES: so many rules the kernel program has room for.
local MAX_PROBES = 64
local REBALANCE_MS, REBALANCE_BUSY_MS = 10, 200
-- Shares that differ by less than this are left as they are.
local SAME = 0.1
-- Thousandths of its time that a worker works: from here on its connections are taken for short ones.
local MUCH_WORK = 200

--- @param options {platform, log, listener = the core's, address = text, balance, want = the number of workers,
--   lanes = the rotation's list, read here at every call}
function Steering.new(options)
    return setmetatable({
        platform = options.platform, log = options.log, listener = options.listener, address = options.address,
        lanes = options.lanes,
        force = options.balance, -- what is in force: steered, sticky, queue, or hash where the kernel refused
        balance = options.balance, rebalance_ms = REBALANCE_MS,
        buckets = options.balance == 'sticky' and Buckets.new(options.want) or nil,
        probes = {}, -- worker id -> { port, lane, accepted, disturbed }
    }, Steering)
end

local function is(state)
    return function(lane)
        return lane.state == state
    end
end

-- What a lane is to those who come, the better first. If all are busy, each gets its share. If nobody is live,
-- connections wait where somebody will be first: at a worker that is stalled, starting, going, or in a lane that the
-- next worker takes over.
local CHOICES = {
    function(lane)
        return lane.state == 'live' and not lane.stalled and not lane.spoilt and not lane.busy_at
    end,
    function(lane)
        return lane.state == 'live' and not lane.stalled and not lane.spoilt
    end,
    is 'live', is 'starting', is 'leaving',
    function(lane)
        return lane.state == 'free' and not lane.spare
    end,
}

local function candidates(lanes)
    for _, fits in ipairs(CHOICES) do
        local list = {}
        for _, lane in ipairs(lanes) do
            list[#list + 1] = lane.weight > 0 and fits(lane) and lane or nil
        end
        if #list > 0 then
            return list
        end
    end
    return lanes
end

local function sticky_map(self, list)
    local position, present = {}, {}
    for i, lane in ipairs(list) do
        local owner = lane:worker()
        if not (owner and self.buckets.held[owner]) then
            return true -- nobody live: any share will do
        end
        position[owner], present[i] = i, owner
    end
    local map = self.buckets:owners_of(present)
    for bucket, owner in ipairs(map) do
        map[bucket] = position[owner]
    end
    return map
end

-- Long-lived connections are to be spread evenly: who holds more than the others gets fewer of the new ones. Of workers
-- that work much of their time, what they hold comes and goes while they tell it: there it says little.
local function shares(list)
    local sum, work, known = 0, 0, 0
    local held = {}
    for i, lane in ipairs(list) do
        local count, busy = lane:held()
        held[i] = count or 0 -- who has said nothing so far has had none
        sum, work, known = sum + held[i], work + (busy or 0), known + (count and 1 or 0)
    end
    local least = #held > 0 and math.min(unpack(held)) or 0
    local result, long_lived = {}, known == 0 or work / known < MUCH_WORK
    for i in ipairs(list) do
        local more = held[i] - least
        local strength = long_lived and 4 or 1
        local scale = strength == 1 and math.max(sum / #list, 1) or 1
        result[i] = known > 0 and (1 + more / scale) ^ -strength or 1
    end
    return result, long_lived
end

local function probe_rules(self)
    local list = {}
    for _, probe in pairs(self.probes) do
        list[#list + 1] = { port = probe.port, lane = probe.lane.socket }
    end
    return list
end

--- Tells the kernel.
function Steering:apply()
    local list = candidates(self.lanes)
    local chosen, entries, options = {}, {}, { probes = probe_rules(self) }
    local share, long_lived = shares(list)
    self.rebalance_ms = long_lived and REBALANCE_MS or REBALANCE_BUSY_MS
    for i, lane in ipairs(list) do
        chosen[lane] = true
        entries[i] = { lane = lane.socket, weight = (lane.weight > 0 and lane.weight or 1) * share[i] }
    end
    self.applied_at, self.in_force, self.unbalanced = self.platform.now(), share, false
    for _, lane in ipairs(self.lanes) do
        lane:steer(chosen[lane] or false)
    end
    if self.buckets then
        options.sticky = sticky_map(self, list)
    end
    local force, why = self.listener:steer(entries, options)
    force = force == 'steered' and self.balance or force
    if force ~= self.force then
        self.force = force
        self.log:warn({ address = self.address, balance = force, reason = why }, 'Balancing changed')
    end
end

--- Some worker holds more or fewer connections than it did. Not done at each word: a program costs some microseconds.
function Steering:rebalance()
    self.unbalanced = true
    self:settle()
end

-- Whether the shares in force are as good as those that should be.
local function are_like(share, other)
    for i, value in ipairs(share) do
        if not other[i] or math.abs(value - other[i]) > SAME * value then
            return false
        end
    end
    return #share == #other
end

--- What was left to do. Lanes that come or go, or are busy, are applied by who sees it.
function Steering:settle()
    if not self.unbalanced or self.platform.now() - (self.applied_at or 0) < self.rebalance_ms then
        return
    end
    self.unbalanced = false
    if not are_like(shares(candidates(self.lanes)), self.in_force or {}) then
        self:apply()
    end
end

--- A worker's lane goes into rotation.
function Steering:join(worker_id, want)
    if self.buckets then
        self.buckets:join(worker_id, want)
    end
    self:apply()
end

--- Out of it.
function Steering:leave(worker_id, want)
    if self.buckets then
        self.buckets:leave(worker_id, want)
    end
    self:apply()
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Probes. What matters is that no other worker can answer one unnoticed.

local function disturbances(self)
    local count = 0
    for _, lane in ipairs(self.lanes) do
        count = count + lane.disturbed + (lane.broken and 1 or 0)
    end
    return count
end

--- Connections from this port go to the worker's lane, until `probed` or `unprobe`.
-- @return true, or nil, why, code; EAGAIN: too many are under way
function Steering:probe(worker_id, lane, port)
    local count = 0
    for _ in pairs(self.probes) do
        count = count + 1
    end
    if count >= MAX_PROBES then
        return nil, 'too many workers are asked at once', 'EAGAIN'
    end
    self.probes[worker_id] = { port = port, lane = lane, accepted = lane.accepted, disturbed = disturbances(self) }
    self:apply()
    if self.force == 'hash' then
        self:unprobe(worker_id)
        return nil, 'steering is refused', 'EPERM'
    end
    return true
end

--- Whether a probe may wait in a lane: nobody else must answer it.
function Steering:is_probed(lane)
    for _, probe in pairs(self.probes) do
        if probe.lane == lane then
            return true
        end
    end
    return false
end

--- It is over; its connection is closed by now.
function Steering:unprobe(worker_id)
    if self.probes[worker_id] then
        self.probes[worker_id] = nil
        self:apply()
    end
end

--- The same for one that was answered.
-- @return whether nobody without the lane can have answered: the connection was not among those that went to other
-- workers, and the group is what the program took it for
function Steering:probed(worker_id)
    local probe = self.probes[worker_id]
    if not probe then
        return false
    end
    for _, lane in ipairs(self.lanes) do
        lane:repair()
    end
    local undisturbed = disturbances(self) == probe.disturbed
    self:unprobe(worker_id)
    local broken = false
    for _, lane in ipairs(self.lanes) do
        broken = broken or lane.broken
    end
    return undisturbed and not broken and probe.lane.users[worker_id] ~= nil and probe.accepted == probe.lane.accepted
end

return Steering
