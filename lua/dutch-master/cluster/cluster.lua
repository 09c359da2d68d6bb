--- cluster.lua: all slots, and what the user may ask of them: restart, scale, stop.
--
-- The cluster is declarative. Wanted is a number of slots and a generation; a restart raises the generation, scaling
-- changes the number, and the slots find the shortest way from what is to what is wanted. Stop beats everything.
-- Longer than 400 lines: one object, its table, and what others may ask of it.

local compare = require 'dutch-master.script.plan_diff'
local exit_report = require 'dutch-master.cluster.exit_report'
local listening = require 'dutch-master.cluster.listening'
local machine = require 'dutch-master.machine'
local Restart = require 'dutch-master.cluster.restart'
local Slot = require 'dutch-master.cluster.slot'
local snapshot = require 'dutch-master.cluster.snapshot'
local Totals = require 'dutch-master.cluster.totals'
local ignore, bug = machine.ignore, machine.bug

local Cluster = {}
Cluster.__index = Cluster

-- How long after the last worker's own deadline the cluster still waits before it gives up.
local STOP_GRACE_MS = 2000
-- Who stops a process often signals it and then its group (a terminal, timeout(1)): that is one request.
local SAME_STOP_MS = 200
-- `why` looks back this far.
local EXITS_KEPT = 100

-- No worker was ever ready.
local EXIT_FAILED = 1
-- sysexits.h: a script that cannot be used.
local EXIT_SCRIPT = 78
local EXIT_SYSTEM = 71

local definition

--- @param options {platform, agenda, log, launcher (see launcher.lua), sockets, on_exit = function(code),
--   on_adopt = function(plan), leftovers (see leftovers.lua)}
function Cluster.new(options)
    local self = setmetatable(options, Cluster)
    self.started_at = self.platform.now()
    self.generation = 1 -- of workers that are forked now
    self.newest = 1 -- the highest number given to any
    self.restarting = nil -- the restart under way
    self.loading = nil -- a later one, which waits for its plan
    self.slots = {} -- in order of their number, without drained ones
    self.workers = {} -- id -> worker, every live process
    self.process_count = 0
    self.reports = {}
    self.totals = Totals.new()
    return self
end

--- Starts the slots.
-- @param count how many the script wants
function Cluster:start(count)
    self.log:info({ numWorkers = count }, 'Starting cluster')
    self.configured = count
    self.oom_kills = self.platform.oom_kills()
    self.agenda:start(self, definition)
    self:resize(count)
end

-- Who asked before, and lost its connection with a master that died, asks for the same once more.
-- @return whether that was so
local function heard_again(self, request)
    local former = self.last_verdict
    if request.key ~= nil and former and former.key == request.key then
        request.on_verdict(former)
        return true
    end
    return self.loading and self.loading:hear(request) or self.restarting and self.restarting:hear(request)
end

--- Asks for a rolling restart.
-- @param request {cause = 'signal'|'control'|'script'|'master', signal, who = {pid, uid, command, parent}, on_progress,
--   on_verdict, key = its own name, or nil: then the same request may come again}
function Cluster:restart(request)
    if heard_again(self, request) then
        return
    end
    self.agenda:post(self, 'restart', request)
end

--- Asks for a stop. The second request is at once.
-- @param request {cause, signal, who, at = when it was asked, nil: now; now = true to kill,
--   on_stopped = function(code)}
function Cluster:stop(request)
    self.agenda:post(self, 'stop', request)
end

--- Whether this number of workers can be had. @return true, or nil, message, code
function Cluster:can_scale(count)
    if type(count) ~= 'number' or count % 1 ~= 0 or count < 1 or count > 4096 then
        return nil, 'expected a whole number of workers from 1 to 4096, found ' .. tostring(count)
    end
    if self.state == 'stopping' or self.state == 'stopped' then
        return nil, 'the cluster is stopping'
    end
    return self.sockets:has_room(count)
end

--- Sets the number of workers; only the difference is started or drained.
-- @param request {cause, signal, who} for the log, or nil
-- @return true, or nil, message, code
function Cluster:scale(count, request)
    local ok, message, code = self:can_scale(count)
    if not ok then
        return nil, message, code
    end
    self.agenda:post(self, 'scale', count, request or {})
    return true
end

