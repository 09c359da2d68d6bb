--- launcher.lua: how a worker is made.
--
-- Every fork evaluates the script anew, in a process of the script (script/lane.lua), runs beforeFork there, and forks
-- from the plan that came out. The newest good evaluation is kept: its plan serves on when a later edit of the script
-- is bad, and its text is what hooks are called from (hooks.lua). Nothing here waits: a worker is `preparing` until
-- the answers have come, and may be told to stop meanwhile.

local compare = require 'dutch-master.script.plan_diff'
local Hooks = require 'dutch-master.launch.hooks'
local kinds = require 'dutch-master.launch.kinds'
local preload = require 'dutch-master.launch.node_preload'
local Releases = require 'dutch-master.launch.releases'
local rights = require 'dutch-master.script.rights'
local Worker = require 'dutch-master.cluster.worker'

local Launcher = {}
Launcher.__index = Launcher

-- Processes that prepare forks at the same time, when beforeFork is slow. Each costs 3 MiB while it lives.
local FORKS_AT_ONCE = 8

local INTERNAL = 'an internal error'

--- @param options {platform, script (see session.lua), new_lane = function(most, started) -> Lane, started = by
--   script/process.lua or nil, log, sockets, agenda,
--   tickets, environ, cwd (where the master was started, or nil), executable, preload (path of drain.cjs or nil),
--   output (see log/output.lua, or nil), commit (see keeper/commit.lua, or nil), next_id (of the first worker, or nil)}
function Launcher.new(options)
    local self = setmetatable(options, Launcher)
    self.next_id = options.next_id or 1
    self.loads = {} -- who waits for the next evaluation
    self.missed = {} -- what goes without its preload, as was logged
    self.lane = self.new_lane(FORKS_AT_ONCE, options.started)
    self.releases = Releases.new { platform = self.platform }
    self.hooks = Hooks.new { platform = self.platform, log = self.log, script = self.script,
        new_lane = self.new_lane, commit = self.commit }
    return self
end

--- The log, as soon as there is one.
function Launcher:use_log(log)
    self.log = log
    self.hooks:use_log(log)
end

function Launcher:use_sockets(sockets)
    self.sockets = sockets
end

-- A good session: it is what serves from now on.
local function keep(self, session)
    session:keep()
    self.plan = self.script.newest.plan
end

-- What an evaluation is asked for with.
local function numbered(self, options)
    self.evaluations = (self.evaluations or 0) + 1
    options.number = options.number or self.evaluations
    options.budget_ms = self.plan and self.plan.hook_timeout_ms
    return options
end

-- Evaluates the script and asks for the number of workers. done(session, count) or done(nil, err), with the process
-- still at hand.
local function evaluate_whole(self, done)
    local added = self.lane:add {
        start = function(process)
            -- Of a former master's, once: what it asked for was heard then.
            local source = self.source
            self.source = nil
            self.script:load(process, numbered(self, { source = source, repeated = source ~= nil }), function(...)
                done(...)
                self.lane:give_back(process)
            end)
        end,
        failed = function(err)
            done(nil, self.script:failure(err))
        end,
    }
    if not added then
        done(nil, self.script:failure { kind = 'system', message = 'too many forks wait for it' })
    end
end

-- One evaluation for all who ask for one at this moment. Who asks while it is under way may mean a later text.
local function load_for_all(self)
    local waiting = self.loads
    self.loads = {}
    evaluate_whole(self, function(session, count)
        if session then
            keep(self, session)
        end
        self.is_loading = self.loads[1] ~= nil
        if self.is_loading then
            load_for_all(self)
        end
        for _, done in ipairs(waiting) do
            if session then
                done { plan = session.plan, num_workers = count }
            else
                done(nil, count)
            end
        end
    end)
end

--- Evaluates the script and keeps the result if it is good. Loads end in the order in which they were asked for; those
-- that wait for another one to end share one evaluation.
-- @param done function({plan, num_workers}) or function(nil, err {message}), later, once
function Launcher:load(done)
    table.insert(self.loads, done)
    if not self.is_loading then
        self.is_loading = true
        load_for_all(self)
    end
end

--- Evaluates the script without keeping the result.
-- @param done function({changes}) or function(nil, err), later, once
function Launcher:preview(done)
    evaluate_whole(self, function(session, count)
        if not session then
            return done(nil, count)
        end
        done { changes = compare.plans(self.plan, session.plan) }
    end)
