--- machine.lua: state machines as total tables.
--
-- A machine is a table of rows: for each state, what it does with each event. define() refuses a table with a hole, so
-- a case nobody thought of is found when the module is loaded, not at 3 a.m. Every object has one deadline, which
-- belongs to its state: entering a state arms it, leaving the state disarms it.
--
-- Events run to completion: the agenda is one queue for all objects of a cluster, and an event raised while another is
-- handled waits its turn. So an action never sees an object in the middle of a transition.

local M = {}

-- The soonest that a deadline comes whose state an action with an error has left without one.
local AGAIN_MS = 1000

--- A cell for an event that may come in this state and means nothing there.
M.ignore = 'ignore'
--- A cell for an event that cannot come in this state. If it does, it is logged as an error and ignored.
M.bug = 'bug'

-- `ignores = 'event event'` and `bugs = 'event event'` stand for so many cells.
local function spread(name, state, row)
    for key, cell in pairs { ignores = M.ignore, bugs = M.bug } do
        local list = row[key] or ''
        row[key] = nil
        for event in list:gmatch '%S+' do
            if row[event] ~= nil then
                error(('machine %s: state %s mentions %s twice'):format(name, state, event), 4)
            end
            row[event] = cell
        end
    end
end

local function check_row(name, state, row, events)
    spread(name, state, row)
    for _, event in ipairs(events) do
        local cell = row[event]
        if cell == nil then
            error(('machine %s: state %s does not say what to do on %s'):format(name, state, event), 3)
        end
        if cell ~= M.ignore and cell ~= M.bug and type(cell) ~= 'function' then
            error(('machine %s: state %s, event %s: a cell is a function, ignore or bug'):format(name, state, event), 3)
        end
    end
    for event in pairs(row) do
        if not events[event] then
            error(('machine %s: state %s mentions the unknown event %s'):format(name, state, event), 3)
        end
    end
end

--- Defines a machine.
-- @param definition {name, initial, events = {names}, states = {state = {event = cell}},
--   deadline = {state = function(object) -> ms or nil}, news = true, or a list of states: that it is in
--   one of these now is for on_settled to hear; keeps = true: for on_touched, and that its text in the state is not
--   what it keeps any more (keeper/estate.lua)}
--   Events that a state ignores can be named in one cell, ignores = 'event event', and those that cannot come there
--   in another, bugs = 'event event'. Every other cell is ignore, bug, or a function(object, ...) that returns the next
--   state, or nil to stay (its deadline runs on). Returning the present state enters it again, with a new deadline.
-- @return the definition, checked
function M.define(definition)
    local name, events = definition.name, definition.events
    for _, event in ipairs(events) do
        events[event] = true
    end
    for state, row in pairs(definition.states) do
        check_row(name, state, row, events)
    end
    assert(definition.states[definition.initial], 'the initial state is not in the table')
    local news = {}
    for state in pairs(definition.news == true and definition.states or {}) do
        news[state] = true
    end
    for _, state in ipairs(type(definition.news) == 'table' and definition.news or {}) do
        news[state] = assert(definition.states[state] and true, 'news of an unknown state')
    end
    definition.news = news
    for state in pairs(definition.deadline or {}) do
        assert(definition.states[state], 'a deadline for an unknown state')
        assert(events.deadline, 'a machine with deadlines needs the event deadline')
    end
    return definition
end

local Agenda = {}
Agenda.__index = Agenda

--- The queue of events of one cluster.
-- @param options {timer = function(fn) -> timer, on_error = function(message), on_bug = function(object, event),
--   on_transition = function(object, from, event, to) or nil, on_settled = function() or nil: no event is left, and
--   there is news: one of a machine is in a state now that is `news`, or somebody said so}
function M.agenda(options)
    return setmetatable({
        timer = options.timer,
        on_error = options.on_error,
        on_bug = options.on_bug,
        on_transition = options.on_transition,
        on_settled = options.on_settled,
        on_touched = options.on_touched, -- something of a machine with `keeps` may be different now
        queue = {},
        head = 1,
        tail = 0,
        running = false,
        news = false,
    }, Agenda)
