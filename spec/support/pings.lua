-- How long a master's loop is held, seen from outside: a ping over its control socket every 5 ms, one at a time.

local uv = require 'luv'

local M = {}

local running = {} -- timer -> pipe

--- Ends those that a failed spec has left.
function M.cleanup()
    for timer, pipe in pairs(running) do
        timer:close()
        pipe:close()
    end
    running = {}
end

--- Pings the master's control socket every 5 ms.
-- @return {stop() -> the longest that an answer took, in ms, how many there were}
function M.start(path)
    local pipe, timer = uv.new_pipe(false), uv.new_timer()
    local sent, longest, count, buffer = {}, 0, 0, ''
    local failure
    pipe:connect(path, function(err)
        if err then
            failure = err
            return
        end
        pipe:read_start(function(read_error, chunk)
            failure = failure or read_error or not chunk and 'the master hung up' or nil
            buffer = buffer .. (chunk or '')
            buffer = buffer:gsub('[^\n]*\n', function(line)
                local id = tonumber(line:match '"id":(%d+)')
                local began = id and sent[id]
                if began then
                    sent[id] = nil
                    count = count + 1
                    longest = math.max(longest, (uv.hrtime() - began) / 1e6)
                end
                return ''
            end)
        end)
        local id = 0
        timer:start(0, 5, function()
            if next(sent) == nil and not failure then -- one at a time: what waits behind another says nothing more
                id = id + 1
                sent[id] = uv.hrtime()
                pipe:write(('{"v":1,"id":%d,"verb":"ping"}\n'):format(id))
            end
        end)
    end)
    running[timer] = pipe
    return { stop = function(may_have_ended)
        running[timer] = nil
        timer:close()
        pipe:close()
        for _, began in pairs(sent) do
            longest = math.max(longest, may_have_ended and 0 or (uv.hrtime() - began) / 1e6)
        end
        assert(may_have_ended or not failure, failure)
        return longest, count
    end }
end

return M
