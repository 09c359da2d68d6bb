--- api.lua: what a hook of the script may ask the master while it runs, and its store. Each function is one name of
--- the `dutch` module (lua/script/dutch-master.lua). All answers come at once. Commands (restart, scale, stop) happen
--- when the hook has returned: a hook never re-enters the cluster.

local values = require 'dutch-master.script.values'

local M = {}

-- Records logged before the log is open, while the script is evaluated for the first time.
local EARLY_MAX = 1000
-- What the store holds in all, bytes of its JSON: it crosses whole with dutch.store().
local STORE_MAX = 512 * 1024

local functions = {}

function functions.workers(master)
    local list = {}
    for _, worker in pairs(master.cluster and master.cluster.workers or {}) do
        list[#list + 1] = worker:describe()
    end
    table.sort(list, function(a, b)
        return a.id < b.id
    end)
    return list
end

function functions.log(master, process, level, fields, message)
    if not master.log then
        if #master.early < EARLY_MAX then
            table.insert(master.early, { level, fields, message })
        end
    elseif master.launcher.hooks:is_logger(process) then
        master.log:log_beside(level, fields, message)
    else
        master.log:log(level, fields, message)
    end
end

-- A command of the script's, on a cluster that has started.
-- @param check function(cluster, what it is called with) -> true; or nil, message, code
local function command(name, check, run)
    functions[name] = function(master, process, wish)
        local cluster = master.cluster and master.cluster.state and master.cluster
        if not cluster then
            return nil, 'the cluster has not started'
        end
        local ok, message, code = check(cluster, wish)
        if ok then
            process:later(name, function()
                run(cluster, wish)
            end)
        end
        return ok, message, code
    end
end

local function in_words(name)
    return function(_, reason)
        if reason ~= nil and type(reason) ~= 'string' then
            error(('dutch.%s: expected the reason in words, found a %s'):format(name, type(reason)), 0)
        end
        return true
    end
end

command('restart', in_words 'restart', function(cluster, reason)
    cluster:restart { cause = 'script', reason = reason }
end)

command('stop', in_words 'stop', function(cluster, reason)
    cluster:stop { cause = 'script', reason = reason }
end)

command('scale', function(cluster, count)
    return cluster:can_scale(count)
end, function(cluster, count)
    cluster:scale(count, { cause = 'script' })
end)

function functions.send(master, _, id, text)
    local worker = master.cluster and master.cluster:find(id)
    if not worker then
        return nil, ('worker %s is gone'):format(tostring(id))
    end
    return worker:message(text)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- The store: plain values by plain keys, a copy of each. It outlives every process of the script.

function functions.store_get(master, _, key)
    return master.store[key]
end

function functions.store_all(master)
    return master.store
end

local function size_of(key, value)
    if value == nil then
        return 0
    end
    local packed, why = values.pack(false, key, value)
    return packed and #values.encode { packed }, why
end

function functions.store_set(master, _, key, value)
    if key == nil or key ~= key then
        error(('dutch.store: %s cannot be a key'):format(tostring(key)), 0)
    end
    local size, why = size_of(key, value)
    if not size then
        error(('dutch.store[%q]: %s'):format(tostring(key), why), 0)
    end
    local sizes = master.store_sizes
    local all = master.store_size - (sizes[key] or 0) + size
    if all > STORE_MAX and size > (sizes[key] or 0) then
        error(('dutch.store[%q]: the store would hold %d KiB, at most %d are possible'):format(tostring(key),
            math.ceil(all / 1024), STORE_MAX / 1024), 0)
    end
    master.store[key], sizes[key], master.store_size = value, value ~= nil and size or nil, all
    master.stored.part = nil
    master.platform.touch()
    return true
end

local function keep_all(stored)
    local list = {}
    for key, value in pairs(stored.values) do
        list[#list + 1] = values.pack(false, key, value)
    end
    return list
end

--- The store for another master: see keeper/estate.lua.
function M.keep(master, book)
    return book:part(master.stored, keep_all)
end

function M.resume(master, kept)
    for _, packed in ipairs(kept) do
        functions.store_set(master, nil, values.unpack(packed))
    end
end

--- @param master the master (master.lua)
-- @return function(name, process, ...) for process.lua: answers, or throws what the hook is to be told
function M.new(master)
    master.early = {}
    master.store, master.store_sizes, master.store_size = {}, {}, 0
    master.stored = { values = master.store }
    return function(name, process, ...)
        local fn = functions[name]
        if not fn then
            error('no such function of the master: ' .. tostring(name), 0)
        end
        return fn(master, process, ...)
    end
end

return M
