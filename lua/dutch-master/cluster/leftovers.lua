--- leftovers.lua: what workers have left behind in sessions of their own, and so outlives their process group.
--
-- It is looked for whenever a worker has ended, among the processes that became children of the master: they belong to
-- the worker that their environment names (DUTCH_MASTER_WORKER). They may finish for leftoverTimeout, then get SIGTERM,
-- and killTimeout later SIGKILL. What cleared its environment, or was started by the script, is nobody's: it stays
-- until the master stops. Nothing here trusts a number: the signal is refused unless the process is a child of ours.

local Leftovers = {}
Leftovers.__index = Leftovers

-- SIGKILL is repeated, since a process in an uninterruptible wait does not die at once. What the killed ones leave in
-- turn is found then as well.
local KILL_AGAIN_MS = 1000
-- Environments that are read at one look, so that a fork storm holds nobody up. The rest has its turn MORE_MS later.
local NEW_AT_ONCE, MORE_MS = 100, 50
-- Processes that one record names.
local NAMED = 10

--- @param options {platform, log, lives = function(worker_id) -> boolean, plan = function() -> the plan in force}
function Leftovers.new(options)
    local self = setmetatable(options, Leftovers)
    self.known = {} -- pid -> {pid, start, worker (its id) or nil, command, step}
    self.rules = {} -- worker id -> {log, since, grace_ms or false, kill_ms}, while something of it is left
    self.timer = self.platform.timer(function()
        self:look()
    end)
    return self
end

local function new_rule(log, now, plan)
    return { log = log, since = now, grace_ms = plan.leftover_timeout_ms, kill_ms = plan.kill_timeout_ms }
end

--- A worker has ended: what it left behind is looked for.
function Leftovers:ended(worker)
    local rule = new_rule(worker.log, self.platform.now(), worker.plan)
    rule.grace_ms = worker.leaving.daemon and 0 or rule.grace_ms -- a daemon is the worker itself
    self.rules[worker.id] = rule
    self:look()
end

-- Whose it is. Known ones are not asked again, unless another has their number now.
local function identify(self, pid, left)
    local stat = self.platform.proc_stat(pid)
    local known = self.known[pid]
    if known and stat and known.start == stat.starttime then
        return known, left
    elseif not stat or left == 0 then
        return nil, left
    end
    local origin = self.platform.origin(pid)
    local ours = origin.master == tostring(self.platform.pid())
    return { pid = pid, start = stat.starttime, command = origin.command, worker = ours and tonumber(origin.worker)
        or nil }, left - 1
end

-- What there is now, instead of what there was. -> whether some have to wait for their turn
local function find(self)
    local found, left = {}, NEW_AT_ONCE
    for _, pid in ipairs(self.platform.adopted()) do
        found[pid], left = identify(self, pid, left)
    end
    self.known = found
    return left == 0
end

-- step -> what is done to it, what is said of it and how
local STEPS = {
    found = { level = 'warn', message = 'Worker left processes behind in sessions of their own' },
    asked = { level = 'info', signal = 'SIGTERM', message = 'Asking what the worker left behind to end' },
    killed = { level = 'warn', signal = 'SIGKILL', message = 'Killing what the worker left behind' },
}

-- -> its step by now, and in how many ms the next one comes, nil if none does
local function due(rule, now)
    if not rule.grace_ms then
        return 'found'
    end
    local ask_at = rule.since + rule.grace_ms
    local kill_at = ask_at + rule.kill_ms
    if now < ask_at then
        return 'found', ask_at - now
    elseif now < kill_at then
        return 'asked', kill_at - now
    end
    return 'killed', KILL_AGAIN_MS
end

local function say(rule, step, list)
    local named = {}
    for i = 1, math.min(#list, NAMED) do
        named[i] = ('%s (pid %d)'):format(list[i].command, list[i].pid)
    end
    local row = STEPS[step]
    rule.log[row.level](rule.log, { processes = named, count = #list,
        endsIn = step == 'found' and rule.grace_ms and rule.grace_ms / 1000 or nil }, row.message)
end

-- -> in how many ms something of this worker has to be done again, nil if nothing
local function treat(self, rule, list, now)
    local step, wait = due(rule, now)
    local changed = {}
    for _, one in ipairs(list) do
        if one.step ~= step then
            one.step = step
            changed[#changed + 1] = one
        end
        if STEPS[step].signal and (changed[#changed] == one or step == 'killed') then
            self.platform.signal_adopted(one.pid, STEPS[step].signal)
            if step == 'asked' then
                self.platform.signal_adopted(one.pid, 'SIGCONT') -- a stopped process acts on SIGTERM only then
            end
        end
    end
    if changed[1] then
        say(rule, step, changed)
    end
    return wait
end

--- Looks for leftovers of workers that have ended, and does what is due.
function Leftovers:look()
    self.timer:start(KILL_AGAIN_MS) -- whatever becomes of this look
    local now = self.platform.now()
    local more = find(self)
    local lists = {}
    for _, one in pairs(self.known) do
        if one.worker and not self.lives(one.worker) then
            lists[one.worker] = lists[one.worker] or {}
            table.insert(lists[one.worker], one)
        end
    end
    local next_ms = more and MORE_MS or nil
    local rules = {}
    for id, list in pairs(lists) do
        local rule = self.rules[id] or new_rule(self.log:child { workerId = id }, now, self.plan())
        rules[id] = rule
        table.sort(list, function(a, b)
            return a.pid < b.pid
        end)
        local wait = treat(self, rule, list, now)
        next_ms = wait and math.min(wait, next_ms or wait) or next_ms
    end
    self.rules = rules
    if next_ms then
        self.timer:start(next_ms)
    else
        self.timer:stop()
    end
end

function Leftovers:close()
    self.timer:close()
end

return Leftovers
