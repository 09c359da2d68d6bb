--- upkeep.lua: looking after the lanes of a rotation (rotation.lua), now and then: damage is repaired, stalled workers
-- are found out, lanes too many are closed.

local handover = require 'dutch-master.listen.handover'

local M = {}

-- A client whose SYN was answered while the lane was in rotation may be shaking hands still: it retries for seconds.
-- (out_since: of the lane's last moment in it, which a free lane has again when nobody serves.)
local QUARANTINE_MS = 5000
-- A stalled lane that was emptied by rescue shows no movement: it is tried again after this, doubling.
local FIRST_PROBATION_MS, LAST_PROBATION_MS = 1000, 30000

--- Connections that wait in a lane.
function M.depth(record)
    local depth = record.lane:queue()
    return depth or 0
end

local function culprit(self, record)
    return { workerId = record.worker, address = self.address.text }
end

--- Puts right what a worker did to a lane, and names it.
-- @param ended the worker that has just ended, if one has: to remove the path of its socket then is what servers do
function M.repair(self, record, ended)
    local done, message = record.lane:repair(self.may_block)
    local fields = culprit(self, record)
    fields.workerId = ended or fields.workerId
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
    if fields.repaired:find 'shutdown' or fields.repaired:find 'reuseport' then
        self.revived = self.revived + 1 -- the kernel's order was not the one in force
    end
    if record.quiet and fields.repaired == 'backlog' or ended and fields.repaired == 'path' then
        self.log:debug(fields, 'Listening socket repaired') -- every server's first listen() changes the backlog
    else
        self.log:warn(fields, 'Listening socket repaired')
    end
    record.quiet = false
end

local function resume(self, record)
    record.stalled, record.since, record.emptied = nil, nil, nil
    self.log:info(culprit(self, record), 'Worker takes connections again')
    self:steer()
end

local function stall(self, record, now)
    record.stalled = true
    record.probation = math.min((record.probation or FIRST_PROBATION_MS / 2) * 2, LAST_PROBATION_MS)
    record.retry_at = now + record.probation
    local fields = culprit(self, record)
    fields.waiting = record.depth
    self.log:warn(fields, 'Worker stalled')
    self:steer()
end

-- A queue can move and be as long as before. Where its head can be given away, the head is asked how long it waited.
local function head_is_young(self, record)
    if not self.rescue or #handover.heirs(self, record) == 0 then
        return false
    end
    local fd = handover.take(record)
    if not fd then
        return true
    end
    local young = (self.platform.quiet_ms(fd) or math.huge) < self.stall_timeout_ms / 2
    handover.give(self, fd, record, 1)
    return young
end

local function watch_stalled(self, record, moves, now)
    local emptied = handover.lane(self, record) > 0
    record.depth = M.depth(record)
    if moves and not emptied and not record.emptied then
        record.probation = nil
        resume(self, record)
    elseif record.depth == 0 and now >= record.retry_at then
        resume(self, record)
    else
        record.emptied = record.emptied or emptied
    end
end

--- A live lane: does it move? Movement is a queue that got shorter, or is empty. One that grows may well be nobody's.
function M.watch(self, record, now)
    local before = record.depth
    record.depth = M.depth(record)
    local moves = record.depth == 0 or record.depth < before
    if record.stalled then
        return watch_stalled(self, record, moves, now)
    elseif moves then
        record.since = nil
        return
    end
    record.since = record.since or now
    -- Ticks come late, never early: a little less than the whole is the whole.
    if now - record.since < self.stall_timeout_ms * 0.95 or #handover.others(self, record) == 0 then
        return
    end
    if head_is_young(self, record) then
        record.since = nil
    else
        stall(self, record, now)
        record.emptied = handover.lane(self, record) > 0 or #handover.heirs(self, record) > 0
    end
    record.depth = M.depth(record)
end

--- Closes free lanes beyond what is wanted. From the end of the group: then no other member changes its place.
function M.trim(self, now)
    local used = #handover.those(self, function(record)
        return record.state ~= 'free'
    end)
    for i = #self.records, 1, -1 do
        local record = self.records[i]
        if #self.records <= math.max(self.want, used, 1) then
            return
        end
        local last = record.lane:index() == #self.records - 1
        if record.state == 'free' and not record.steered and now - record.out_since >= QUARANTINE_MS
            and (last or not self.buckets) and M.depth(record) == 0 and record.lane:close() then
            table.remove(self.records, i)
        end
    end
end

return M
