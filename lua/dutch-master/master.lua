--- master.lua: the master, put together. run() reads as what happens from the first line of the script to the last
-- exit.
--
-- Error policy by phase: until the cluster starts any error ends the program, with nothing forked and nothing left
-- behind (exit 78 for the script, 71 for the system, 1 for a second master). Later a bad script is a log record and the
-- last good plan serves on. Nothing of the script can hold anything up: it has processes of its own.
-- Longer than 400 lines: the parts are put together in one place.

local Cluster = require 'dutch-master.cluster.cluster'
local claims = require 'dutch-master.control.claim'
local Commit = require 'dutch-master.keeper.commit'
local control = require 'dutch-master.control.server'
local conversation = require 'dutch-master.channel.conversation'
local hints = require 'dutch-master.script.hints'
local Host = require 'dutch-master.script.api'
local kinds = require 'dutch-master.launch.kinds'
local Lane = require 'dutch-master.script.lane'
local Launcher = require 'dutch-master.launch.launcher'
local Leftovers = require 'dutch-master.cluster.leftovers'
local log = require 'dutch-master.log.logger'
local machine = require 'dutch-master.machine'
local State = require 'dutch-master.keeper.estate'
local Output = require 'dutch-master.log.output'
local options = require 'dutch-master.script.options'
local orphans = require 'dutch-master.control.orphans'
local Recycle = require 'dutch-master.cluster.recycle'
local salvage = require 'dutch-master.keeper.salvage'
local Script = require 'dutch-master.script.session'
local snapshot = require 'dutch-master.cluster.snapshot'
local Sockets = require 'dutch-master.listen.sockets'
local sorted_keys = require 'dutch-master.sorted_keys'
local systemd = require 'dutch-master.control.systemd'
local text = require 'dutch-master.log.text'
local Upgrade = require 'dutch-master.keeper.upgrade'
local equal = require('dutch-master.script.values').equal

local M = {}

-- Bytes of a worker's stderr that are repeated when the boot has failed.
local LAST_WORDS = 2000

local EXIT_FAILED, EXIT_INTERNAL, EXIT_SYSTEM, EXIT_SCRIPT = 1, 70, 71, 78
-- A stop waits for no hook: those of the last workers, and the last records of the script's own logger, get this long.
local LAST_HOOKS_MS = 200

local Master = {}
Master.__index = Master

-- What a logger is made of, from the plan. A logger of the script's own is called in a process of the script.
local function logger_options(self, plan)
    local wish = plan.logger
    local fields = {
        platform = self.platform, name = wish.name, level = wish.level, target = wish.path, fields = wish.fields,
        format = wish.format, commit = self.writer and self.commit,
    }
    if wish.custom then
        function fields.target(level, of_record, message, failed)
            self.launcher.hooks:record(level, of_record, message, failed)
        end
    end
    return fields
end

--- The first evaluation. The loop runs meanwhile: a signal ends it.
function Master:evaluate()
    local ask = Host.new(self)
    self.script = Script.new { platform = self.platform, path = self.path }
    self.output = Output.new { platform = self.platform }
    self.launcher = Launcher.new {
        platform = self.platform, script = self.script, output = self.output, agenda = self.agenda, log = self.log,
        commit = self.commit, next_id = self.predecessor and salvage.next_id(self.predecessor),
        tickets = conversation.tickets(), environ = self.platform.environ(), cwd = self.platform.cwd(),
        executable = self.platform.image(), preload = self.platform.preload and self.platform.preload(),
        started = self.script_process,
        new_lane = function(most, started)
            return Lane.new { platform = self.platform, agenda = self.agenda, most = most, started = started,
                process = { script = self.path, ask = ask } }
        end,
    }
    self:listen_to_signals(self.former and self.former.state.restart_signal
        or options.by_name.restartSignal.default)
    local function evaluated(loaded, err)
        if self.closed then
            return
        end
        local code
        if loaded then
            self.loaded = loaded
            if self.predecessor then
                code = self:succeed()
            else
                code = self:start()
            end
        else
            code = self:refuse(err.kind == 'system' and EXIT_SYSTEM or EXIT_SCRIPT,
                table.concat(err.messages or { err.message }, '\ndutch-master: '))
        end
        if code then
            self.platform.stop(code)
        end
    end
    if self.former then
        return self.launcher:resume(self.former.state.launcher, evaluated)
    end
    self.launcher:load(evaluated)
