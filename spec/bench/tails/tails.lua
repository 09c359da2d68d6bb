--- Who waits for a busy worker: quick and slow requests in one process, at half of the capacity, a connection each.
--   build/dm-spec spec/bench/tails/tails.lua [VERSION of Node = 22] [SECONDS of each measurement = 6] [ROUNDS = 5] [PART...]
-- A part is a number of workers (8, 4, 2), "costs" or "spread"; all of them without one. "lua" or "node" among them: of
-- the dutch-masters only those with such workers. With DM_OTHER=PROGRAM each of ours is there twice, under both programs.
-- What is measured is waiting: latency since a request was due (a late generator hides nothing) less what the request
-- itself takes. All subjects run at once and are measured in turns; in a round each gets the same requests at the same
-- moments. Percentiles are those of all rounds together, a ratio is that of them, with the median of the rounds' own
-- beside it. Ratios to one shared socket (p90) and to Node's round robin (p99), the CPU of the master under many short
-- connections, its wake-ups while nothing happens.

local uv = require 'luv'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

io.stdout:setvbuf 'line'

local VERSION = arg and arg[1] or '22'
local SECONDS = tonumber(arg and arg[2]) or 6
local ROUNDS = tonumber(arg and arg[3]) or 5
local NODE = assert(versions.binary(VERSION), 'Node ' .. VERSION .. ' is not installed: spec/support/install-node')
local HERE = 'spec/bench/tails/'
local RATE_OF_A_WORKER = 62.5 -- requests a second: half of what 0.95 * 2 ms + 0.05 * 100 ms allow, and a little more
local FAST_MS, SLOW_MS, SLOW_SHARE = 2, 100, 0.05

local function read(name)
    local file = assert(io.open(HERE .. name))
    local text = file:read '*a'
    file:close()
    return text
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Subjects: each starts, and returns a function that stops it, and its master.

local function ours(kind, balance, binary)
    return function(port, count)
        local m = master.start {
            binary = binary,
            env = { DUTCH_MASTER_LUA = false }, -- each its own
            script = ([[require('dutch-master').start { worker = 'app.%s', numWorkers = %d, balance = '%s', %s
                workerEnvironment = { PORT = '%d' } }]]):format(kind, count, balance,
                kind == 'cjs' and ("interpreter = { '%s' },"):format(NODE) or '', port),
            files = { ['app.cjs'] = read 'app.cjs', ['app.lua'] = read 'app.lua' },
        }
        m:await('Cluster ready', { timeout = 60000 })
        return function()
            m:finish()
        end, m
    end
end

local function round_robin(port, count)
    local ready, ended = false, false
    local out = uv.new_pipe(false)
    local env = { 'PORT=' .. port, 'N=' .. count, 'PATH=' .. os.getenv 'PATH' }
    local process = assert(uv.spawn(NODE, { args = { HERE .. 'round_robin.cjs' }, env = env, stdio = { nil, out, 2 } },
        function()
            ended = true
        end))
    out:read_start(function(_, data)
        ready = ready or data ~= nil and data:find 'READY' ~= nil
    end)
    wait.wait_until(function()
        return ready
    end, { what = "Node's cluster", timeout = 60000 })
    return function()
        process:kill 'sigterm'
        wait.wait_until(function()
            return ended
        end, { what = 'its end' })
        process:close()
        out:close()
    end
end

local TICKS_A_SECOND = 100 -- USER_HZ

