-- script/dutch-master.lua: what the user's script gets from `require 'dutch-master'`, and how the master's requests
-- reach the script's hooks. Runs first in each new Lua state of the script's process (src/script/script_main.c), and
-- returns the entry points. It is loaded at every fork: it stays small, and does work only when asked.
--
-- The state is the script's own: all of Lua is there, and may be changed. What is used here later is taken now.
-- Longer than 400 lines: it is loaded whole at every fork.

-- luacheck: ignore 121 122 (it replaces some of what Lua has)

local core, values = ...
local guard, say, where = core.guard, core.say, core.where
local encode, decode, pack_values, unpack_values = values.encode, values.decode, values.pack, values.unpack
local has_results = values.has_results

local type, tostring, select, concat, ipairs, pairs = type, tostring, select, table.concat, ipairs, pairs
local error, setmetatable, getmetatable, pcall, unpack = error, setmetatable, getmetatable, pcall, unpack
local load_text, tonumber = load, tonumber
local getinfo = debug.getinfo

-- Talk with the master ---------------------------------------------------------------------------------------------

local repeated -- this script was evaluated before, from the same text: what it says and asks for then counts once

local SILENT_WHEN_REPEATED = { log = true, restart = true, scale = true, stop = true, send = true, store_set = true }

--- An error at the script's line that called into this file.
local function fail(message)
    local place = where()
    error(place and place .. ': ' .. message or message, 0)
end

--- Asks the master, who answers at once.
local function host(name, ...)
    if repeated and SILENT_WHEN_REPEATED[name] then
        return true
    end
    local arguments, why = pack_values(false, ...)
    local line
    if arguments then
        line, why = encode { ask = name, arguments = arguments }
    end
    if not line then
        fail(why)
    end
    local answer = decode(core.ask(line))
    if answer.failed then
        fail(answer.failed)
    end
    return unpack(answer.results, 1, answer.results.n)
end

--- Before something that may not come back: the master knows then where it was.
local function note(more)
    more.at = where()
    say(encode(more))
end

-- The libraries, where a script could not mean what Lua does -------------------------------------------------------

-- A record for the log: the script's own logger is called here, in the state that it is in.
local own_logger, in_logger
local function record(level, fields, message)
    if own_logger and not in_logger then
        return own_logger(level, fields, message)
    end
    host('log', level, fields, message)
end

local function log_lines(text)
    record('info', {}, (text:gsub('\n$', '')))
end

-- The master's stdout is the log's: what a script prints goes there as records.
function print(...)
    local words = { ... }
    for i = 1, select('#', ...) do
        words[i] = tostring(words[i])
    end
    log_lines(concat(words, '\t'))
end

local stdout = {}
function stdout:write(...)
    log_lines(concat { ... })
    return self
end
function stdout.flush() end
stdout.close, stdout.setvbuf = stdout.flush, stdout.flush
function io.write(...)
    return stdout:write(...)
end
io.stdout = stdout

-- Commands have the memory that the master's children have, not that of this process (script_main.c).
local MEMORY = 'ulimit -Sd unlimited 2>/dev/null\n'
local raw_execute, raw_popen, raw_exit = os.execute, io.popen, os.exit

function os.execute(command)
    if command == nil then
        return raw_execute()
    end
    note {}
    return raw_execute(MEMORY .. command)
end

function io.popen(command, mode)
    note {}
    return raw_popen(MEMORY .. command, mode)
end

function os.exit(code, close)
    note { exit = code == nil and 0 or code == true and 0 or code == false and 1 or code }
    return raw_exit(code, close)
end

