-- script.lua: the user's script, from its file to a session: one evaluation, its plan, and its hooks, ready to call.
--
-- Each evaluation reads the file anew and has a Lua state of its own (core.sandbox), so that edits of the script and
-- of what it requires take effect at the next fork, and a state that went wrong is thrown away. The store outlives
-- them. Every failure comes back as { message = one line with file:line, messages = all of them, traceback =, kind = };
-- nothing here throws for what a script does.
--
-- Kinds of failure: missing, unreadable, syntax, bytecode, runtime, budget, memory, exit, start (never called),
-- options, system (no state could be made), busy (called from within a hook), closed.

local plan = require 'dutch-master.script.plan'

local M = {}

local MAX_SOURCE = 4 * 1024 * 1024 -- bytes: more is not a script
local MEMORY = 64 * 1024 * 1024 -- bytes for one state
local BUDGET_MS = 5000 -- a hook that takes longer holds up the cluster

local Script, Session = {}, {}
Script.__index, Session.__index = Script, Session

--- new { platform =, path =, name =, host =, budget_ms =, memory = }
-- path: absolute. name: how messages call it, default its last part. host(name, ...): answers what scripts ask of the
-- rest of the program: log, workers, restart, scale, stop, send. What the platform knows is answered here.
function M.new(given)
    local path = given.path
    return setmetatable({
        platform = given.platform,
        path = path,
        name = given.name or path:match('[^/]+$') or path,
        directory = path:match('^(.*)/[^/]*$') or '.',
        ask = given.host or function() end,
        budget_ms = given.budget_ms or BUDGET_MS,
        memory = given.memory or MEMORY,
        store = {},
        limits = given.platform.read_file('/proc/self/limits', 65536), -- what of the plan this user may set
    }, Script)
end

local own = {
    cpus = function(script)
        return script.platform.cpus()
    end,
    environ = function(script)
        return script.platform.environ()
    end,
    hostname = function(script)
        return script.platform.hostname()
    end,
    store_get = function(script, key)
        return script.store[key]
    end,
    store_set = function(script, key, value)
        script.store[key] = value
    end,
    store_all = function(script)
        return script.store
    end,
}

local function failure(kind, message, more)
    local err = more or {}
    err.kind, err.message = kind, message
    err.messages = err.messages or { message }
    return nil, err
end

