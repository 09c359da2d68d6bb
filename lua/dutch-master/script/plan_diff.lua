--- compare.lua: what differs between two plans, in the words of the script's options. Pure.

local options = require 'dutch-master.script.options'
local equal = require('dutch-master.script.values').equal

local M = {}

-- Options that take effect as soon as the plan is taken over; the others need a fork, since they are given to workers.
local AT_ONCE = {
    numWorkers = true, restartSignal = true, restartConcurrency = true, restartAttempts = true, restartSoak = true,
    backoff = true, logger = true, listen = true, beforeFork = true, onReady = true, onWorkerReady = true,
    onWorkerExit = true, onMessage = true, onRestart = true, onUpgrade = true, every = true, pinRelease = true,
}
-- Options that are looked at only when the master starts.
local AT_START = { pidFile = true, controlSocket = true, balance = true, backlog = true, stallTimeout = true }

--- @param from, to plans
-- @return list of {key, from, to, applies = 'now' | 'next fork' | 'start'} in the order of the options
function M.plans(from, to)
    local changes = {}
    for _, option in ipairs(options.list) do
        local name, inside = option.name, option.inside
        local before, after = from[inside], to[inside]
        if name == 'worker' then
            before, after = from.worker or from.argv, to.worker or to.argv
        elseif option.hook and (from.hooks[name] or to.hooks[name]) then
            before = from.hooks[name] and 'a function' or before
            after = to.hooks[name] and 'a function' or after
        end
        if not equal(before, after) then
            changes[#changes + 1] = {
                key = name, from = before, to = after,
                applies = AT_ONCE[name] and 'now' or AT_START[name] and 'start' or 'next fork',
            }
        end
    end
    return changes
end

return M