end

--- Lets go of the script.
function Launcher:close()
    self.lane:close()
    self.hooks:close()
end

-- ---------------------------------------------------------------------------------------------------------------------
-- One fork

-- Looked at for each fork: an upgrade may have taken it away, or the user may be another one now, and Node does not
-- start without a file it is to load.
local function preload_for(self, plan, path, lost)
    if plan.kind ~= 'node' then
        return nil
    elseif not path or not self.platform.access(path, 'r') then
        if not self.missed[lost] then
            self.log:warn({ path = path }, preload.MISSING .. lost)
        end
        self.missed[lost] = true
        return nil
    end
    self.missed[lost] = nil
    local other = plan.uid or plan.gid
    local account = { uid = plan.uid or self.platform.uid(), gid = plan.gid, groups = plan.groups }
    if other and not preload.readable_by(self.platform, path, account) then
        self.log:warn({ path = path, user = plan.user, group = plan.group },
            'The worker user cannot read the Node preload: ' .. lost)
        return nil
    end
    return path
end

-- @return what the fork needs, its kind; or nil, message
local function fields_of(self, worker, plan, env, cwd)
    local context = {
        id = worker.id, slot = worker.slot, generation = worker.generation, cwd = cwd, environ = self.environ,
        environment = env, executable = self.executable, preload = plan.drain ~= false
            and preload_for(self, plan, self.preload, 'keep-alive draining is off') or nil,
        metrics_preload = plan.metrics and preload_for(self, plan,
            self.preload and self.preload:match '^(.*/)' .. 'metrics.cjs', 'metrics are off') or nil,
        master_pid = self.platform.pid(), account = plan.account,
    }
    local kind, fds = kinds.of(plan), nil
    if not kind.has_channel then
        local name, message = worker:open_notify(plan.uid)
        if not name then
            return nil, 'notify socket: ' .. message
        end
        context.notify_name = name
        fds, context.listen = self.sockets:take(worker.id, worker.generation, plan.non_blocking)
        if not fds then
            return nil, context.listen
        end
    elseif plan.listen_fds then
        fds, context.passed = self.sockets:passed_on()
    end
    local fields = kind.spawn(plan, context)
    fields.cwd, fields.fds = cwd, fds
    for name, value in pairs(rights.fields(plan)) do
        fields[name] = value
    end
    return fields, kind
end

-- @return true, or nil, message, and 'system' if it would be the same at the next try
local function fork(self, worker, session, env)
    local plan = session.plan
    local cwd, release = self.releases:place(worker.generation, session.cwd or self.cwd, plan.pin_release, self.log)
    local fields, kind = fields_of(self, worker, plan, env, cwd)
    if not fields then
        return nil, kind
    end
    return worker:spawn({ plan = plan, kind = kind, release = release }, fields)
end

-- The fork itself, when all is known that it needs. An action of the worker: it may have been told to stop.
local function make(self, worker, session, env)
    local ran, forked, why, fault = xpcall(fork, debug.traceback, self, worker, session, env)
    if ran and forked then
        return true
    end
    local traceback = not ran and forked or nil
    worker:discard()
    self.sockets:drop(worker.id)
    worker.log:error({ slot = worker.slot, traceback = traceback }, 'Fork failed: ' .. (traceback and INTERNAL or why))
    return nil, traceback and INTERNAL or why, fault
end