-- The sandbox's error in the words of this script: `master.lua:14: beforeFork took longer than its budget of 5 s`.
local function explain(script, err, what, prefix, seconds)
    local message = err.message
    if err.kind == 'budget' then
        message = ('%s: %s took longer than its budget of %g s'):format(err.where or script.name, what, seconds)
    elseif err.kind == 'memory' then
        message = ('%s: %s %s'):format(script.name, what, message)
    elseif err.kind == 'busy' or err.kind == 'closed' then
        message = ('%s: %s was not called: %s'):format(script.name, what, message)
    else
        local place, rest = message:match('^([^\n]-:%d+): (.*)$')
        if not place then
            place, rest = script.name, message
            if message:sub(1, #place + 2) == place .. ': ' then
                rest = message:sub(#place + 3)
            end
        end
        message = prefix and ('%s: %s: %s'):format(place, prefix, rest) or place .. ': ' .. rest
    end
    return failure(err.kind, message, { traceback = err.traceback })
end

local UNREADABLE = {
    ENOENT = { 'missing', 'there is no such file' },
    ENOTDIR = { 'missing', 'there is no such file' },
    EISDIR = { 'unreadable', 'is a directory, expected a file' },
    EACCES = { 'unreadable', 'may not be read by this user' },
    EFBIG = { 'unreadable', 'is too large for a script' },
}

local function read(script)
    local source, message, code = script.platform.read_file(script.path, MAX_SOURCE)
    if source then
        return source
    end
    local known = UNREADABLE[code] or { 'unreadable', tostring(message or code) }
    return failure(known[1], ('%s: %s'):format(script.path, known[2]))
end

--- Reads and runs the script. Returns a session, or nil and the error.
function Script:evaluate()
    local source, err = read(self)
    if not source then
        return nil, err
    end
    local platform = self.platform
    local sandbox, message = platform.sandbox {
        memory = self.memory,
        directory = self.directory,
        host = function(name, ...)
            if own[name] then
                return own[name](self, ...)
            end
            return self.ask(name, ...)
        end,
    }
    if not sandbox then
        return failure('system', ('%s: cannot be evaluated: %s'):format(self.name, tostring(message)))
    end
    local session = setmetatable({ script = self, sandbox = sandbox, source = source }, Session)
    local built
    built, err = session:open()
    if not built then
        session:close()
        return nil, err
    end
    return session
end

-- Session ----------------------------------------------------------------------------------------------------------
-- fields: plan; cwd, what dutch.chdir said so far, absolute, or nil.

local function note_directory(session)
    local directory = session.sandbox:directory()
    if directory and directory:sub(1, 1) ~= '/' then
        local start = session.script.platform.cwd and session.script.platform.cwd()
        directory = start and start:gsub('/$', '') .. '/' .. directory or directory
    end
    session.cwd = directory
end

function Session:open()
    local script = self.script
    local seconds = script.budget_ms / 1000
    local ok, err = self.sandbox:run('@' .. script.name, self.source, script.budget_ms)
    if not ok then
        return explain(script, err, 'the script', nil, seconds)
    end
    note_directory(self)
    self.first_directory = self.sandbox:directory() or false
    local options, file, line
    ok, options, file, line = self.sandbox:call('options', script.budget_ms)
    if not ok then
        return explain(script, options, 'the script', 'start', seconds)
    elseif not file then
        return failure('start', script.name .. ':1: the script never calls start { ... }')
    end
    -- The lines of keys can be found only if start was called in the script itself.
    self.where = {
        file = file, line = line, source = file == script.name and self.source or nil,
        getuser = script.platform.getuser, getgroup = script.platform.getgroup,
        uid = script.platform.uid and script.platform.uid(), limits = script.limits,
    }
    local built, messages = plan.build(options, self.where)
    if not built then
        return failure('options', messages[1], { messages = messages })
    end
    self.plan = built
    return true
end

local function finish(session, hook, ok, ...)
    if not session.sandbox then
        return failure('closed', ('%s: %s closed its own session'):format(session.script.name, hook))
    end
    note_directory(session)
    if not ok then
        return explain(session.script, (...), hook, hook, session.script.budget_ms / 1000)
    end
    return true, ...
end

--- Calls a hook of the script: session:call('beforeFork', worker), session:call('judge', new, old),
-- session:call('every', index). Returns true and what it returned, or nil and the error.
function Session:call(hook, ...)
    if not self.sandbox then
        return failure('closed', ('%s: %s was not called: the session is closed'):format(self.script.name, hook))
    elseif hook == 'beforeFork' then -- each fork begins anew, also when one session serves several
        self.sandbox:directory(self.first_directory)
    end
    return finish(self, hook, self.sandbox:call('hook', self.script.budget_ms, hook, ...))
end

--- A record for the user's own logger (plan.logger.custom).
function Session:log(level, fields, message)
    if not self.sandbox then
        return failure('closed', self.script.name .. ': logger was not called: the session is closed')
    end
    return finish(self, 'logger', self.sandbox:call('log', self.script.budget_ms, level, fields, message))
end

local function checked(session, name, ok, value)
    if not ok then
        return nil, value
    end
    local inside, messages = plan.check(name, value, session.where)
    if inside == nil then
        return failure('options', messages[1], { messages = messages })
    end
    return inside
end

--- The number of workers, asked of the script if it is a function. Returns it, or nil and the error.
function Session:num_workers()
    if not self.plan.hooks.numWorkers then
        return self.plan.num_workers
    end
    return checked(self, 'numWorkers', self:call('numWorkers'))
end

--- workerEnvironment for one worker: { NAME = value }, false takes a name away. Or nil and the error.
function Session:environment(worker)
    if not self.plan.hooks.workerEnvironment then
        return self.plan.environment
    end
    local given, err = checked(self, 'workerEnvironment', self:call('workerEnvironment', worker))
    if not given then
        return nil, err
    end
    for name, value in pairs(self.plan.environment) do -- what a preset needs
        if given[name] == nil then
            given[name] = value
        end
    end
    return given
end

--- Gives the state back. A session may be closed more than once.
function Session:close()
    if self.sandbox then
        self.sandbox:close()
        self.sandbox = nil
    end
end

return M
