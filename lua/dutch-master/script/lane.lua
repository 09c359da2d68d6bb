--- lane.lua: jobs for processes of the script, and the processes that do them. A job has a process to itself from its
--- start until it gives it back. Jobs start in the order they came. There is a lane for forks and others for hooks, so
--- that no fork waits for a hook.
--
-- The first process is started for the first job, and stays. Where a lane may have several, another is started when a
-- job has waited for a while, and those before it are slow: what is slow delays itself alone. After a death the next
-- process waits a little longer each time. Nothing here has a timer armed while nothing waits.

local Process = require 'dutch-master.script.process'

local Lane = {}
Lane.__index = Lane

-- A job that has waited this long gets a process of its own, if the lane may have one more, if no quick job was done
-- meanwhile, and if one of those before it is slow: at a boot of many workers they are only many, and wait for a
-- processor as all do then. A process costs more than ten of them.
local GROW_MS, QUICK_MS = 20, 10
-- Jobs that may wait: two forks for each slot (4096 at most); of hooks, 4096 and a message of each worker.
local WAITING_MAX = 4 * 4096
-- The pause before a process is started again: nothing after the first death, then doubling to the most.
local PAUSE_MS, PAUSE_MOST_MS = 50, 5000

--- How many jobs wait.
function Lane:waiting()
    return self.last - self.first + 1
end

local function take_job(self)
    local job = self.queue[self.first]
    self.queue[self.first] = nil
    self.first = self.first + 1
    return job
end

local function lost(self, process)
    self.processes[process] = nil
    self.count = self.count - 1
    self.deaths = self.deaths + 1
    if self.deaths > 1 then
        local pause = math.min(PAUSE_MS * 2 ^ (self.deaths - 2), PAUSE_MOST_MS)
        self.may_start_at = self.platform.now() + pause
    end
    if self:waiting() > 0 then
        self:wake(self.platform.now()) -- not now: the job that it had hears of it first
    end
end

local function start_process(self, started)
    local fields = {
        platform = self.platform, agenda = self.agenda, lane = self, started = started,
        on_gone = function(process)
            lost(self, process)
        end,
    }
    for key, value in pairs(self.process) do
        fields[key] = value
    end
    local process, message = Process.new(fields)
    if process then
        self.processes[process] = false
        self.count = self.count + 1
    end
    return process, message
end

local function idle_process(self)
    for process, job in pairs(self.processes) do
        if not job then
            return process
        end
    end
end

--- @param options {platform, agenda, most = processes at once, process = {what Process.new wants besides},
--   started = its first process, or nil: it is started for the first job}
function Lane.new(options)
    local self = setmetatable(options, Lane)
    self.processes, self.count = {}, 0 -- process -> its job, or false
    self.first, self.last, self.queue = 1, 0, {}
    self.quick_at = -math.huge -- when the last quick job was done
    self.deaths = 0 -- in a row, without a job done between
    self.may_start_at = 0
    self.look_at = 0 -- when to see again whether the jobs under way are slow
    if options.started then
        start_process(self, options.started)
    end
    return self
end

-- No process can be had: what waits hears it, rather than wait for ever.
local function refuse_all(self, message)
    while self:waiting() > 0 do
        take_job(self).failed({ kind = 'system', message = 'its process could not be started: ' .. tostring(message) })
    end
end

-- When the first job in the queue may have another process, or nil.
local function next_start(self)
    if self.count == 0 then
        return self.may_start_at
    elseif self.count < self.most then
        return math.max(self.queue[self.first].queued_at + GROW_MS, self.quick_at + GROW_MS, self.may_start_at,
            self.look_at)
    end
end

-- Slow is what has worked for long since it was first looked at, or sleeps each time; not what has no processor to work
-- on. Asleep once may be a moment after its answer.
local function is_slow(self, process, job)
    local stat = self.platform.proc_stat(process.child:pid())
    if not stat then
        return true
    end
    local slept = job.sleeps
    job.sleeps, job.worked_ms = not stat.runnable, job.worked_ms or stat.cpu_ms
    return slept and job.sleeps or stat.cpu_ms - job.worked_ms > QUICK_MS
end

-- Whether another process would help those who wait; else it is looked again soon.
local function may_grow(self, now)
    for process, job in pairs(self.processes) do
        if is_slow(self, process, job) then
            return true
        end
    end
    self.look_at = now + QUICK_MS
    return false
end

local function begin(self, process)
    local job = take_job(self)
    self.processes[process] = job
    job.began_at = self.platform.now()
    job.start(process)
end

--- Starts what can be started now.
function Lane:turn()
    if self.closed then
        return
    end
    while self.queue[self.first] do
        local process = idle_process(self)
        if not process then
            local at, now = next_start(self), self.platform.now()
            if not at or at > now then
                return self:wake(at)
            elseif self.count > 0 and not may_grow(self, now) then
                return self:wake(self.look_at)
            end
            local message
            process, message = start_process(self)
            if not process then
                return self.count == 0 and refuse_all(self, message) or nil
            end
        end
        begin(self, process)
    end
end

function Lane:wake(at)
    if at then
        self.timer = self.timer or self.platform.timer(function()
            self:turn()
        end)
        self.timer:start(math.max(at - self.platform.now(), 0))
    end
end

--- Adds a job: {start = function(process): it has the process now, and must give it back; failed = function(err)
--- instead of it}. Neither is called before this returns.
-- @return true, or nil when too many wait already
function Lane:add(job)
    if self.closed or self:waiting() >= WAITING_MAX then
        return nil
    end
    job.queued_at = self.platform.now()
    self.last = self.last + 1
    self.queue[self.last] = job
    self:wake(job.queued_at)
    return true
end

-- Lets go of the processes that are idle beside this one: a rush had needed them.
local function shrink(self, keep)
    for process, job in pairs(self.processes) do
        if not job and process ~= keep then
            self.processes[process] = nil
            self.count = self.count - 1
            process:retire()
        end
    end
end

--- The job of this process is done.
function Lane:give_back(process)
    local job = self.processes[process]
    if not job then
        return -- it died of it
    end
    local now = self.platform.now()
    self.quick_at = now - job.began_at <= QUICK_MS and now or self.quick_at
    self.processes[process] = false
    self.deaths = 0
    if self:waiting() > 0 then
        return self:turn()
    end
    shrink(self, process)
end

--- Takes the jobs out that wait and for which fn(job) is true.
function Lane:drop(fn)
    local kept = {}
    for i = self.first, self.last do
        local job = self.queue[i]
        if not fn(job) then
            kept[#kept + 1] = job
        end
    end
    self.queue, self.first, self.last = kept, 1, #kept
end

--- Whether nothing waits and nothing runs.
function Lane:is_quiet()
    for _, job in pairs(self.processes) do
        if job then
            return false
        end
    end
    return self:waiting() == 0
end

--- Ends all of it at once. What waits is forgotten.
function Lane:close()
    self.closed = true
    self.queue, self.first, self.last = {}, 1, 0
    if self.timer then
        self.timer:close()
        self.timer = nil
    end
    for process in pairs(self.processes) do
        process:close()
    end
end

return Lane