end

--- One master for a script.
function Master:claim()
    self:listen_to_signals(self.launcher.plan.restart_signal)
    local claim, message, code
    if self.former then
        claim, message = claims.resume(self.former.state.claim, self.former, self.platform)
    else
        claim, message, code = claims.take {
            platform = self.platform, script = self.path, plan = self.launcher.plan,
        }
    end
    if not claim then
        return self:refuse(code == 'EAGAIN' and EXIT_FAILED or EXIT_SYSTEM, message)
    end
    self.claim_held = claim
end

function Master:open_log()
    local plan = self.launcher.plan
    self.platform.trust_owner_of(self.path)
    local logger, message = log.new(logger_options(self, plan))
    if not logger then
        return self:refuse(EXIT_SYSTEM, 'logger: ' .. message)
    end
    self.log = logger
    if self.former and self.former.state.log then
        self.log:resume(self.former.state.log)
    end
    self.launcher:use_log(self.log)
    local written, why = self.output:adopt(plan)
    if not written then
        return self:refuse(EXIT_SYSTEM, 'workerOutput: ' .. why)
    end
    for _, record in ipairs(self.early) do
        self.log:log(record[1], record[2], record[3])
    end
    self.early = {}
    self.platform.on_error(function(what, traceback)
        self.log:error({ what = what, traceback = traceback }, 'Internal error')
    end)
end

local serve

-- Ends what a master that was killed has left.
local function end_orphans(self, master, done)
    local plan = self.launcher.plan
    self.ending = orphans.stop {
        platform = self.platform, master = master, signal = plan.stop_signal or 'SIGTERM',
        timeout_ms = plan.stop_timeout_ms,
        done = function(killed)
            if not self.closed then
                self.log:info({ killed = killed > 0 and killed or nil }, 'The workers of the former master have ended')
                done()
            end
        end,
    }
end

-- Ends them, and serves then.
local function end_first(self, master)
    self.takes_over = false -- once
    end_orphans(self, master, function()
        local code = serve(self)
        if code then
            self.platform.stop(code)
        end
    end)
end

-- Their sockets are ours too: when our workers serve, they get no new connections, serve what waits for them, and go.
local function retire_lenders(self)
    local lenders = self.lenders
    if not lenders or lenders.retire or not (self.cluster and self.cluster.ready) then
        return
    end
    lenders.retire = true
    self.sockets:await_lenders(function()
        end_orphans(self, lenders.master, function()
            self.lenders = nil
            self.sockets:own()
            self.platform.touch()
        end)
    end, self.launcher.plan.stop_timeout_ms)
end

-- Says who is left of a master that was killed; with --take-over borrows their sockets, or ends them.
-- @return whether they are being ended, and it goes on then
local function meet_orphans(self, master)
    local left = orphans.find(self.platform, master)
    local fields = { master = master, processes = orphans.names(left) }
    local borrowed, why
    if left[1] and self.takes_over then
        borrowed, why = orphans.sockets(self.platform, left)
    end
    orphans.forget(self.platform, left)
    if not left[1] then
        return false
    end
    self.left = left
    if not self.takes_over then
        self.log:warn(fields, 'Workers of a former master, which died, still run')
    elseif borrowed then
        self.log:warn(fields, 'Workers of a former master, which died, serve on until those of this one are ready')
        self.borrowed, self.lenders = borrowed, { master = master }
    else
        fields.reason = why
        self.log:warn(fields, 'Ending the workers of a former master, which died')
        end_first(self, master)
        return true
    end
    return false
end