-- Modules: from the script's own directory first, then where Lua keeps them; nothing relative, for the master may be
-- started anywhere.
local function absolute(path, first)
    local kept = { first }
    for entry in path:gmatch('[^;]+') do
        if entry:byte() == 47 then
            kept[#kept + 1] = entry
        end
    end
    return concat(kept, ';')
end

-- dutch ------------------------------------------------------------------------------------------------------------

local dutch = {}
package.loaded['dutch-master'] = dutch

local use_logger, call_logger -- see below
local options, started -- what start() was given, and where: "master.lua:3"

local function caller()
    local file, line = (where() or '?:0'):match('^(.*):(%d+)$')
    return file, tonumber(line)
end

--- start { ... }: says what is to run. Once per script.
function dutch.start(given)
    local file, line = caller()
    if started then
        fail(('start was called twice: %s:%d and %s:%d'):format(started.file, started.line, file, line))
    end
    started = { file = file, line = line }
    options = given
    own_logger = use_logger(given)
    return dutch
end

local directory -- what dutch.chdir said so far, as it was said: a link stays a link

--- chdir(path): where this fork runs. The master itself stays where it is.
function dutch.chdir(path)
    if type(path) ~= 'string' or path == '' or path:find('\0', 1, true) then
        fail('dutch.chdir: expected a path, found ' .. (type(path) == 'string' and 'an unusable string' or type(path)))
    end
    if path:byte() ~= 47 and directory then
        path = (directory == '/' and '' or directory) .. '/' .. path
    end
    directory = path
    if not core.chdir(path) then
        core.chdir '/' -- the fork will say that it is missing; nothing is to be read from another one
    end
end

--- Begins where the evaluation of the script ended: one state may serve several forks.
local function set_directory(path)
    directory = path or nil
    core.chdir()
    if path and not core.chdir(path) then
        core.chdir '/'
    end
end

--- cpus() -> how many CPUs there are for us, by affinity and cgroup.
function dutch.cpus()
    return core.cpus()
end

function dutch.hostname()
    return core.hostname()
end

--- environ() -> all variables of the master; environ(name) -> one of them.
function dutch.environ(name)
    local all = core.environ()
    if name ~= nil then
        return all[name]
    end
    return all
end

-- Commands are queued: they happen after the hook has returned.
function dutch.restart(reason)
    return host('restart', reason)
end
function dutch.scale(count)
    return host('scale', count)
end
function dutch.stop(reason)
    return host('stop', reason)
end

--- store: plain values that outlive the evaluation of the script. store() returns a copy of all.
dutch.store = setmetatable({}, {
    __index = function(_, key)
        return (host('store_get', key))
    end,
    __newindex = function(_, key, value)
        host('store_set', key, value)
    end,
    __call = function()
        return (host 'store_all')
    end,
})

-- bunyan's methods, with colon or dot: info(message), info(fields, message).
local Logger = {}
Logger.__index = Logger

local function merged(first, second)
    local all = {}
    for key, value in pairs(first or {}) do
        all[key] = value
    end
    for key, value in pairs(second or {}) do
        all[key] = value
    end
    return all
end

-- given: the settings as the user wrote them; fields: what goes into each record.
local function new_logger(given, inherited)
    local fields = type(given.fields) == 'table' and merged(inherited, given.fields) or inherited
    return setmetatable({ given = given, fields = fields }, Logger)
end

local LEVELS = { 'trace', 'debug', 'info', 'warn', 'error', 'fatal' }
for _, level in ipairs(LEVELS) do
    Logger[level] = function(self, fields, message)
        if getmetatable(self) ~= Logger then
            self, fields, message = dutch.log, self, fields
        end
        if type(fields) ~= 'table' then
            fields, message = nil, fields
        end
        record(level, merged(self.fields, fields), message == nil and '' or tostring(message))
    end
end
function Logger:child(fields)
    return new_logger({ fields = fields }, self.fields)
end

--- logger { name, level, path, fields, format }: for the option `logger`, and to log with.
function dutch.logger(given)
    if given ~= nil and type(given) ~= 'table' then
        fail('dutch.logger: expected a table, found a ' .. type(given))
    end
    return new_logger(given or {})
end
dutch.log = new_logger {}

-- The presets are read only if one is used.
setmetatable(dutch, {
    __index = function(_, name)
        return require('dutch-master.presets')[name]
    end,
})

-- Entry points -----------------------------------------------------------------------------------------------------

local Worker = {}
Worker.__index = Worker
local relay -- loaded when the first message passes: most scripts see none

function Worker:send(message)
    relay = relay or core.relay()
    local text, why = relay.encode(message)
    if not text then
        fail('worker:send: ' .. why)
    end
    return host('send', self.id, text)
end

--- workers() -> the workers as they are now; each can be sent to.
function dutch.workers()
    local list = host 'workers'
    for _, worker in ipairs(list) do
        setmetatable(worker, Worker)
    end
    return list
end

-- Which arguments of a hook are workers.
local WORKERS = { beforeFork = 1, workerEnvironment = 1, onWorkerReady = 1, onWorkerExit = 1, onMessage = 1,
    judge = 2 }

-- The logger as data: one of ours by its settings, one of the user's by its methods, also those of its metatable.
local function logger_data(logger)
    if getmetatable(logger) == Logger then
        return logger.given
    end
    local methods
    for _, level in ipairs(LEVELS) do
        if type(logger[level]) == 'function' then
            methods = methods or {}
            methods[level] = logger[level]
        end
    end
    return methods or logger
end

function use_logger(given)
    local logger = type(given) == 'table' and given.logger
    if type(logger) == 'table' and getmetatable(logger) ~= Logger and type(logger.info) == 'function' then
        return call_logger
    end
end

--- What start() was given and where, or nothing if it was not called.
local function started_with()
    if not started then
        return nil
    elseif type(options) == 'table' and type(options.logger) == 'table' then
        return merged(options, { logger = logger_data(options.logger) }), started.file, started.line
    end
    return options, started.file, started.line
end

--- A record for the user's own logger. A function that takes no self is called without.
function call_logger(level, fields, message)
    local logger = options.logger
    local method = logger[level] or logger.info
    local info = getinfo(method, 'u')
    in_logger = true
    local ok, err
    if info.nparams and info.nparams <= 2 and not (info.isvararg and info.nparams > 0) then
        ok, err = pcall(method, fields, message)
    else
        ok, err = pcall(method, logger, fields, message)
    end
    in_logger = false
    if not ok then
        error(err, 0)
    end
end

local function call_hook(name, ...)
    local hook = options[name]
    in_logger = false -- a logger may have been cut short
    if name == 'judge' then
        hook = options.restartConcurrency.canary.judge
    elseif name == 'every' then
        local index = ...
        hook = type(hook[1]) == 'table' and hook[index][2] or hook[2]
        return hook()
    elseif name == 'logger' then
        return call_logger(...)
    end
    local workers = WORKERS[name]
    if workers then
        for i = 1, workers do
            local worker = select(i, ...)
            if type(worker) == 'table' then
                setmetatable(worker, Worker)
            end
        end
    end
    return hook(...)
end

local function failed(kind, message, place, traceback)
    return encode { ok = false, kind = kind, message = message, where = place, traceback = traceback,
        directory = directory }
end

-- -> the line that answers, and what pack() made of the results, nil if it failed
local function answer(loose, ok, ...)
    if not ok then
        return failed(...)
    end
    local results, why = pack_values(loose, ...)
    local line
    if results then
        line, why = encode { ok = true, results = results, directory = directory }
    end
    if not line then
        return failed('runtime', why)
    end
    return line, results
end

local HOOKS_OF_A_FORK = { 'beforeFork', 'workerEnvironment' }

-- The master has the plan of this evaluation already, and would only say: go on. Each hook has its line, as if it had
-- been called; behind one that failed or said no there is none.
-- @param worker of whose fork this is, packed; nil: of none
-- @param given what start() was given, packed
-- -> the last line
local function go_on(worker, given)
    local line = encode { ok = true, same = true, directory = directory }
    for _, hook in ipairs(HOOKS_OF_A_FORK) do
        local packed = worker and given[hook]
        if type(packed) == 'table' and packed[1] == 'f' then
            say(line)
            local results
            line, results = answer(false, guard(call_hook, hook, unpack_values(worker)))
            if not results or results[2] == false then
                break
            end
        end
    end
    return line
end

local entries = {}

--- Evaluates the script. -> the line that answers: what start() was given, file and line. If that is what it was in the
--- state that request.like names: see go_on.
function entries.evaluate(json)
    local request = decode(json)
    local own = request.directory and request.directory:gsub('/$', '') .. '/'
    rawset(dutch, 'directory', request.directory)
    package.path = absolute(package.path, own and own .. '?.lua;' .. own .. '?/init.lua')
    package.cpath = absolute(package.cpath)
    repeated = request.repeated
    local chunk, why = load_text(request.source, '@' .. request.name, 't')
    if not chunk then
        local bytecode = request.source:byte() == 27
        return failed(bytecode and 'bytecode' or 'syntax', bytecode
            and request.name .. ': is compiled Lua; a script must be text' or why)
    end
    local function run(ok, ...)
        if not ok then
            return failed(...)
        end
        local line, results = answer(true, true, started_with())
        local last = results and request.like and core.last(request.like)
        if last and has_results(last, results) then
            core.remember(last)
            return go_on(request.arguments, results[2])
        end
        core.remember(results and line)
        return line
    end
    local line = run(guard(chunk))
    repeated = false
    return line
end

-- A message comes as it was written.
local function read_message(worker, text)
    relay = relay or core.relay()
    local _, message = relay.decode(text)
    return worker, message
end

--- Calls a hook. -> the line that answers
function entries.call(json)
    local request = decode(json)
    if request.directory ~= nil then
        set_directory(request.directory)
    end
    if request.hook == 'onMessage' then
        return answer(false, guard(call_hook, request.hook, read_message(unpack_values(request.arguments))))
    end
    return answer(false, guard(call_hook, request.hook, unpack_values(request.arguments)))
end

return entries