--- Evaluates the script again and takes over what needs no restart.
-- @param who {pid, uid, command, parent} for the log, or nil
-- @param done function({changes = {...}}), or function(nil, err)
function Cluster:reload(who, done)
    self.log:info({ by = who }, 'Reload requested')
    local before = self.launcher.plan
    self.launcher:load(function(loaded, err)
        if not loaded then
            self.log:error({ traceback = err.traceback },
                'Script is bad, the last good one stays in force: ' .. err.message)
            return done(nil, err)
        end
        if self.state == 'stopping' or self.state == 'stopped' then -- since it was asked for: nothing may be forked now
            return done(nil, { message = 'the cluster is stopping' })
        end
        local ok, message = self:adopt(loaded)
        if not ok then
            return done(nil, { message = message })
        end
        done({ changes = compare.plans(before, loaded.plan) })
    end)
end

--- What reload() or a restart would change, without effect.
-- @param done as of reload
function Cluster:preview(done)
    self.launcher:preview(done)
end

--- Opens workerOutput of all workers anew, after a rotation.
-- @return how many write to a file, and the first message if one failed
function Cluster:reopen_output()
    local count, first = 0, nil
    for _, worker in pairs(self.workers) do
        if worker:writes_file() then
            local ok, message = worker:reopen_output()
            count = count + 1
            first = first or not ok and message or nil
        end
    end
    return count, first
end

--- The slot that holds the worker, or nil.
function Cluster:slot_of(worker)
    local slot = self.slots[worker.slot]
    return slot and (slot.current == worker or slot.incoming == worker) and slot or nil
end

--- What `status` shows.
function Cluster:snapshot()
    return snapshot.full(self)
end

function Cluster:why(id)
    return snapshot.why(self, id)
end

--- Finds a live worker by id. @return the worker or nil
function Cluster:find(id)
    return self.workers[id]
end

--- Whether a worker sleeps in its event loop; nil where that cannot be seen.
function Cluster:is_asleep(id)
    local worker = self.workers[id]
    if worker and worker.pid then
        return self.platform.idle(worker.pid)
    end
end

--- The worker whose processes have this group: its id, or nil.
function Cluster:worker_of(group)
    for id, worker in pairs(self.workers) do
        if worker.pid == group then
            return id
        end
    end
end

--- Whether some process of a worker has the socket that is our `fd`; nil where that cannot be seen.
function Cluster:holds(id, fd)
    local worker = self.workers[id]
    if worker and worker.pid then
        return self.platform.group_has(worker.pid, fd)
    end
end

--- A worker has let go of a socket that it was given.
function Cluster:deserted(id)
    local worker = self.workers[id]
    if worker then
        self.agenda:post(worker, 'closed_servers')
    end
end

--- A worker has made its listening socket one that cannot be repaired: another takes its place, with a new one.
function Cluster:spoilt(id)
    local worker = self.workers[id]
    if worker then
        worker:replace 'it has locked the filter of its listening socket'
    end
end

-- Where `ready` names a port, what happens at others says nothing.
local function port_that_counts(worker)
    return worker.plan.ready and worker.plan.ready.port
end

--- Nobody has taken what waits for this worker for stallTimeout. One that has to prove itself has failed by that,
-- unless the worker that it shall replace is stalled as well: then it is the load, or what both wait for.
function Cluster:stalled(id, port)
    local worker = self.workers[id]
    local slot = worker and self:slot_of(worker)
    local counts = worker and (port_that_counts(worker) or port) == port
    if counts and slot and slot:is_proving(worker) and not self.sockets:is_slow(slot.current.id) then
        self.agenda:post(worker, 'failed', ('took no connection for %g s while it had to prove itself (restartSoak)')
            :format(self.launcher.plan.stall_timeout_ms / 1000))
    end
end

--- Whether another worker is to come, who may take what waits where nobody serves.
function Cluster:awaits_workers()
    for _, slot in ipairs(self.slots) do
        if slot.state ~= 'serving' then
            return true
        end
    end
    return self.restarting ~= nil
end

--- Whether one worker can be handed a connection that waits at what it has asked for by `request`.
function Cluster:takes(id, request)
    local worker = self.workers[id]
    return worker ~= nil and worker:takes(request.name)
end

-- What is sent to one that is stopped stays in its channel until it is continued, out of reach of everybody.
local function is_stopped(self, worker)
    local stat = worker.pid and self.platform.proc_stat(worker.pid)
    return stat ~= nil and stat.stopped
