--- restart.lua: a rolling restart, from request to verdict.
--
--   loading -> [canary <-> judging] -> replacing -> ended               the way it should go
--                  any of these -> aborting -> rolling_back -> ended    a replacement failed `attempts` times
--                                               rolling_back -> giving_up -> ended
--
-- It takes the slots in batches. In a batch every slot starts its replacement. When all of them have proved themselves
-- the batch commits, and only then the old workers are asked to leave. So a release that fails never costs an old
-- worker of its batch. If the new generation serves slots when a restart is aborted, these are rolled back to the
-- release that the others run, before the verdict is given. With a canary the first batch is one slot: its replacement
-- gets a share of the new connections, serves for the canary's own time beside the old one, and the script judges it.
--
-- From `ready` to the old worker's leave: a replacement is ready, its slot is `proving` for restartSoak and reports it
-- (proved), the last of a batch makes the restart commit, and each slot asks its old worker to stop.
-- Longer than 400 lines: one object, its table, and the actions that the table names.
--
-- It belongs to a cluster, and acts on the slots by their events alone. The cluster reports to it what happens, and
-- hears by callbacks:
--   on.loaded(restart, loaded) -> true, or nil, message   the plan is there: take it over, then post `begin`
--   on.generation(n)                                      slots that are added from now on are of this generation again
--   on.ended(restart, verdict)                            once; verdict is nil if it never began
--
-- The requester gets exactly one verdict:
--   {result = 'done'|'aborted'|'rolled_back'|'superseded'|'stopped', generation, total, done, duration_ms, message,
--    slots, serving, failure or nil}. `done` is how many slots the new generation serves, `serving` how many of all
--   slots anybody serves.

local Comparison = require 'dutch-master.cluster.comparison'
local exit_report = require 'dutch-master.cluster.exit_report'
local machine = require 'dutch-master.machine'
local snapshot = require 'dutch-master.cluster.snapshot'

local Restart = {}
Restart.__index = Restart

local definition