-- An address of the plan is another's.
-- @return whether it may be had later; or false, the message with what can be done
local function in_use(self, message)
    local holder = not self.left and tonumber(message:match 'held by process (%d+)')
    local master = holder and orphans.master_of(self.platform, holder)
    if master or self.lenders then
        self.sockets:close()
        self.sockets = nil
        if self.lenders then -- what they have is not to be had that way
            master, self.lenders = self.lenders.master, nil
            end_first(self, master)
            return true
        elseif meet_orphans(self, master) then
            return true
        end
    end
    if self.left then
        message = message .. ('. A former master died, and its workers still run: %s. Start with --take-over to end'
            .. ' them gracefully first'):format(table.concat(orphans.names(self.left), ', '))
    end
    return false, message
end

-- Sockets that a service manager passed; one that makes no sense stops a start, as it does for libsystemd.
-- @return the list, or an exit code
function Master:find_inherited()
    local inherited, why = self.platform.inherited()
    if not inherited then
        return self:refuse(EXIT_SYSTEM, 'LISTEN_FDS: ' .. why)
    end
    self.inherited = inherited
    return inherited
end

-- What listeners ask of the cluster. There is none yet while the state of a former master is taken over.
local function ask_cluster(self, method)
    return function(...)
        return self.cluster and self.cluster[method](self.cluster, ...)
    end
end

function Master:bind()
    local plan = self.launcher.plan
    local inherited = self.inherited or self:find_inherited()
    if type(inherited) ~= 'table' then
        return inherited
    end
    self.sockets = Sockets.new {
        inherited = inherited, borrowed = self.borrowed,
        platform = self.platform, log = self.log, balance = plan.balance, backlog = plan.backlog,
        stall_timeout_ms = plan.stall_timeout_ms,
        want = self.loaded.num_workers, lost_after_ms = plan.stop_timeout_ms,
        takes = ask_cluster(self, 'takes'), rescue = ask_cluster(self, 'rescue'), idle = ask_cluster(self, 'is_asleep'),
        worker_of = ask_cluster(self, 'worker_of'), holds = ask_cluster(self, 'holds'),
        fate = ask_cluster(self, 'fate'),
        deserted = ask_cluster(self, 'deserted'), spoilt = ask_cluster(self, 'spoilt'),
        stalled = ask_cluster(self, 'stalled'), awaits_workers = ask_cluster(self, 'awaits_workers'),
    }
    self.borrowed = nil
    self.launcher:use_sockets(self.sockets)
    local ok, message, errno
    if self.former then
        ok, message = self.sockets:resume(self.former.state.sockets, self.former)
    else
        ok, message, errno = self.sockets:open(plan.listen)
    end
    if not ok then
        if errno == 'EADDRINUSE' then
            local later, more = in_use(self, message)
            if later then
                return false
            elseif self.borrowed then
                return self:bind()
            end
            message = more
        end
        -- EINVAL: it is no address at all, in a way that the plan's own check could not see.
        return self:refuse(errno == 'EINVAL' and EXIT_SCRIPT or EXIT_SYSTEM, 'listen: ' .. message)
    end
end

function Master:write_pid_file()
    local path = self.launcher.plan.pid_file
    if path then
        local file, message = self.platform.pid_file(path)
        if not file then
            return self:refuse(EXIT_SYSTEM, 'pidFile: ' .. message)
        end
        self.pid_file, self.pid_path = file, path
    end
end

-- Made again, when somebody has removed it.
function Master:keep_pid_file()
    local file = self.pid_file and not self.platform.stat(self.pid_path) and self.platform.pid_file(self.pid_path)
    if file then
        self.pid_file:close()
        self.pid_file = file
    end
end

