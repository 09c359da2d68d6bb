-- Waiting in luv's loop: for an event, with a limit, never for a time.

local uv = require 'luv'

local M = {}

--- DM_TIME_SCALE stretches every limit, for slow machines and sanitizers.
M.scale = tonumber(os.getenv 'DM_TIME_SCALE') or 1

local DEFAULT_MS = 10000

--- Runs the loop until predicate() gives something true, which is returned; nil after options.timeout
--- milliseconds. predicate() is also tried every 20 ms, for what makes no event here (such as /proc).
function M.try(predicate, options)
    local late = false
    -- The loop's clock stands still while something else runs, such as another loop.
    uv.update_time()
    local timer, tick = uv.new_timer(), uv.new_timer()
    timer:start(math.ceil((options and options.timeout or DEFAULT_MS) * M.scale), 0, function()
        late = true
    end)
    tick:start(20, 20, function() end)
    local result = predicate()
    while not result and not late do
        uv.run 'once'
        result = predicate()
    end
    timer:close()
    tick:close()
    uv.run 'nowait'
    return result or nil
end

--- Like try(), but fails, naming options.what.
function M.wait_until(predicate, options)
    local result = M.try(predicate, options)
    if not result then
        error('timed out waiting for ' .. (options and options.what or 'a condition'), 2)
    end
    return result
end

--- Lets luv's loop run for so long: only for "nothing happens within" and for load to be applied.
function M.let_run(ms)
    M.try(function() end, { timeout = ms / M.scale })
end

return M
