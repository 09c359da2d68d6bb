--- What the README's figures about the life of workers come from.
-- usage: build/dm-spec spec/bench/lifecycle.lua [latency|memory|idle|thousand|boot|rolls|cycles]...   (all without a name)
-- DM_ROLLS and DM_CYCLES shorten the long ones.

local uv = require 'luv'
io.stdout:setvbuf 'line'
local load = require 'spec.support.load'
local http = require 'spec.support.http'
local master = require 'spec.support.master'

local ROLLS = tonumber(os.getenv 'DM_ROLLS') or 100
local CYCLES = tonumber(os.getenv 'DM_CYCLES') or 10000

local function report(what, value, budget)
    print(('%-58s %12s   %s'):format(what, value, budget or ''))
end

local function status(pid, key)
    local file = assert(io.open('/proc/' .. pid .. '/status'))
    local text = file:read '*a'
    file:close()
    return tonumber(text:match('\n' .. key .. ':%s+(%d+)'))
end

local function descriptors(pid)
    local count = 0
    local handle = uv.fs_scandir('/proc/' .. pid .. '/fd')
    while uv.fs_scandir_next(handle) do
        count = count + 1
    end
    return count
end

local function median(list)
    table.sort(list)
    return list[math.ceil(#list / 2)], list[#list]
end

-- An exec worker that writes a byte to a FIFO as soon as it runs: the latest moment at which its exec can have
-- happened. The shell's own start is in the figure.
local function worker_that_tells(extra)
    return ([[
require('dutch-master').start {
    worker = { '/bin/sh', '-c', 'echo x >"$FIFO"; exec sleep 1000' },
    numWorkers = %d, restartSoak = 0, ready = { alive = 0.05 }, backoff = { first = 0.001, max = 0.001, reset = 0 },
    stopTimeout = 2, %s
}]]):format(1, extra or '')
end

local function open_fifo(path)
    assert(os.execute(('mkfifo %q'):format(path)) == 0)
    local fd = assert(uv.fs_open(path, 'r+', 0))
    local pipe = uv.new_pipe(false)
    pipe:open(fd)
    local heard = {}
    pipe:read_start(function(_, data)
        for _ = 1, #(data or '') / 2 do
            heard[#heard + 1] = uv.hrtime()
        end
    end)
    return pipe, heard
end

local benches = {}

-- DM_KEEPER=0 is for this program; another may not know the word.
local function with_keeper(program)
    return program ~= master.binary() or nil
end

-- Where masters have their sockets: in memory, as /run is. On a disk the paths of the workers' notify sockets would be
-- what is measured. nil: wherever specs have them
local function runtime_dir()
    return uv.fs_mkdtemp '/dev/shm/dm-bench-XXXXXX'
end

-- A master of one worker. crash() and roll() -> ms from the end of the worker to its replacement, and from the signal to
-- the first fork of a restart.
local function timed_master(program)
    local dir = master.temp_dir()
    local pipe, heard = open_fifo(dir .. '/fifo')
    local runtime = runtime_dir()
    local m = master.start { binary = program, keeper = with_keeper(program), script = worker_that_tells(),
        env = { FIFO = dir .. '/fifo', DUTCH_MASTER_LUA = false, DUTCH_MASTER_RUNTIME_DIR = runtime } }
    m:await 'Cluster ready'
    local function measure(fn, message)
        local before, mark, start = #heard, m:mark(), uv.hrtime()
        fn()
        m:wait_until(function()
            return #heard > before
        end, 'the fork')
        m:await(message, { after = mark })
        return (heard[before + 1] - start) / 1e6
    end
    return {
        crash = function()
            local record = m:records 'Worker listening'
            return measure(function() uv.kill(record[#record].workerPid, 'sigkill') end, 'Worker listening')
        end,
        roll = function()
            return measure(function() m:signal 'SIGUSR2' end, 'Restart complete')
        end,
        close = function()
            pipe:close()
            uv.run 'nowait'
        end,
        finish = function()
            m:finish()
            uv.fs_rmdir(runtime or '')
        end,
    }
end

--- With DM_OTHER=PROGRAM in turns with that one.
function benches.latency()
    local programs, masters = { master.binary(), os.getenv 'DM_OTHER' }, {}
    for i, program in ipairs(programs) do
        masters[i] = timed_master(program)
    end
    for _, what in ipairs { { 'crash', 100, 'crash -> replacement' }, { 'roll', 50, 'restart signal -> first fork' } } do
        local times = { {}, {} }
        for _ = 1, what[2] do
            for i, one in ipairs(masters) do
                table.insert(times[i], one[what[1]]())
            end
        end
        local mine, worst = median(times[1])
        report(('%s runs (sh), median / worst of %d'):format(what[3], what[2]), ('%.2f/%.2f ms'):format(mine, worst),
            '<= 5 ms')
        if programs[2] then
            report('  against ' .. programs[2], ('%.2f ms; %.2f'):format(median(times[2]), mine / median(times[2])), '1.00')
        end
    end
    for _, name in ipairs { 'close', 'finish' } do
        for _, one in ipairs(masters) do
            one[name]()
        end
    end
end

local function sleepers(count, level)
    return ([[
require('dutch-master').start {
    worker = { 'sleep', '100000' }, numWorkers = %d, ready = { alive = 0.01 },
    logger = require('dutch-master').logger { level = '%s' },
}]]):format(count, level or 'warn')
end

function benches.memory()
    local rss = {}
    for i, count in ipairs { 2, 202 } do
        local m = master.start { script = sleepers(count) }
        m:wait_until(function()
            return #m:family() >= count + 1
        end, 'all workers', { timeout = 20000 })
        rss[i] = status(m:process_pid(), 'VmRSS')
        m:finish()
    end
    report('memory of the master with 2 workers', rss[1] .. ' KiB', '<= 8192 KiB')
    report('memory for each further worker', ('%.1f KiB'):format((rss[2] - rss[1]) / 200), '<= 24 KiB')
end

function benches.idle()
    local m = master.start { script = [[
require('dutch-master').start { worker = 'app.lua', numWorkers = 2 }]], files = { ['app.lua'] = ([[
require('dutch-master.http').serve(%d, function() return 'ok' end)]]):format(http.free_port()) } }
    m:await 'Cluster ready'
    local function wakes()
        return status(m:process_pid(), 'voluntary_ctxt_switches')
    end
    local before, over = wakes(), false
    local timer = uv.new_timer()
    timer:start(10000, 0, function()
        over = true
    end)
    m:wait_until(function()
        return over
    end, 'ten seconds', { timeout = 12000 })
    timer:close()
    report('wake-ups of the idle master', ('%.1f /s'):format((wakes() - before) / 10), '<= 2 /s')
    m:finish()
end

-- The same processes by libuv alone: what the machine itself takes, in this minute.
local function thousand_bare()
    local start, left, pids = uv.hrtime(), 1000, {}
    for i = 1, 1000 do
        local handle
        handle, pids[i] = uv.spawn('sleep', { args = { '100000' } }, function()
            left = left - 1
            handle:close()
        end)
    end
    for _, pid in ipairs(pids) do
        uv.kill(pid, 'sigterm')
    end
    while left > 0 do
        uv.run 'once'
    end
    uv.run 'nowait'
    return (uv.hrtime() - start) / 1e9
end

function benches.thousand()
    local bare = thousand_bare()
    local start = uv.hrtime()
    local m = master.start { script = sleepers(1000, 'info') }
    m:await('Cluster ready', { timeout = 60000 })
    local started = uv.hrtime()
    m:signal 'SIGTERM'
    m:exit { timeout = 60000 }
    local stopped = uv.hrtime()
    report('1,000 workers of sleep: start', ('%.2f s'):format((started - start) / 1e9))
    local whole = (stopped - start) / 1e9
    report('1,000 workers of sleep: start and stop', ('%.2f s'):format(whole), '<= 5 s')
    report('  the same processes by uv_spawn alone, and the ratio', ('%.2f s %.1f'):format(bare, whole / bare))
    m:finish()
end

function benches.rolls()
    local port = http.free_port()
    local m = master.start { script = [[
require('dutch-master').start { worker = 'app.lua', numWorkers = 2, restartSoak = 0 }]], files = { ['app.lua'] = ([[
require('dutch-master.http').serve(%d, function() return 'ok' end)]]):format(port) } }
    m:await 'Cluster ready'
    local run = load.start { port = port, clients = 8, mode = 'close' }
    for _ = 1, ROLLS do
        local mark = m:mark()
        m:signal 'SIGUSR2'
        m:await('Restart complete', { after = mark })
    end
    local counts = run:stop()
    report(('failed of %d requests in %d rolls, a connection each'):format(counts.total, ROLLS), counts.failed, '0')
    print('  ' .. counts.text)
    m:finish()
end

function benches.cycles()
    local m = master.start { script = [[
require('dutch-master').start { worker = { 'sleep', '0.01' }, numWorkers = 2, backoff = { first = 0.001, max = 0.001 },
    ready = { alive = 0.001 }, -- else the boot fails
    logger = require('dutch-master').logger { level = 'warn' },
    onWorkerExit = function() local store = require('dutch-master').store; store.n = (store.n or 0) + 1
        if store.n % 1000 == 0 then require('dutch-master').log:warn({ n = store.n }, 'cycles') end end }]] }
    local rss, fds = {}, {}
    for cycle = 1000, CYCLES, 1000 do
        m:await({ msg = 'cycles', n = cycle }, { timeout = 60000 })
        rss[#rss + 1], fds[#fds + 1] = status(m:process_pid(), 'VmRSS'), descriptors(m:process_pid())
    end
    report(('memory after 1,000 and %d crash/replace cycles'):format(CYCLES), ('%d/%d KiB'):format(rss[1], rss[#rss]),
        'flat')
    report(('descriptors after 1,000 and %d cycles'):format(CYCLES), ('%d/%d'):format(fds[1], fds[#fds]), 'flat')
    m:finish()
end

-- ms that a processor has worked for the main thread of a process: what a busy machine does not change much.
local function worked(pid)
    local file = assert(io.open('/proc/' .. pid .. '/schedstat'))
    local ns = file:read '*a':match '^%d+'
    file:close()
    return tonumber(ns) / 1e6
end

--- Boots of 64 workers, the script evaluated for each; with DM_OTHER=PROGRAM in turns with that one.
function benches.boot()
    local programs = { master.binary(), os.getenv 'DM_OTHER' }
    local times, work = { {}, {} }, { {}, {} }
    for _ = 1, 15 do
        for i, program in ipairs(programs) do
            local runtime = runtime_dir()
            local begun = uv.hrtime()
            local m = master.start { binary = program, keeper = with_keeper(program),
                env = { DUTCH_MASTER_LUA = false, DUTCH_MASTER_RUNTIME_DIR = runtime }, script = [[
                require('dutch-master').start { worker = { 'sleep', '1000' },
                numWorkers = 64, ready = { alive = 0.001 }, beforeFork = function() end }]] }
            m:await 'Cluster ready'
            table.insert(times[i], (uv.hrtime() - begun) / 1e6)
            table.insert(work[i], worked(m:process_pid()))
            m:finish()
            uv.fs_rmdir(runtime or '')
        end
    end
    local mine, my_work = median(times[1]), median(work[1])
    report('boot of 64 workers; work of the master; median of 15', ('%.0f; %.0f ms'):format(mine, my_work))
    if programs[2] then
        report('  against ' .. programs[2], ('%.2f; %.2f'):format(mine / median(times[2]), my_work / median(work[2])),
            '1.00')
    end
end

local wanted = #arg > 0 and arg or { 'latency', 'memory', 'idle', 'thousand', 'boot', 'rolls', 'cycles' }
for _, name in ipairs(wanted) do
    assert(benches[name], 'no such bench: ' .. name)()
end
