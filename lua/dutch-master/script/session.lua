--- session.lua: the user's script, from its file to a session: one evaluation, its plan, and its hooks, ready to call.
--
-- Each evaluation reads the file anew and has a Lua state of its own, so that edits of the script and of what it
-- requires take effect at the next fork. It lives in a process of the script (process.lua), so everything is a request:
-- `done` is called later, once, with the result or nil and { message = one line with file:line, messages = all of them,
-- traceback =, kind = }. Nothing here throws for what a script does.
--
-- Kinds of failure: missing, unreadable, syntax, bytecode, runtime, budget, memory, start (never called), options,
-- exit (os.exit), died (its process), junk (on its socket), system (no process), closed (the master ends).

local plan = require 'dutch-master.script.plan'
local rights = require 'dutch-master.script.rights'

local M = {}

local MAX_SOURCE = require('dutch-master.script.values').MAX -- bytes: more is not a script
local MEMORY_MIB = 128 -- MEMORY_MAX of src/script/script_main.c
-- For the first evaluation: what the script says of it, hookTimeout, is known only then.
local BUDGET_MS = 5000

local Script, Session = {}, {}
Script.__index, Session.__index = Script, Session

--- new { platform =, path =, name = }
-- path: absolute. name: how messages call it, default its last part.
function M.new(given)
    local path = given.path
    return setmetatable({
        platform = given.platform,
        path = path,
        name = given.name or path:match('[^/]+$') or path,
        directory = path:match('^(.*)/[^/]*$') or '.',
        budget_ms = given.budget_ms or BUDGET_MS,
        rights = rights.new(given.platform),
        newest = nil, -- the session that was evaluated last, of those that are kept
        totals = {}, -- hook -> { calls, failures, ms }
    }, Script)
end

local function failure(kind, message, more)
    local err = more or {}
    err.kind, err.message = kind, message
    err.messages = err.messages or { message }
    return err
end

local function seconds(ms)
    return ('%g s'):format(ms / 1000)
end

-- Kinds whose message is the end of a sentence about the hook.
local OF_THE_PROCESS = { died = true, junk = true, closed = true, system = true }

--- The process's error in the words of this script: `master.lua:14: beforeFork took longer than its 5 s (hookTimeout)`.
local function explain(script, err, what, prefix, budget_ms, option)
    local message = err.message
    if err.kind == 'budget' then
        message = ('%s: %s took longer than its budget of %s%s'):format(err.where or script.name, what,
            seconds(budget_ms), option and (' (%s)'):format(option) or '')
    elseif err.kind == 'memory' then
        message = ('%s: %s used more than its %d MiB of memory'):format(script.name, what, MEMORY_MIB)
    elseif err.kind == 'exit' then
        message = ('%s: %s%s'):format(err.where or script.name, prefix and prefix .. ': ' or '', message)
    elseif OF_THE_PROCESS[err.kind] then
        message = ('%s: %s %s'):format(err.where or script.name, what, message)
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

--- An error of a process, as one of this script's evaluation.
function Script:failure(err)
    return explain(self, err, 'the script', nil, self.budget_ms)
end

-- Counts a call of a hook, or an evaluation.
local function count(script, hook, process, failed)
    local total = script.totals[hook]
    if not total then
        total = { calls = 0, failures = 0, ms = 0 }
        script.totals[hook] = total
    end
    total.calls, total.ms = total.calls + 1, total.ms + (process.took_ms or 0)
    total.failures = total.failures + (failed and 1 or 0)
end

local UNREADABLE = {
    ENOENT = { 'missing', 'there is no such file' },
    ENOTDIR = { 'missing', 'there is no such file' },
    EISDIR = { 'unreadable', 'is a directory, expected a file' },
    EACCES = { 'unreadable', 'may not be read by this user' },
    EFBIG = { 'unreadable', 'is too large for a script' },
}

--- The text of the script as it is now. @return text, or nil, err
function Script:read()
    local source, message, code = self.platform.read_file(self.path, MAX_SOURCE)
    if source then
        return source
    end
    local known = UNREADABLE[code] or { 'unreadable', tostring(message or code) }
    return nil, failure(known[1], ('%s: %s'):format(self.path, known[2]))
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Session. Fields: plan; source; cwd: what dutch.chdir said so far, absolute, or nil; ahead: the hook that its process
-- is at without having been told, or nil.

local function note_directory(session, directory)
    if type(directory) ~= 'string' then
        directory = nil
    elseif directory:sub(1, 1) ~= '/' then
        local start = session.script.platform.cwd and session.script.platform.cwd()
        directory = start and start:gsub('/$', '') .. '/' .. directory or directory
    end
    session.cwd = directory
end

-- What was evaluated is what it was in `like`: so is its plan, and the process has gone on to the hooks of a fork.
local function build_as(session, like)
    session.plan, session.where = like.plan, {}
    for key, value in pairs(like.where) do
        session.where[key] = value
    end
    session.where.source = like.where.source and session.source
    local hooks = session.for_fork and session.plan.hooks or {}
    session.ahead = hooks.beforeFork and 'beforeFork' or hooks.workerEnvironment and 'workerEnvironment' or nil
    return session
end

