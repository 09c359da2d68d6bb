--- recycle.lua: replaces workers that have grown too large or too old (maxMemory, maxLifetime).
--
-- It goes the way of every replacement, one worker at a time: the next is looked at when all slots serve again.

local Recycle = {}
Recycle.__index = Recycle

-- How often workers are looked at. Memory leaks are slow; the idle budget of the master is two wake-ups a second.
local EVERY_MS = 5000
-- Workers that were started together are not to be replaced together: each gets up to a tenth less than its lifetime.
local JITTER = 0.1

--- @param options {platform, log, cluster}
function Recycle.new(options)
    local self = setmetatable(options, Recycle)
    self.shares = setmetatable({}, { __mode = 'k' }) -- worker -> the part of its lifetime that it gets
    self.timer = self.platform.timer(function()
        self.timer:start(EVERY_MS) -- first: whatever becomes of this look
        self:look()
    end)
    return self
end

--- Takes the limits of a plan over.
function Recycle:adopt(plan)
    self.plan = plan
    if plan.max_memory or plan.max_lifetime_ms then
        self.timer:start(EVERY_MS)
    else
        self.timer:stop()
    end
end

function Recycle:close()
    self.timer:close()
end

local function too_old(self, worker)
    local limit = self.plan.max_lifetime_ms
    if not limit then
        return nil
    end
    self.shares[worker] = self.shares[worker] or 1 - JITTER * self.platform.random()
    local age = self.platform.now() - worker.forked_at
    if age >= limit * self.shares[worker] then
        return ('%d s old, maxLifetime is %g s'):format(age / 1000, limit / 1000)
    end
end

local function too_large(self, worker)
    local limit = self.plan.max_memory
    local usage = limit and self.platform.proc_stat(worker.pid)
    if usage and usage.rss_kb * 1024 > limit then
        return ('%d MiB of memory, maxMemory is %d MiB'):format(usage.rss_kb / 1024, limit / 1048576)
    end
end

--- Replaces the first worker that is over a limit, if every slot serves.
function Recycle:look()
    if self.cluster.state ~= 'steady' then
        return
    end
    for _, slot in ipairs(self.cluster.slots) do
        if slot.state ~= 'serving' then
            return
        end
    end
    for _, slot in ipairs(self.cluster.slots) do
        local worker = slot.current
        local why = too_old(self, worker) or too_large(self, worker)
        if why then
            worker.log:info({ reason = why }, 'Recycling worker')
            worker:replace(why)
            return
        end
    end
end

return Recycle
