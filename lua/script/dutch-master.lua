-- script/dutch-master.lua: what the user's script gets from `require 'dutch-master'`, and the state it runs in.
-- Runs first in each new state of a script, with the primitives of src/lua_sandbox_lib.c; returns the entry points
-- that the master calls. This file is loaded at every fork: it stays small, and does work only when asked.

-- luacheck: ignore 121 122 (it replaces what Lua has)

local core, script_directory = ...
local host, fail, resolve = core.host, core.fail, core.resolve

-- The libraries, without what could end, block or corrupt the master ------------------------------------------------

local raw_load, raw_xpcall, raw_open, raw_lines = load, xpcall, io.open, io.lines
local load_file, expired = core.load_file, core.expired
local type, tostring, select, concat, ipairs, pairs = type, tostring, select, table.concat, ipairs, pairs
local getinfo = debug.getinfo

local function no_bytecode(chunk, message)
    if not chunk and message and message:find('wrong mode', 1, true) then
        message = message:gsub('attempt to load chunk with wrong mode', 'is compiled Lua; it must be text')
    end
    return chunk, message
end

function load(chunk, name, _, env)
    return no_bytecode(raw_load(chunk, name, 't', env))
end

function loadstring(chunk, name)
    return no_bytecode(raw_load(chunk, name, 't'))
end

function loadfile(path, _, env)
    if path == nil then
        fail 'loadfile: a script has no standard input'
    end
    local chunk, message = no_bytecode(load_file(resolve(path)))
    if chunk and env then
        setfenv(chunk, env)
    end
    return chunk, message
end

function dofile(path)
    local chunk, message = loadfile(path)
    if not chunk then
        error(message, 0)
    end
    return chunk()
end

-- An error handler is not interrupted by the hook that called it, so none runs once the budget is over.
function xpcall(f, handler, ...)
    return raw_xpcall(f, function(message)
        if expired() then
            return message
        end
        return handler(message)
    end, ...)
end

-- A record for the log: the script's own logger is called here, for the master cannot enter this state again now.
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

function print(...)
    local words = { ... }
    for i = 1, select('#', ...) do
        words[i] = tostring(words[i])
    end
    log_lines(concat(words, '\t'))
end

newproxy = nil -- its finalizers would run where no hook comes
getmetatable(io.stdout).__metatable = false
debug = { traceback = debug.traceback, getinfo = getinfo }
package.loaded.debug = debug
package.loadlib = nil
jit = { version = 'LuaJIT 2.1', version_num = 20100, os = 'Linux', off = function() end, on = function() end,
    flush = function() end, status = function() return false end }
package.loaded.jit = jit
package.preload.ffi = function()
    error('ffi is not there for a script', 0)
end

function os.exit()
    fail 'os.exit was called: a script cannot end the master, dutch.stop() stops the cluster'
end

function os.execute(command)
    if command == nil then
        return 1
    end
    return core.execute(command)
end

function os.setlocale(locale)
    return (locale == nil or locale == 'C') and 'C' or nil
end

function io.popen(command, mode)
    if mode ~= nil and mode ~= 'r' then
        fail 'io.popen: a script can only read from a command'
    end
    local path, message = core.capture(command)
    if not path then
        return nil, message
    end
    return raw_open(path, 'r')
end

function io.open(path, mode)
    return raw_open(resolve(path), mode)
end

function io.lines(path, ...)
    if path == nil then
        fail 'io.lines: a script has no standard input'
    end
    return raw_lines(resolve(path), ...)
end

function io.read()
    return nil
end

-- The master's stdout may be a pipe that nobody reads, and is the log's: what a script writes goes there as records.
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
io.stdin, io.stdout = nil, stdout

-- Modules: from the script's own directory first, then where Lua keeps them; nothing relative, for the master may be
-- started anywhere. Text only.
local function absolute(path, first)
    local kept = { first }
    for entry in path:gmatch('[^;]+') do
        if entry:byte() == 47 then
            kept[#kept + 1] = entry
        end
    end
    return concat(kept, ';')
end
local own = script_directory and script_directory:gsub('/$', '') .. '/'
package.path = absolute(package.path, own and own .. '?.lua;' .. own .. '?/init.lua')
package.cpath = absolute(package.cpath)

package.loaders[2] = function(name)
    local path, message = package.searchpath(name, package.path)
    if not path then
        return message
    end
    local chunk
    chunk, message = no_bytecode(load_file(path))
    if not chunk then
        error(("error loading module '%s' from file '%s':\n\t%s"):format(name, path, message), 0)
    end
    return chunk
end

-- dutch ------------------------------------------------------------------------------------------------------------

local dutch = { directory = script_directory }
package.loaded['dutch-master'] = dutch

local use_logger -- see below
local options, started -- what start() was given, and where: "master.lua:3"

local function caller()
    local level = 3
    local info = getinfo(level, 'Sl')
    while info and info.currentline < 0 do
        level = level + 1
        info = getinfo(level, 'Sl')
    end
    return info and info.short_src or '?', info and info.currentline or 0
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

--- chdir(path): where this fork runs. The master itself stays where it is.
function dutch.chdir(path)
    if type(path) ~= 'string' or path == '' or path:find('\0', 1, true) then
        fail('dutch.chdir: expected a path, found ' .. (type(path) == 'string' and 'an unusable string' or type(path)))
    end
    core.directory(path)
end

for _, name in ipairs { 'cpus', 'hostname', 'workers' } do
    dutch[name] = function()
        return (host(name))
    end
end

--- environ() -> all variables of the master; environ(name) -> one of them.
function dutch.environ(name)
    local all = host 'environ'
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
function Worker:send(message)
    return host('send', self.id, message)
end

local snapshot = dutch.workers
--- workers() -> the workers as they are now; each can be sent to.
function dutch.workers()
    local list = snapshot()
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

local entries = {}

function use_logger(given)
    local logger = type(given) == 'table' and given.logger
    if type(logger) == 'table' and getmetatable(logger) ~= Logger and type(logger.info) == 'function' then
        return entries.log
    end
end

--- What start() was given and where, or nothing if it was not called.
function entries.options()
    if not started then
        return nil
    elseif type(options) == 'table' and type(options.logger) == 'table' then
        return merged(options, { logger = logger_data(options.logger) }), started.file, started.line
    end
    return options, started.file, started.line
end

--- Calls a function of the options by name: 'beforeFork', 'judge', 'every' with the index first.
function entries.hook(name, ...)
    local hook = options[name]
    in_logger = false -- a logger may have been cut short
    if name == 'judge' then
        hook = options.restartConcurrency.canary.judge
    elseif name == 'every' then
        local index = ...
        hook = type(hook[1]) == 'table' and hook[index][2] or hook[2]
        return hook()
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

--- A record for the user's own logger. A function that takes no self is called without.
function entries.log(level, fields, message)
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

return entries
