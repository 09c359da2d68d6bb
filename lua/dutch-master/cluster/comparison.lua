--- comparison.lua: what the canary and the workers of the old release did since the canary began to serve, for the
-- script's judge. Begins when the canary is ready; takes note of nothing before that, and of no worker that has ended.

local measured = require 'dutch-master.channel.measured'

local Comparison = {}
Comparison.__index = Comparison

--- @param slots all of the cluster
-- @param canary the slot whose incoming worker is on trial
-- @param measures whether workers count what they do: who has reported nothing yet has done nothing then
function Comparison.new(slots, canary, measures)
    local self = setmetatable({ slots = slots, canary = canary, before = {}, forks = {},
        nothing = measures and measured.zero() or nil }, Comparison)
    for _, slot in ipairs(slots) do
        self.forks[slot] = slot.forks
        if slot.current then
            self.before[slot.current.id] = slot.current.measured
        end
    end
    return self
end

local function digest(sum, restarts)
    local result = sum and measured.digest(sum) or {}
    result.restarts = restarts
    return result
end

--- -> numbers of the new side, of the old side: requests, errors, p50, p95, p99, mean, lag, open as in measured.lua
-- (nil where nothing was measured), and restarts
function Comparison:sides()
    local new = self.canary.incoming and self.canary.incoming.measured
    local old, restarts
    for _, slot in ipairs(self.slots) do
        local worker = slot.current
        if worker and worker.measured then
            local grown = measured.since(worker.measured, self.before[worker.id])
            old = old and measured.add(old, grown) or grown
        end
        if slot ~= self.canary then
            restarts = (restarts or 0) + slot.forks - (self.forks[slot] or slot.forks)
        end
    end
    return digest(new and measured.since(new) or self.nothing, self.canary.failures),
        digest(old or self.nothing, restarts or 0)
end

return Comparison
