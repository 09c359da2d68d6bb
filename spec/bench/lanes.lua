--- Lanes against plain SO_REUSEPORT: the same Lua app, two workers under the master beside two bare processes, turn and
-- turn about; then with one of four workers frozen. What steering itself costs and how it spreads: steering.lua.
-- usage: luajit spec/bench/lanes.lua [throughput|frozen]...   (both without a name; wrk must be installed)
-- DM_BUILD: the build; DM_ROUNDS and DM_SECONDS: of throughput.

package.path = './?.lua;' .. package.path
io.stdout:setvbuf 'line'

local uv = require 'luv'
local connections = require 'spec.support.connections'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local ROUNDS = tonumber(os.getenv 'DM_ROUNDS') or 8
local SECONDS = tonumber(os.getenv 'DM_SECONDS') or 4

-- With $BARE it binds $PORT itself, else it asks the master; with $MANAGED it can be handed connections too.
local APP = [[
local ffi = require 'ffi'
local uv = require 'luv'
local worker = require 'dutch-master.worker'
local port = tonumber(os.getenv 'PORT')
local BODY = ('x'):rep(100)
local HEAD = 'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n'
local KEEP, CLOSE = HEAD .. '\r\n' .. BODY, HEAD .. 'Connection: close\r\n\r\n' .. BODY

local function bare()
    ffi.cdef 'int socket(int, int, int); int setsockopt(int, int, int, const void *, unsigned);'
    ffi.cdef 'int bind(int, const void *, unsigned); uint16_t htons(uint16_t); struct in { uint16_t family, port; uint8_t ip[12]; };'
    local fd = ffi.C.socket(2, 1, 0)
    local on = ffi.new('int[1]', 1)
    assert(ffi.C.setsockopt(fd, 1, 15, on, 4) == 0 and ffi.C.setsockopt(fd, 1, 2, on, 4) == 0)
    local name = ffi.new('struct in', { 2, ffi.C.htons(port), { 127, 0, 0, 1 } })
    assert(ffi.C.bind(fd, name, 16) == 0)
    local handle = uv.new_tcp()
    assert(handle:open(fd))
    return handle
end

local function serve(connection)
    local seen = ''
    connection:read_start(function(_, data)
        if not data then
            return connection:close()
        end
        seen = seen .. data
        if seen:find('\r\n\r\n', 1, true) then
            local close = seen:find('Connection: close', 1, true)
            seen = ''
            connection:write(close and CLOSE or KEEP)
            if close then
                connection:shutdown()
            end
        end
    end)
end

if os.getenv 'MANAGED' then
    assert(worker.listen('127.0.0.1:' .. port)):accept(serve)
    return
end
local handle = os.getenv 'BARE' and bare() or assert(worker.listen('127.0.0.1:' .. port)):tcp()
assert(handle:listen(511, function()
    local connection = uv.new_tcp()
    handle:accept(connection)
    serve(connection)
end))
]]

local bares = {}

-- `count` bare processes on a port of their own; returns it.
local function start_bare(count, dir)
    local port = http.free_port()
    local file = assert(io.open(dir .. '/bare.lua', 'w'))
    file:write(APP)
    file:close()
    local pids = {}
    for i = 1, count do
        local process, pid
        process, pid = uv.spawn(master.binary(), {
            args = { '--lua-worker', dir .. '/bare.lua' }, env = { 'BARE=1', 'PORT=' .. port }, stdio = { nil, 1, 2 },
        }, function()
            process:close()
            bares[pid] = nil
        end)
        bares[pid], pids[i] = true, pid
        -- One after the other: then each is known to listen.
        wait.wait_until(function()
            local listening = 0
            for line in io.lines '/proc/net/tcp' do
                listening = listening + (line:find((':%04X 00000000:0000 0A'):format(port)) and 1 or 0)
            end
            return listening == i
        end, { what = 'a bare process' })
    end
    return port, pids
end

local function stop_bare()
    for pid in pairs(bares) do
        uv.kill(pid, 'sigkill')
    end
    wait.wait_until(function() return next(bares) == nil end)
end

