--- hooks.lua: the hooks of the script that no fork waits for: onReady, onWorkerReady, onWorkerExit, onMessage,
--- onRestart, every; the judge of a canary; and the script's own logger.
--
-- They run in processes other than those of the forks, evaluated from the text of the newest good script: events one
-- after the other; the judge and the logger each in a process of their own, for they may take long. What concerns one
-- worker keeps its order, and workers take turns (turns.lua). A process is started when the first of its hooks is
-- called. Nobody waits here but the judge's canary.
--
-- An event begins when the state is kept of which it tells, and is in that state itself until its call has ended: when
-- the master dies meanwhile the next one calls it, once more if it had begun.

local Commit = require 'dutch-master.keeper.commit'
local Turns = require 'dutch-master.launch.turns'

local Hooks = {}
Hooks.__index = Hooks

-- Events that may wait, messages of workers not counted (turns.lua bounds those). What comes beyond is skipped.
local EVENTS_MAX = 4096
-- And of these, so many outlive their master.
local EVENTS_KEPT = 256
-- Records that may wait for the script's own logger; what comes beyond goes to stdout.
local RECORDS_MAX = 1000

--- @param options {platform, log, script (see session.lua), new_lane = function(most) -> Lane, commit = see
--   keeper/commit.lua, or nil}
function Hooks.new(options)
    local self = setmetatable(options, Hooks)
    self.commit = self.commit or Commit.new {}
    self.owed, self.first_owed, self.last_owed = {}, 1, 0 -- number -> event whose call has not ended
    self.lanes, self.totals = {}, self.script.totals
    self.evaluated = setmetatable({}, { __mode = 'k' }) -- process -> of which evaluation the state is that it keeps
    self.waiting, self.skipped = 0, 0 -- events
    self.due = {} -- index of `every` -> true while it waits
    self.slow = nil -- the hook whose last call took all its time
    self.turns = Turns.new {
        enter = function(event)
            event.enter()
        end,
        lost = function(worker_id, messages)
            if messages == 0 then
                return self.log:warn({ hook = 'onMessage', workerId = worker_id },
                    'Messages skipped: too many of this worker wait for onMessage')
            end
            self.log:warn({ hook = 'onMessage', workerId = worker_id, count = messages }, 'Messages were skipped')
        end,
    }
    return self
end

function Hooks:use_log(log)
    self.log = log
end

local function lane(self, name)
    self.lanes[name] = self.lanes[name] or self.new_lane(1)
    return self.lanes[name]
end

-- The newest good script in this process. When it cannot be evaluated again, because a file that it requires is broken
-- meanwhile, the one before serves on.
local function with_session(self, process, done)
    local release = self.script.newest
    if self.evaluated[process] == release then
        return done(process.kept)
    end
    local budget_ms = release.plan.hook_timeout_ms
    self.script:evaluate(process, { source = release.source, repeated = true, budget_ms = budget_ms },
        function(session, err)
        if session then
            session:keep()
            self.evaluated[process] = release
        end
        done(session or process.kept, err)
    end)
end

