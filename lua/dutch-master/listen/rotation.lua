--- rotation.lua: one listener's lanes, and who gets its new connections. A worker has one of them from fork to exit; it
-- is in rotation while its worker can take connections. Where there are no lanes (unix, UDP, balance = 'shared',
-- steering refused) the one socket is everybody's, and rotation means nothing.
--
-- A lane's states: starting (its worker is not ready) -> live -> leaving (its worker is asked to go) -> free. A live
-- lane can be `stalled`: connections wait and nobody takes them.

local Buckets = require 'dutch-master.listen.sticky'
local handover = require 'dutch-master.listen.handover'
local probes = require 'dutch-master.listen.probes'
local upkeep = require 'dutch-master.listen.upkeep'

local Rotation = {}
Rotation.__index = Rotation

-- How often lanes are looked over for damage, while ticks are more frequent.
local REPAIR_MS = 300
-- The kernel program's limit is 1024 lanes, and there are two for each worker during a roll.
Rotation.MAX_WORKERS = 512

--- @param options {platform, log, key, name, address (platform.address's table), balance, backlog, mode,
--   fd (inherited), may_block (workers choose how they accept), stall_timeout_ms, want,
--   rescue, takes (see sockets.lua) or nil}
function Rotation.new(options)
    local self = setmetatable({}, Rotation)
    for key, value in pairs(options) do
        self[key] = value
    end
    self.records = {}
    self.users = {} -- worker id -> record (shared: one each without a lane of its own)
    self.turn = 0 -- whose turn it is to be given a connection
    self.in_flight = 0 -- connections given to a worker that has not said yet whether it takes them
    self.homeless = {} -- accepted, and nobody to give them to
    self.probes, self.revived = {}, 0 -- see probes.lua
    return self
end

local function try_listen(self, address, reuseport)
    return self.platform.listen(address, {
        backlog = self.backlog, reuseport = reuseport, mode = self.mode, fd = self.fd,
    })
end

local function new_lane(self)
    local lane, message, code = self.listener:lane()
    if not lane then
        return nil, message, code
    end
    local record = { lane = lane, state = 'free', weight = 1, depth = 0, quiet = true, given = 0 }
    record.fd = lane:fd() -- to watch it: asked for later, it would be made non-blocking for a worker
    record.out_since = self.platform.now()
    self.records[#self.records + 1] = record
    return record
end

-- Whether lanes are possible here is found out by trying, with one lane, before anybody serves.
local function steering_works(self)
    local record, message = new_lane(self)
    if not record then
        return false, message
    end
    local force, why = self.listener:steer({ { lane = record.lane, weight = 1 } }, {})
    return force == 'steered', why
end

--- Binds.
-- @return true, or nil, message, code
function Rotation:open()
    local listener, message, code = try_listen(self, self.address, self.balance ~= 'shared')
    if not listener then
        return nil, message, code
    end
    self.listener = listener
    self.address = listener:address()
    self.force = 'shared'
    if not listener:shared() then
        local works, why = steering_works(self)
        if works then
            self.force = self.balance
        else
            -- Plain hashing would send connections to lanes that nobody serves.
            self.log:warn({ address = self.address.text, reason = why }, 'Steering refused, one socket is shared')
            self.records = {}
            listener:close()
            self.listener, message, code = try_listen(self, self.address, false)
            if not self.listener then
                return nil, message, code
            end
        end
    end
    self.shared = self.listener:shared()
    if self.shared then
        self.shared_record = assert(new_lane(self))
    elseif self.balance == 'sticky' then
        self.buckets = Buckets.new(self.want)
    end
    self.log:debug({ address = self.address.text, balance = self.force }, 'Balancing')
    return true
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Steering

-- If nobody is live, connections wait where somebody will be first: at a worker that is stalled, starting, going, or in
-- a lane that the next worker takes over.
local function candidates(self)
    local function in_state(state)
        return handover.those(self, function(record)
            return record.state == state and record.weight > 0
        end)
    end
    local list = handover.those(self, function(record)
        return record.state == 'live' and not record.stalled and record.weight > 0
    end)
    for _, state in ipairs { 'live', 'starting', 'leaving', 'free' } do
        if #list > 0 then
            break
        end
        list = in_state(state)
    end
    if #list == 0 then
        list = self.records
    end
    return list
end

local function sticky_map(self, list)
    local position, present = {}, {}
    for i, record in ipairs(list) do
        local owner = record.worker
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

--- Tells the kernel who gets new connections.
function Rotation:steer()
    if self.shared then
        return
    end
    local list = candidates(self)
    local lanes, options = {}, { probes = probes.rules(self) }
    for _, record in ipairs(self.records) do
        record.out_since = record.steered and self.platform.now() or record.out_since
        record.steered = false
    end
    for i, record in ipairs(list) do
        record.steered = true
        lanes[i] = { lane = record.lane, weight = record.weight > 0 and record.weight or 1 }
    end
    if self.buckets then
        options.sticky = sticky_map(self, list)
    end
    local force, why = self.listener:steer(lanes, options)
    if force ~= self.force then
        self.force = force
        self.log:warn({ address = self.address.text, balance = force, reason = why }, 'Balancing changed')
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- A worker's way through

-- Where most connections wait: they are served soonest.
local function free_lane(self)
    local best, best_depth
    for _, record in ipairs(self.records) do
        if record.state == 'free' then
            local depth = upkeep.depth(record)
            if not best or depth > best_depth then
                best, best_depth = record, depth
            end
        end
    end
    return best
end

--- A worker gets its lane: one that a former worker left, else a new one. Asked again, the same one.
-- @param request what the worker asked for, given back to `rescue`
-- @return the descriptor, or nil, message, code
function Rotation:assign(worker_id, request)
    local record = self.users[worker_id]
    if record then
        record.request = request
        return record.lane:fd(self.may_block)
    end
    if self.shared then
        record = self.shared_record
        record.quiet = true -- its first listen() may change the backlog, as any server's
    else
        local message, code
        record = free_lane(self)
        if not record then
            record, message, code = new_lane(self)
        end
        if code == 'E2BIG' then
            -- Workers that were told to leave, and do not, have the lanes: the rest are guests in others'.
            record = { lane = self.records[worker_id % #self.records + 1].lane, guest = true }
            self.users[worker_id] = record
        end
        if not record or record.guest then
            return record and record.lane:fd(self.may_block), message, code
        end
        record.state, record.worker, record.request, record.weight = 'starting', worker_id, request, 1
        record.stalled, record.since, record.probation, record.quiet = nil, nil, nil, true
    end
    self.users[worker_id] = record
    self:steer()
    return record.lane:fd(self.may_block)
end

--- Ready: into rotation.
function Rotation:join(worker_id)
    local record = self.users[worker_id]
    if not record or self.shared or record.guest or record.state == 'live' then
        return
    end
    record.state = 'live'
    record.lane:repair() -- its own listen() set a backlog of its own
    record.quiet = record.request == nil -- of who has a channel it is known to have listened by now
    if self.buckets then
        self.buckets:join(worker_id, self.want)
    end
    self:steer()
    handover.free(self)
end

local function out(self, worker_id, record, state)
    record.state = state
    if self.buckets then
        self.buckets:leave(worker_id, self.want)
    end
    self:steer()
end

--- Out of rotation, before it is asked to go.
-- @return true if there is a queue to wait for
function Rotation:leave(worker_id)
    local record = self.users[worker_id]
    if not record or self.shared or record.guest then
        return false
    end
    if record.state ~= 'leaving' then
        out(self, worker_id, record, 'leaving')
    end
    return true
end

--- The process is gone. Its lane stays, with what waits in it.
function Rotation:drop(worker_id)
    local record = self.users[worker_id]
    if not record then
        return
    end
    self.users[worker_id], self.probes[worker_id] = nil, nil
    if self.address.path then
        upkeep.repair(self, record, worker_id)
    end
    if self.shared or record.guest then
        return
    end
    record.worker, record.stalled, record.request = nil, nil, nil
    out(self, worker_id, record, 'free')
    handover.lane(self, record)
end

--- Connections that wait for the worker.
function Rotation:waiting(worker_id)
    local record = self.users[worker_id]
    return record and not self.shared and not record.guest and upkeep.depth(record) or 0
end

--- Its share of new connections, as a ratio to the others' 1. 0: none, unless there is nobody else.
function Rotation:weigh(worker_id, weight)
    local record = self.users[worker_id]
    if record and not self.shared and not record.guest and record.weight ~= weight then
        record.weight = weight
        self:steer()
    end
end

function Rotation:is_used()
    return next(self.users) ~= nil
end

--- Whether the worker has this socket, and whether it has a lane of its own there.
function Rotation:has(worker_id)
    local record = self.users[worker_id]
    return record ~= nil, record ~= nil and not self.shared and not record.guest
end

-- See probes.lua.
Rotation.probe, Rotation.probed, Rotation.unprobe = probes.begin, probes.finish, probes.forget

-- ---------------------------------------------------------------------------------------------------------------------
-- Now and then

--- @return 'busy' if connections wait somewhere: look again soon; 'unsettled' if there is something to come back to
function Rotation:tick(now)
    local busy, unsettled = false, self.force == 'hash'
    local repairs = now - (self.repaired_at or 0) >= REPAIR_MS
    self.repaired_at = repairs and now or self.repaired_at
    for _, record in ipairs(self.records) do
        if repairs then
            upkeep.repair(self, record)
        end
        if not self.shared then
            if record.state == 'live' then
                upkeep.watch(self, record, now)
            elseif record.state == 'free' then
                handover.lane(self, record)
                record.depth = upkeep.depth(record)
            end
            busy = busy or record.depth > 0
            unsettled = unsettled or record.stalled
        end
        unsettled = unsettled or record.broken
    end
    if not self.shared then
        if self.force == 'hash' then
            self:steer()
        end
        handover.homeless(self)
        upkeep.trim(self, now)
        unsettled = unsettled or #self.records > self.want
    end
    return (busy or #self.homeless > 0) and 'busy' or unsettled and 'unsettled' or nil
end

--- Adds the sockets to watch while nothing happens. One of datagrams has no queue to look after.
function Rotation:watched(fds)
    for _, record in ipairs(self.address.type == 'dgram' and {} or self.records) do
        fds[#fds + 1] = record.fd
    end
end

--- For status.
function Rotation:snapshot()
    local lanes = {}
    for i, record in ipairs(self.records) do
        local depth, limit = record.lane:queue()
        lanes[i] = {
            worker = record.worker, state = self.shared and 'shared' or record.state, waiting = depth, limit = limit,
            steered = self.shared or record.steered or false, stalled = record.stalled or false, weight = record.weight,
        }
    end
    return { address = self.address.text, name = self.name, balance = self.force, lanes = lanes }
end

function Rotation:close()
    for _, fd in ipairs(self.homeless) do
        self.platform.close_fd(fd)
    end
    self.records, self.users, self.homeless = {}, {}, {}
    if self.listener then
        self.listener:close()
        self.listener = nil
    end
end

return Rotation