local function start_master(count, managed)
    local port = http.free_port()
    local m = master.start {
        script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = %d,
            workerEnvironment = { PORT = '%d', %s } }]]):format(count, port, managed and "MANAGED = '1'" or ''),
        files = { ['app.lua'] = APP },
    }
    m:await 'Cluster ready'
    return m, port
end

-- ---------------------------------------------------------------------------------------------------------------------

local function wrk(port, close)
    local command = ('wrk -t1 -c32 -d%ds --latency %s http://127.0.0.1:%d/'):format(SECONDS,
        close and "-H 'Connection: close'" or '', port)
    local pipe = io.popen(command)
    local text = pipe:read '*a'
    pipe:close()
    local rate = tonumber(text:match 'Requests/sec:%s+([%d.]+)')
    local value, unit = text:match '99%%%s+([%d.]+)(%a+)'
    assert(rate and value, text)
    local errors = text:match 'Socket errors: [^\n]*' or ''
    return rate, tonumber(value) * ({ us = 0.001, ms = 1, s = 1000 })[unit], errors
end

local function median(list)
    local sorted = { unpack(list) }
    table.sort(sorted)
    local n = #sorted
    return (sorted[math.ceil(n / 2)] + sorted[math.floor(n / 2) + 1]) / 2
end

local function throughput()
    local m, lanes = start_master(2)
    local bare = start_bare(2, m.dir)
    for _, close in ipairs { false, true } do
        local rates, p99s = { {}, {} }, { {}, {} }
        local rate_ratios, p99_ratios = {}, {}
        wrk(lanes, close)
        wrk(bare, close)
        for round = 1, ROUNDS do
            -- ABBA: what drifts, drifts for both.
            for _, i in ipairs(round % 2 == 1 and { 1, 2 } or { 2, 1 }) do
                rates[i][round], p99s[i][round] = wrk(i == 1 and lanes or bare, close)
            end
            rate_ratios[round] = rates[1][round] / rates[2][round]
            p99_ratios[round] = p99s[1][round] / p99s[2][round]
        end
        print(('%s, 2 workers, 32 clients, %d rounds of %d s (medians)'):format(
            close and 'a connection for each request' or 'kept connections', ROUNDS, SECONDS))
        print(('  requests/s  lanes %8.0f  bare %8.0f  ratio %.3f   (>= 0.98)'):format(median(rates[1]),
            median(rates[2]), median(rate_ratios)))
        print(('  p99 ms      lanes %8.2f  bare %8.2f  ratio %.3f   (<= 1.05)'):format(median(p99s[1]),
            median(p99s[2]), median(p99_ratios)))
    end
    stop_bare()
    m:finish()
end

-- ---------------------------------------------------------------------------------------------------------------------

-- A new connection every 5 ms for 6 s, whatever became of those before; one worker is frozen from the start.
local function share_delayed(port, pid)
    assert(connections.freeze(pid))
    local l = load.start { port = port, clients = 1200, rate = 200, slow_ms = 1500, timeout = 20000 }
    wait.let_run(6000)
    uv.kill(pid, 'sigcont')
    local counts = l:stop()
    return #l.slow / counts.total * 100, counts
end

local function frozen()
    print '1 of 4 workers frozen for 6 s, 200 connections a second: delayed by more than 1.5 s'
    for _, managed in ipairs { true, false } do
        local m, lanes = start_master(4, managed)
        local share, counts = share_delayed(lanes, m:records('Worker listening')[1].workerPid)
        m:finish()
        print(('  lanes%s %5.1f %%   (%s)'):format(managed and ', waiting ones handed over' or ', not handed over       ',
            share, counts.text))
    end
    local dir = master.temp_dir()
    local bare, pids = start_bare(4, dir)
    local bare_share, bare_counts = share_delayed(bare, pids[1])
    stop_bare()
    print(('  plain SO_REUSEPORT         %5.1f %%   (%s)'):format(bare_share, bare_counts.text))
end

local parts = { throughput = throughput, frozen = frozen }
local ok, message = xpcall(function()
    for _, name in ipairs(#arg > 0 and arg or { 'throughput', 'frozen' }) do
        assert(parts[name], 'unknown part ' .. name)()
    end
end, debug.traceback)
stop_bare()
master.cleanup()
if not ok then
    io.stderr:write(message, '\n')
    os.exit(1)
end