end

--- Hands it over. done(accepted) comes later, once, if this returns true. @return whether it was handed over
function Cluster:rescue(fd, done, id, request)
    local worker = self.workers[id]
    return worker ~= nil and not is_stopped(self, worker) and worker:rescue(fd, done, request and request.name)
end

--- What has become of a connection that a former master gave to one worker, or was about to.
-- @param fd its descriptor
-- @return 'unread': the worker has not read all that it was sent, it may be there; 'held': it has the connection;
-- 'free': neither; nil: that cannot be seen
function Cluster:fate(id, fd)
    local worker = self.workers[id]
    if not (worker and worker.pid) then
        return 'free'
    elseif worker:is_unread() then -- first: what is read afterwards is held
        return 'unread'
    end
    local is_held = self.platform.group_has(worker.pid, fd)
    if is_held == nil then
        return nil
    end
    return is_held and 'held' or 'free'
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Workers and slots

local function to_restart(self, event, ...)
    if self.restarting then
        self.agenda:post(self.restarting, event, ...)
    end
end

local function remember(self, report)
    self.totals:exit(report)
    table.insert(self.reports, report)
    if #self.reports > EXITS_KEPT then
        table.remove(self.reports, 1)
    end
end

-- The kernel has killed somebody of ours for want of memory: that death explains nobody else's.
local function ran_out_of_memory(self)
    self.oom_kills = self.oom_kills and self.oom_kills + 1
    for _, worker in pairs(self.workers) do
        worker:other_ran_out_of_memory()
    end
end

local function worker_gone(self, worker)
    to_restart(self, 'gone', worker)
    self.workers[worker.id] = nil
    self.process_count = self.process_count - 1
    self.killed = self.killed or worker.leaving.killed
    remember(self, worker.report)
    if worker.report.oom then
        ran_out_of_memory(self)
    end
    self.leftovers:ended(worker)
    self.launcher.hooks:of_worker(worker, 'onWorkerExit', worker.report)
    if self.state == 'stopping' then
        self.agenda:note_news()
    end
    if self.process_count == 0 then
        self.agenda:post(self, 'emptied')
    end
end

