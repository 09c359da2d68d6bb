-- What a Lua worker measures of its own work with `metrics = true`, and tells the master once a second if it has
-- changed. Shape and units: dutch-master/channel/measured.lua. dutch-master.http counts its requests here; a server of
-- the app's own may too:
--
--     local metrics = require 'dutch-master.metrics'
--     local done = metrics.begin()      -- a request has come
--     done(200)                         -- and was answered; done() if it broke off

local uv = require 'luv'

local M = { enabled = os.getenv 'DUTCH_MASTER_METRICS' == '1' }

local EVERY_MS = 1000
local BOUNDS = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10 }

local answers, buckets, broken, seconds, open = { 0, 0, 0, 0, 0 }, {}, 0, 0, 0
for i = 1, #BOUNDS + 1 do
    buckets[i] = 0
end

local function ignore() end

--- A request begins. -> function(status), to be called once when it has ended; without a status it broke off.
function M.begin()
    if not M.enabled then
        return ignore
    end
    local began = uv.hrtime()
    return function(status)
        local took = (uv.hrtime() - began) / 1e9
        local class = status and math.floor(status / 100)
        if class and answers[class] then
            answers[class] = answers[class] + 1
        elseif not status then
            broken = broken + 1
        end
        seconds = seconds + took
        local i = 1
        while BOUNDS[i] and took > BOUNDS[i] do
            i = i + 1
        end
        buckets[i] = buckets[i] + 1
    end
end

--- Connections: +1 or -1.
function M.connection(change)
    open = open + change
end

--- Starts to tell. @param send function(message)
function M.start(send)
    if not M.enabled then
        return
    end
    local due, lag, told = uv.hrtime() + EVERY_MS * 1e6, 0, ''
    local timer = uv.new_timer()
    timer:start(EVERY_MS, EVERY_MS, function()
        -- How late this timer comes is how late everything else in the loop comes.
        lag = math.max((uv.hrtime() - due) / 1e9, 0)
        due = uv.hrtime() + EVERY_MS * 1e6
        local state = ('%s %d %d %d'):format(table.concat(answers, ' '), broken, open, lag * 50)
        if state == told then
            return
        end
        told = state
        local used = collectgarbage 'count' * 1024
        send { cmd = 'NODE_DUTCH_METRICS', answers = answers, buckets = buckets, broken = broken, seconds = seconds,
            open = open, lag = { lag, lag, lag }, utilization = 0, heap = { used, used } }
    end)
    timer:unref()
end

return M
