--- A browser that stays open on the page of `dutch-master web`:
--   build/dm-spec spec/bench/web_hour.lua [SECONDS = 3600]
-- Four Node workers with metrics write a line a second each and answer requests; every minute they are restarted, and half
-- a minute later one is killed. A twelfth of the time apart, and at most 5 minutes: what the page takes (after a garbage
-- collection that is asked for), its processes, the web process and the master. At the end: whether all of it is flat,
-- which is the middle of the last third against that of the third before, as the first fills lists that have a limit.

local uv = require 'luv'
local browser = require 'spec.support.browser'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

io.stdout:setvbuf 'line'

local SECONDS = tonumber(arg[1]) or 3600
local EVERY = math.min(300, SECONDS / 12)
local NODE = assert(versions.binary '22', 'Node 22 is not installed, see spec/support/install-node')

local APP = [[
    const { createServer, get } = require('http');
    let n = 0;
    setInterval(() => {
        console.log(`line ${++n} of a worker that says something each second, ${'x'.repeat(n %% 100)}`);
        get('http://127.0.0.1:%d/', (response) => response.resume()).on('error', () => {});
    }, 1000);
    createServer((request, response) => response.end('hello')).listen(%d);
]]

-- What is measured, its unit, and what it may grow by: a share of itself and an amount.
local MEASURES = {
    { 'heap', 'JS heap, MiB', 0.05, 0.5 }, { 'nodes', 'DOM nodes', 0.05, 100 }, { 'listeners', 'listeners', 0, 5 },
    { 'page', 'RSS of the page, MiB', 0.05, 5 }, { 'browser', 'of all of Chromium, MiB', 0.05, 15 },
    { 'web', 'of web, MiB', 0.05, 1 }, { 'master', 'of the master, MiB', 0.05, 1 },
}

local function rss(pid)
    return tonumber(io.open(('/proc/%d/status'):format(pid)):read '*a':match 'VmRSS:%s+(%d+)') / 1024
end

local function median(list)
    local copy = { unpack(list) }
    table.sort(copy)
    return (copy[math.floor((#copy + 1) / 2)] + copy[math.ceil((#copy + 1) / 2)]) / 2
end

local port, page_port = http.free_port(), http.free_port()
local m = master.start {
    script = ([[require('dutch-master').start { worker = 'app.js', numWorkers = 4, interpreter = '%s', metrics = true,
        keepOutput = '256K' }]]):format(NODE),
    files = { ['app.js'] = APP:format(port, port) },
}
m:await('Cluster ready', { timeout = 60000 })
local web = cli.start(m, { 'web', '--listen', '127.0.0.1:' .. page_port })
web:await_output 'http://'

local page = browser.open(('http://127.0.0.1:%d/'):format(page_port), NODE)

local samples, restarts, kills = {}, 0, 0
local function sample(now)
    local s, state = unpack(page:run { { memory = true }, { eval = "document.getElementById('state').textContent" } })
    s.web, s.master = rss(web.pid), rss(m:process_pid())
    samples[#samples + 1] = s
    local words = {}
    for i, measure in ipairs(MEASURES) do
        words[i] = ('%s %.1f'):format(measure[2], s[measure[1]])
    end
    print(('%4d s: %s; %s; %d restarts, %d killed'):format(now, table.concat(words, ', '), state, restarts, kills))
end

local begun = uv.hrtime()
local function elapsed()
    uv.update_time()
    return (uv.hrtime() - begun) / 1e9
end
local next_sample, next_restart, next_kill = 0, 30, 60
while elapsed() <= SECONDS + 1 do
    local now = elapsed()
    if now >= next_sample then
        sample(now)
        next_sample = next_sample + EVERY
    end
    if now >= next_restart then
        m:signal 'SIGUSR2'
        restarts, next_restart = restarts + 1, next_restart + 60
    end
    if now >= next_kill then
        uv.kill(m:workers()[1], 'sigkill')
        kills, next_kill = kills + 1, next_kill + 60
    end
    wait.let_run(500)
end

local bad, third = 0, math.floor(#samples / 3)
local function middle(key, first, last)
    local list = {}
    for i = first, last do
        list[#list + 1] = samples[i][key]
    end
    return median(list)
end
for _, measure in ipairs(MEASURES) do
    local before, after = middle(measure[1], #samples - 2 * third + 1, #samples - third),
        middle(measure[1], #samples - third + 1, #samples)
    local flat = after <= before + math.max(before * measure[3], measure[4])
    bad = bad + (flat and 0 or 1)
    print(('%s: %.1f, then %.1f: %s'):format(measure[2], before, after, flat and 'flat' or 'GROWS'))
end
page:close()
web:kill 'sigterm'
web:wait()
m:finish()
master.cleanup()
os.exit(bad == 0 and 0 or 1)
