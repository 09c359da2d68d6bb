--- What the README's figures about the keeper come from.
-- usage: build/dm-spec spec/bench/keeper.lua [takeover|memory|idle|fork|kills|thousand]...   (all without a name)
-- DM_KILLS (20) and DM_TAKEOVERS (1000) shorten the long ones; pm2 is measured beside it where spec/.cache/pm2 has it.

local uv = require 'luv'
local read = require('spec.support.files').or_empty
io.stdout:setvbuf 'line'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

local KILLS = tonumber(os.getenv 'DM_KILLS') or 20
local TAKEOVERS = tonumber(os.getenv 'DM_TAKEOVERS') or 1000
local STEADY_MS = 1100 -- a master that has lived this long is followed by the next one at once

local function report(what, value, budget)
    print(('%-66s %16s   %s'):format(what, value, budget or ''))
end

local function median(list)
    table.sort(list)
    return list[math.ceil(#list / 2)], list[#list]
end

local function pause(ms)
    local timer, over = uv.new_timer(), false
    timer:start(ms, 0, function()
        timer:close()
        over = true
    end)
    while not over do
        uv.run 'once'
    end
end

local function pss(pid)
    return tonumber(read(('/proc/%d/smaps_rollup'):format(pid)):match '\nPss:%s+(%d+)')
end

local function wakeups(pid)
    return tonumber(read(('/proc/%d/status'):format(pid)):match 'nonvoluntary_ctxt_switches:%s+(%d+)')
        + tonumber(read(('/proc/%d/status'):format(pid)):match '\nvoluntary_ctxt_switches:%s+(%d+)')
end

local function sleepers(count, more)
    return kept.start { script = ([[require('dutch-master').start { worker = { 'sleep', '100000' }, numWorkers = %d,
        ready = { alive = 0.01 }, %s }]]):format(count, more or '') }
end

local benches = {}

function benches.takeover()
    for _, count in ipairs { 2, 200 } do
        local m = sleepers(count)
        m:await('Cluster ready', { timeout = 120000 })
        local took = {}
        for i = 1, KILLS do
            pause(STEADY_MS)
            local begun = uv.hrtime()
            took[i] = (kept.kill(m).arrived - begun) / 1e6
        end
        report(('kill -9 -> supervising again, %d workers, median / worst of %d'):format(count, KILLS),
            ('%.1f/%.1f ms'):format(median(took)), count == 2 and '<= 50 ms' or '<= 200 ms')
        m:finish()
    end
end

function benches.memory()
    for _, count in ipairs { 2, 200 } do
        local m = sleepers(count)
        m:await('Cluster ready', { timeout = 120000 })
        local first = pss(m.pid)
        kept.kill(m)
        report(('memory (PSS) of the keeper, %d workers; after a takeover'):format(count),
            ('%d/%d KiB'):format(first, pss(m.pid)), '<= 1024 KiB')
        m:finish()
    end
end

function benches.idle()
    local m = sleepers(2)
    m:await 'Cluster ready'
    pause(2000)
    local before = wakeups(m.pid)
    pause(70000)
    report('wake-ups of the keeper in 70 idle seconds', wakeups(m.pid) - before, '0')
    m:finish()
end

-- The time of day in ms: now, and as a record says it, which is when it happened: it may be written some milliseconds
-- later.
local DAY_MS = 24 * 3600 * 1000
local function now_ms()
    local seconds, microseconds = uv.gettimeofday()
    return seconds % 86400 * 1000 + microseconds / 1000
end
local function ms_of(record)
    local hours, minutes, seconds, ms = record.time:match 'T(%d+):(%d+):(%d+)%.(%d+)Z'
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + ms
end

local function mean(list)
    local sum = 0
    for _, value in ipairs(list) do
        sum = sum + value
    end
    return sum / #list
end

-- From the death of a worker to the next one, by turns with and without a keeper: what it costs is the difference. Means,
-- since records count whole milliseconds.
function benches.fork()
    local both, took = {}, { {}, {} }
    for i, keeper in ipairs { true, false } do
        both[i] = kept.start { keeper = keeper, script = [[require('dutch-master').start { worker = { 'sleep', '100000' },
            numWorkers = 4, ready = { alive = 0.001 }, backoff = { first = 0.001, max = 0.001, reset = 0 } }]] }
        both[i]:await 'Cluster ready'
    end
    for _ = 1, 200 do
        for i, m in ipairs(both) do
            local records = m:records 'Worker listening'
            local mark, begun = m:mark(), now_ms()
            uv.kill(records[#records].workerPid, 'sigkill')
            local created = m:await('Creating new worker', { after = mark })
            took[i][#took[i] + 1] = (ms_of(created) - begun + DAY_MS / 2) % DAY_MS - DAY_MS / 2
            m:await('Worker listening', { after = mark })
        end
    end
    local with, without = mean(took[1]), mean(took[2])
    report('a worker dies -> another is forked, with / without a keeper', ('%.2f/%.2f ms'):format(with, without))
    report('cost of snapshot and store: a death and a fork', ('%.2f ms'):format(with - without), '<= 0.2 ms a fork')
    for _, m in ipairs(both) do
        m:finish()
    end
end

local function under_load(name, port, kill)
    for _, mode in ipairs { 'keepalive', 'close' } do
        local running = load.start { port = port, clients = 8, mode = mode, expect = '.' }
        running:await(100)
        for _ = 1, KILLS do
            kill()
            running:await(running.counts.total + 100)
        end
        local counts = running:stop()
        report(('%s, %s: failed of %d requests in %d kills'):format(name, mode, counts.total, KILLS), counts.failed,
            name ~= 'pm2' and '0' or '')
    end
end

local NODE_APP = [[
    require('http').createServer((request, response) => {
        setTimeout(() => response.end(`${process.pid}`), Math.random() * 20)
    }).listen(Number(process.env.PORT))]]

function benches.kills()
    for _, kind in ipairs { 'lua', 'node' } do
        local port = http.free_port()
        local m = kept.start {
            script = ([[require('dutch-master').start { worker = 'app.%s', numWorkers = 2, workerEnvironment = {
                LISTEN = '127.0.0.1:%d', PORT = '%d' } }]]):format(kind == 'lua' and 'lua' or 'js', port, port),
            files = { ['app.lua'] = apps.http, ['app.js'] = NODE_APP },
        }
        m:await 'Cluster ready'
        local before, with_pauses = m:workers(), kept.without_pauses(m)
        under_load(kind, port, function()
            pause(200)
            kept.kill(m)
        end)
        with_pauses()
        kept.same_workers(m, before)
        m:finish()
    end
    local pm2 = uv.fs_realpath 'spec/.cache/pm2/node_modules/.bin/pm2'
    if not pm2 then
        return report('pm2', 'not in spec/.cache')
    end
    local dir, port = master.temp_dir(), http.free_port()
    local file = assert(io.open(dir .. '/app.js', 'w'))
    file:write(NODE_APP)
    file:close()
    local function run(words)
        return os.execute(("cd '%s' && PM2_HOME='%s/home' PORT=%d '%s' %s >/dev/null 2>&1"):format(dir, dir, port, pm2, words))
    end
    run 'start app.js -i 2'
    under_load('pm2', port, function()
        local pid = tonumber(read(dir .. '/home/pm2.pid'))
        uv.kill(pid, 'sigkill')
        run 'resurrect' -- what its users do: the daemon starts again at the next command
        run 'start app.js -i 2'
    end)
    run 'kill'
end

function benches.thousand()
    local m = sleepers(2)
    m:await 'Cluster ready'
    kept.kill(m)
    local function counts()
        return ('%d keeper, %d master'):format(kept.descriptors(m.pid), kept.descriptors(kept.pid(m)))
    end
    local first, memory = counts(), pss(m.pid)
    local with_pauses = kept.without_pauses(m)
    for _ = 2, TAKEOVERS do
        kept.kill(m)
        m.log = {}
    end
    with_pauses()
    report(('descriptors after 1 and after %d takeovers'):format(TAKEOVERS), first, counts())
    report('memory (PSS) of the keeper by then', ('%d/%d KiB'):format(memory, pss(m.pid)))
    m:finish()
end

local names = #arg > 0 and arg or { 'takeover', 'memory', 'idle', 'fork', 'kills', 'thousand' }
for _, name in ipairs(names) do
    benches[name]()
end
