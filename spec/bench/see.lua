--- What it costs to look:
--   build/dm-spec spec/bench/see.lua [SECONDS of each measurement = 5] [PART: list, scrape or node; all of them without]
-- list with 10 masters, a scrape of a master with 100 workers, 1,000 scrapes, the page in Chromium, and metrics = true
-- against none on a Node worker, in turns.

local uv = require 'luv'
local browser = require 'spec.support.browser'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'

io.stdout:setvbuf 'line'

local SECONDS = tonumber(arg[1]) or 5
local PART = arg[2]
local NODE = versions.binary '22'

local function median(list)
    table.sort(list)
    return list[math.ceil(#list / 2)], list[#list]
end

local function timed(rounds, fn)
    local times = {}
    for i = 1, rounds do
        local begun = uv.hrtime()
        fn()
        times[i] = (uv.hrtime() - begun) / 1e6
    end
    return median(times)
end

local function rss(pid)
    return tonumber(io.open(('/proc/%d/status'):format(pid)):read '*a':match 'VmRSS:%s+(%d+)') / 1024
end

local function start(workers, dir)
    local m = master.start {
        script = ([[require('dutch-master').start { worker = { 'sleep', '100000' }, numWorkers = %d,
            ready = { alive = 0.01 } }]]):format(workers),
        env = dir and { DUTCH_MASTER_RUNTIME_DIR = dir },
    }
    m:await('Cluster ready', { timeout = 60000 })
    return m
end

if not PART or PART == 'list' then
    local dir, masters = master.temp_dir(), {}
    for i = 1, 10 do
        masters[i] = start(2, dir)
    end
    local middle, worst = timed(50, function()
        assert(cli.run(nil, { 'list' }, { env = { DUTCH_MASTER_RUNTIME_DIR = dir } }).code == 0)
    end)
    print(('list with 10 masters: median %.1f ms, worst %.1f ms of 50'):format(middle, worst))
    for _, m in ipairs(masters) do
        m:finish()
    end
end

if not PART or PART == 'scrape' then
    local m = start(100)
    local port = http.free_port()
    local middle, worst = timed(50, function()
        assert(cli.run(m, { 'metrics' }).code == 0)
    end)
    print(('metrics with 100 workers, the whole command: median %.1f ms, worst %.1f ms of 50'):format(middle, worst))
    local web = cli.start(m, { 'web', '--listen', '127.0.0.1:' .. port })
    web:await_output 'http://'
    local text
    repeat
        text = select(2, http.get { port = port, path = '/metrics', name = 'localhost' })
    until text and text:find 'workers_serving{[^}]*} 100'
    local before_master, before_web = rss(m:process_pid()), rss(web.pid)
    middle, worst = timed(1000, function()
        http.get { port = port, path = '/metrics', name = 'localhost' }
    end)
    print(('a scrape of /metrics with 100 workers: median %.1f ms, worst %.1f ms of 1000'):format(middle, worst))
    print(('memory before and after 1,000 scrapes: master %.1f and %.1f MiB, web %.1f and %.1f MiB'):format(before_master,
        rss(m:process_pid()), before_web, rss(web.pid)))
    if NODE then
        local url = ('http://127.0.0.1:%d/'):format(port)
        local paint = {}
        for i = 1, 5 do
            local page = browser.open(url, NODE)
            paint[i] = page:run({
                { wait = "document.querySelectorAll('#workers tr').length === 100" },
                { url = url },
                { wait = "document.querySelectorAll('#workers tr').length === 100" },
                { eval = "performance.getEntriesByName('first-contentful-paint')[0].startTime" },
            })[1]
            page:close()
        end
        local first, last = median(paint)
        print(('first paint of the page with 100 workers: median %.0f ms, worst %.0f ms of 5'):format(first, last))
    end
    web:kill 'sigterm'
    web:wait()
    m:finish()
end

-- What it costs to listen to Node's channels is less than what two processes of one program differ by. So one worker,
-- which listens and does not listen in turns; and two masters at once, in turns, for the rates.
local TURNS = [[
    const { channel } = require('diagnostics_channel');
    const counted = ['http.server.request.start', 'http.server.response.finish'].map(channel);
    const listeners = counted.map((each) => each._subscribers[0]);
    const spent = { true: [], false: [] };
    let requests = 0, seen = 0, before = process.cpuUsage(), on = true;
    setInterval(() => {
        const { user, system } = process.cpuUsage(before);
        if (requests - seen > 500) spent[on].push((user + system) / (requests - seen));
        before = process.cpuUsage();
        seen = requests;
        on = Math.random() < 0.5;
        counted.forEach((each, i) => {
            if (on !== each.hasSubscribers) each[on ? 'subscribe' : 'unsubscribe'](listeners[i]);
        });
    }, 200);
    const median = (list) => list.sort((a, b) => a - b)[list.length >> 1];
    require('http').createServer((request, response) => {
        requests += 1;
        response.end(request.url === '/' ? 'hello' : `${median(spent.true)} ${median(spent.false)}`);
    }).listen(%d);
]]
local PLAIN = "require('http').createServer((request, response) => response.end('hello')).listen(%d)"

if NODE and (not PART or PART == 'node') then
    local function serve(app, on)
        local port = http.free_port()
        local m = master.start {
            script = ([[require('dutch-master').start { worker = 'app.js', numWorkers = 1, interpreter = '%s',
                metrics = %s }]]):format(NODE, tostring(on)),
            files = { ['app.js'] = app:format(port) },
        }
        m:await('Cluster ready', { timeout = 20000 })
        return { m = m, port = port, rates = {} }
    end
    local function wrk(subject, seconds)
        local pipe = io.popen(('wrk -t1 -c16 -d%ds http://127.0.0.1:%d/ 2>&1'):format(seconds, subject.port))
        local rate = tonumber(pipe:read '*a':match 'Requests/sec:%s*([%d.]+)')
        pipe:close()
        return rate
    end

    local turns = serve(TURNS, true)
    wrk(turns, SECONDS * 8)
    local _, text = http.get { port = turns.port, path = '/spent' }
    local on, off = text:match '^(%S+) (%S+)$'
    print(('metrics = true on a Node worker: %.2f us of CPU a request, %.2f without, ratio of throughput %.3f'):format(
        on, off, off / on))
    turns.m:finish()

    local with, without = serve(PLAIN, true), serve(PLAIN, false)
    for i = 0, 2 * SECONDS do
        for _, subject in ipairs(i % 2 == 0 and { with, without } or { without, with }) do
            local rate = wrk(subject, 1)
            if i > 1 then -- warm
                table.insert(subject.rates, rate)
            end
        end
    end
    local a, b = median(with.rates), median(without.rates)
    print(('two workers in turns: %.0f requests/s with, %.0f without, ratio %.3f'):format(a, b, a / b))
    with.m:finish()
    without.m:finish()
end
master.cleanup()
