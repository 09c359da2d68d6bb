--- host.lua: what the user's script may ask of the cluster while it runs. Each function is one name of the `dutch`
--- module (lua/script/dutch-master.lua); script.lua answers the others itself. Commands only queue: a hook never
--- re-enters the cluster.

local M = {}

-- Records logged before the log is open, while the script is evaluated for the first time.
local EARLY_MAX = 1000

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

function functions.log(master, level, fields, message)
    if master.log then
        master.log:log(level, fields, message)
    elseif #master.early < EARLY_MAX then
        table.insert(master.early, { level, fields, message })
    end
end

local function cluster_of(master)
    return master.cluster and master.cluster.state and master.cluster
end

function functions.restart(master, reason)
    local cluster = cluster_of(master)
    if not cluster then
        return nil, 'the cluster has not started'
    end
    cluster:restart { cause = 'script', reason = reason }
    return true
end

function functions.scale(master, count)
    local cluster = cluster_of(master)
    if not cluster then
        return nil, 'the cluster has not started'
    end
    return cluster:scale(count, { cause = 'script' })
end

function functions.stop(master, reason)
    local cluster = cluster_of(master)
    if not cluster then
        return nil, 'the cluster has not started'
    end
    cluster:stop { cause = 'script', reason = reason }
    return true
end

function functions.send(master, id, message)
    local worker = master.cluster and master.cluster:find(id)
    if not worker then
        return nil, ('worker %s is gone'):format(tostring(id))
    end
    return worker:message(message)
end

--- @param master the master (init.lua)
-- @return function(name, ...) for script.lua
function M.new(master)
    master.early = {}
    return function(name, ...)
        local fn = functions[name]
        if not fn then
            error('no such function of the master: ' .. tostring(name), 0)
        end
        return fn(master, ...)
    end
end

return M
