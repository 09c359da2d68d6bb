--- rotation.lua: one listener's lanes, and who gets its new connections. A worker has one of them from fork to exit; it
-- is in rotation while its worker can take connections. Where there are no lanes (unix, UDP, balance = 'shared',
-- steering refused) the one socket is everybody's, and rotation means nothing.
--
-- A lane's states: starting (its worker is not ready) -> live -> leaving (its worker is asked to go) -> free. A live
-- lane can be `stalled`: connections wait and nobody takes them.

local Buckets = require 'dutch-master.buckets'

local Rotation = {}
Rotation.__index = Rotation

-- A client whose SYN was answered while the lane was in rotation may be shaking hands still: it retries for seconds.
local QUARANTINE_MS = 5000
-- A stalled lane that was emptied by rescue shows no movement: it is tried again after this, doubling.
local FIRST_PROBATION_MS, LAST_PROBATION_MS = 1000, 30000
-- How often lanes are looked over for damage, while ticks are more frequent.
local REPAIR_MS = 450
-- A connection that so many workers refused is closed; and so many at a time are on their way to workers.
local MAX_TRIES, MAX_IN_FLIGHT = 8, 256
-- The kernel program's limit is 1024 lanes, and there are two for each worker during a roll.
local MAX_WORKERS_WITH_LANES = 512

