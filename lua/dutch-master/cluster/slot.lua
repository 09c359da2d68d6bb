--- slot.lua: one of the numWorkers places. It holds a serving worker and at most one replacement.
--
-- A slot wants to be served by a worker of its generation. It forks (through its owner), waits after failures, and lets
-- a serving worker go only when its replacement serves, has proved itself, and its owner commits.
--
-- What its owner hears, by the callbacks it gave:
--   fork(slot) -> worker                make a worker of slot.generation; that it could not be made comes as its loss
--   filled(slot)                        the current worker is a new one and serves
--   doubtful(worker) -> ms              how long it has not been seen to take what waits for it; math.huge: it listens
--                                       nowhere at this moment
--   proved(slot)                        the replacement has served for soak_ms: answer with the event commit
--   failed(slot, worker, why)           a fork failed, or a worker was lost; worker is nil when there was no process

local backoff = require 'dutch-master.cluster.backoff'
local machine = require 'dutch-master.machine'
local ignore, bug = machine.ignore, machine.bug

local Slot = {}
Slot.__index = Slot

-- Restart requests in quick succession replace replacements, and a worker may ask to be replaced as soon as it serves;
-- no slot forks more often than this for them.
local PACE_MS = 200
-- A replacement that is not seen to take what waits for it, for this long at the end of its time, has to prove itself
-- until that is known: it takes some, or is stalled. It is looked at this often.
local DOUBT_MS, LOOK_MS = 100, 50

local definition

-- Until the next fork.
local function wait(self, ms)
    self.wait_ms, self.fork_at = ms, self.platform.now() + ms
end

--- An empty slot. It forks as soon as the loop turns.
-- @param options {number, generation, platform, agenda,
--   rules = function() -> {first_ms, max_ms, reset_ms, soak_ms, stall_ms}, on = {fork, filled, doubtful, proved,
--   failed}}
function Slot.new(options)
    local self = setmetatable(options, Slot)
    self.failures = 0 -- in a row
    self.forks = 0
    wait(self, 0)
    self.agenda:start(self, definition)
    return self
end

--- Whether this worker is its replacement and has to prove itself.
function Slot:is_proving(worker)
    return self.state == 'proving' and self.incoming == worker
end

local KEPT = { 'number', 'generation', 'failures', 'forks', 'wait_ms', 'forked_at', 'fork_at', 'jitter', 'prolonged_ms',
    'soak_ms' }

--- For another master: see keeper/estate.lua.
function Slot:keep()
    local kept = { state = self.state, current = self.current and self.current.id,
        incoming = self.incoming and self.incoming.id, weary = self.weary and self.weary.id }
    for _, field in ipairs(KEPT) do
        kept[field] = self[field]
    end
    return kept
end

-- What is left of it: who is not there any more has ended with the former master, or was in the middle of its fork.
local function state_of(self, kept)
    local state = kept.state
    if not self.current then
        return 'filling'
    elseif state == 'filling' or state == 'proving' and not self.incoming then
        return 'replacing'
    end
    return state
end

--- A slot of a former master.
-- @param options as of Slot.new, but for number and generation
-- @param workers id -> worker
function Slot.resume(options, kept, workers)
    local self = setmetatable(options, Slot)
    for _, field in ipairs(KEPT) do
        self[field] = kept[field]
    end
    self.current, self.incoming = workers[kept.current], workers[kept.incoming]
    self.weary = workers[kept.weary]
    self.fork_at = self.fork_at or self.platform.now() + self.wait_ms -- of a state that does not say
    self.proof = self.rules()
    self.agenda:start(self, definition, state_of(self, kept))
    return self
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Actions

-- The jitter was drawn with the fork: a master that goes on where another one died comes to the same wait.
local function failed(self, worker, why)
    self.failures = self.failures + 1
    wait(self, backoff.delay(self.failures, self.rules(), function()
        return self.jitter or self.platform.random()
    end))
    self.on.failed(self, worker, why)
end

local function fork(self)
    self.forked_at = self.platform.now()
    self.forks, self.jitter = self.forks + 1, self.platform.random()
    self.proof = self.rules()
    self.incoming = self.on.fork(self)
end

local function post(self, worker, event)
    if worker then
        self.agenda:post(worker, event)
    end
end

local function dismiss(self, worker, why)
    if worker then
        self.agenda:post(worker, 'stop', why)
    end
end

local function drop_incoming(self, why)
    dismiss(self, self.incoming, why)
    self.incoming = nil
end

local function drain(self, why)
    drop_incoming(self, why)
    dismiss(self, self.current, why)
    self.current = nil
    self.agenda:finish(self)
    return 'drained'
end

-- Until the next fork that somebody asks for: forks cost, and requests may come in floods.
local function pace(self)
    return math.max((self.forked_at or -PACE_MS) + PACE_MS - self.platform.now(), 0)
end

-- A newer generation is wanted than the one being started.
local function renew(self, state)
    drop_incoming(self, 'superseded')
    self.failures = 0
    wait(self, pace(self))
    return state
end

local function take_incoming(self)
    self.current, self.incoming = self.incoming, nil
    self.on.filled(self)
    if self.current == self.weary then
        self.agenda:post(self, 'replace', nil, self.current)
    end
    self.weary = nil
    return 'serving'
