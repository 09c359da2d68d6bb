-- Waiting in luv's loop: for an event, with a limit, never for a time.

local uv = require 'luv'

local M = {}

--- DM_TIME_SCALE stretches every limit, for slow machines and sanitizers.
M.scale = tonumber(os.getenv 'DM_TIME_SCALE') or 1

local DEFAULT_MS = 30000

-- Tasks of together(), by their coroutine.
local tasks = {}

local function this_task()
    local co = coroutine.running()
    return co and tasks[co]
end

--- Runs the loop until predicate() gives something true, which is returned; nil after options.timeout
--- milliseconds. predicate() is also tried every 20 ms, for what makes no event here (such as /proc).
function M.try(predicate, options)
    local limit_ms = math.ceil((options and options.timeout or DEFAULT_MS) * M.scale)
    if this_task() then
        local ok, result = coroutine.yield(predicate, limit_ms)
        if not ok then
            error(result, 0) -- of predicate(), raised where it was waited for
        end
        return result
    end
    local late = false
    -- The loop's clock stands still while something else runs, such as another loop.
    uv.update_time()
    local timer, tick = uv.new_timer(), uv.new_timer()
    timer:start(limit_ms, 0, function()
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

--- Lets the loop run what is due, such as the callbacks of closed handles.
function M.turn()
    if this_task() then
        coroutine.yield(function() return true end, 0)
    else
        uv.run 'nowait'
    end
end

-- Runs a task until it waits again or has ended. The loop itself never runs inside of one.
local function resume(task, ...)
    local ok, predicate, limit_ms = coroutine.resume(task.co, ...)
    if coroutine.status(task.co) == 'dead' then
        task.ended = true
        if not ok then
            local text = type(predicate) == 'table' and predicate.message or predicate
            task.failure = ('%s: %s\n%s'):format(task.name, tostring(text), debug.traceback(task.co))
        end
        return
    end
    task.predicate, task.deadline = predicate, uv.hrtime() + limit_ms * 1e6
end

-- One look at a task that waits. Judged late only if it was due before the loop last ran.
local function look(task, before)
    local ok, result = pcall(task.predicate)
    if not ok or result or before > task.deadline then
        resume(task, ok, result or nil)
    end
end

--- Runs the functions of list ({name, fn} each) side by side, at most `at_once` of them: where one waits by this module,
-- the others go on. Fails at the end with what went wrong in any of them.
function M.together(list, at_once)
    local waiting, running, failures = {}, {}, {}
    for i, entry in ipairs(list) do
        waiting[i] = { name = entry[1], co = coroutine.create(entry[2]) }
    end
    local tick = uv.new_timer()
    tick:start(20, 20, function() end)
    while #waiting > 0 or #running > 0 do
        while #waiting > 0 and #running < at_once do
            local task = table.remove(waiting, 1)
            tasks[task.co], running[#running + 1] = task, task
            resume(task)
        end
        local before = uv.hrtime()
        uv.run 'once'
        for i = #running, 1, -1 do
            local task = running[i]
            if not task.ended then
                look(task, before)
            end
            if task.ended then
                tasks[task.co] = nil
                table.remove(running, i)
                failures[#failures + 1] = task.failure
            end
        end
    end
    tick:close()
    uv.run 'nowait'
    if #failures > 0 then
        error(table.concat(failures, '\n\n'), 0)
    end
end

return M
