--- roll.lua: a rolling restart, from request to verdict.
--
-- A roll takes the slots in batches. In a batch every slot starts its replacement; when all of them have proved
-- themselves the batch commits, and only then the old workers are asked to leave. So a release that fails never costs
-- an old worker of its batch. A slot whose replacement fails `attempts` times in a row aborts the roll. If the new
-- generation serves slots by then, these are rolled back, by a roll of their own, before the verdict is given.
--
-- With a canary the first batch is one slot: its replacement gets a share of the new connections (weight), serves for
-- the canary's own soak time beside the old one, and is judged by the script before anything else is replaced.
--
-- Every requester gets exactly one verdict:
--   {result = 'done'|'aborted'|'rolled_back'|'superseded'|'stopped', generation, total, done, duration_ms, message,
--    failure or nil}. `done` is how many slots the new generation serves.

local Roll = {}
Roll.__index = Roll

--- @param options {generation, slots (list), size (of a batch), attempts, platform, agenda, log,
--   canary = {soak_ms, weight, judge} or nil, judge = function(new, old) -> true or false, why,
--   weigh = function(worker, weight), on_abort = function(roll), on_end = function(roll, verdict),
--   roll_back = function(roll) -> true if a way back was started, whose verdict comes to roll:returned(); counts
--     `done` anew,
--   room = function(n) -> whether n more processes may be started now}
function Roll.new(options)
    local self = setmetatable(options, Roll)
    self.started_at = self.platform.now()
    self.pending = {}
    for i, slot in ipairs(self.slots) do
        self.pending[i] = slot
    end
    self.total = #self.slots
    self.done = 0
    self.active = {} -- slot -> true, in the present batch
    self.proved = {} -- slot -> true
    self.failures = {} -- slot -> how many in a row
    self.requesters = {}
    return self
end