end

local function lost_incoming(self, worker, why)
    self.incoming = nil
    failed(self, worker.pid and worker or nil, why)
    return self.state
end

local function lost_current(self, worker, why)
    self.current = nil
    if worker.ready_at and self.platform.now() - worker.ready_at >= self.rules().reset_ms then
        self.failures = 0
    end
    failed(self, worker, why)
    return 'filling'
end

local filling, serving, replacing, proving, drained

filling = { -- nobody serves; a worker is being started, or the deadline is the next fork
    deadline = function(self)
        fork(self)
        return 'filling'
    end,
    ready = function(self, worker)
        if worker == self.incoming then
            return take_incoming(self)
        end
    end,
    lost = function(self, worker, why)
        if worker == self.incoming then
            return lost_incoming(self, worker, why)
        end
    end,
    replace = function(self, generation)
        if generation and generation > self.generation then
            self.generation = generation
            return renew(self, 'filling')
        end
    end,
    cancel = function(self, generation)
        self.generation = generation
        if self.incoming and self.incoming.generation ~= generation then
            drop_incoming(self, 'restart aborted')
            return 'filling'
        end
    end,
    commit = ignore,
    drain = drain,
}

serving = {
    lost = function(self, worker, why)
        if worker == self.current then
            return lost_current(self, worker, why)
        end
    end,
    replace = function(self, generation, _, soak_ms)
        self.generation, self.soak_ms = generation or self.generation, soak_ms
        wait(self, generation and 0 or pace(self))
        self.failures = 0
        if self.wait_ms == 0 then
            fork(self)
        end
        self.agenda:post(self.current, 'retire')
        return 'replacing'
    end,
    drain = drain,
    ignores = 'ready cancel commit',
    deadline = bug,
}

replacing = { -- the current one serves; its replacement is being started, or the deadline is the next fork
    deadline = function(self)
        fork(self)
        return 'replacing'
    end,
    ready = function(self, worker)
        if worker == self.incoming then
            self.prolonged_ms = 0
            return 'proving'
        end
    end,
    lost = function(self, worker, why)
        if worker == self.incoming then
            return lost_incoming(self, worker, why)
        elseif worker == self.current then
            self.current = nil
            return 'filling' -- the replacement is the only hope now; it, or the wait for it, goes on
        end
    end,
    replace = function(self, generation, _, soak_ms)
        if generation and generation > self.generation then
            self.generation, self.soak_ms = generation, soak_ms
            return renew(self, 'replacing')
        end
    end,
    cancel = function(self, generation)
        self.generation = generation
        drop_incoming(self, 'restart aborted')
        post(self, self.current, 'keep')
        return 'serving'
    end,
    commit = ignore,
    drain = drain,
}

proving = { -- both serve
    deadline = function(self)
        local proof = self.proof
        local may_go_on = (self.soak_ms or proof.soak_ms) > 0 and self.prolonged_ms < 2 * proof.stall_ms
        local doubt_ms = self.on.doubtful(self.incoming)
        if doubt_ms == math.huge or may_go_on and doubt_ms >= DOUBT_MS then
            self.prolonged_ms = self.prolonged_ms + LOOK_MS
            return 'proving'
        end
        self.on.proved(self)
    end,
    ready = ignore,
    lost = function(self, worker, why)
        if worker == self.incoming then
            self.incoming = nil
            failed(self, worker, why)
            return 'replacing'
        elseif worker == self.current then
            return take_incoming(self)
        end
    end,
    replace = function(self, generation, worker, soak_ms)
        if worker and worker == self.incoming then
            self.weary = worker -- it asks to be replaced itself: as soon as it is the current one
        end
        return replacing.replace(self, generation, worker, soak_ms)
    end,
    cancel = replacing.cancel,
    commit = function(self)
        local old = self.current
        dismiss(self, old, 'replaced')
        old.log:info('Replacement worker available - disconnecting')
        return take_incoming(self)
    end,
    drain = drain,
}

drained = { -- given up; its workers are leaving
    ignores = 'ready lost replace cancel commit drain',
    deadline = bug,
}

-- Filling and replacing have a deadline only while there is no worker on its way, who has a deadline of its own.
local function next_fork(self)
    return not self.incoming and math.max(self.fork_at - self.platform.now(), 0) or nil
end

definition = machine.define {
    name = 'slot',
    keeps = true,
    news = { 'filling', 'serving', 'drained' }, -- others change nothing in how many are served
    initial = 'filling',
    events = {
        'deadline',
        'ready', -- (worker) it serves
        'lost', -- (worker, why) it was not told to leave and is gone or going
        'replace', -- (generation or nil, worker or nil, soak_ms or nil) replace the current worker, by one of this
                   -- generation that has to prove itself this long; or the worker that asks for it
        'cancel', -- (generation) give the replacement up and be of this generation again
        'commit', -- the replacement takes over
        'drain', -- (why) the slot is given up
    },
    deadline = {
        filling = next_fork,
        replacing = next_fork,
        proving = function(self)
            return self.prolonged_ms > 0 and LOOK_MS or self.soak_ms or self.proof.soak_ms
        end,
    },
    states = { filling = filling, serving = serving, replacing = replacing, proving = proving, drained = drained },
}

Slot.definition = definition
return Slot
