--- process.lua: one process of the script, from its start to its end. It serves one request at a time, and every
--- request is answered exactly once: by its answer, at its deadline, or by the end of the process.
--
-- What the process does is its user's business: it may block, loop, crash, write anything to its socket, or fork. So
-- nothing here waits for it, reads more of it in one turn than a few lines, or believes it. A process that overran its
-- time, ate its memory, or said something that no answer is, is ended, with all of its group; its owner starts another.
--
-- A hook may ask the master for something (`dutch.workers()`); that is answered at once. What it commands (restart,
-- scale, stop) is kept until it has returned.
-- Longer than 400 lines: one machine, and what it says to a process.

local machine = require 'dutch-master.machine'
local values = require 'dutch-master.script.values'
local ignore, bug = machine.ignore, machine.bug

local Process = {}
Process.__index = Process

-- How long the error that is raised where the script is may take to come back. More is a call that does not return.
local GRACE_MS = 500
-- SIGKILL is repeated, since a process in an uninterruptible wait does not die at once.
local KILL_AGAIN_MS = 1000
-- Lines of one process handled in a row: a flood waits for the next turn of the loop, the workers do not.
local PER_TURN = 16
-- The master's word that the time is over: DM_GUARD_SIGNAL of src/script/guard.h.
local OVER = 'SIGVTALRM'

local definition

