-- luajit pinger.lua SOCKET PID: pings the control socket of the master PID every 5 ms, one at a time, until stdin ends. Then
-- it writes on stdout, when the last one is answered: the longest that an answer took, in ms, less the time that the
-- master and this process waited for a processor meanwhile; how many answers there were; what the master was seen doing
-- in the longest (a letter of proc(5) each 5 ms); and what failed, if anything did.

local uv = require 'luv'

local path, master = arg[1], arg[2]
local pipe, timer, stdin = uv.new_pipe(false), uv.new_timer(), uv.new_pipe(false)
local GIVE_UP_MS = 60000 -- for the last answer

local longest, count, buffer, id = 0, 0, '', 0
local seen = '-' -- in the longest
local asked -- since when, what had been waited by then, what was seen since
local failure, ending

local function read(name)
    local file = io.open(name)
    local text = file and file:read '*a' or ''
    if file then
        file:close()
    end
    return text
end

-- Nanoseconds that a process was ready to run and had no processor. It says how loaded the machine is, and nothing of
-- how the process was written. The kernel counts them when they are over.
local function waited(pid)
    return tonumber(read('/proc/' .. pid .. '/schedstat'):match '^%d+ (%d+)') -- nil when it is gone
end

-- What the host took of this machine, on all processors.
local function stolen()
    return (tonumber(read '/proc/stat':match '^cpu +%d+ %d+ %d+ %d+ %d+ %d+ %d+ (%d+)') or 0) * 1e7
end

local function took()
    local queued = (waited(master) or asked.master) - asked.master + (waited 'self' or 0) - asked.own
        + stolen() - asked.stolen
    return math.max(0, uv.hrtime() - asked.at - queued) / 1e6
end

local function note()
    local ms = took()
    if ms > longest then
        longest, seen = ms, asked.seen
    end
    asked = nil
end

local function on_answer(line)
    if asked and tonumber(line:match '"id":(%d+)') == id then
        note()
        count = count + 1
        if ending then
            uv.stop()
        end
    end
    return ''
end

local function ping()
    if asked then -- one at a time: what waits behind another says nothing more
        asked.seen = asked.seen .. (read('/proc/' .. master .. '/stat'):match '.*%) (%a)' or '-')
    elseif not failure then
        id = id + 1
        asked = { master = waited(master) or 0, own = waited 'self' or 0, stolen = stolen(), seen = '-', at = uv.hrtime() }
        pipe:write(('{"v":1,"id":%d,"verb":"ping"}\n'):format(id))
    end
end

pipe:connect(path, function(err)
    failure = err
    if err then
        return
    end
    pipe:read_start(function(read_error, chunk)
        failure = failure or read_error or not chunk and 'the master hung up' or nil
        if failure and ending then
            uv.stop()
        end
        buffer = (buffer .. (chunk or '')):gsub('[^\n]*\n', on_answer)
    end)
    timer:start(0, 5, ping)
end)

stdin:open(0)
stdin:read_start(function(_, chunk)
    if chunk then
        return
    end
    ending = true
    if not asked or failure then
        uv.stop()
    else
        timer:stop()
        timer:start(GIVE_UP_MS, 0, uv.stop)
    end
end)
uv.run()
if asked and not failure then
    note()
end
io.write(('%.3f %d %s %s\n'):format(longest, count, seen, failure or ''))
