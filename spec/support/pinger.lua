-- luajit pinger.lua SOCKET PID: pings the control socket of the master PID every 5 ms, one at a time, until stdin ends. Then
-- it writes on stdout: the longest that an answer took, in ms, less the time that the master and this process waited for
-- a processor meanwhile; how many answers there were; and what failed, if anything did.

local uv = require 'luv'

local path, master = arg[1], arg[2]
local pipe, timer, stdin = uv.new_pipe(false), uv.new_timer(), uv.new_pipe(false)
local longest, count, buffer, id = 0, 0, '', 0
local asked -- since when, and what had been waited by then
local failure

-- Nanoseconds that a process was ready to run and had no processor. It says how loaded the machine is, and nothing of
-- how the process was written.
local function waited(pid)
    local file = io.open('/proc/' .. pid .. '/schedstat')
    local ns = file and file:read '*a':match '^%d+ (%d+)'
    if file then
        file:close()
    end
    return tonumber(ns) -- nil when it is gone
end

local function took()
    local queued = (waited(master) or asked.master) - asked.master + (waited 'self' or 0) - asked.own
    return math.max(0, uv.hrtime() - asked.at - queued) / 1e6
end

local function on_answer(line)
    if asked and tonumber(line:match '"id":(%d+)') == id then
        longest, count = math.max(longest, took()), count + 1
        asked = nil
    end
    return ''
end

local function ping()
    if asked or failure then
        return -- one at a time: what waits behind another says nothing more
    end
    id = id + 1
    asked = { master = waited(master) or 0, own = waited 'self' or 0, at = uv.hrtime() }
    pipe:write(('{"v":1,"id":%d,"verb":"ping"}\n'):format(id))
end

pipe:connect(path, function(err)
    failure = err
    if err then
        return
    end
    pipe:read_start(function(read_error, chunk)
        failure = failure or read_error or not chunk and 'the master hung up' or nil
        buffer = (buffer .. (chunk or '')):gsub('[^\n]*\n', on_answer)
    end)
    timer:start(0, 5, ping)
end)

stdin:open(0)
stdin:read_start(function(_, chunk)
    if not chunk then
        uv.stop()
    end
end)
uv.run()
io.write(('%.3f %d %.3f %s\n'):format(longest, count, asked and took() or 0, failure or ''))