-- What is done with one process for one worker, in this order. finish() gives the process back; guarded(fn) is fn for
-- whoever answers: its errors abandon the fork.
-- good_one: the session whose text is to be used, or nil: that of the script as it is now
local prepare
function prepare(self, worker, good_one, process, finish, guarded)
    local info = { id = worker.id, slot = worker.slot, generation = worker.generation }

    local function abandon(why, fault, how)
        finish()
        if not worker.finished then
            worker.log:error({ slot = worker.slot }, (how or 'Fork abandoned: ') .. why)
        end
        self.agenda:post(worker, 'unprepared', why, fault)
    end

    local function ready(session, env)
        finish()
        self.agenda:post(worker, 'prepared', function()
            return make(self, worker, session, env)
        end)
    end

    local function ask_environment(session)
        keep(self, session)
        if not session.plan.hooks.workerEnvironment then
            return ready(session, session.plan.environment)
        end
        session:environment(info, guarded(function(env, err)
            if not env then
                return abandon(err.message, 'script', 'Fork failed: ')
            end
            ready(session, env)
        end))
    end

    local function ask_before_fork(session)
        if not session.plan.hooks.beforeFork then
            return ask_environment(session)
        end
        session:call('beforeFork', { info }, guarded(function(ok, verdict, reason)
            if not ok then
                return abandon(verdict.message, 'script')
            elseif verdict == false then
                return abandon('beforeFork said no: ' .. tostring(reason or 'no reason given'))
            end
            ask_environment(session)
        end))
    end

    local function use_text(good)
        local options = numbered(self, { source = good.source, repeated = true, number = good.number })
        self.script:evaluate(process, options, guarded(function(session, why)
            if not session then
                return abandon(why.message)
            end
            ask_before_fork(session)
        end))
    end

    -- The script is bad now. The last good one serves on: as this process has it, or from its text.
    local function use_last_good(err)
        self.log:error({ traceback = err.traceback },
            'Script is bad, the last good one stays in force: ' .. err.message)
        if process.reported then
            finish()
            return self:queue(worker, function(...)
                prepare(self, worker, self.script.newest, ...)
            end)
        elseif process.kept == self.script.newest then
            return ask_before_fork(self.script.newest)
        end
        use_text(self.script.newest)
    end

    if good_one then
        return use_text(good_one)
    end
    self.script:evaluate(process, numbered(self, { worker = info }), guarded(function(session, err)
        if worker.finished and not (session and session.ahead) then -- else its process is at a hook, and is waited for
            return finish()
        elseif not session then
            return use_last_good(err)
        end
        ask_before_fork(session)
    end))
end

--- Makes a worker: evaluates the script, runs its hooks, forks. It is `preparing` until then.
-- @param options {slot, generation, on}: see worker.lua
-- @return the worker
function Launcher:launch(options)
    local id = self.next_id
    self.next_id = id + 1
    local worker = Worker.new {
        id = id, slot = options.slot, generation = options.generation, on = options.on, platform = self.platform,
        agenda = self.agenda, log = self.log, sockets = self.sockets, tickets = self.tickets, output = self.output,
    }
    self:queue(worker, function(...)
        prepare(self, worker, nil, ...)
    end)
    return worker
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Over the death of a master

--- For another master: see keeper/estate.lua.
function Launcher:keep(book)
    return book:object { next_id = self.next_id, source = self.script.newest.source, plan = book:share(self.plan),
        evaluations = self.evaluations, releases = self.releases:keep(), tickets = self.tickets:keep(),
        hooks = self.hooks:keep(book) }
end

--- Evaluates the script as a former master had it last: that was good.
-- @param done as of load, later, once
function Launcher:resume(kept, done)
    self.next_id, self.evaluations = kept.next_id, kept.evaluations
    self.releases:resume(kept.releases)
    self.tickets:resume(kept.tickets)
    self.source = kept.source
    self:load(done)
end

--- A worker of a former master.
-- @return the worker, whether its channel can go on; or nil: it could not be taken over
function Launcher:take_over(kept, on, former)
    local plan = former:shared(kept.plan)
    return Worker.resume({
        on = on, platform = self.platform, agenda = self.agenda, log = self.log, sockets = self.sockets,
        tickets = self.tickets, output = self.output,
    }, { plan = plan, kind = kinds.of(plan) }, kept, former)
end

--- Gets a process for this worker. fn(process, finish, guarded) is called later, if it still wants one: see prepare.
function Launcher:queue(worker, fn)
    local function failed(err, why, traceback)
        why = why or self.script:failure(err).message
        worker.log:error({ slot = worker.slot, traceback = traceback }, 'Fork abandoned: ' .. why)
        self.agenda:post(worker, 'unprepared', why)
    end
    local added = self.lane:add {
        start = function(process)
            local returned = false
            local function finish()
                if not returned then
                    returned = true
                    self.lane:give_back(process)
                end
            end
            if worker.finished then
                return finish()
            end
            local function guarded(step)
                return function(...)
                    local ran, traceback = xpcall(step, debug.traceback, ...)
                    if not ran then
                        finish()
                        failed(nil, INTERNAL, traceback)
                    end
                end
            end
            guarded(fn)(process, finish, guarded)
        end,
        failed = failed,
    }
    if not added then
        failed { kind = 'system', message = 'cannot be asked: too many forks wait for it' }
    end
end

return Launcher
