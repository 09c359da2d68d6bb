--- launcher.lua: how a worker is made.
--
-- Every fork evaluates the script anew, in a state of its own, runs beforeFork there, and forks from the plan that came
-- out. The newest good evaluation is kept: its hooks are the ones that run between forks, and its plan serves on when a
-- later edit of the script is bad. Nobody else holds a session of the script.

local compare = require 'dutch-master.script.plan_diff'
local kinds = require 'dutch-master.launch.kinds'
local preload = require 'dutch-master.launch.node_preload'
local Worker = require 'dutch-master.cluster.worker'

local Launcher = {}
Launcher.__index = Launcher

-- The master is deaf while something of the script runs. When that took all its time the script is left alone for so
-- long: otherwise the forks of many slots, one after the other, would keep a stop waiting for minutes.
local REST_MS = 1000

--- @param options {platform, script (see script.lua), log, sockets, agenda, tickets, environ, cwd (where the master was
--   started, or nil), executable, preload (path of drain.cjs or nil), output (see log/output.lua, or nil)}
function Launcher.new(options)
    local self = setmetatable(options, Launcher)
    self.next_id = 1
    self.releases = {} -- generation -> {release = where its first fork ran, pinned, back_to = generation}
    return self
end

--- The log, as soon as there is one.
function Launcher:use_log(log)
    self.log = log
end

--- The book of what workers write (see log/output.lua).
function Launcher:use_output(output)
    self.output = output
end

function Launcher:use_sockets(sockets)
    self.sockets = sockets
end

-- Takes a good session over and lets go of the last one.
local function keep(self, session)
    if self.session and self.session ~= session then
        self.session:close()
    end
    self.session = session
    self.plan = session.plan
end

local function evaluate(self)
    local session, err = self.script:evaluate()
    if not session then
        return nil, err
    end
    local count, why = session:num_workers()
    if not count then
        session:close()
        return nil, why
    end
    return session, count
end

--- Evaluates the script and keeps the result if it is good.
-- @param done function({plan, num_workers}), or function(nil, err {message})
function Launcher:load(done)
    local session, count = evaluate(self)
    if not session then
        return done(nil, count)
    end
    keep(self, session)
    done({ plan = session.plan, num_workers = count })
end

--- Evaluates the script without keeping the result.
-- @param done function({changes}), or function(nil, err)
function Launcher:preview(done)
    local session, count = evaluate(self)
    if not session then
        return done(nil, count)
    end
    local plan = session.plan
    session:close()
    done({ changes = compare.plans(self.plan, plan) })
end

local function note_slow(self, err)
    if err.kind == 'budget' then
        self.rests_until = self.platform.now() + REST_MS
    end
end

local function rests(self)
    return self.rests_until and self.platform.now() < self.rests_until
end

--- Runs a hook of the script that nobody waits for. Its failure is a log record.
function Launcher:hook(name, ...)
    if not (self.session and self.plan.hooks[name]) then
        return
    end
    if rests(self) then
        return self.log:warn({ hook = name }, 'Hook skipped: the script took too long a moment ago')
    end
    local arguments, n = { ... }, select('#', ...)
    -- What it asks of the cluster would otherwise happen, and close its session, while it runs.
    self.agenda:hold(function()
        local ok, err = self.session:call(name, unpack(arguments, 1, n))
        if not ok then
            note_slow(self, err)
            self.log:error({ hook = name, traceback = err.traceback }, 'Hook failed: ' .. err.message)
        end
    end)
end

--- Lets go of the script.
function Launcher:close()
    if self.session then
        self.session:close()
        self.session = nil
    end
end

--- Asks the script's judge whether the canary may go on. Without a judge it may; a judge that fails says no.
-- @param new, old workers; old may be nil
-- @param done function(true), or function(false, why)
function Launcher:judge(new, old, done)
    if not self.plan.hooks.judge then
        return done(true)
    end
    local ok, verdict, why = self.session:call('judge', new:describe(), old and old:describe())
    if not ok then
        return done(false, verdict.message)
    end
    done(verdict ~= false, why and tostring(why) or 'judge said no')
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Releases: the directories that generations run in

--- Later forks of this generation run where its first one did, wherever the script would have them by now.
function Launcher:pin(generation)
    local known = self.releases[generation]
    if known then
        known.pinned = true
    end
end

--- Where a generation runs. @return its directory, or nil when that is gone or was never known
function Launcher:release_of(generation)
    local known = self.releases[generation]
    return known and known.release and self.platform.realpath(known.release) and known.release or nil
end

--- Makes `generation` a way back: it runs in the release of an earlier one.
function Launcher:lead_back(generation, to)
    self.releases[generation] = { release = self.releases[to].release, pinned = true, back_to = to }
end

--- Whether `generation` is that of a way back to the generation `to`.
function Launcher:leads_back(generation, to)
    local known = self.releases[generation]
    return known ~= nil and known.back_to == to
end

--- Forgets the releases of generations that nobody will ask for any more.
-- @param used set of generations
function Launcher:forget_releases(used)
    for generation in pairs(self.releases) do
        if not used[generation] then
            self.releases[generation] = nil
        end
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- One fork

-- A session for this fork: a new one, or the last good one when the script cannot be evaluated now.
local function session_for_fork(self)
    local session, err = self.script:evaluate()
    if session then
        return session
    end
    note_slow(self, err)
    self.log:error({ traceback = err.traceback }, 'Script is bad, the last good one serves on: ' .. err.message)
    return self.session
end