function Master:assemble()
    self.leftovers = Leftovers.new { platform = self.platform, log = self.log,
        lives = function(worker_id)
            return self.cluster:find(worker_id) ~= nil
        end,
        plan = function()
            return self.launcher.plan
        end }
    self.cluster = Cluster.new {
        platform = self.platform, agenda = self.agenda, log = self.log, launcher = self.launcher, script = self.path,
        sockets = self.sockets, leftovers = self.leftovers,
        on_adopt = function(plan)
            self:adopt(plan)
        end,
        on_exit = function(code)
            self:announce()
            self.commit:add(function() -- who dies from here on leaves nothing to say
                self.launcher.hooks:settle(LAST_HOOKS_MS, function()
                    self:leave(code)
                end)
            end)
        end,
    }
    self.recycle = Recycle.new { platform = self.platform, log = self.log, cluster = self.cluster }
    self.systemd = systemd.new { platform = self.platform, log = self.log }
    self.control = control.new { platform = self.platform, cluster = self.cluster, log = self.log,
        output = self.output, claim = self.claim_held, is_kept = self.writer ~= nil, commit = self.commit,
        upgrade = self.upgrade,
        also = function()
            self:keep_pid_file()
        end }
    local ok, message = self.control:open(self.former and self.former.state.control, self.former)
    if not ok then
        return self:refuse(EXIT_SYSTEM, 'control socket: ' .. message)
    end
end

-- signal -> what it does. restartSignal is added to these.
local SIGNALS = {
    SIGTERM = 'stop', SIGINT = 'stop', SIGQUIT = 'stop', SIGHUP = 'restart', SIGUSR1 = 'reopen',
    SIGTTIN = 'more', SIGTTOU = 'fewer',
}

local function on_signal(self, action, name, pid, uid, at)
    if not self.cluster then -- the script is still being evaluated: nothing was done that must be undone
        if action == 'stop' then
            self:close()
            self.platform.stop(0)
        end
        return
    end
    -- From 0 come those of the kernel itself, such as ^C on a terminal.
    local request = { cause = 'signal', signal = name, who = pid > 0 and self.platform.who(pid, uid) or nil, at = at }
    local cluster = self.cluster
    if action == 'stop' then
        cluster:stop(request)
    elseif action == 'restart' then
        cluster:restart(request)
    elseif action == 'reopen' then
        self:reopen_log()
    else
        local ok, message = cluster:scale(cluster.wanted + (action == 'more' and 1 or -1), request)
        if not ok then
            self.log:warn({ signal = name, by = request.who }, 'Not scaled: ' .. message)
        end
    end
end

function Master:listen_to_signals(restart_signal)
    if self.restart_signal == restart_signal then
        return
    end
    self.restart_signal = restart_signal
    local actions = { [restart_signal] = 'restart' }
    for name, action in pairs(SIGNALS) do
        actions[name] = action
    end
    self.platform.signals(sorted_keys(actions), function(name, pid, uid, at)
        on_signal(self, actions[name], name, pid, uid, at)
    end)
end

function Master:reopen_log()
    local ok, message = self.log:reopen()
    local count, failed = self.cluster:reopen_output()
    local reopened, why = self.output:reopen()
    failed = failed or not reopened and why or nil
    if ok then
        self.log:info({ workers = count > 0 and count or nil }, 'Log reopened')
    else
        self.log:error('Log could not be reopened, the old file stays: ' .. message)
    end
    if failed then
        self.log:error('workerOutput could not be reopened, the old file stays: ' .. failed)
    end
end

-- The script's `every`: fn runs again and again, each time from the newest good evaluation.
function Master:start_timers(entries)
    for _, timer in ipairs(self.timers) do
        timer:close()
    end
    self.timers = {}
    for index, entry in ipairs(entries or {}) do
        local timer
        timer = self.platform.timer(function()
            timer:start(entry.interval_ms)
            self.launcher.hooks:tick(index)
        end)
        timer:start(entry.interval_ms)
        self.timers[index] = timer
    end
end

--- Takes over what of a new plan concerns the master itself. The cluster calls this on a restart and a reload.
function Master:adopt(plan)
    self:listen_to_signals(plan.restart_signal)
    self:start_timers(plan.hooks.every)
    self.recycle:adopt(plan)
    local written, why = self.output:adopt(plan)
    if not written then
        self.log:error('workerOutput could not be opened, the old file stays: ' .. why)
    end
    local before = self.logger_plan
    if before and not before.custom and not plan.logger.custom and equal(before, plan.logger) then
        return
    end
    if before then
        local ok, message = self.log:reconfigure(logger_options(self, plan))
        if not ok then
            return self.log:error('Logger of the script could not be opened, the old one stays: ' .. message)
        end
    end
    self.logger_plan = plan.logger
