--- annotations.lua: the options of a script, and `dutch`, as type annotations for editors (LuaLS). Pure. What an option
-- is called, means and defaults to comes from options.lua; only its type in the words of LuaLS is said here.

local options = require 'dutch-master.script.options'
local sorted_keys = require 'dutch-master.sorted_keys'

local M = {}

local WORKER_HOOK = 'fun(worker: dutch.Worker)'

--- Of options whose type is more than a word.
M.TYPES = {
    worker = 'string|(string|number)[]|dutch.Preset', kind = '"node"|"lua"|"exec"', args = '(string|number)[]',
    interpreter = 'string|string[]', numWorkers = 'integer|fun(): integer',
    beforeFork = 'fun(worker: dutch.Worker): boolean?, string?',
    workerEnvironment = 'dutch.Environment|fun(worker: dutch.Worker): dutch.Environment',
    logger = 'dutch.Logger|table', listen = 'string|dutch.Address|table<string|integer, string|dutch.Address>',
    ready = '"listening"|"message"|"notify"|dutch.Ready', stopSignal = 'string', restartSignal = 'string',
    restartConcurrency = 'number|"canary"|{ canary: true|dutch.Canary, after?: number }',
    backoff = '{ first?: number, max?: number, reset?: number }', maxMemory = 'string|integer', user = 'string|integer',
    group = 'string|integer', umask = 'string|integer',
    limits = 'table<string, integer|string|{ soft?: integer|string, hard?: integer|string }>',
    cpus = 'string|integer[]', workerOutput = 'string', keepOutput = 'string|integer', pidFile = 'string',
    controlSocket = 'string', onReady = 'fun()', onWorkerReady = WORKER_HOOK, onWorkerExit = 'fun(report: table)',
    onMessage = 'fun(worker: dutch.Worker, message: any)', onRestart = 'fun(verdict: dutch.Verdict)',
    onUpgrade = 'fun(verdict: table)', every = 'table',
}

-- Simple ones follow from what the type says that it expects.
local function simple_type(option)
    local expects = option.type.expects
    if expects:find 'true or false' or option.default == true or option.default == false then
        return 'boolean'
    elseif expects:find '^an integer' or expects:find 'integer' then
        return 'integer'
    elseif expects:find 'number' then
        return 'number'
    end
    local words = {}
    for word in expects:gmatch '"[^"]+"' do
        words[#words + 1] = word
    end
    return words[1] and table.concat(words, '|') or 'string'
end

function M.type_of(option)
    return M.TYPES[option.name] or simple_type(option)
end

local HEAD = [[
---@meta dutch-master
-- What a script of dutch-master may say, for editors. Made by `dutch-master completion luals`; not to be run.

---@class dutch.Worker
---@field id integer
---@field slot integer
---@field generation integer
---@field pid integer?
---@field state string?
---@field release string?
---@field requests integer? of a canary and its counterpart, with metrics = true
---@field errors integer?
---@field p50 number? seconds
---@field p95 number? seconds
---@field p99 number? seconds
---@field mean number? seconds
---@field lag number? seconds
---@field open integer?
---@field restarts integer?
local Worker = {}

---Sends a message to the app of this worker.
---@param message any
function Worker:send(message) end

---@class dutch.Verdict
---@field result "done"|"aborted"|"rolled_back"|"superseded"|"stopped"
---@field generation integer
---@field done integer
---@field total integer
---@field duration_ms number
---@field message string?
---@field failure table?

---@class dutch.Address
---@field address string
---@field name string?
---@field mode string?
---@field user (string|integer)?
---@field group (string|integer)?

---@class dutch.Ready
---@field alive number?
---@field port integer?
---@field path string?
---@field message string?
---@field http string?
---@field host string?
---@field interval number?
---@field timeout number?

---@class dutch.Canary
---@field weight number? share of the new connections
---@field soak number? seconds
---@field judge (fun(new: dutch.Worker, old: dutch.Worker?): boolean, string?)?
---@field timeout number? seconds

---@alias dutch.Environment table<string, string|number|false>
---@class dutch.Preset
---@class dutch.Logger

---@class dutch.Options
]]

local FUNCTIONS = [[

local dutch = {}

---The one call of a script.
---@param options dutch.Options
function dutch.start(options) end

---The directory of this fork.
---@param path string
function dutch.chdir(path) end

---CPUs that this process may use; knows affinity and cgroups.
---@return integer
function dutch.cpus() end

---@param name string?
---@return string|table<string, string>|nil
function dutch.environ(name) end

---@return string
function dutch.hostname() end

---@param options { name?: string, level?: string, path?: string, fields?: table, format?: string }
---@return dutch.Logger
function dutch.logger(options) end

---@type table<string, fun(fields: table|string, message: string?)>
dutch.log = {}

---Plain values that outlive this evaluation.
---@type table
dutch.store = {}

---@return dutch.Worker[]
function dutch.workers() end

function dutch.restart() end

---@param count integer
function dutch.scale(count) end

function dutch.stop() end

---The directory of the script.
---@type string
dutch.directory = ''
]]

--- The file.
function M.render()
    local lines = {}
    for _, option in ipairs(options.list) do
        local note = option.doc .. (option.unit and (' (%s)'):format(option.unit) or '') .. '. Default: '
            .. option.default_text
        lines[#lines + 1] = ('---@field %s%s (%s) %s'):format(option.name, option.required and '' or '?',
            M.type_of(option), note)
    end
    local functions = {}
    for i, name in ipairs(sorted_keys(require 'dutch-master.launch.presets')) do
        functions[i] = ('\n---@param options table\n---@return dutch.Preset\nfunction dutch.%s(options) end\n')
            :format(name)
    end
    return HEAD .. table.concat(lines, '\n') .. '\n' .. FUNCTIONS .. table.concat(functions) .. '\nreturn dutch\n'
end

return M