local function build(session, answer, like)
    local script = session.script
    note_directory(session, answer.directory)
    session.first_directory = session.cwd or false
    if answer.same and like then
        return build_as(session, like)
    end
    local options, file, line = unpack(answer.results, 1, answer.results.n)
    if file == nil then
        return nil, failure('start', script.name .. ':1: the script never calls start { ... }')
    elseif type(file) ~= 'string' or type(line) ~= 'number' then -- what an earlier hook left in its socket
        return nil, explain(script, { kind = 'junk', message = 'wrote to the socket of its process what is no answer' },
            'the script')
    end
    -- The lines of keys can be found only if start was called in the script itself.
    session.where = {
        file = file, line = line, source = file == script.name and session.source or nil,
        getuser = script.platform.getuser, getgroup = script.platform.getgroup,
        rights = script.rights,
    }
    local built, messages = plan.build(options, session.where)
    if not built then
        return nil, failure('options', messages[1], { messages = messages })
    end
    session.plan = built
    return session
end

--- Evaluates the script in this process, as it is on disk or from the text of an earlier evaluation.
-- @param options {source = text or nil, repeated = true when its records and commands were heard before,
--   budget_ms, number = which evaluation this is, worker = of which fork: where the plan is that of the session which
--   its process keeps, the hooks of that fork follow at once (session.ahead)} or nil
-- @param done function(session) or function(nil, err); may come before this returns if the file cannot be read
function Script:evaluate(process, options, done)
    options = options or {}
    local source, unreadable = options.source, nil
    if not source then
        source, unreadable = self:read()
    end
    if not source then
        return done(nil, unreadable)
    end
    local budget_ms = options.budget_ms or self.budget_ms
    local worker, like = options.worker, process.kept
    like = like and plan.stands(like.plan, like.where) and like or nil
    local session = setmetatable({ script = self, process = process, source = source, state = process:new_state(),
        number = options.number, for_fork = worker ~= nil }, Session)
    process:request('E', session.state, { source = source, name = self.name, directory = self.directory,
        repeated = options.repeated, like = like and like.state, arguments = like and worker and { worker } },
        'the script', budget_ms, function(answer, why)
        count(self, 'evaluation', process, not answer)
        if not answer then
            return done(nil, explain(self, why, 'the script', nil, budget_ms, options.budget_ms and 'hookTimeout'))
        end
        done(build(session, answer, like))
    end)
end

--- Calls a hook of the script: session:call('beforeFork', {worker}, done), ('judge', {new, old}), ('every', {index}),
-- ('logger', {level, fields, message}).
-- @param arguments a list, with its length in n where one may be nil
-- @param done function(true, results...) or function(nil, err)
function Session:call(hook, arguments, done, timeout)
    local script = self.script
    timeout = timeout or {}
    local budget_ms, option = timeout.ms or self.plan.hook_timeout_ms or script.budget_ms, timeout.option
        or 'hookTimeout'
    local directory -- each fork begins anew, also when one session serves several
    if hook == 'beforeFork' then
        directory = self.first_directory
    end
    local ahead = self.ahead == hook
    self.ahead = nil
    local function answered(answer, err)
        count(script, hook, self.process, not answer)
        if not answer then
            return done(nil, explain(script, err, hook, hook, budget_ms, option))
        end
        note_directory(self, answer.directory)
        if ahead and hook == 'beforeFork' and answer.results[1] ~= false then
            self.ahead = self.plan.hooks.workerEnvironment and 'workerEnvironment'
        end
        done(true, unpack(answer.results, 1, answer.results.n))
    end
    if ahead then
        return self.process:await(hook, budget_ms, answered)
    end
    self.process:request('C', self.state, { hook = hook, arguments = arguments, directory = directory }, hook,
        budget_ms, answered)
end

local function checked(session, name, done)
    return function(ok, value)
        if not ok then
            return done(nil, value)
        end
        local inside, messages = plan.check(name, value, session.where)
        if inside == nil then
            return done(nil, failure('options', messages[1], { messages = messages }))
        end
        done(inside)
    end
end

--- The number of workers, asked of the script if it is a function. done(number) or done(nil, err)
function Session:num_workers(done)
    if not self.plan.hooks.numWorkers then
        return done(self.plan.num_workers)
    end
    self:call('numWorkers', {}, checked(self, 'numWorkers', done))
end

--- workerEnvironment for one worker, where it is a function (else it is plan.environment).
-- done({ NAME = value, false takes a name away }) or done(nil, err)
function Session:environment(worker, done)
    self:call('workerEnvironment', { worker }, checked(self, 'workerEnvironment', function(given, err)
        if not given then
            return done(nil, err)
        end
        for name, value in pairs(self.plan.environment) do -- what a preset needs
            if given[name] == nil then
                given[name] = value
            end
        end
        done(given)
    end))
end

--- Evaluates the script, as evaluate(), and asks for the number of workers. done(session, number) or done(nil, err)
function Script:load(process, options, done)
    self:evaluate(process, options, function(session, err)
        if not session then
            return done(nil, err)
        end
        session:num_workers(function(number, why)
            done(number and session, number or why)
        end)
    end)
end

-- Of two evaluations at the same time the later one counts. One that only makes hooks ready has no number.
function Script:adopt(session)
    if session.number and not (self.newest and session.number < self.newest.number) then
        self.newest = session
    end
end

--- It is good. Keeps the state in its process: for hooks, and for forks while a later edit of the script is bad.
function Session:keep()
    self.script:adopt(self)
    if not self.kept then
        self.kept = true
        self.process:keep(self.state, self)
    end
end

return M
