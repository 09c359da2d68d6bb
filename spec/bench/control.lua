-- control.lua: what it costs to ask a master. usage: build/dm-spec spec/bench/control.lua [STATUS_CALLS]
-- (with DM_BUILD for another build than build/)

local uv = require 'luv'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local CALLS = tonumber(arg[1]) or 10000
local WORKERS = 100

local m = master.start {
    script = ([[require('dutch-master').start { worker = { 'sleep', '100000' }, numWorkers = %d,
        ready = { alive = 0.01 } }]]):format(WORKERS),
}
m:await('Cluster ready', { timeout = 60000 })

local function median(times)
    table.sort(times)
    return times[math.ceil(#times / 2)], times[math.ceil(#times * 0.99)]
end

local function timed(words, rounds)
    local times = {}
    for i = 1, rounds do
        local begun = uv.hrtime()
        local c = cli.run(m, words)
        assert(c.code == 0, c.err)
        times[i] = (uv.hrtime() - begun) / 1e6
    end
    return median(times)
end

local function memory()
    return tonumber(io.open(('/proc/%d/status'):format(m:process_pid())):read '*a':match 'VmRSS:%s+(%d+)')
end

local function descriptors()
    local count, scan = 0, uv.fs_scandir(('/proc/%d/fd'):format(m:process_pid()))
    while uv.fs_scandir_next(scan) do
        count = count + 1
    end
    return count
end

local function socket()
    local scan = uv.fs_scandir(m.dir .. '/run')
    for name in function() return uv.fs_scandir_next(scan) end do
        if name:find '%.sock$' then
            return m.dir .. '/run/' .. name
        end
    end
end

--- One connection, `count` requests one after the other; the time of each until the last byte of its answer.
local function ask(count, verb)
    local times, done, begun, bytes = {}, 0, nil, 0
    local pipe = uv.new_pipe(false)
    local request = ('{"v":1,"id":1,"verb":"%s"}\n'):format(verb)
    pipe:connect(socket(), function(err)
        assert(not err, err)
        begun = uv.hrtime()
        pipe:write(request)
        pipe:read_start(function(_, data)
            bytes = bytes + #data
            if data:sub(-1) == '\n' then
                done = done + 1
                times[done] = (uv.hrtime() - begun) / 1e6
                if done < count then
                    begun = uv.hrtime()
                    pipe:write(request)
                else
                    pipe:close()
                end
            end
        end)
    end)
    wait.wait_until(function() return done == count end, { timeout = 600000, what = 'answers' })
    uv.run 'nowait'
    local middle, worst = median(times)
    return middle, worst, bytes / count
end

--- Each on a connection of its own.
local function connect_and_ask(count)
    for _ = 1, count do
        ask(1, 'status')
    end
end

local function report(text, ...)
    print(text:format(...))
end

report('`dutch-master status`, %d workers: median %.1f ms, p99 %.1f ms (budget 20 ms)', WORKERS,
    timed({ 'status' }, 100))
report('`dutch-master check`: median %.1f ms, p99 %.1f ms (budget 20 ms)', timed({ 'check' }, 100))
report('a status request over the socket, %d workers: median %.2f ms, p99 %.2f ms, %.0f bytes', WORKERS,
    ask(1000, 'status'))

ask(500, 'status')
connect_and_ask(500)
local rss, fds = memory(), descriptors()
ask(CALLS / 2, 'status')
connect_and_ask(CALLS / 2)
report('%d status requests, half of them on a connection each: RSS %d -> %d KiB, descriptors %d -> %d', CALLS, rss,
    memory(), fds, descriptors())

m:finish()