--- @param options {platform, log, key, name, address (platform.address's table), balance, backlog, mode,
--   fd (inherited), may_block (workers choose how they accept), stall_timeout_ms, want,
--   rescue (see sockets.lua) or nil}
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
    local record = { lane = lane, state = 'free', weight = 1, depth = 0, quiet = true }
    record.free_since = self.platform.now()
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
    local lanes = self.balance ~= 'shared'
    if lanes and self.want > MAX_WORKERS_WITH_LANES then
        self.log:warn({ address = self.address.text, workers = self.want, lanes = MAX_WORKERS_WITH_LANES },
            'More workers than lanes, one socket is shared')
        lanes = false
    end
    local listener, message, code = try_listen(self, self.address, lanes)
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

local function those(self, test)
    local list = {}
    for _, record in ipairs(self.records) do
        if test(record) then
            list[#list + 1] = record
        end
    end
    return list
end

-- If nobody is live, connections wait where somebody will be first: at a worker that is stalled, starting, going, or in
-- a lane that the next worker takes over.
local function candidates(self)
    local function in_state(state)
        return those(self, function(record)
            return record.state == state and record.weight > 0
        end)
    end
    local list = those(self, function(record)
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

local function steer(self)
    if self.shared then
        return
    end
    local list = candidates(self)
    local lanes, options = {}, {}
    for _, record in ipairs(self.records) do
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
-- Connections that wait in a lane that nobody serves

local function others(self, except, test)
    return those(self, function(record)
        return record.state == 'live' and not record.stalled and record ~= except and (not test or test(record))
    end)
end

-- Only who asked for its socket over a channel can be given a connection over it.
local function heirs(self, except)
    return others(self, except, function(record)
        return record.request ~= nil
    end)
end

-- In turn, so that they are spread.
local function next_heir(self, except)
    local list = heirs(self, except)
    self.turn = self.turn % math.max(#list, 1) + 1
    return list[self.turn]
end

-- Gives a connection to one live worker after the other until one takes it. The worker may still refuse it later (its
-- server has just closed), then it goes to the next. Nobody at all: it waits, for it cannot be put back.
local function give(self, fd, except, tries)
    local function done(accepted)
        self.in_flight = self.in_flight - 1
        if accepted or tries >= MAX_TRIES or not self.listener then
            self.platform.close_fd(fd)
        else
            give(self, fd, nil, tries + 1)
        end
    end
    for _ = 1, #self.records do
        local record = next_heir(self, except)
        if not record then
            break
        end
        self.in_flight = self.in_flight + 1
        if self.rescue(fd, done, record.worker, record.request) then
            return true
        end
        self.in_flight = self.in_flight - 1
    end
    self.homeless[#self.homeless + 1] = fd
    return false
end

local function rescue_homeless(self)
    local list = self.homeless
    self.homeless = {}
    for _, fd in ipairs(list) do
        give(self, fd, nil, 1)
    end
end

local function rescue_lane(self, record)
    local count = 0
    if not self.rescue or self.shared then
        return count
    end
    while #self.homeless == 0 and self.in_flight < MAX_IN_FLIGHT and #heirs(self, record) > 0 do
        local fd = record.lane:accept()
        if not fd then
            break
        end
        if give(self, fd, record, 1) then
            count = count + 1
        end
    end
    if count > 0 then
        self.log:info({ address = self.address.text, connections = count, workerId = record.worker },
            'Waiting connections handed to other workers')
    end
    return count
end

local function rescue_free(self)
    rescue_homeless(self)
    for _, record in ipairs(self.records) do
        if record.state == 'free' then
            rescue_lane(self, record)
        end
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- A worker's way through

local function depth_of(record)
    local depth = record.lane:queue()
    return depth or 0
end

-- Where most connections wait: they are served soonest.
local function free_lane(self)
    local best, best_depth
    for _, record in ipairs(self.records) do
        if record.state == 'free' then
            local depth = depth_of(record)
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
    else
        local message, code
        record = free_lane(self)
        if not record then
            record, message, code = new_lane(self)
        end
        if code == 'E2BIG' then
            -- More workers than lanes: the rest are guests in others' lanes.
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
    steer(self)
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
    steer(self)
    rescue_free(self)
end

local function out(self, worker_id, record, state)
    record.state = state
    if self.buckets then
        self.buckets:leave(worker_id, self.want)
    end
    steer(self)
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
    self.users[worker_id] = nil
    if self.shared or record.guest then
        return
    end
    record.worker, record.stalled, record.request = nil, nil, nil
    record.free_since = self.platform.now()
    out(self, worker_id, record, 'free')
    rescue_lane(self, record)
end

--- Connections that wait for the worker.
function Rotation:waiting(worker_id)
    local record = self.users[worker_id]
    return record and not self.shared and not record.guest and depth_of(record) or 0
end

--- Its share of new connections, as a ratio to the others' 1. 0: none, unless there is nobody else.
function Rotation:weigh(worker_id, weight)
    local record = self.users[worker_id]
    if record and not self.shared and not record.guest and record.weight ~= weight then
        record.weight = weight
        steer(self)
    end
end

function Rotation:is_used()
    return next(self.users) ~= nil
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Looking after the lanes, now and then

local function culprit(self, record)
    return { workerId = record.worker, address = self.address.text }
end

local function repair(self, record)
    local done, message = record.lane:repair(self.may_block)
    local fields = culprit(self, record)
    if not done then
        if record.broken ~= message then
            fields.reason = message
            self.log:error(fields, 'Listening socket is broken and could not be repaired')
        end
        record.broken = message
        return
    end
    record.broken = nil
    if #done == 0 then
        return
    end
    fields.repaired = table.concat(done, ', ')
    if record.quiet and fields.repaired == 'backlog' then
        self.log:debug(fields, 'Listening socket repaired') -- every server's first listen() does it
    else
        self.log:warn(fields, 'Listening socket repaired')
    end
    record.quiet = false
end

local function resume(self, record)
    record.stalled, record.since, record.emptied = nil, nil, nil
    self.log:info(culprit(self, record), 'Worker takes connections again')
    steer(self)
end

local function stall(self, record, now)
    record.stalled = true
    record.probation = math.min((record.probation or FIRST_PROBATION_MS / 2) * 2, LAST_PROBATION_MS)
    record.retry_at = now + record.probation
    local fields = culprit(self, record)
    fields.waiting = record.depth
    self.log:warn(fields, 'Worker stalled')
    steer(self)
end

-- A queue can move and be as long as before. Where its head can be given away, the head is asked how long it waited.
local function head_is_young(self, record)
    if not self.rescue or #heirs(self, record) == 0 then
        return false
    end
    local fd = record.lane:accept()
    if not fd then
        return true
    end
    local young = (self.platform.quiet_ms(fd) or math.huge) < self.stall_timeout_ms / 2
    give(self, fd, record, 1)
    return young
end

local function watch_stalled(self, record, moves, now)
    local emptied = rescue_lane(self, record) > 0
    record.depth = depth_of(record)
    if moves and not emptied and not record.emptied then
        record.probation = nil
        resume(self, record)
    elseif record.depth == 0 and now >= record.retry_at then
        resume(self, record)
    else
        record.emptied = record.emptied or emptied
    end
end

-- Movement is a queue that got shorter, or is empty. A queue that grows may well be nobody's.
local function watch(self, record, now)
    local before = record.depth
    record.depth = depth_of(record)
    local moves = record.depth == 0 or record.depth < before
    if record.stalled then
        return watch_stalled(self, record, moves, now)
    elseif moves then
        record.since = nil
        return
    end
    record.since = record.since or now
    -- Ticks come late, never early: a little less than the whole is the whole.
    if now - record.since < self.stall_timeout_ms * 0.95 or #others(self, record) == 0 then
        return
    end
    if head_is_young(self, record) then
        record.since = nil
    else
        stall(self, record, now)
        record.emptied = rescue_lane(self, record) > 0 or #heirs(self, record) > 0
    end
    record.depth = depth_of(record)
end

-- Free lanes beyond what is wanted. From the end of the group: then no other member changes its place.
local function trim(self, now)
    local used = #those(self, function(record)
        return record.state ~= 'free'
    end)
    for i = #self.records, 1, -1 do
        local record = self.records[i]
        if #self.records <= math.max(self.want, used, 1) then
            return
        end
        local last = record.lane:index() == #self.records - 1
        if record.state == 'free' and not record.steered and now - record.free_since >= QUARANTINE_MS
            and (last or not self.buckets) and depth_of(record) == 0 and record.lane:close() then
            table.remove(self.records, i)
        end
    end
end

--- @return true if connections wait somewhere: look again soon
function Rotation:tick(now)
    local busy = false
    local repairs = now - (self.repaired_at or 0) >= REPAIR_MS
    self.repaired_at = repairs and now or self.repaired_at
    for _, record in ipairs(self.records) do
        if repairs then
            repair(self, record)
        end
        if not self.shared then
            if record.state == 'live' then
                watch(self, record, now)
            elseif record.state == 'free' then
                rescue_lane(self, record)
                record.depth = depth_of(record)
            end
            busy = busy or record.depth > 0
        end
    end
    if not self.shared then
        if self.force == 'hash' then
            steer(self)
        end
        rescue_homeless(self)
        trim(self, now)
    end
    return busy or #self.homeless > 0
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