local function cpu_ms(pid)
    local file = assert(io.open(('/proc/%d/stat'):format(pid)))
    local text = file:read('*a'):match '%) (.*)'
    file:close()
    local fields = {}
    for field in text:gmatch '%S+' do
        fields[#fields + 1] = field
    end
    return (tonumber(fields[12]) + tonumber(fields[13])) * 1000 / TICKS_A_SECOND
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Load

-- Requests come at random moments, `rate` a second on average. -> sorted list of waiting times in ms, failures
-- @param slow share of requests that take long, nil: all are answered at once
local function measure(port, rate, seconds, random, slow)
    local waited, failed, open = {}, 0, 0
    local texts = {}
    for _, ms in ipairs { 0, FAST_MS, SLOW_MS } do
        texts[ms] = http.request_text({ port = port, path = '/' .. ms }, false)
    end
    local start = uv.hrtime() / 1e6
    local due, last = start, start + seconds * 1000

    local function request(at)
        local ms = not slow and 0 or random() < slow and SLOW_MS or FAST_MS
        open = open + 1
        local parser = http.parser()
        local function finish(outcome, handle)
            if not parser then
                return
            end
            open = open - 1
            if outcome == 'done' then
                waited[#waited + 1] = uv.hrtime() / 1e6 - at - ms
            else
                failed = failed + 1
            end
            parser = nil
            if handle and not handle:is_closing() then
                handle:close()
            end
        end
        http.connect({ port = port }, function(err, handle)
            if err then
                return finish('refused', handle)
            end
            handle:write(texts[ms])
            handle:read_start(function(read_error, data)
                local outcome = parser and (data and parser:feed(data) or not data and (read_error or parser:finish()))
                if outcome then
                    finish(outcome, handle)
                end
            end)
        end)
    end

    local timer = uv.new_timer()
    timer:start(0, 1, function()
        local now = uv.hrtime() / 1e6
        while due <= now and due < last do
            request(due)
            due = due - math.log(1 - random()) * 1000 / rate
        end
        if due >= last then
            timer:stop()
        end
    end)
    wait.wait_until(function()
        return due >= last and open == 0
    end, { what = 'the last answers', timeout = seconds * 1000 + 60000 })
    timer:close()
    table.sort(waited)
    return waited, failed
end

local function percentile(list, share)
    return list[math.min(#list, math.floor(share * #list) + 1)] or 0 / 0
end

local function median(list)
    table.sort(list)
    return list[math.ceil(#list / 2)]
end

local KINDS = { -- of ours, each beside one shared socket of its own
    { name = 'Node', worker = 'cjs', balances = { 'steered', 'queue' } },
    { name = 'Lua', worker = 'lua', balances = { 'steered' } },
}
local PROGRAMS = { [''] = false, [' (other)'] = os.getenv 'DM_OTHER' }
local ROUND_ROBIN = { name = 'round robin', start = round_robin }

-- @param only the kind of workers, nil: all
-- @return list of subjects, list of ratios { what, one, other, percentile }
local function subjects_of(only)
    local subjects, ratios = { ROUND_ROBIN }, {}
    local function add(kind, balance, suffix, binary)
        local name = ('%s, %s%s'):format(kind.name, balance, suffix)
        subjects[#subjects + 1] = { name = name, start = ours(kind.worker, balance, binary or nil) }
        return name
    end
    for _, kind in ipairs(KINDS) do
        for suffix, binary in pairs(not (only and only ~= kind.name:lower()) and PROGRAMS or {}) do
            local shared = add(kind, 'shared', suffix, binary)
            for _, balance in ipairs(kind.balances) do
                local name = add(kind, balance, suffix, binary)
                ratios[#ratios + 1] = { 'p90 %s / shared (aim: 2.5 at most)', name, shared, 'p90' }
                ratios[#ratios + 1] = { 'p99 %s / round robin (aim: 1.1 at most)', name, 'round robin', 'p99' }
            end
        end
    end
    return subjects, ratios
end

local function ratio_of(results, one, other, key)
    local rounds = {}
    for round = 1, ROUNDS do
        rounds[round] = results[one].rounds[round][key] / results[other].rounds[round][key]
    end
    return results[one].all[key] / results[other].all[key], median(rounds)
end

local SHARES = { p50 = 0.5, p90 = 0.9, p99 = 0.99 }

local function percentiles(list)
    local result = {}
    for name, share in pairs(SHARES) do
        result[name] = percentile(list, share)
    end
    return result
end

-- Measures each subject in each round. @return name -> { all = percentiles, rounds = list of percentiles }
local function measure_all(subjects, count, ports)
    local results, rate = {}, count * RATE_OF_A_WORKER
    for _, subject in ipairs(subjects) do
        results[subject.name] = { rounds = {}, waited = {} }
        measure(ports[subject.name], rate, 1, math.random, SLOW_SHARE) -- to warm up
    end
    for round = 1, ROUNDS do
        for i = 1, #subjects do
            local subject = subjects[(i + round) % #subjects + 1]
            math.randomseed(round)
            local waited, failed = measure(ports[subject.name], rate, SECONDS, math.random, SLOW_SHARE)
            assert(failed == 0, ('%s: %d failed'):format(subject.name, failed))
            local result = results[subject.name]
            result.rounds[round] = percentiles(waited)
            for _, ms in ipairs(waited) do
                result.waited[#result.waited + 1] = ms
            end
        end
    end
    for _, result in pairs(results) do
        table.sort(result.waited)
        result.all = percentiles(result.waited)
    end
    return results
end

local function compare(count, only)
    local ports, stops, masters, worked = {}, {}, {}, {}
    local subjects, ratios = subjects_of(only)
    print(('%d workers, %g requests a second: waiting in ms'):format(count, count * RATE_OF_A_WORKER))
    for i, subject in ipairs(subjects) do
        ports[subject.name] = http.free_port()
        stops[i], masters[i] = subject.start(ports[subject.name], count)
        worked[i] = masters[i] and cpu_ms(masters[i]:process_pid())
    end
    local results = measure_all(subjects, count, ports)
    for i, subject in ipairs(subjects) do
        local all = results[subject.name].all
        print(('  %-22s p50 %6.1f  p90 %6.1f  p99 %6.1f%s'):format(subject.name, all.p50, all.p90, all.p99, masters[i]
            and ('  master %4.0f ms of processor'):format(cpu_ms(masters[i]:process_pid()) - worked[i]) or ''))
    end
    for _, ratio in ipairs(ratios) do
        local what, one, other, key = unpack(ratio)
        print(('  %-60s %.2f (median of rounds %.2f)'):format(what:format(one), ratio_of(results, one, other, key)))
    end
    wait.turn()
    for i = #stops, 1, -1 do -- each finds as many descriptors as there were when it began
        stops[i]()
    end
    wait.turn() -- what was closed is closed before the loop is
end

-- ---------------------------------------------------------------------------------------------------------------------
-- What it costs the master

local function switches(pid)
    local file = assert(io.open(('/proc/%d/status'):format(pid)))
    local text = file:read '*a'
    file:close()
    return tonumber(text:match 'voluntary_ctxt_switches:%s*(%d+)')
end

local function pause(ms)
    local timer, over = uv.new_timer(), false
    timer:start(ms, 0, function()
        over = true
    end)
    wait.wait_until(function()
        return over
    end, { timeout = ms + 10000 })
    timer:close()
end

local function costs()
    local port = http.free_port()
    local m = master.start {
        script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = 4,
            workerEnvironment = { PORT = '%d' } }]]):format(port),
        files = { ['app.lua'] = read 'app.lua' },
    }
    m:await('Cluster ready', { timeout = 60000 })
    local before = cpu_ms(m:process_pid())
    local begun = uv.hrtime()
    local waited = measure(port, 5000, SECONDS, math.random)
    local seconds = (uv.hrtime() - begun) / 1e9
    print(('master under %.0f connections a second: %.1f %% of a core (aim: 3 at most)'):format(#waited / seconds,
        (cpu_ms(m:process_pid()) - before) / seconds / 10))
    pause(8000) -- until all is quiet
    local woken = switches(m:process_pid())
    pause(10000)
    print(('wake-ups of the master while nothing happens: %.1f a second (aim: 2 at most)'):format(
        (switches(m:process_pid()) - woken) / 10))
    m:finish()
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Long-lived connections

-- So many, opened 20 ms apart and kept: how many each worker has, most first.
local function spread_over(workers, count)
    local port = http.free_port()
    local stop = ours('cjs', 'steered')(port, workers)
    local before, handles, held, answered = 0, {}, {}, 0
    local timer = uv.new_timer()
    timer:start(0, 20, function()
        before = before + 1
        if before == count then
            timer:close()
        end
        handles[before] = http.connect({ port = port }, function(err, handle)
            assert(not err, err)
            handle:write 'GET /pid HTTP/1.1\r\nHost: x\r\n\r\n'
            local parser = http.parser()
            handle:read_start(function(_, data)
                if data and parser and parser:feed(data) == 'done' then
                    held[parser.body], answered, parser = (held[parser.body] or 0) + 1, answered + 1, nil
                end
            end)
        end)
    end)
    wait.wait_until(function()
        return answered == count
    end, { what = 'answers', timeout = 60000 })
    local list = {}
    for _, number in pairs(held) do
        list[#list + 1] = number
    end
    table.sort(list, function(a, b)
        return a > b
    end)
    print(('%d kept connections over %d workers: %s; the most / the mean %.2f (aim: %.2f at most)'):format(count, workers,
        table.concat(list, ' '), list[1] * workers / count, count == 12 and 4 * workers / count or 1.6))
    for _, handle in ipairs(handles) do
        handle:close()
    end
    wait.turn()
    stop()
end

local PARTS = { ['8'] = compare, ['4'] = compare, ['2'] = compare, costs = costs, spread = function()
    spread_over(8, 160)
    spread_over(4, 12)
end }
local parts, only = {}, nil
for _, word in ipairs { unpack(arg or {}, 4) } do
    if word == 'lua' or word == 'node' then
        only = word
    else
        parts[#parts + 1] = word
    end
end
for _, part in ipairs(#parts > 0 and parts or { '8', '4', '2', 'costs', 'spread' }) do
    assert(PARTS[part], 'no such part: ' .. part)(tonumber(part), only)
end