local function environment(environ)
    local list = {}
    for name, value in pairs(environ) do
        list[#list + 1] = name .. '=' .. value
    end
    return list
end

local function handle(self, line)
    self.handled = self.handled + 1
    self.agenda:post(self, 'line', line, #line <= 4 * values.MAX and values.decode(line) or nil)
end

--- Starts what Process.new makes a process of, before the loop runs next: a master has it start beside itself.
-- @param fields {platform, script (its path, for `ps`), executable or nil}
-- @return {child, owner = the process, as soon as there is one} or nil, message
function Process.start(fields)
    local started = {}
    local child, message = fields.platform.spawn {
        file = fields.executable or '/proc/self/exe', -- this very program, whatever lies on the disk by now
        argv = { 'dutch-master', '--script-process', fields.script },
        env = environment(fields.platform.environ()),
        channel = true, lingers = true,
        on_line = function(_, line)
            started.owner:on_line(line)
        end,
        on_channel_closed = function(_, reason)
            started.owner.agenda:post(started.owner, 'closed', reason)
        end,
        on_leader_exit = function(leader) -- what it had started goes with it
            leader:signal_group('SIGKILL')
        end,
        on_exit = function(_, status)
            started.owner:on_exit(status)
        end,
    }
    if not child then
        return nil, message
    end
    started.child = child
    return started
end

--- Starts a process.
-- @param options {platform, agenda, lane = whose it is, script, executable or nil, started = by Process.start, or nil,
--   ask = function(name, process, ...) -> results; commands come as functions by process:later(name, fn),
--   on_gone = function(process) it takes no request any more; comes before the answer of the one it had}
-- @return the process, or nil, message
function Process.new(options)
    local self = setmetatable(options, Process)
    self.inbox, self.handled, self.commands, self.next_state = {}, 0, {}, 1
    local started, message = self.started, nil
    if not started then
        started, message = Process.start(self)
    end
    if not started then
        return nil, message
    end
    started.owner, self.child = self, started.child
    self.turn = self.platform.timer(function()
        self:take_turn()
    end)
    self.agenda:start(self, definition)
    return self
end

local function begin(self, request)
    request.began = self.platform.now()
    self.current = request
    self.at, self.exit_code = nil, nil -- what the hook noted last: where it is, and that it ends its process
end

-- What is asked on the way to a fork, as the evaluation itself, does not wait for a snapshot: a successor asks again.
-- Other hooks hear only of what it would know.
local ASKED_AT_ONCE = { beforeFork = true, numWorkers = true, workerEnvironment = true }

--- Sends a request, to a process that is idle. done(answer) or done(nil, err) comes once.
-- @param verb 'E' or 'C': see script_main.c
-- @param state the number of the state
-- @param message a table for values.encode, but for its `arguments`: a list, with its length in n where one may be nil
-- @param what the hook, for messages; budget_ms
function Process:request(verb, state, message, what, budget_ms, done)
    local arguments, line, why = message.arguments, nil, nil
    if arguments then
        message.arguments, why = values.pack(false, unpack(arguments, 1, arguments.n or #arguments))
    end
    if not why then
        line, why = values.encode(message)
    end
    begin(self, { what = what, budget_ms = budget_ms, done = done, now = verb == 'E' or ASKED_AT_ONCE[what] })
    self.handled = 0
    self.agenda:post(self, 'request', line and ('%s%d %s'):format(verb, state, line), why)
end

--- For the `done` of a request: its process has gone on by itself, and answers this as well.
-- @param what, budget_ms, done as of request
function Process:await(what, budget_ms, done)
    begin(self, { what = what, budget_ms = budget_ms, done = done, under_way = true })
end

--- A number for the next state.
function Process:new_state()
    self.next_state = self.next_state + 1
    return self.next_state
end

--- Keeps the state of a good evaluation, of this session; the one that was kept before goes.
function Process:keep(state, session)
    self.kept = session
    if not self.reported then
        self.child:send('K' .. state, nil, true)
    end
end

--- What a hook commands happens when it has returned. Of several commands of one name only the last one does: a hook
--- that asks for a restart a hundred thousand times gets one.
function Process:later(name, fn)
    for i, command in ipairs(self.commands) do
        if command.name == name then
            table.remove(self.commands, i)
            break
        end
    end
    self.commands[#self.commands + 1] = { name = name, fn = fn }
end

--- Ends it now, with all of its group.
function Process:close()
    self.agenda:post(self, 'close')
end

--- The same of one that is idle and was only needed for a rush: its owner has forgotten it.
function Process:retire()
    self.reported = true
    self:close()
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Lines

function Process:take_turn()
    self.turn:start(0) -- first: nothing that a line does may keep the next turn from coming
    self.handled = 0
    while self.handled < PER_TURN and self.inbox[1] do
        handle(self, table.remove(self.inbox, 1))
    end
    if self.inbox[1] then
        return
    end
    self.turn:stop()
    if self.child and self.paused then
        self.paused = false
        self.child:pause_reading(false)
    end
end

function Process:on_line(line)
    if self.handled < PER_TURN and not self.inbox[1] then
        return handle(self, line)
    end
    self.inbox[#self.inbox + 1] = line
    if not self.paused then
        self.paused = true
        self.child:pause_reading(true)
        self.turn:start(0)
    end
end

function Process:on_exit(status)
    for i = 1, math.min(#self.inbox, 2 * PER_TURN) do
        handle(self, self.inbox[i])
    end
    self.inbox = {}
    self.agenda:post(self, 'exit', status)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Actions

-- Answers the request, then lets what the hook has commanded happen.
local function conclude(self, answer, err)
    local request = self.current
    self.current = nil
    local commands = self.commands
    self.commands = {}
    if request then
        if err then
            err.where = err.where or self.at
        end
        self.took_ms = self.platform.now() - request.began
        request.done(answer, err)
    end
    for _, command in ipairs(commands) do
        command.fn()
    end
end

local function kill(self)
    self.child:signal_group('SIGKILL')
    return 'killed'
end

local function gone(self)
    if not self.reported then
        self.reported = true
        self.on_gone(self)
    end
end

-- Gives the process up: its request fails with err.
local function give_up(self, err)
    local state = kill(self)
    gone(self)
    conclude(self, nil, err)
    return state
end

local function junk(self, line)
    return give_up(self, { kind = 'junk', message = 'wrote to the socket of its process what is no answer: '
        .. ('%q'):format(line:sub(1, 60)):gsub('\n', 'n') })
end

local function send(self, line, why)
    local ok, message = line, why
    if line then
        ok, message = self.child:send(line, nil, self.current.now)
    end
    if not ok then
        if line then
            return give_up(self, { kind = 'died', message = 'could not be asked: ' .. tostring(message) })
        end
        conclude(self, nil, { kind = 'runtime', message = message })
        return nil
    end
    return 'busy'
end

local function reply(self, message)
    local ok, results, why = pcall(function()
        return values.pack(false, self.ask(message.ask, self, values.unpack(message.arguments)))
    end)
    local answer = ok and results and { results = results } or { failed = ok and why or tostring(results) }
    local line, too_much = values.encode(answer)
    self.child:send('R' .. (line or values.encode { failed = too_much }))
end

-- A budget or memory that was overrun leaves behind nobody knows what: the next request begins with a new process.
local ENDS = { budget = true, memory = true, system = true }

-- Its time was over: told by the error that was raised in it, which knows the line, or by us.
local function overrun()
    return { kind = 'budget', message = 'took longer than its time' }
end

local function text(value, most) -- nil for anything else, and no more than a place in a script needs
    return type(value) == 'string' and value:sub(1, most or 160) or nil
end

local function answered(self, message)
    if message.ok and self.state ~= 'warned' then
        conclude(self, message)
        return self.current and self.current.under_way and 'busy' or 'idle' -- see await
    elseif message.ok then
        return give_up(self, overrun()) -- it came to its end a moment too late
    end
    local err = { kind = tostring(message.kind), message = tostring(message.message),
        where = text(message.where), traceback = text(message.traceback, -1) }
    if self.state == 'warned' or ENDS[err.kind] then
        return give_up(self, err)
    end
    conclude(self, nil, err)
    return 'idle'
end

local function line_while_busy(self, line, message)
    if not message then
        return junk(self, line)
    elseif type(message.ask) == 'string' then
        reply(self, message)
        return nil
    elseif type(message.ok) == 'boolean' then
        return answered(self, message)
    elseif message.at ~= nil or message.exit ~= nil or next(message) == nil then
        self.at = text(message.at) or self.at
        self.exit_code = tonumber(message.exit)
        return nil
    end
    return junk(self, line)
end

-- What is known of its end, in words that follow the hook's name.
local function obituary(self, status)
    if status.failed then
        return 'could not be called, its process did not start: ' .. tostring(status.failed.message)
    elseif status.signal == 'SIGKILL' then
        return 'was cut short, its process was killed by SIGKILL (by hand, or by the kernel for want of memory)'
    elseif status.signal then
        return 'was cut short, its process died of ' .. status.signal
    elseif self.exit_code then
        return ('os.exit was called, which ends the process of the script with code %d; dutch.stop() stops the cluster')
            :format(self.exit_code), 'exit'
    end
    return ('was cut short, its process exited with code %s'):format(tostring(status.code))
end

local function finish(self, err)
    self.turn:close()
    self.agenda:finish(self)
    gone(self)
    conclude(self, nil, err)
    return 'gone'
end

local function ended(self, status)
    local message, kind = obituary(self, status)
    return finish(self, { kind = kind or 'died', message = message })
end

local function dismiss(self)
    gone(self)
    return kill(self)
end

local function cut_short(self)
    return give_up(self, { kind = 'closed', message = 'was cut short, the master ends' })
end

definition = machine.define {
    name = 'script process',
    initial = 'idle',
    events = {
        'request', -- (line, or nil and why there is none)
        'line', -- (line, the message in it or nil) it said something
        'closed', -- its socket is closed
        'exit', -- (status) it is reaped
        'close', -- it is not wanted any more
        'deadline',
    },
    deadline = {
        busy = function(self)
            return self.current.budget_ms
        end,
        warned = function()
            return GRACE_MS
        end,
        mute = function()
            return GRACE_MS
        end,
        killed = function()
            return KILL_AGAIN_MS
        end,
    },
    states = {
        idle = {
            request = send,
            line = junk,
            closed = dismiss,
            exit = ended,
            close = dismiss,
            deadline = bug,
        },
        busy = {
            request = bug,
            line = line_while_busy,
            closed = function()
                return 'mute'
            end,
            exit = ended,
            close = cut_short,
            deadline = function(self)
                self.child:signal(OVER)
                return 'warned'
            end,
        },
        warned = { -- its time is over: an error is raised where the script is
            request = bug,
            line = line_while_busy,
            closed = ignore,
            exit = function(self)
                return finish(self, overrun())
            end,
            close = cut_short,
            deadline = function(self)
                return give_up(self, overrun())
            end,
        },
        mute = { -- its socket is closed while it is busy: it is ending, or has closed it itself
            request = bug,
            line = ignore,
            closed = ignore,
            exit = ended,
            close = cut_short,
            deadline = function(self)
                return give_up(self, { kind = 'died', message = 'closed the socket of its process' })
            end,
        },
        killed = {
            request = function(self)
                conclude(self, nil, { kind = 'died', message = 'was not called, its process is ending' })
            end,
            line = ignore,
            closed = ignore,
            exit = ended,
            close = ignore,
            deadline = kill,
        },
        gone = { request = bug, line = ignore, closed = ignore, exit = ignore, close = ignore, deadline = bug },
    },
}

Process.definition = definition
return Process
