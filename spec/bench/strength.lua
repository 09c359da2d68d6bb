--- strength.lua: what crowds cost those who behave. usage: build/dm-spec spec/bench/strength.lua [PAIRS = 500]
--
-- Pairs of masters of two scripts, started together on one address: one of each pair serves, the other says why not.
-- Then how long a ping takes while nothing happens, under 2,000 clients that come, ask and go, with 40 followers that
-- do not read, with workers that flood their channels, with hooks that never rest, and all of it together.
-- Budget: p99 20 ms, on a machine that has a processor for the master when it needs one: how long it had none is said.
-- The clients are a process of their own: (luajit strength.lua crowd SOCKET CLIENTS).

local uv = require 'luv'

local PING = '{"v":1,"id":%d,"verb":"ping"}\n'

-- So many clients at a time, each of which asks one thing and goes; the next one comes in its place.
local function crowd(path, clients)
    uv.new_signal():start('sigpipe', function() end)
    local function come()
        local pipe = uv.new_pipe(false)
        local function go()
            if not pipe:is_closing() then
                pipe:close(come)
            end
        end
        pipe:connect(path, function(err)
            if err then
                return go()
            end
            pipe:write(PING:format(1), function(failed)
                if failed then
                    go()
                end
            end)
            pipe:read_start(go)
        end)
    end
    for _ = 1, clients do
        come()
    end
    uv.run()
end

if arg[1] == 'crowd' then
    return crowd(arg[2], tonumber(arg[3]))
end

local http = require 'spec.support.http'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local PAIRS, CLIENTS, FOLLOWERS, PING_MS = tonumber(arg[1]) or 500, 2000, 40, 5000

io.stdout:setvbuf 'line'
uv.new_signal():start('sigpipe', function() end)

-- ---------------------------------------------------------------------------------------------------------------------

local function pair(port)
    local both = {}
    for i = 1, 2 do
        both[i] = master.start {
            script = ([[require('dutch-master').start { worker = { 'sleep', '100' }, numWorkers = 1,
                listen = '127.0.0.1:%d', ready = { alive = 0.01 } }]]):format(port),
        }
    end
    local function settled(m)
        return m.ended or #m:records 'Cluster ready' > 0
    end
    wait.wait_until(function() return settled(both[1]) and settled(both[2]) end, { what = 'one of two masters' })
    local serving = 0
    for _, m in ipairs(both) do
        if m.ended then
            assert(m.ended.code == 71, m.stderr)
        else
            serving = serving + 1
            m:finish()
        end
    end
    master.cleanup()
    return serving
end

local served = { [0] = 0, 0, 0 }
for _ = 1, PAIRS do
    local serving = pair(http.free_port())
    served[serving] = served[serving] + 1
end
print(('%d pairs of masters on one address: one serves %d times, both %d, none %d'):format(PAIRS, served[1], served[2],
    served[0]))

-- ---------------------------------------------------------------------------------------------------------------------

local SCRIPT = [[
require('dutch-master').start { worker = 'app.lua', numWorkers = 4, ready = 'message', %s }
]]
local APP = [[
local worker, uv = require 'dutch-master.worker', require 'luv'
worker.ready()
local timer = uv.new_timer()
timer:start(0, os.getenv 'FLOOD' and 1 or 1000, function()
    for i = 1, os.getenv 'FLOOD' and 50 or 1 do
        worker.send { n = i, text = ('x'):rep(100) }
    end
end)
]]
local STORM = 'onMessage = function(_, message) for i = 1, 1e5 do message.n = i end end,'

local function ping(path)
    local pipe, times, began, over = uv.new_pipe(false), {}, nil, false
    local timer = uv.new_timer()
    pipe:connect(path, function(err)
        assert(not err, err)
        local function ask()
            began = uv.hrtime()
            pipe:write(PING:format(1))
        end
        pipe:read_start(function(_, data)
            assert(data, 'the master hung up')
            times[#times + 1] = (uv.hrtime() - began) / 1e6
            timer:start(5, 0, ask)
        end)
        ask()
    end)
    local limit = uv.new_timer()
    limit:start(PING_MS, 0, function() over = true end)
    wait.wait_until(function() return over end, { timeout = 2 * PING_MS })
    limit:close()
    timer:close()
    pipe:close()
    table.sort(times)
    return times
end

-- ms that it ran, and that it waited for a processor.
local function processor(m)
    local ran, waited = io.open(('/proc/%d/schedstat'):format(m:process_pid())):read '*a':match '^(%d+) (%d+)'
    return ran / 1e6, waited / 1e6
end

local function measure(name, options)
    local m = master.start {
        script = SCRIPT:format(options.storm and STORM or ''), files = { ['app.lua'] = APP },
        env = { FLOOD = options.flood and '1' or nil },
    }
    m:await('Cluster ready', { timeout = 30000 })
    local path = io.popen('ls ' .. m.dir .. '/run/*.sock'):read '*l'
    local pipes, child = {}, nil
    for i = 1, options.followers or 0 do
        pipes[i] = uv.new_pipe(false)
        pipes[i]:connect(path, function()
            pipes[i]:write('{"v":1,"id":1,"verb":"events","follow":true}\n')
        end)
    end
    if options.clients then
        child = uv.spawn('luajit', { args = { arg[0], 'crowd', path, tostring(options.clients) },
            stdio = { nil, nil, 2 } }, function() end)
    end
    local ran, waited = processor(m)
    local times = ping(path)
    local ran_after, waited_after = processor(m)
    if child then
        child:kill 'sigkill'
        child:close()
    end
    for _, pipe in ipairs(pipes) do
        pipe:close()
    end
    print(('%-40s %5d pings: median %6.2f ms, p99 %6.2f ms, longest %6.2f ms; ran %2.0f %%, no processor %2.0f %%')
        :format(name, #times, times[math.ceil(#times / 2)], times[math.ceil(#times * 0.99)], times[#times],
            (ran_after - ran) * 100 / PING_MS, (waited_after - waited) * 100 / PING_MS))
    m:finish()
    master.cleanup()
end

measure('nothing else', {})
measure('2,000 clients', { clients = CLIENTS })
measure('40 followers that do not read, floods', { followers = FOLLOWERS, flood = true })
measure('4 workers that flood their channels', { flood = true })
measure('hooks that never rest', { flood = true, storm = true })
measure('all of it', { clients = CLIENTS, followers = FOLLOWERS, flood = true, storm = true })