end

local function arm(agenda, object, ms)
    if not object.deadline_timer then
        object.deadline_timer = agenda.timer(function()
            object.deadline_armed = false
            agenda:post(object, 'deadline')
        end)
    end
    object.deadline_armed = true
    object.deadline_timer:start(ms)
end

local function disarm(object)
    object.deadline_armed = false
    object.deadline_timer:stop()
end

--- Gives an object its machine and puts it into the initial state. The object then has .machine and .state.
-- @param state that of its predecessor when its master died, nil: the initial one
function Agenda:start(object, definition, state)
    state = state or definition.initial
    assert(definition.states[state], state)
    object.machine, object.state = definition, state
    local deadline = definition.deadline and definition.deadline[state]
    local ms = deadline and deadline(object)
    if ms then
        arm(self, object, ms)
    end
    return object
end

--- Takes an object out: its deadline is gone, later events to it are dropped.
function Agenda.finish(_, object)
    if object.deadline_timer then
        object.deadline_timer:close()
        object.deadline_timer = nil
        object.deadline_armed = false
    end
    object.finished = true
end

local function step(self, object, event, ...)
    if object.finished then
        return
    end
    local definition, from = object.machine, object.state
    local cell = definition.states[from][event]
    if cell == nil then
        error(('%s has no event %s'):format(definition.name, tostring(event)))
    elseif cell == M.bug then
        self.on_bug(object, event)
    elseif cell ~= M.ignore then
        if definition.keeps then
            object.part, self.touched = nil, self.on_touched ~= nil
        end
        local to = cell(object, ...)
        if to then
            assert(definition.states[to], to)
            object.state = to
            local deadline = not object.finished and definition.deadline and definition.deadline[to]
            local ms = deadline and deadline(object)
            if ms then
                arm(self, object, ms)
            elseif object.deadline_armed then
                disarm(object)
            end
            self.news = self.news or definition.news[to] and from ~= to and self.on_settled ~= nil
            if self.on_transition then
                self.on_transition(object, from, event, to)
            end
        end
    end
end

local function report(self, message)
    pcall(self.on_error, message) -- were it to throw, nothing would ever be handled again
end

-- An action has thrown. Its state may have had a deadline that has passed by now, or was not reached: it gets one anew.
local function stand_again(self, object)
    local definition = object.machine
    local deadline = definition and not object.finished and (definition.deadline or {})[object.state]
    if deadline and not object.deadline_armed then
        local ok, ms = pcall(deadline, object)
        if not ok or ms then
            arm(self, object, math.max(ok and ms or 0, AGAIN_MS))
        end
    end
end

local function run(self)
    while self.head <= self.tail do
        local entry = self.queue[self.head]
        self.queue[self.head] = nil
        self.head = self.head + 1
        local ok, message = xpcall(step, debug.traceback, self, entry[1], entry[2], unpack(entry, 3, 2 + entry.n))
        if not ok then
            report(self, message)
            stand_again(self, entry[1])
        end
    end
    self.head, self.tail = 1, 0
    self.running = false
    if self.touched then
        self.touched = false
        self.on_touched()
    end
    if self.news then
        self.news = false
        local ok, message = xpcall(self.on_settled, debug.traceback)
        if not ok then
            report(self, message)
        end
    end
end

--- Something is different now that is no transition.
function Agenda:note_news()
    self.news = self.on_settled ~= nil
end

--- Raises an event. It is handled at once unless another is being handled, else after all that came before it.
-- An error in an action is given to on_error and ends that event alone. The state has its deadline all the same.
function Agenda:post(object, event, ...)
    self.tail = self.tail + 1
    self.queue[self.tail] = { n = select('#', ...), object, event, ... }
    if not self.running then
        self.running = true
        run(self)
    end
end

--- Runs fn as if it were an action: events that it raises wait until it is done.
function Agenda:hold(fn)
    if self.running then
        return fn()
    end
    self.running = true
    local ok, message = xpcall(fn, debug.traceback)
    if not ok then
        report(self, message)
    end
    run(self)
end

return M