--- Adds somebody who wants to hear: {on_progress = fn(progress) or nil, on_verdict = fn(verdict) or nil}.
function Roll:add(requester)
    self.requesters[#self.requesters + 1] = requester
end

local function finish(self, result, message, failure)
    if self.verdict then
        return
    end
    self.verdict = {
        result = result, generation = self.generation, total = self.total, done = self.done,
        duration_ms = self.platform.now() - self.started_at, message = message, failure = failure,
    }
    for _, requester in ipairs(self.requesters) do
        if requester.on_verdict then
            requester.on_verdict(self.verdict)
        end
    end
    self.on_end(self, self.verdict)
end

local function progress(self, worker)
    self:report({ generation = self.generation, done = self.done, total = self.total, worker = worker })
end

--- Tells the requesters how far it is.
-- @param state {generation, done, total, worker = id, back = true while what was replaced is rolled back}
function Roll:report(state)
    for _, requester in ipairs(self.requesters) do
        if requester.on_progress then
            requester.on_progress(state)
        end
    end
end

--- Starts the next batch if there is room for it, or ends the roll.
function Roll:advance()
    if self.verdict or self.aborting or next(self.active) then
        return
    end
    if #self.pending == 0 then
        return finish(self, 'done')
    end
    local size = self.canary and 1 or math.min(self.size, #self.pending)
    if self.done > 0 and not self.room(size) then
        return -- called again when a worker has gone
    end
    for _ = 1, size do
        local slot = table.remove(self.pending, 1)
        self.active[slot] = true
        if slot.current then
            slot.current.log:info('Restarting worker')
        end
        self.agenda:post(slot, 'replace', self.generation)
    end
end

--- How long a replacement in this slot must have served, or nil for the usual time.
function Roll:soak_ms(slot)
    return self.canary and self.active[slot] and self.canary.soak_ms
end

--- A replacement in this slot serves. The canary gets its share: the others have 1 each.
function Roll:worker_ready(slot, worker)
    local share = self.canary and self.canary.weight
    if share and share < 1 and self.active[slot] and worker.generation == self.generation then
        self.weigh(worker, share * self.total / (1 - share))
    end
end

--- Whether this slot commits when the roll says so. Not when it is aborting: its slots are on their own again, and
-- replace workers for other reasons while the verdict waits.
function Roll:holds(slot)
    return self.active[slot] and not self.aborting
end

--- The replacement in this slot has proved itself.
function Roll:slot_proved(slot)
    if self.canary and self.canary.judge and not self.aborting then
        local good, why = self.judge(slot.incoming, slot.current)
        if not good then
            self.aborting = { slot = slot, why = why, message = 'the canary was rejected: ' .. why }
            self.on_abort(self)
            return self:conclude()
        end
    end
    self.proved[slot] = true
    self:commit()
end

--- Commits the batch if every slot of it has proved itself or is served by the new generation already.
function Roll:commit()
    if self.aborting then
        return
    end
    for slot in pairs(self.active) do
        if not self.proved[slot] then
            return
        end
    end
    for slot in pairs(self.active) do
        self.agenda:post(slot, 'commit')
    end
end

--- A worker of the new generation serves in this slot.
function Roll:slot_filled(slot)
    if not self.active[slot] or slot.current.generation ~= self.generation then
        return
    end
    self.active[slot] = nil
    self.done = self.done + 1
    if self.canary then
        self.weigh(slot.current, 1)
        self.canary = nil
    end
    progress(self, slot.current.id)
    if next(self.active) then
        self:commit() -- it may have been the one the others waited for
    else
        self:advance()
    end
end

local function failure_of(slot, worker, why)
    local report = worker and worker.report or {}
    return { worker = worker and worker.id, pid = worker and worker.pid, slot = slot.number, code = report.code,
        signal = report.signal, step = report.step, message = report.message or why, reason = why,
        stderr = report.stderr }
end

--- A fork for this slot failed, or its replacement was lost. worker is nil when there was no process.
function Roll:slot_failed(slot, worker, why)
    if not self.active[slot] or self.aborting or (worker and worker.generation ~= self.generation) then
        return
    end
    self.proved[slot] = nil
    self.failures[slot] = (self.failures[slot] or 0) + 1
    if self.failures[slot] < self.attempts then
        return
    end
    self.aborting = { slot = slot, worker = worker, why = why }
    self.on_abort(self)
    if not worker or worker.report then
        self:conclude()
    end
end

--- The verdict of an aborting roll tells how the failing worker ended, so it waits for its end.
-- @param at_once there is no time for a way back
function Roll:conclude(at_once)
    local cause = self.aborting
    cause.failure = failure_of(cause.slot, cause.worker, cause.why)
    cause.message = cause.message or ('replacement of slot %d failed %d times: %s'):format(cause.slot.number,
        self.attempts, cause.failure.message or 'unknown')
    if not at_once and self.roll_back(self) then
        cause.going_back = true
        return
    end
    finish(self, 'aborted', cause.message, cause.failure)
end

--- The way back has its verdict.
function Roll:returned(verdict)
    local cause = self.aborting
    if verdict.result == 'done' then
        self.done = 0
        return finish(self, 'rolled_back', cause.message, cause.failure)
    end
    -- Those that the way back did not reach. A slot of it may have been given up meanwhile.
    self.done = verdict.total - verdict.done
    finish(self, verdict.result, ('%s; the way back did not end: %s'):format(cause.message, verdict.message),
        cause.failure)
end

--- A process is gone.
function Roll:worker_gone(worker)
    local cause = self.aborting
    if self.verdict or cause and cause.going_back then
        return
    elseif cause and cause.worker == worker then
        self:conclude()
    else
        self:advance()
    end
end

--- The slot is given up: it is not to be rolled any more.
function Roll:remove(slot)
    for i, pending in ipairs(self.pending) do
        if pending == slot then
            table.remove(self.pending, i)
            self.total = self.total - 1
            return
        end
    end
    if self.active[slot] then
        self.active[slot] = nil
        self.total = self.total - 1
        if next(self.active) then
            self:commit()
        else
            self:advance()
        end
    end
end

--- Ends the roll for a reason outside of it: 'superseded' or 'stopped', or 'aborted' with a message.
function Roll:finish(result, message)
    if self.aborting then
        return self:conclude(true) -- that verdict stands; it only waited for the end of a process
    end
    finish(self, result, message)
end

return Roll