--- Asks for the plan, and begins when it is there.
-- @param options {request = {on_progress, on_verdict}, generation (that serves now), platform, agenda, log, launcher,
--   sockets, on, slots = the cluster's list, processes = function() -> how many, next_generation = function() -> n}
function Restart.new(options)
    local self = setmetatable(options, Restart)
    self.agenda:start(self, definition)
    self.launcher:load(function(loaded, err)
        self.agenda:post(self, 'loaded', loaded, err)
    end)
    return self
end

--- Its requester asks once more, by another connection: what there is to hear from now on goes there.
-- @return false if it is another one's restart
function Restart:hear(request)
    if request.key == nil or request.key ~= self.request.key then
        return false
    end
    self.request.on_progress, self.request.on_verdict = request.on_progress, request.on_verdict
    return true
end

--- Answers a request that does not come about.
-- @param slots all of the cluster
function Restart.refuse(request, result, generation, slots, message)
    if request.on_verdict then
        request.on_verdict({ result = result, generation = generation, total = #slots, done = 0, duration_ms = 0,
            slots = #slots, serving = snapshot.serving(slots), message = message })
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- The walk: slots on their way to one generation. There is one forth, and maybe one back. Who looks at
-- it sees how far the restart is.

-- @param walk {generation, size (of a batch), back, soak_ms = how long a replacement has to prove itself, nil: as the
--   plan says}
local function start_walk(self, slots, walk)
    walk.total, walk.done, walk.started_at = #slots, 0, self.platform.now()
    walk.attempts = self.launcher.plan.restart_attempts
    walk.pending = { unpack(slots) } -- in their order
    walk.active = {} -- slot of the present batch -> 'starting' or 'proved'
    walk.failures = {} -- slot -> how many in a row
    self.walk = walk
end

local function report_progress(self, worker_id)
    local request, walk = self.request, self.walk
    if request.on_progress then
        request.on_progress({ generation = walk.generation, done = walk.done, total = walk.total, worker = worker_id,
            back = walk.back })
    end
end

-- Workers that leave count too: there are never more than the slots and a batch.
local function has_room(self, n)
    return self.processes() + n <= #self.slots + self.size
end

local arrived

-- Starts the next batch if there is room for it. @return the next state, or nil
local function advance(self)
    local walk = self.walk
    if next(walk.active) then
        return nil
    elseif #walk.pending == 0 then
        return arrived(self)
    end
    local size = math.min(walk.size, #walk.pending)
    if walk.done > 0 and not has_room(self, size) then
        return nil -- called again when a process is gone
    end
    for _ = 1, size do
        local slot = table.remove(walk.pending, 1)
        walk.active[slot] = 'starting'
        if slot.current then
            slot.current.log:info('Restarting worker')
        end
        self.agenda:post(slot, 'replace', walk.generation, nil, walk.soak_ms)
    end
end

-- Commits the batch if every slot of it has proved itself or is served by the new generation already.
local function commit(self)
    for _, progress in pairs(self.walk.active) do
        if progress ~= 'proved' then
            return
        end
    end
    for _, slot in ipairs(self.slots) do -- in their order
        if self.walk.active[slot] then
            self.agenda:post(slot, 'commit')
        end
    end
end

-- Its replacement may take over: alone, where the slot replaces its worker for another reason.
local function proved_alone(self, slot)
    self.agenda:post(slot, 'commit')
end

local function proved(self, slot)
    if not self.walk.active[slot] then
        return proved_alone(self, slot)
    end
    self.walk.active[slot] = 'proved'
    return commit(self)
end

-- The slot is served by the new generation. @return whether it was one of the batch
local function take_over(self, slot)
    local walk = self.walk
    if not walk.active[slot] or not slot.current or slot.current.generation ~= walk.generation then
        return false
    end
    walk.active[slot] = nil
    walk.done = walk.done + 1
    report_progress(self, slot.current.id)
    return true
end

local function go_on(self)
    if next(self.walk.active) then
        return commit(self) -- the slot may have been the one that the others waited for
    end
    return advance(self)
end

local function filled(self, slot)
    if take_over(self, slot) then
        return go_on(self)
    end
end

-- @return whether the slot was one of the batch
local function forget(self, slot)
    local walk = self.walk
    for i, pending in ipairs(walk.pending) do
        if pending == slot then
            table.remove(walk.pending, i)
            walk.total = walk.total - 1
        end
    end
    if walk.active[slot] then
        walk.active[slot] = nil
        walk.total = walk.total - 1
        return true
    end
end

local function dropped(self, slot)
    forget(self, slot)
    return go_on(self)
end

-- @return whether this was one failure too many
local function count_failure(self, slot, worker)
    local walk = self.walk
    if not walk.active[slot] or worker and worker.generation ~= walk.generation then
        return false
    end
    walk.active[slot] = 'starting'
    walk.failures[slot] = (walk.failures[slot] or 0) + 1
    return walk.failures[slot] >= walk.attempts
end

-- ---------------------------------------------------------------------------------------------------------------------
-- The end

local function words_of(verdict)
    if verdict.serving == 0 then
        return verdict.result == 'rolled_back' and 'Restart rolled back, nobody serves'
            or 'Restart aborted, nobody serves'
    elseif verdict.result == 'rolled_back' then
        return 'Restart rolled back, the old release serves'
    end
    return verdict.done > 0 and 'Restart aborted, two releases serve' or 'Restart aborted, the old workers stay'
end

local SUPERSEDED = 'Restart superseded by a later one'

local function log_verdict(self, verdict)
    local fields = { generation = verdict.generation, duration = verdict.duration_ms / 1000 }
    if verdict.result == 'done' then
        return self.log:info(fields, 'Restart complete')
    elseif verdict.result == 'superseded' then
        return self.log:info(fields, SUPERSEDED)
    elseif verdict.result == 'stopped' then
        return
    end
    local failure = verdict.failure or {}
    fields.reason, fields.slot, fields.failedWorkerId = verdict.message, failure.slot, failure.worker
    fields.code, fields.signal, fields.stderr = failure.code, failure.signal, failure.stderr
    fields.replaced = verdict.done > 0 and verdict.done or nil
    fields.serving = verdict.serving < verdict.slots and verdict.serving or nil
    fields.served = failure.served_ms and failure.served_ms / 1000
    self.log:error(fields, words_of(verdict))
end

local function finish(self, result, done, message)
    local slots = self.slots
    local verdict = {
        result = result, generation = self.generation, total = self.total or self.walk.total, done = done,
        duration_ms = self.platform.now() - self.started_at, message = message, slots = #slots,
        serving = snapshot.serving(slots), failure = self.cause and self.cause.failure, key = self.request.key,
    }
    if self.request.on_verdict then
        self.request.on_verdict(verdict)
    end
    log_verdict(self, verdict)
    self.agenda:finish(self)
    self.on.ended(self, verdict)
    return 'ended'
end

-- All slots of the walk have been served by its generation.
function arrived(self)
    if self.walk.back then
        return finish(self, 'rolled_back', 0, self.cause.message)
    end
    return finish(self, 'done', self.walk.done)
end

-- It ends before it has begun: nothing of it is in the way of anybody.
local function refused(self, result, message)
    Restart.refuse(self.request, result, self.generation, self.slots, message)
    self.agenda:finish(self)
    self.on.ended(self)
    return 'ended'
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Beginning

local function loaded(self, plan, err)
    local ok, message = false, err and err.message
    if plan then
        ok, message = self.on.loaded(self, plan)
    end
    if not ok then
        local serving = snapshot.serving(self.slots)
        self.log:error({ reason = message, serving = serving < #self.slots and serving or nil },
            words_of({ result = 'aborted', done = 0, serving = serving }))
        return refused(self, 'aborted', message)
    end
end

local function batch_size(plan, count)
    local wish = plan.restart_concurrency
    if type(wish) == 'table' then
        wish = wish.after
    end
    if type(wish) ~= 'number' then
        return count
    elseif wish < 1 then
        return math.max(math.floor(wish * count), 1)
    end
    return math.min(wish, count)
end

local function forget_releases(self)
    local used = { [self.generation] = true, [self.previous] = true }
    for _, slot in ipairs(self.slots) do
        used[slot.generation] = true
        if slot.current then -- one that an abort kept may be older, or of a rollback
            used[slot.current.generation] = true
        end
    end
    self.launcher.releases:forget(used)
end

local function begin(self, plan, previous, generation)
    local slots, wish = self.slots, plan.restart_concurrency
    self.previous, self.generation = previous, generation
    self.canary, self.measures = type(wish) == 'table' and wish.canary or nil, plan.metrics
    self.size = batch_size(plan, #slots)
    self.started_at = self.platform.now()
    start_walk(self, slots, { generation = generation, size = self.canary and 1 or self.size,
        soak_ms = self.canary and self.canary.soak_ms or nil })
    forget_releases(self)
    return advance(self) or (self.canary and 'canary' or 'replacing')
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Aborting, and rolling back

-- Of this restart, or of one that it superseded, and not of a rollback.
local function is_newer(self, generation)
    return generation > self.previous and not self.launcher.releases:rolls_back(generation, self.previous)
end

-- One that was added during the restart, or has lost its worker: it would try the failed release for ever.
local function is_unserved(self, slot)
    return not slot.current and is_newer(self, slot.generation)
end

local function cancel_replacements(self)
    self.on.generation(self.previous)
    self.launcher.releases:pin(self.previous)
    for _, slot in ipairs(self.slots) do
        if self.walk.active[slot] or is_unserved(self, slot) then
            self.agenda:post(slot, 'cancel', self.previous)
        end
    end
end

local function failure_of(slot, worker, why)
    local report = worker and worker.report or {}
    return { worker = worker and worker.id, pid = worker and worker.pid, slot = slot.number, code = report.code,
        signal = report.signal, step = report.step, message = report.message or why, reason = why,
        stderr = report.stderr }
end

-- The canary has not failed, and may be alive: only what is known of it is said.
local function rejection_of(self, cause)
    local worker = cause.rejected
    return { worker = worker.id, pid = worker.pid, slot = cause.slot.number, reason = cause.why, rejected = true,
        served_ms = worker.ready_at and self.platform.now() - worker.ready_at }
end

-- cause: {slot, why, message, worker = that failed (nil when there was no process), rejected = the canary that was}.
-- Complete when the failed worker has ended.
local function complete(self, cause)
    cause.failure = cause.rejected and rejection_of(self, cause) or failure_of(cause.slot, cause.worker, cause.why)
    cause.message = cause.message or ('replacement of slot %d failed %s: %s'):format(cause.slot.number,
        exit_report.times(self.walk.attempts), cause.failure.message or 'unknown')
    return cause
end

-- The slots that this restart, or one that it superseded, had replaced go back to the release that the others run.
-- @return the next state
local function roll_back(self)
    local release = self.launcher.releases:of(self.previous)
    local slots, differs = {}, false
    for _, slot in ipairs(self.slots) do
        if is_unserved(self, slot) then -- since the abort: the verdict may have waited for an exit
            self.agenda:post(slot, 'cancel', self.previous)
        elseif slot.current and is_newer(self, slot.current.generation) then
            slots[#slots + 1] = slot
            differs = differs or slot.current.release ~= release
        end
    end
    if not release or not differs then
        return finish(self, 'aborted', #slots, self.cause.message)
    end
    self.total = self.walk.total
    start_walk(self, slots, { generation = self.next_generation(), size = self.size, back = true })
    self.launcher.releases:roll_back(self.walk.generation, self.previous)
    self.log:warn({ generation = self.walk.generation, slots = #slots, release = release }, 'Rolling back')
    return advance(self) or 'rolling_back'
end

-- The verdict tells how the failing worker ended, so it waits for its end.
local function abort(self, cause)
    self.cause = cause
    cancel_replacements(self)
    if cause.worker and not cause.worker.report then
        return 'aborting'
    end
    complete(self, cause)
    return roll_back(self)
end

local function failed(self, slot, worker, why)
    if count_failure(self, slot, worker) then
        return abort(self, { slot = slot, worker = worker, why = why })
    end
end

-- Those that the rollback did not reach stay replaced. A slot of it may have been given up meanwhile.
local function cut_short(self, result, why)
    return finish(self, result, self.walk.total - self.walk.done,
        ('%s; the rollback was cut short: %s'):format(self.cause.message, why))
end

local function failed_back(self, slot, worker, why)
    if not count_failure(self, slot, worker) then
        return
    end
    self.obstacle = { slot = slot, worker = worker, why = why }
    cancel_replacements(self)
    if worker and not worker.report then
        return 'giving_up'
    end
    return cut_short(self, 'aborted', complete(self, self.obstacle).message)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- The canary

-- It gets its share: the others have 1 each.
local function canary_ready(self, slot, worker)
    if self.walk.active[slot] and worker.generation == self.walk.generation then
        self.comparison = Comparison.new(self.slots, slot, self.measures)
    end
    local share = self.canary.weight
    if share and share < 1 and self.walk.active[slot] and worker.generation == self.walk.generation then
        self.sockets:weigh(worker.id, share * self.walk.total / (1 - share))
    end
end

local function canary_is_over(self, slot)
    if slot.current then -- it may have crashed since
        self.sockets:weigh(slot.current.id, 1)
    end
    self.walk.size, self.walk.soak_ms = self.size, nil
    return advance(self) or 'replacing'
end

local function canary_proved(self, slot)
    if not self.canary.judge or not self.walk.active[slot] then
        return proved(self, slot)
    end
    local question = { slot = slot, worker = slot.incoming }
    self.question = question
    if self.comparison then
        local new, old = self.comparison:sides()
        slot.incoming:compare(new)
        if slot.current then
            slot.current:compare(old)
        end
    end
    self.launcher.hooks:judge(slot.incoming, slot.current, function(good, why)
        self.agenda:post(self, 'judged', question, good, why)
    end)
    return 'judging'
end

-- It may have taken over meanwhile, because the old worker crashed.
local function judged(self, question, good, why)
    local slot = question.slot
    if question ~= self.question then
        return nil
    elseif not good then
        return abort(self, { slot = slot, rejected = question.worker, why = why,
            message = 'the canary was rejected: ' .. why })
    elseif self.walk.active[slot] then
        proved(self, slot)
        return 'canary'
    end
    return canary_is_over(self, slot)
end

-- While the script is asked about it. The answer says nothing about the next one.
local function canary_failed(self, slot, worker, why)
    if self.walk.active[slot] then
        return failed(self, slot, worker, why) or 'canary'
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- The table

-- Slots that have proved themselves and wait for the others of their batch wait for nobody now.
local function let_go(self)
    for slot, progress in pairs(self.walk.active) do
        if progress == 'proved' then
            self.agenda:post(slot, 'commit')
        end
    end
end

local function superseded(self)
    let_go(self)
    return finish(self, 'superseded', self.walk.done, 'a later restart was requested')
end

local function stopped(self)
    return finish(self, 'stopped', self.walk.done, 'the cluster was stopped')
end

-- That verdict stands: it only waited for the end of a process, and there is no time for a rollback now.
local function aborted_at_once(self)
    return finish(self, 'aborted', self.walk.done, complete(self, self.cause).message)
end

local function cut_short_at_once(self)
    return cut_short(self, 'aborted', complete(self, self.obstacle).message)
end

-- A state in which the slots are on their own again, and the verdict waits for the end of the worker that failed.
-- @param field what failed, ended what is done then, at_once the same where that cannot be waited for
local function awaiting(field, ended, at_once)
    return {
        gone = function(self, worker)
            if worker == self[field].worker then
                complete(self, self[field])
                return ended(self)
            end
        end,
        proved = proved_alone,
        dropped = function(self, slot)
            forget(self, slot)
        end,
        superseded = at_once,
        stopped = at_once,
        ignores = 'ready filled failed judged',
        bugs = 'loaded begin',
    }
end

definition = machine.define {
    name = 'restart',
    keeps = true,
    news = true,
    initial = 'loading',
    events = {
        'loaded', -- (plan and number of workers, or nil, err) the script was evaluated
        'begin', -- (plan, previous generation, its own) the cluster has taken the plan over
        'ready', -- (slot, worker) a worker in this slot serves
        'proved', -- (slot) its replacement has served long enough; it waits for `commit`
        'filled', -- (slot) another worker has taken it over
        'failed', -- (slot, worker or nil, why) a fork failed, or a worker was lost; nil: there was no process
        'gone', -- (worker) a process was reaped
        'dropped', -- (slot) it is given up
        'judged', -- (question, good, why) the answer of the script's judge
        'superseded', -- a later restart takes its place
        'stopped', -- the cluster stops
    },
    states = {
        loading = {
            loaded = loaded,
            begin = begin,
            superseded = function(self)
                self.log:info({}, SUPERSEDED) -- it has no generation yet
                return refused(self, 'superseded', 'a later restart was requested')
            end,
            stopped = function(self)
                return refused(self, 'stopped', 'the cluster was stopped')
            end,
            ignores = 'ready filled failed gone dropped',
            bugs = 'proved judged',
        },
        canary = { -- one slot is being replaced, and what comes of it decides
            ready = canary_ready,
            proved = canary_proved,
            filled = function(self, slot)
                return take_over(self, slot) and canary_is_over(self, slot) or nil
            end,
            failed = failed,
            gone = advance,
            dropped = dropped,
            superseded = superseded,
            stopped = stopped,
            ignores = 'judged',
            bugs = 'loaded begin',
        },
        judging = { -- the canary has proved itself, the script is asked
            judged = judged,
            proved = function(self, slot)
                return not self.walk.active[slot] and proved_alone(self, slot) or nil
            end,
            filled = function(self, slot)
                take_over(self, slot)
            end,
            failed = canary_failed,
            dropped = function(self, slot)
                if forget(self, slot) then
                    return advance(self) or 'canary'
                end
            end,
            superseded = superseded,
            stopped = stopped,
            ignores = 'ready gone',
            bugs = 'loaded begin',
        },
        replacing = {
            proved = proved,
            filled = filled,
            failed = failed,
            gone = advance,
            dropped = dropped,
            superseded = superseded,
            stopped = stopped,
            ignores = 'ready judged',
            bugs = 'loaded begin',
        },
        aborting = awaiting('cause', roll_back, aborted_at_once),
        rolling_back = {
            proved = proved,
            filled = filled,
            failed = failed_back,
            gone = advance,
            dropped = dropped,
            superseded = function(self)
                let_go(self)
                return cut_short(self, 'superseded', 'a later restart was requested')
            end,
            stopped = function(self)
                return cut_short(self, 'stopped', 'the cluster was stopped')
            end,
            ignores = 'ready judged',
            bugs = 'loaded begin',
        },
        giving_up = awaiting('obstacle', cut_short_at_once, cut_short_at_once), -- the old release starts no more
        ended = {
            ignores = 'loaded begin ready proved filled failed gone dropped judged superseded stopped',
        },
    },
}

Restart.definition = definition
return Restart
