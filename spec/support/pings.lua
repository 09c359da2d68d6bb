-- How long a master's loop is held, seen from outside: a ping over its control socket every 5 ms. Another process asks
-- (pinger.lua), for a spec that is busy itself would measure that. What it waited for a processor is not counted.

local uv = require 'luv'
local wait = require 'spec.support.wait'

local M = {}

local running = {} -- stdin of a pinger -> true

--- Ends those that a failed spec has left.
function M.cleanup()
    for stdin in pairs(running) do
        stdin:close()
    end
    running = {}
end

--- Pings the control socket of a master.
-- @return {stop(may_have_ended) -> the longest that an answer took, in ms, how many there were, what the master was seen
--   doing meanwhile}
function M.start(path, pid)
    local stdin, stdout = uv.new_pipe(false), uv.new_pipe(false)
    local text, ended = '', false
    local child
    child = assert(uv.spawn('luajit', { args = { 'spec/support/pinger.lua', path, tostring(pid) },
        stdio = { stdin, stdout, 2 } }, function()
        child:close()
    end))
    stdout:read_start(function(_, chunk)
        text, ended = text .. (chunk or ''), not chunk
    end)
    running[stdin] = true
    return { stop = function(may_have_ended)
        running[stdin] = nil
        stdin:close()
        wait.wait_until(function() return ended end, { what = 'the figures of the pinger' })
        stdout:close()
        local longest, count, seen, failure = text:match '^(%S+) (%d+) (%S+) (.*)\n$'
        assert(longest, 'the pinger died')
        assert(may_have_ended or failure == '', failure)
        return tonumber(longest), tonumber(count), seen
    end }
end

return M
