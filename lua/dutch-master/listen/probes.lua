--- probes.lua: connections of the master that reach one worker of a rotation (rotation.lua), whether it is in rotation
-- or not, by the port that they come from. What matters here is that no other worker can answer one unnoticed.
--
-- Kept in the rotation: probes (worker id -> one under way), revived (how often the group was disturbed).

local handover = require 'dutch-master.listen.handover'
local upkeep = require 'dutch-master.listen.upkeep'

local M = {}

-- DM_STEERING_PROBES: so many rules the kernel program has room for.
local MAX = 64

--- The rules for the kernel's program.
function M.rules(self)
    local list = {}
    for _, probe in pairs(self.probes) do
        list[#list + 1] = { port = probe.port, lane = probe.record.lane }
    end
    return list
end

local function count(self)
    local number = 0
    for _ in pairs(self.probes) do
        number = number + 1
    end
    return number
end

--- Connections from this port go to the worker's lane, until `finish`.
-- @return true, or nil, why, code; EAGAIN: too many are under way
function M.begin(self, worker_id, port)
    local record = self.users[worker_id]
    if not record or self.shared or record.guest then
        return nil, 'it has no lane', 'ENOTSUP'
    elseif count(self) >= MAX then
        return nil, 'too many workers are asked at once', 'EAGAIN'
    end
    self.probes[worker_id] = { port = port, record = record, given = record.given, revived = self.revived }
    self:steer()
    if self.force == 'hash' then
        M.forget(self, worker_id)
        return nil, 'steering is refused', 'EPERM'
    end
    return true
end

--- It is over; its connection is closed by now.
function M.forget(self, worker_id)
    if self.probes[worker_id] then
        self.probes[worker_id] = nil
        self:steer()
    end
end

--- The same for one that was answered.
-- @return whether nobody else can have answered: the connection was not among those that went to other workers, and the
-- group is what the program took it for
function M.finish(self, worker_id)
    local probe = self.probes[worker_id]
    if not probe then
        return false
    end
    for _, record in ipairs(self.records) do
        upkeep.repair(self, record)
    end
    M.forget(self, worker_id)
    return self.users[worker_id] == probe.record and probe.given == probe.record.given
        and probe.revived == self.revived and #handover.those(self, function(record)
            return record.broken
        end) == 0
end

return M