end

--- An error before the cluster started: says it, undoes what was done. @return the exit code
function Master:refuse(code, message)
    message = hints.add(message)
    self.platform.write_stderr('dutch-master: ' .. message .. '\n')
    systemd.say(self.platform, message)
    if self.predecessor then
        -- What it was to take over is as it was, and the keeper tries another one.
        self.platform.give_up(code)
    end
    self:close()
    return code
end

--- Why the cluster ended by itself, with the last words of the workers: their stderr may have gone elsewhere.
function Master:say_failure()
    local failure = self.cluster.failure
    if not failure then
        return
    end
    local lines = { 'dutch-master: ' .. text.printable(failure) }
    local reports = { unpack(self.cluster.reports) }
    reports[#reports + 1] = self.cluster.failed_report -- by which the boot has failed: first
    for i = #reports, 1, -1 do
        local report = reports[i]
        if report.stderr and report.stderr:find '%S' then
            lines[#lines + 1] = ('the last words of worker %d (pid %d):'):format(report.worker, report.pid)
            for line in report.stderr:sub(-LAST_WORDS):gmatch '[^\n]+' do
                lines[#lines + 1] = text.printable(line, true)
            end
            break
        end
    end
    self.platform.write_stderr(table.concat(lines, '\n') .. '\n')
end

--- All is over.
function Master:leave(code)
    self.platform.kill_adopted() -- what workers left in sessions of their own
    self:say_failure()
    self:close()
    self.platform.stop(code)
end

--- Lets go of everything, in reverse order.
function Master:close()
    self.closed = true
    self.commit:alone()
    for _, timer in ipairs(self.timers) do
        timer:close()
    end
    for _, name in ipairs { 'ending', 'upgrade', 'systemd', 'leftovers', 'recycle', 'control', 'pid_file',
        'sockets' } do
        if self[name] then
            self[name]:close()
            self[name] = nil
        end
    end
    if self.claim_held then
        self.claim_held:release()
        self.claim_held = nil
    end
    if self.launcher then
        self.launcher:close()
    end
    if self.output then
        self.output:close()
    end
    if self.log then
        self.log:close()
    end
end

--- Tells the service manager what has changed, once for all that an event has brought about.
function Master:announce()
    retire_lenders(self)
    if self.systemd and self.systemd.active then
        self.systemd:on_state(snapshot.summary(self.cluster))
    end
end

-- An error of our own. Before the cluster has started nothing could go on behind it.
function Master:internal(fields, message)
    if self.cluster then
        self.log:error(fields, message)
        if self.predecessor then -- what it was to take over is as it was, and the keeper tries another one
            self.log:flush()
            self.platform.give_up(EXIT_INTERNAL)
        end
        return
    end
    self.platform.write_stderr(('dutch-master: %s: %s\n'):format(message, fields.traceback or fields.event))
    self.platform.stop(EXIT_INTERNAL)
end

local function new_agenda(self)
    return machine.agenda {
        timer = self.platform.timer,
        on_error = function(message)
            self:internal({ traceback = message }, 'Internal error')
        end,
        on_bug = function(object, event)
            self:internal({ machine = object.machine.name, state = object.state, event = event },
                'Internal error: an event that cannot come in this state')
        end,
        on_settled = function()
            self:announce()
        end,
        on_touched = self.writer and self.platform.touch,
    }
end

-- The place is ours.
function serve(self)
    local code = self:bind()
    if code == false then
        return nil
    end
    code = code or self:write_pid_file() or self:assemble()
    if code then
        return code
    end
    self:adopt(self.launcher.plan)
    self.cluster:start(self.loaded.num_workers)
end

--- What follows when the script is there. @return an exit code if it could not start, or nil
function Master:start()
    local former = orphans.predecessor(self.platform, self.path)
    local code = self:claim() or self:open_log()
    if code then
        return code
    end
    if former and meet_orphans(self, former) then
        return nil
    end
    return serve(self)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Under a keeper

-- What another master goes on from, as soon as there is a cluster.
local function collect(self, book)
    if not (self.cluster and self.cluster.state) or self.closed then
        return nil
    end
    return {
        script = self.path, restart_signal = self.restart_signal, store = Host.keep(self, book),
        claim = self.claim_held:keep(book),
        launcher = self.launcher:keep(book), sockets = self.sockets:keep(book), cluster = self.cluster:keep(book),
        control = self.control:keep(book), upgrade = self.upgrade:keep(), log = self.log:keep(),
        lenders = self.lenders and self.lenders.master,
    }
end

-- @return an exit code if what a former master has left cannot be read
local function be_kept(self, kept)
    self.writer = State.writer {
        platform = self.platform, checks = self.platform.checks_state(),
        log = function()
            return self.log
        end,
        collect = function(book)
            return collect(self, book)
        end,
    }
    self.upgrade = Upgrade.new {
        platform = self.platform, version = self.platform.version, image = self.platform.executable(),
        log = function()
            return self.log
        end,
        write = function()
            return self.writer:write()
        end,
        commit = self.commit,
        on_verdict = function(verdict)
            self.launcher.hooks:run('onUpgrade', verdict)
        end,
    }
    local ends_with_it = false
    local on = {}
    function on.write()
        local _, _, code = self.writer:write()
        if code ~= 'EAGAIN' then -- else this is called again soon
            self.commit:written()
        end
    end
    function on.lost()
        self.upgrade:keeper_lost()
        if self.sockets then
            self.sockets:keep_again()
        end
        if self.cluster and self.platform.environ().NOTIFY_SOCKET then
            -- To it the service has ended, and is started again: nothing of this one may be in the way.
            ends_with_it = true
            self.log:error({ keeper = kept.keeper }, 'The keeper has died, which the service manager takes for the end:'
                .. ' stopping')
            self.cluster:stop { cause = 'keeper' }
        elseif self.log and self.writer:again() then
            self.log:warn({ keeper = kept.keeper }, 'The keeper has died: the master takes its place, and another one'
                .. ' goes on')
            self.commit:written()
            self.platform.renew()
        end
    end
    function on.alone(why)
        self.commit:alone()
        if self.control then
            self.control:alone()
        end
        if self.log and not ends_with_it then
            self.log:error({ keeper = kept.keeper, reason = why }, 'The keeper has died: the master serves on, and'
                .. ' nobody will take over from it')
        end
    end
    self.platform.on_keep(on)
    if kept.state then
        local former, message = State.read(kept, self.platform)
        if former and kept.set_aside then
            former, message = nil, 'several masters could not go on from it'
        elseif not former and kept.upgrade and not kept.upgrade.failed then -- the former program can
            self.platform.write_stderr('dutch-master: the state of the former master cannot be read: ' .. message
                .. '\n')
            self.platform.give_up(EXIT_INTERNAL)
        end
        self.former, self.predecessor, self.unusable = former, kept, not former and message or nil
        self.writer:know(kept.store)
    end
end

-- The state that a former master has left cannot be used: one is made of what is there without it.
-- @return an exit code, or nil
local function make_state(self)
    local inherited = self:find_inherited()
    if type(inherited) ~= 'table' then
        return inherited
    end
    local paths, message = claims.paths_for(self.path, self.launcher.plan, self.platform)
    if not paths then
        return self:refuse(EXIT_SYSTEM, message)
    end
    self.former = State.former(salvage.state(self.predecessor, { platform = self.platform, loaded = self.loaded,
        kind = kinds.of(self.launcher.plan), paths = paths, inherited = inherited,
        reason = 'the state of the former master could not be used' }), self.predecessor, self.platform)
end

-- For whoever finds out why. It holds secrets.
local function set_aside(self)
    local path = (salvage.lock_path(self.predecessor, self.platform) or '/tmp/dutch-master'):gsub('%.lock$', '')
        .. '.state'
    local saved, message = self.platform.save(path, self.predecessor.state)
    self.log:error({ reason = self.unusable, file = saved and path or nil, lost = message,
        hint = 'The workers serve on, and each is replaced. What dutch.store held and the history of exits are lost. A'
            .. ' report of this should come with the file; it holds secrets (keys of TLS sessions)' },
        'The state of the former master cannot be used, it was set aside')
end

-- Of the forks that were under way: each worker that has none of its own yet is forked again.
local function say_unfinished(self, workers, ended)
    local pids = {}
    for _, stranger in ipairs(ended) do
        pids[stranger.id] = stranger.pid
    end
    for _, worker in ipairs(workers) do
        if not worker.pid then
            pids[worker.id] = pids[worker.id] or false
        end
    end
    for id, pid in pairs(pids) do
        self.log:warn({ workerPid = pid or nil, workerId = id },
            'Ended: it was in the middle of its fork when the former master died')
    end
end

-- Goes on where a former master died. @return as start
local function go_on(self)
    local former, state = self.former, self.former.state
    local code = self:claim() or self:open_log()
    if not code and self.unusable then
        set_aside(self)
    end
    code = code or self:bind() or self:write_pid_file() or self:assemble()
    if code then
        return code
    end
    self:adopt(self.launcher.plan)
    Host.resume(self, state.store)
    self.launcher.hooks:resume(state.launcher.hooks or {})
    local workers = self.cluster:resume(state.cluster, former)
    self.former = nil
    former:close_rest()
    local known, without = {}, {}
    for _, worker in ipairs(state.cluster.workers) do
        if worker.pid then
            known[worker.pid] = true
        else
            without[worker.id] = true
        end
    end
    local ended = former:end_strangers(known, function(id)
        return without[id] or id >= state.launcher.next_id
    end)
    say_unfinished(self, state.cluster.workers, ended)
    self.platform.supervises()
    local before = self.predecessor
    self.predecessor = nil
    local how = before.upgrade
    if how then
        self.log:info({ workers = workers, version = self.platform.version, master = self.platform.master_pid() },
            how.failed and 'The former program has taken over again' or 'The new program has taken over')
    elseif before.renewed then
        self.log:info({ workers = workers, keeper = before.keeper, master = self.platform.master_pid() },
            'The former master has become the keeper, this one has taken over')
    else
        self.log:warn({ workers = workers, signal = before.signal, code = before.code, deaths = before.deaths,
            reason = self.cluster:note_lost_master(before) and 'memory ran out' or nil,
            master = self.platform.master_pid() }, 'The former master died, this one has taken over')
    end
    if state.lenders then
        end_orphans(self, state.lenders, function() end)
    end
    self.upgrade:resume(state.upgrade or {}, how)
    self:announce() -- of what the former one has said, nobody knows how much arrived
    self.platform.touch()
end

--- Takes over from a former master. If that fails, all of it is as it was, and the keeper tries another one.
-- @return as start
function Master:succeed()
    local ok, code = xpcall(function()
        return not self.former and make_state(self) or go_on(self)
    end, debug.traceback)
    if not ok then
        if self.log then
            self.log:flush()
        end
        self.platform.write_stderr('dutch-master: what the former master left could not be taken over: ' .. code
            .. '\n')
        self.platform.give_up(EXIT_INTERNAL)
    end
    return code
end

--- Runs a master: the loop runs, and platform.stop(code) ends it.
-- @param given {script = absolute path, takes_over = ends the workers that a former master has left,
--   script_process = one that was started for it (Process.start) or nil, platform = of the outside world or nil}
function M.run(given)
    local self = setmetatable({ path = given.script, takes_over = given.takes_over,
        script_process = given.script_process,
        platform = given.platform or require 'dutch-master.platform', timers = {} }, Master)
    local kept = self.platform.kept()
    self.commit = Commit.new { touch = kept and self.platform.touch, on_error = function(traceback)
        self:internal({ traceback = traceback }, 'Internal error')
    end }
    if kept then
        be_kept(self, kept)
    end
    self.agenda = new_agenda(self)
    self:evaluate()
end

return M
