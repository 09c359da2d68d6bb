--- hooks.lua: the hooks of the script that no fork waits for: onReady, onWorkerReady, onWorkerExit, onMessage,
--- onRestart, every; the judge of a canary; and the script's own logger.
--
-- They run in processes other than those of the forks, evaluated from the text of the newest good script: events one
-- after the other, in the order they happened; the judge and the logger each in a process of their own, for they may
-- take long. A process is started when the first of its hooks is called. Nobody waits here but the judge's canary.

local Hooks = {}
Hooks.__index = Hooks

-- Messages of workers that may wait for onMessage, and other events. What comes beyond is skipped, and counted.
local MESSAGES_MAX, EVENTS_MAX = 256, 4096
-- Records that may wait for the script's own logger; what comes beyond goes to stdout.
local RECORDS_MAX = 1000

--- @param options {platform, log, script (see session.lua), new_lane = function(most) -> Lane}
function Hooks.new(options)
    local self = setmetatable(options, Hooks)
    self.lanes, self.totals = {}, self.script.totals
    self.release = nil -- the newest good evaluation: {source, plan}
    self.skipped = 0
    return self
end

--- A good evaluation: its hooks are called from now on.
function Hooks:adopt(release)
    self.release = release
end

local function lane(self, name)
    self.lanes[name] = self.lanes[name] or self.new_lane(1)
    return self.lanes[name]
end

-- The newest good script in this process. When it cannot be evaluated again, because a file that it requires is broken
-- meanwhile, the one before serves on.
local function with_session(self, process, done)
    local release = self.release
    if process.release == release then
        return done(process.kept)
    end
    local budget_ms = release.plan.hook_timeout_ms
    self.script:evaluate(process, { source = release.source, repeated = true, budget_ms = budget_ms },
        function(session, err)
        if session then
            session:keep()
            process.release = release
        end
        done(session or process.kept, err)
    end)
end

-- call(session, finish): finish must be called once the process is free again.
local function add(self, name, hook, most, failed, call)
    local place = lane(self, name)
    if place:waiting() >= most then
        return false
    end
    return place:add {
        hook = hook,
        start = function(process)
            with_session(self, process, function(session, err)
                local function finish()
                    place:give_back(process)
                end
                if session then
                    return call(session, finish)
                end
                failed(err)
                finish()
            end)
        end,
        failed = failed,
    }
end

local function timeout_of(plan, hook, arguments)
    if hook == 'every' then
        local entry = plan.hooks.every[arguments[1]]
        return entry.timeout_ms and { ms = entry.timeout_ms, option = 'every' }
    elseif hook == 'judge' then
        local ms = plan.restart_concurrency.canary.timeout_ms
        return ms and { ms = ms, option = 'canary.timeout' }
    end
end

-- What waits behind a hook that took all its time would take as much again, one after the other.
local function skip_the_like(self, hook)
    lane(self, 'events'):drop(function(job)
        if job.hook == hook then
            self.log:warn({ hook = hook }, 'Hook skipped: the script took too long a moment ago')
            return true
        end
    end)
end

local function note_skipped(self, hook)
    if self.skipped == 0 then
        self.log:warn({ hook = hook }, 'Hook skipped: too many of them wait for the script')
    end
    self.skipped = self.skipped + 1
end

--- Runs a hook that nobody waits for. Its failure is a log record.
function Hooks:run(hook, ...)
    local release = self.release
    if not (release and release.plan.hooks[hook]) or self.closed then
        return
    end
    local arguments = { n = select('#', ...), ... }
    local function failed(err)
        self.log:error({ hook = hook, traceback = err.traceback }, 'Hook failed: ' .. err.message)
        if err.kind == 'budget' then
            skip_the_like(self, hook)
        end
    end
    local added = add(self, 'events', hook, hook == 'onMessage' and MESSAGES_MAX or EVENTS_MAX, failed,
        function(session, finish)
        local known = session.plan.hooks[hook]
        if not known or hook == 'every' and not known[arguments[1]] then
            return finish() -- the newest script has it no more
        end
        session:call(hook, arguments, function(ok, err)
            if not ok then
                failed(err)
            end
            finish()
        end, timeout_of(session.plan, hook, arguments))
    end)
    if not added then
        note_skipped(self, hook)
    elseif self.skipped > 0 then
        self.log:warn({ count = self.skipped }, 'Hooks skipped')
        self.skipped = 0
    end
end

--- Asks the script's judge whether the canary may go on. Without a judge it may; a judge that fails gives no consent.
-- @param new, old workers as described; old may be nil
-- @param done function(true) or function(false, why), later, once; at once without a judge
function Hooks:judge(new, old, done)
    if not self.release.plan.hooks.judge then
        return done(true)
    end
    local function failed(err)
        done(false, err.message)
    end
    local arguments = { n = 2, new, old }
    local added = add(self, 'judge', 'judge', EVENTS_MAX, failed, function(session, finish)
        if not session.plan.hooks.judge then
            finish()
            return done(true)
        end
        session:call('judge', arguments, function(ok, verdict, why)
            finish()
            if not ok then
                return failed(verdict)
            end
            done(verdict ~= false, why and tostring(why) or 'judge said no')
        end, timeout_of(session.plan, 'judge'))
    end)
    if not added then
        done(false, 'the judge cannot be asked any more')
    end
end

--- A record for the script's own logger. One that took all its time is not called again before the next evaluation.
-- @param failed function(why), now or later, when it could not take the record
function Hooks:record(level, fields, message, failed)
    if self.slow_logger == self.release then
        return failed('it took too long before')
    end
    local function lost(err)
        if err.kind == 'budget' then
            self.slow_logger = self.release
        end
        failed(err.message)
    end
    local added = add(self, 'logger', 'logger', RECORDS_MAX, lost, function(session, finish)
        if self.slow_logger == self.release then
            failed('it took too long before')
            return finish()
        end
        session:call('logger', { level, fields, message }, function(ok, err)
            if not ok then
                lost(err)
            end
            finish()
        end)
    end)
    if not added then
        failed('too many records wait for it')
    end
end

--- Whether a process is that of the script's own logger: what it logs itself must not come to it again.
function Hooks:is_logger(process)
    return process.lane == self.lanes.logger
end

--- Calls done when no hook runs or waits any more, or after limit_ms.
function Hooks:settle(limit_ms, done)
    local until_ms = self.platform.now() + limit_ms
    local timer
    timer = self.platform.timer(function()
        for _, place in pairs(self.lanes) do
            if not place:is_quiet() and self.platform.now() < until_ms then
                return timer:start(2)
            end
        end
        timer:close()
        done()
    end)
    timer:start(0)
end

--- Ends the processes.
function Hooks:close()
    self.closed = true
    for _, place in pairs(self.lanes) do
        place:close()
    end
end

return Hooks