-- A replacement serves when it listens wherever all of those before it do.
local function must_listen_at(self, worker)
    local lists = {}
    for _, slot in ipairs(self.slots) do
        local other = slot.current
        if other and other:serves() and other.generation < worker.generation then
            lists[#lists + 1] = other:listens_at()
        end
    end
    -- A rollback may well give up what the failed release had come to listen on.
    local state = self.restarting and self.restarting.state
    return state ~= 'rolling_back' and state ~= 'giving_up' and listening.common(lists) or {}
end

-- Why the cluster ends by itself.
local function say_failure(self, message, code, fields)
    fields = fields or {}
    fields.code = code
    self.log:fatal(fields, message)
    self.exit_code, self.failure, self.unsaid = code, message, nil
end

-- A socket that it was refused keeps it from listening: that is behind its end.
local function was_refused(worker)
    return worker.refused and not worker.listening
end

-- The boot has failed by this worker. How that ended is the reason, so it is said at its end.
local function say_boot_failure(self, worker)
    local report = worker.report or {}
    if was_refused(worker) then
        return say_failure(self, worker.refused, EXIT_SYSTEM)
    end
    say_failure(self, ('%s: %s'):format(self.unsaid.message, report.message or self.unsaid.why), EXIT_FAILED, {
        slot = worker.slot, failedWorkerId = worker.id, stderr = report.stderr })
    self.failed_report = worker.report
end

-- One that was refused its socket has ended, and nobody was ever ready: another try would end the same way.
local function refused_at_boot(self, worker)
    if was_refused(worker) and not worker.leaving.told and not self.served then
        self.agenda:post(self, 'fatal', worker.refused, EXIT_SYSTEM)
    end
end

local function add_worker(self, worker)
    self.workers[worker.id] = worker
    self.process_count = self.process_count + 1
    self.has_forked = true
end

-- What is heard of a worker.
local function of_workers(self)
    return {
        forked = function(worker)
            add_worker(self, worker)
        end,
        ready = function(worker)
            self.served = true
            local slot = self:slot_of(worker)
            if slot then
                to_restart(self, 'ready', slot, worker)
                self.agenda:post(slot, 'ready', worker)
            end
            self.launcher.hooks:of_worker(worker, 'onWorkerReady')
        end,
        lost = function(worker, reason, fault)
            local slot = self:slot_of(worker)
            if slot then
                self.agenda:post(slot, 'lost', worker, reason)
            end
            if fault and not self.has_forked then
                -- Nothing runs yet: better to say so than to wait.
                self.agenda:post(self, 'fatal', reason, fault == 'script' and EXIT_SCRIPT or EXIT_SYSTEM)
            end
        end,
        replace = function(worker, why, sick)
            local place = self:slot_of(worker)
            if place and sick and place:is_proving(worker) then
                self.agenda:post(worker, 'failed', why .. ' while it had to prove itself (restartSoak)')
            elseif place then
                self.agenda:post(place, 'replace', nil, worker)
            end
        end,
        gone = function(worker)
            if self.unsaid and self.unsaid.worker == worker then
                say_boot_failure(self, worker)
            else
                refused_at_boot(self, worker)
            end
            worker_gone(self, worker)
        end,
        must_listen_at = function(worker)
            return must_listen_at(self, worker)
        end,
        message = function(worker, text)
            self.launcher.hooks:message(worker, text)
        end,
    }
end

-- What a slot is made with.
local function of_slots(self)
    return {
        platform = self.platform,
        agenda = self.agenda,
        rules = function()
            local plan = self.launcher.plan
            return { first_ms = plan.backoff.first_ms, max_ms = plan.backoff.max_ms, reset_ms = plan.backoff.reset_ms,
                soak_ms = plan.restart_soak_ms, stall_ms = plan.stall_timeout_ms }
        end,
        on = {
            fork = function(slot)
                return self.launcher:launch { slot = slot.number, generation = slot.generation, on = of_workers(self) }
            end,
            filled = function(slot)
                to_restart(self, 'filled', slot)
                self.agenda:post(self, 'served')
            end,
            doubtful = function(worker)
                return worker:is_closed() and math.huge or self.sockets:doubtful(worker.id, port_that_counts(worker))
            end,
            proved = function(slot)
                if self.restarting then
                    self.agenda:post(self.restarting, 'proved', slot)
                else
                    self.agenda:post(slot, 'commit')
                end
            end,
            failed = function(slot, worker, why)
                if slot.wait_ms > 0 then
                    -- A crash loop is an error; a restart that fails has its own verdict.
                    local loops = slot.failures >= self.launcher.plan.restart_attempts and not self.restarting
                    self.log[loops and 'error' or 'info'](self.log, { slot = slot.number, failures = slot.failures,
                        wait = slot.wait_ms / 1000 }, 'Waiting before the next fork')
                end
                to_restart(self, 'failed', slot, worker, why)
                if worker and self.state == 'booting' and not self.served
                    and slot.failures >= self.launcher.plan.restart_attempts then
                    self.agenda:post(self, 'fatal', ('Boot failed: worker of slot %d failed %s, and none was ever'
                        .. ' ready'):format(slot.number, exit_report.times(slot.failures)), EXIT_FAILED, worker, why)
                end
            end,
        },
    }
end

local function new_slot(self, number)
    local options = of_slots(self)
    options.number, options.generation = number, self.generation
    return Slot.new(options)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Over the death of a master

local KEPT = { 'state', 'started_at', 'generation', 'newest', 'wanted', 'configured', 'ready', 'served', 'killed',
    'exit_code', 'has_forked', 'last_request', 'last_verdict', 'gave_up', 'oom_kills', 'lost_master', 'stop_asked_at' }
-- Exits that another master can tell of, and bytes of the last words of each.
local EXITS_HANDED_ON, WORDS_HANDED_ON = 20, 500

local function keep_report(report)
    local copy = {}
    for key, value in pairs(report) do
        copy[key] = value
    end
    copy.stderr = copy.stderr and copy.stderr:sub(-WORDS_HANDED_ON)
    return copy
end

-- The restart that was asked for last and has no verdict.
local function keep_restart(self)
    local restart = self.loading or self.restarting
    local request = restart and restart.request
    return request and { previous = self.restarting and self.restarting.previous, request = { cause = request.cause,
        signal = request.signal, who = request.who, reason = request.reason, key = request.key, goes_on = true } }
end

--- For another master: see keeper/estate.lua.
function Cluster:keep(book)
    local reports, workers = self.reports, {}
    local kept = { totals = self.totals:snapshot(), restart = keep_restart(self),
        failure = self.failure or self.unsaid and self.unsaid.message }
    for _, field in ipairs(KEPT) do
        kept[field] = self[field]
    end
    for _, slot in ipairs(self.slots) do
        local incoming = slot.incoming
        if incoming and not self.workers[incoming.id] then
            workers[#workers + 1] = incoming -- it has no process yet
        end
    end
    for _, worker in pairs(self.workers) do
        workers[#workers + 1] = worker
    end
    kept.slots, kept.workers = book:each(self.slots), book:each(workers)
    kept.reports = book:constants(reports, math.max(#reports - EXITS_HANDED_ON, 0) + 1, keep_report)
    return book:object(kept)
end

local function resume_workers(self, kept, former)
    local unsure = {}
    for _, state in ipairs(kept.workers) do
        local worker, clear
        if state.pid then
            worker, clear = self.launcher:take_over(state, of_workers(self), former)
        end
        if worker then
            add_worker(self, worker)
            unsure[worker] = not clear or nil
        end
    end
    return unsure
end

-- A restart begins anew with what is there.
local function resume_restart(self, kept)
    if not kept then
        return
    end
    local previous = kept.previous
    if previous then
        self.generation = previous
        for _, slot in ipairs(self.slots) do
            self.agenda:post(slot, 'cancel', previous)
        end
    end
    self:restart(kept.request)
end

--- Goes on with the cluster of a former master, whose workers have served meanwhile.
function Cluster:resume(kept, former)
    for _, field in ipairs(KEPT) do
        self[field] = kept[field]
    end
    self.reports, self.failure = kept.reports, kept.exit_code and kept.failure
    self.totals:resume(kept.totals)
    local unsure = resume_workers(self, kept, former)
    self.sockets:keep_only(self.workers)
    self.agenda:hold(function()
        local state = kept.state == 'rolling' and (self.ready and 'steady' or 'booting')
            or kept.state == 'stopped' and 'stopping' -- it died before it could leave
            or kept.state
        self.stop_requests, self.stopping_at = {}, self.platform.now()
        self.agenda:start(self, definition, state)
        for i, slot in ipairs(kept.slots) do
            self.slots[i] = Slot.resume(of_slots(self), slot, self.workers)
        end
        for _, worker in ipairs(kept.workers) do
            if self.workers[worker.id] then
                self.workers[worker.id]:go_on(worker)
            end
        end
        for worker in pairs(unsure) do
            local slot = self:slot_of(worker)
            worker:distrust(slot ~= nil and not slot.current)
        end
        if state ~= 'stopping' then
            resume_restart(self, kept.restart)
            self.agenda:post(self, 'served')
        elseif self.process_count == 0 then
            self.agenda:post(self, 'emptied')
        end
    end)
    return self.process_count
end

--- The master of before has died: `why` tells of it.
-- @param ended {signal or code, deaths = of masters so far}
-- @return whether memory ran out; nil: the kernel does not say
function Cluster:note_lost_master(ended)
    local count, oom = self.platform.oom_kills(), nil
    if count and self.oom_kills and ended.signal == 'SIGKILL' then
        oom = count > self.oom_kills
    end
    if oom then
        ran_out_of_memory(self)
    end
    self.oom_kills = self.oom_kills or count -- of a state that does not say
    self.lost_master = { signal = ended.signal, code = ended.code, deaths = ended.deaths, oom = oom,
        at = self.platform.wall() }
    return oom
end

--- Starts or drains the difference between the present number of slots and `count`.
function Cluster:resize(count)
    self.wanted = count
    self.sockets:want(count)
    while #self.slots > count do
        local slot = table.remove(self.slots)
        to_restart(self, 'dropped', slot)
        self.agenda:post(slot, 'drain', 'scaled down')
    end
    while #self.slots < count do
        self.slots[#self.slots + 1] = new_slot(self, #self.slots + 1)
    end
    self.agenda:post(self, 'served')
    self.agenda:note_news()
end

--- Takes over the plan that the launcher has loaded: listeners and the number of workers, if the script changed it.
-- @param loaded {plan, num_workers}
-- @return true, or nil, message when an address, or so many workers, could not be had (nothing has changed then)
function Cluster:adopt(loaded)
    local count = loaded.num_workers ~= self.configured and loaded.num_workers or self.wanted
    local ok, message = self.sockets:update(loaded.plan.listen or {}, count)
    if not ok then
        return nil, message
    end
    self.on_adopt(loaded.plan)
    if loaded.num_workers ~= self.configured then
        self.configured = loaded.num_workers
        if loaded.num_workers ~= self.wanted then
            self:resize(loaded.num_workers)
        end
    end
    return true
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Actions

-- One that is taken for ready, because its master died before it said so, is none to count on.
local function is_served(slot)
    return slot.current and not slot.current.assumed
end

local function served_while_booting(self)
    local served = true
    for _, slot in ipairs(self.slots) do
        served = served and is_served(slot)
    end
    if served then
        self.log:info({ workers = #self.slots }, 'Cluster ready')
        self.ready = true
        self.launcher.hooks:run('onReady')
        return 'steady'
    end
end

-- For `why`.
local function note(self, verb, request)
    self.last_request = { verb = verb, cause = request.cause, signal = request.signal, by = request.who,
        reason = request.reason, at = self.platform.wall() }
end

-- The latest wins: the restart under way gives way when the plan of the next one is there.
local function plan_is_loaded(self, restart, loaded)
    local ok, message = self:adopt(loaded)
    if not ok then
        return false, message
    end
    local former = self.restarting
    local previous = former and former.previous or self.generation
    self.loading, self.restarting = nil, restart
    self.newest = self.newest + 1
    self.generation = self.newest
    self.agenda:post(self, 'began')
    if former then
        self.agenda:post(former, 'superseded')
    end
    self.agenda:post(restart, 'begin', loaded.plan, previous, self.generation)
    return true
end

local function restart_ended(self, restart, verdict)
    local was_under_way = restart == self.restarting
    self.restarting = not was_under_way and self.restarting or nil
    self.loading = restart ~= self.loading and self.loading or nil
    if verdict then
        self.last_verdict = verdict
        self.totals:verdict(verdict)
        if verdict.result == 'done' then
            self.sockets:restarted()
        end
        self.launcher.hooks:run('onRestart', verdict)
    end
    if was_under_way then
        self.agenda:post(self, 'rolled')
    end
end

local function request_restart(self, request)
    if not request.goes_on then
        note(self, 'restart', request)
    end
    self.log:info({ signal = request.signal, cause = request.cause, by = request.who, reason = request.reason },
        request.goes_on and 'Restart goes on' or 'Restart requested')
    if self.loading then
        self.agenda:post(self.loading, 'superseded')
    end
    self.loading = Restart.new {
        request = request, generation = self.generation, platform = self.platform, agenda = self.agenda, log = self.log,
        launcher = self.launcher, sockets = self.sockets,
        slots = self.slots,
        processes = function()
            return self.process_count
        end,
        next_generation = function()
            self.newest = self.newest + 1
            return self.newest
        end,
        on = {
            loaded = function(restart, loaded)
                return plan_is_loaded(self, restart, loaded)
            end,
            generation = function(generation)
                self.generation = generation
            end,
            ended = function(restart, verdict)
                restart_ended(self, restart, verdict)
            end,
        },
    }
end

local function kill_all(self)
    for _, worker in pairs(self.workers) do
        self.agenda:post(worker, 'kill', 'stopped')
    end
end

local function begin_stop(self, request)
    note(self, 'stop', request)
    self.sockets:shut_out() -- who reads the record may rely on it
    self.log:info({ signal = request.signal, cause = request.cause, by = request.who, reason = request.reason },
        'Shutdown requested')
    self.stop_requests = { request }
    self.killed = false -- what had to be killed before, in a restart, says nothing about this stop
    self.stopping_at = self.platform.now()
    self.stop_asked_at = request.at or self.stopping_at
    to_restart(self, 'stopped')
    if self.loading then
        self.agenda:post(self.loading, 'stopped')
    end
    while self.slots[1] do
        self.agenda:post(table.remove(self.slots, 1), 'drain', 'stopped')
    end
    if request.now then
        kill_all(self)
    end
    if self.process_count == 0 then
        self.agenda:post(self, 'emptied')
    end
    return 'stopping'
end

local function stop_at_once(self, request)
    table.insert(self.stop_requests, request)
    local at = request.at or self.platform.now()
    if at - (self.stop_asked_at or self.stopping_at) < SAME_STOP_MS then
        return
    elseif request.signal == 'SIGINT' or request.signal == 'SIGTERM' or request.now then
        self.stop_asked_at = at -- another master may hear of it again
        self.log:warn({ signal = request.signal, by = request.who }, 'Shutdown requested again, killing the workers')
        kill_all(self)
    end
end

local function finish(self, code)
    if self.unsaid then -- its worker is still there
        say_boot_failure(self, self.unsaid.worker)
    end
    for _, request in ipairs(self.stop_requests) do
        if request.on_stopped then
            request.on_stopped(code)
        end
    end
    self.exit_code = code -- another master that has to end too has nothing to add
    self.agenda:finish(self)
    self.on_exit(code)
    return 'stopped'
end

local function emptied(self)
    if self.exit_code then
        return finish(self, self.exit_code)
    elseif self.killed then
        self.log:warn('Cluster did not shutdown cleanly within timeout, exiting')
        return finish(self, 1)
    end
    self.log:info('Cluster shutdown cleanly')
    return finish(self, 0)
end

-- By when the workers must have left, by the plan that each was forked from, or by what it has asked for since.
local function stop_by(self)
    local latest = self.stopping_at + self.launcher.plan.stop_timeout_ms
    for _, worker in pairs(self.workers) do
        latest = math.max(latest, self.stopping_at + worker.plan.stop_timeout_ms,
            worker.leaving.told and worker:due() or 0)
    end
    return latest
end

local function give_up(self)
    if not self.gave_up and stop_by(self) > self.platform.now() then
        return 'stopping' -- a worker has asked for more time
    elseif self.gave_up then
        self.log:error({ workers = self.process_count }, 'Workers are still alive after SIGKILL, exiting without them')
        return finish(self, 1)
    end
    self.log:warn('Cluster did not shutdown cleanly within timeout, exiting')
    self.gave_up, self.exit_code = true, 1
    kill_all(self)
    return 'stopping'
end

local function to_rolling()
    return 'rolling'
end

local function fatal(self, message, code, worker, why)
    if worker then
        self.exit_code, self.unsaid = code, { worker = worker, message = message, why = why }
        if worker.report then
            say_boot_failure(self, worker)
        end
    else
        say_failure(self, message, code)
    end
    return begin_stop(self, { cause = 'error' })
end

local function resize(self, count, request)
    self.log:info({ from = #self.slots, to = count, signal = request.signal, cause = request.cause, by = request.who },
        'Scaling cluster')
    self:resize(count)
end

definition = machine.define {
    name = 'cluster',
    keeps = true,
    news = true,
    initial = 'booting',
    events = {
        'served', -- a worker took a slot over
        'restart', -- (request)
        'began', -- a restart has its plan
        'rolled', -- the restart has its verdict, and no other one took its place
        'scale', -- (count, request)
        'stop', -- (request)
        'fatal', -- (message, exit code, worker or nil, why) it cannot go on, because of this worker
        'emptied', -- no process is left
        'deadline',
    },
    deadline = {
        stopping = function(self)
            if self.gave_up then
                return STOP_GRACE_MS
            end
            return math.max(stop_by(self) - self.platform.now(), 0) + STOP_GRACE_MS
        end,
    },
    states = {
        booting = { -- until every slot has been served at the same time once
            served = served_while_booting,
            restart = request_restart,
            began = to_rolling,
            scale = resize,
            stop = begin_stop,
            fatal = fatal,
            emptied = ignore, -- the slots are waiting to fork
            bugs = 'rolled deadline',
        },
        steady = {
            restart = request_restart,
            began = to_rolling,
            scale = resize,
            stop = begin_stop,
            ignores = 'served rolled fatal emptied',
            deadline = bug,
        },
        rolling = {
            restart = request_restart,
            rolled = function(self)
                if self.ready then
                    return 'steady'
                end
                self.agenda:post(self, 'served')
                return 'booting'
            end,
            scale = resize,
            stop = begin_stop,
            ignores = 'served began fatal emptied',
            deadline = bug,
        },
        stopping = {
            restart = function(self, request)
                Restart.refuse(request, 'stopped', self.generation, {}, 'the cluster is stopping')
            end,
            stop = stop_at_once,
            emptied = emptied,
            deadline = give_up,
            ignores = 'served began rolled scale fatal',
        },
        stopped = {
            ignores = 'served restart began rolled scale stop fatal emptied',
            deadline = bug,
        },
    },
}

Cluster.definition = definition
return Cluster