-- call(session, finish): finish must be called once the process is free again.
local function add(self, name, failed, call, event, over)
    local place = lane(self, name)
    return place:add {
        event = event, over = over,
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

-- What waits behind a hook that took all its time would take as much again, one after the other. After the first these
-- are the messages of the same worker; after a second in a row all that wait for this hook, for then it is the hook.
local function skip_the_like(self, event)
    local hook, again = event.hook, self.slow == event.hook
    local function say(skipped)
        self.log:warn({ hook = hook, workerId = skipped.worker_id },
            'Hook skipped: the script took too long a moment ago')
    end
    self.slow = hook
    if hook == 'onMessage' then
        self.turns:drop_messages(not again and event.worker_id or nil, say)
    end
    if again then
        local dropped = {}
        lane(self, 'events'):drop(function(job)
            local like = job.event.hook == hook
            dropped[#dropped + 1] = like and job or nil
            return like
        end)
        for _, job in ipairs(dropped) do
            say(job.event)
            job.over()
        end
    end
end

local function note_skipped(self, hook)
    if self.skipped == 0 then
        self.log:warn({ hook = hook }, 'Hook skipped: too many of them wait for the script')
    end
    self.skipped = self.skipped + 1
end

local function note_room(self)
    if self.skipped > 0 then
        self.log:warn({ count = self.skipped }, 'Hooks skipped')
        self.skipped = 0
    end
end

local function has(self, hook)
    return self.script.newest and self.script.newest.plan.hooks[hook] and not self.closed
end

-- event: {hook, arguments, worker_id or nil}. over() is called once, when its call has ended or was not to be had.
local function enter(self, event, over)
    local hook, arguments = event.hook, event.arguments
    local function failed(err)
        self.log:error({ hook = hook, traceback = err.traceback }, 'Hook failed: ' .. err.message)
        if err.kind == 'budget' then
            skip_the_like(self, event)
        end
    end
    local added = add(self, 'events', function(err) -- its process, or the evaluation in it
        failed(err)
        over()
    end, function(session, finish)
        local known = session.plan.hooks[hook]
        if not known or hook == 'every' and not known[arguments[1]] then
            over()
            return finish() -- the newest script has it no more
        end
        session:call(hook, arguments, function(ok, err)
            if ok then
                self.slow = self.slow ~= hook and self.slow or nil
            else
                failed(err)
            end
            over()
            finish()
        end, timeout_of(session.plan, hook, arguments))
    end, event, over)
    if not added and not self.closed then
        note_skipped(self, hook)
        over()
    end
end

local function owe(self, event)
    self.last_owed = self.last_owed + 1
    self.owed[self.last_owed] = event
    return self.last_owed
end

local function settle_owed(self, number)
    self.owed[number] = nil
    while self.first_owed <= self.last_owed and not self.owed[self.first_owed] do
        self.first_owed = self.first_owed + 1
    end
    self.commit:note()
end

-- @param when 'add': it waits for the state that tells of it; 'follow': it waits behind others alone
-- @param ended function(): its call has ended or was not to be had
local function run(self, event, when, ended)
    if self.waiting >= EVENTS_MAX then
        note_skipped(self, event.hook)
        return ended()
    end
    note_room(self)
    self.waiting = self.waiting + 1
    function event.enter()
        enter(self, event, function()
            self.waiting = self.waiting - 1
            ended()
            if event.worker_id then
                self.turns:ended(event.worker_id)
            end
        end)
    end
    self.commit[when](self.commit, function()
        if event.worker_id then
            self.turns:add(event.worker_id, event)
        else
            event.enter()
        end
    end)
end

-- An event that happens once: it outlives its master.
local function run_owed(self, event)
    if has(self, event.hook) then
        local number = owe(self, event)
        run(self, event, 'add', function()
            settle_owed(self, number)
        end)
    end
end

--- Runs a hook of no worker: onReady, onRestart, onUpgrade. Its failure is a log record.
function Hooks:run(hook, ...)
    run_owed(self, { hook = hook, arguments = { n = select('#', ...), ... } })
end

--- Runs one of the script's `every`, unless it waits still since the last time.
function Hooks:tick(index)
    if has(self, 'every') and not self.due[index] then
        self.due[index] = true
        run(self, { hook = 'every', arguments = { n = 1, index } }, 'follow', function()
            self.due[index] = nil
        end)
    end
end

--- Runs a hook about a worker: onWorkerReady, onWorkerExit.
-- @param told what it is given, nil: the worker as it is now
function Hooks:of_worker(worker, hook, told)
    if has(self, hook) then
        run_owed(self, { hook = hook, worker_id = worker.id, arguments = { n = 1, told or worker:describe() } })
    end
end

--- A message of a worker (see worker.lua), as it was written.
function Hooks:message(worker, text)
    if not has(self, 'onMessage') then
        return
    end
    local event = { hook = 'onMessage', worker_id = worker.id, arguments = { n = 2, worker:describe(), text } }
    function event.enter()
        enter(self, event, function()
            self.turns:ended(worker.id)
        end)
    end
    self.commit:follow(function()
        if self.turns:admits(worker.id, #text) then
            self.turns:add_message(worker.id, #text, event)
        end
    end)
end

--- Asks the script's judge whether the canary may go on. Without a judge it may; a judge that fails gives no consent.
-- @param new, old workers; old may be nil
-- @param done function(true) or function(false, why), later, once; at once without a judge
function Hooks:judge(new, old, done)
    if not self.script.newest.plan.hooks.judge then
        return done(true)
    end
    local function failed(err)
        done(false, err.message)
    end
    local arguments = { n = 2, new:describe(), old and old:describe() }
    local added = add(self, 'judge', failed, function(session, finish)
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
    if self.slow_logger == self.script.newest then
        return failed('it took too long before')
    end
    local function lost(err)
        if err.kind == 'budget' then
            self.slow_logger = self.script.newest
        end
        failed(err.message)
    end
    local added = lane(self, 'logger'):waiting() < RECORDS_MAX and add(self, 'logger', lost, function(session, finish)
        if self.slow_logger == self.script.newest then
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
        timer:start(2)
        local is_quiet = self.waiting == 0
        for _, place in pairs(self.lanes) do
            is_quiet = is_quiet and place:is_quiet()
        end
        if not is_quiet and self.platform.now() < until_ms then
            return
        end
        timer:close()
        done()
    end)
    timer:start(0)
end

local function keep_event(event)
    local list = {}
    for i = 1, event.arguments.n do
        list[i] = event.arguments[i]
    end
    return { hook = event.hook, worker_id = event.worker_id, arguments = list }
end

--- For another master: see keeper/estate.lua. The events whose calls have not ended.
function Hooks:keep(book)
    local events = {}
    for number = self.first_owed, self.last_owed do
        if #events < EVENTS_KEPT then
            events[#events + 1] = self.owed[number]
        end
    end
    return book:constants(events, 1, keep_event)
end

--- Calls what a former master has not called to the end.
function Hooks:resume(kept)
    for _, event in ipairs(kept) do
        event.arguments.n = #event.arguments
        run_owed(self, event)
    end
end

--- Ends the processes.
function Hooks:close()
    self.closed = true
    for _, place in pairs(self.lanes) do
        place:close()
    end
end

return Hooks