local function before_fork(self, session, info)
    if not session.plan.hooks.beforeFork then
        return true
    end
    local ok, verdict, reason = session:call('beforeFork', info)
    if not ok then
        note_slow(self, verdict)
        return nil, verdict.message, 'script'
    elseif verdict == false then
        return nil, 'beforeFork said no: ' .. tostring(reason or 'no reason given')
    end
    return true
end

-- Where this fork runs. With pinRelease, or pinned by an aborted restart, a generation stays in the directory that its
-- first fork was given, unless that is gone.
local function place(self, session, generation)
    local cwd = session.cwd or self.cwd
    local known = self.releases[generation]
    if known and (known.pinned or session.plan.pin_release) then
        if known.release and self.platform.realpath(known.release) then
            return known.release, known.release
        end
        self.log:warn({ generation = generation, release = known.release, directory = cwd },
            'The release of this generation is gone, its worker runs where the script says')
    end
    local release = cwd and self.platform.realpath(cwd) or cwd
    if not known then
        self.releases[generation] = { release = release }
    end
    return cwd, release
end

local function add_identity(fields, plan)
    fields.uid, fields.gid, fields.groups = plan.uid, plan.gid, plan.groups
    fields.umask, fields.limits, fields.nice, fields.cpus = plan.umask, plan.limits, plan.nice, plan.cpus
    fields.die_with_master = plan.die_with_master
end

-- Where its output goes. stderr is copied through the master, so that its end can be shown when it dies.
-- @return true, or nil, message
local function add_output(fields, worker)
    fields.capture_stderr = true
    local fd, message = worker:open_output()
    if message then
        return nil, 'workerOutput: ' .. message
    end
    fields.stdout, fields.stderr = fd or 1, fd or 2
    fields.capture_stdout = (worker.plan.keep_output or 0) > 0 or worker:writes_file()
    return true
end

-- Looked at for each fork: an upgrade may have taken it away, or the user may be another one now, and Node does not
-- start without a file it is to load.
local function preload_for(self, plan, path, lost)
    if plan.kind ~= 'node' or not path or not self.platform.access(path, 'r') then
        return nil
    end
    local other = plan.uid or plan.gid
    local account = { uid = plan.uid or self.platform.uid(), gid = plan.gid, groups = plan.groups }
    if other and not preload.readable_by(self.platform, path, account) then
        self.log:warn({ path = path, user = plan.user, group = plan.group },
            'The worker user cannot read the Node preload: ' .. lost)
        return nil
    end
    return path
end

local function fields_of(self, worker, session, env, cwd)
    local plan, kind = session.plan, worker.kind
    local context = {
        id = worker.id, slot = worker.slot, generation = worker.generation, cwd = cwd, environ = self.environ,
        environment = env, executable = self.executable, preload = plan.drain ~= false
            and preload_for(self, plan, self.preload, 'keep-alive draining is off') or nil,
        metrics_preload = plan.metrics and self.preload and preload_for(self, plan,
            self.preload:match '^(.*/)' .. 'metrics.cjs', 'metrics are off') or nil,
        master_pid = self.platform.pid(),
    }
    local fds
    if not kind.has_channel then
        local name, message = worker:open_notify()
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
    local fields, message = kind.spawn(plan, context)
    if not fields then
        return nil, message
    end
    fields.cwd, fields.fds = cwd, fds
    add_identity(fields, plan)
    return fields
end

local function fork(self, worker, session, env, cwd)
    local fields, why = fields_of(self, worker, session, env, cwd)
    if not fields then
        return nil, why
    end
    local ok, no_output = add_output(fields, worker)
    if not ok then
        return nil, no_output
    end
    local forked, failure, code = worker:spawn(fields)
    if not forked then
        return nil, ('%s: %s'):format(code or 'error', failure)
    end
    return worker
end

-- @return the worker, or nil, why
local function start(self, session, info, on)
    local env, err = session:environment(info)
    if not env then
        note_slow(self, err)
        return nil, err.message
    end
    local cwd, release = place(self, session, info.generation)
    local worker = Worker.new {
        id = info.id, slot = info.slot, generation = info.generation, release = release, on = on,
        plan = session.plan, kind = kinds.of(session.plan), platform = self.platform, agenda = self.agenda,
        log = self.log, sockets = self.sockets, tickets = self.tickets, output = self.output,
    }
    local forked, why = fork(self, worker, session, env, cwd)
    if not forked then
        worker:discard()
        self.sockets:drop(info.id)
        return nil, why
    end
    return worker
end

--- Makes a worker: evaluates the script, runs its hooks, forks.
-- @param options {slot, generation, on}: see worker.lua
-- @return the worker, or nil, why, 'script' when the script itself failed
function Launcher:launch(options)
    if rests(self) then
        local why = 'the script took too long a moment ago'
        self.log:error({ slot = options.slot, generation = options.generation }, 'Fork abandoned: ' .. why)
        return nil, why
    end
    local session = session_for_fork(self)
    local id = self.next_id
    self.next_id = id + 1
    local info = { id = id, slot = options.slot, generation = options.generation }
    local ok, why, where = before_fork(self, session, info)
    if not ok then
        if session ~= self.session then
            session:close()
        end
        self.log:error({ slot = options.slot, generation = options.generation }, 'Fork abandoned: ' .. why)
        return nil, why, where
    end
    keep(self, session)
    local worker, failure = start(self, session, info, options.on)
    if not worker then
        self.log:error({ slot = options.slot, generation = options.generation }, 'Fork failed: ' .. failure)
        return nil, failure
    end
    return worker
end

return Launcher
