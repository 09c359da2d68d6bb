-- Numbers for a monitoring system, as Prometheus' own tool reads them.

local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'

local function run(m, ...)
    local c = cli.run(m, { 'metrics', ... })
    assert.equal(0, c.code, c.err)
    return c.out
end

--- The value of a sample, its labels given as a pattern.
local function value(text, name, labels)
    for line in text:gmatch '[^\n]+' do
        local found, with, number = line:match '^([%w_]+)(%b{}) (.+)$'
        if found == 'dutch_master_' .. name and with:find(labels or '') then
            return tonumber(number)
        end
    end
end

local function promtool(m, text)
    m:rewrite('metrics.txt', text)
    local c = cli.run(m, { '-c', 'promtool check metrics < metrics.txt' }, { program = 'sh' })
    assert.same({ 0, '', '' }, { c.code, c.out, c.err })
end

describe('metrics', function()
    after_each(master.cleanup)

    it('are clean for promtool, and say what happened', function()
        local port = http.free_port()
        local m = master.start {
            script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = 2, metrics = true,
                beforeFork = function() end, workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]):format(port),
            files = { ['app.lua'] = apps.http },
        }
        m:await 'Cluster ready'
        for _ = 1, 5 do
            http.get { port = port }
        end
        require('luv').kill(m:workers()[1], 'sigkill')
        m:await('Worker listening', { count = 3 })
        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        m:wait_until(function()
            return #m:workers() == 2
        end, 'the old workers to be gone')
        local text = run(m, '--format', 'prometheus')
        promtool(m, text)
        assert.same({ 1, 2, 2, 1, 1, 2, 2, 0 }, {
            value(text, 'up'), value(text, 'workers_serving'), value(text, 'workers', 'running'),
            value(text, 'restarts_total', 'done'), value(text, 'worker_exits_total', '"crash"'),
            value(text, 'worker_exits_total', '"replaced"'), value(text, 'generation'),
            value(text, 'log_records_lost_total'),
        })
        assert.is_true(value(text, 'restart_duration_seconds_sum') > 0.9)
        assert.is_true(value(text, 'resident_memory_bytes') > 1e6)
        assert.is_true(value(text, 'callbacks_total') > 10)
        assert.equal(5, value(text, 'hook_duration_seconds_count', 'beforeFork'))
        assert.equal(0, value(text, 'connections_lost_total'))
        text = run(m)
        assert.matches('\n# TYPE dutch_master_restarts counter\n', text)
        assert.matches('\n# EOF\n$', text)
        m:finish()
    end)

    it('hold what Lua workers did, with metrics = true', function()
        local port = http.free_port()
        local m = master.start {
            script = "require('dutch-master').start { worker = 'app.lua', numWorkers = 1, metrics = true }",
            files = { ['app.lua'] = ([[
                require('dutch-master.http').serve('127.0.0.1:%d', function(request, response)
                    response.status = request.path == '/bad' and 503 or 200
                    response:send 'x'
                end)
            ]]):format(port) },
        }
        m:await 'Cluster ready'
        for i = 1, 10 do
            http.get { port = port, path = i > 7 and '/bad' or '/' }
        end
        local text
        m:wait_until(function()
            text = run(m, '--format', 'prometheus')
            return value(text, 'http_requests_total', '5xx') == 3
        end, 'the requests')
        promtool(m, text)
        assert.equal(7, value(text, 'http_requests_total', '2xx'))
        assert.equal(10, value(text, 'http_request_duration_seconds_count'))
        assert.equal(10, value(text, 'http_request_duration_seconds_bucket', 'Inf'))
        m:finish()
    end)

    it('are scraped by Prometheus itself, a thousand times without growing', function()
        if os.execute 'command -v prometheus >/dev/null' ~= 0 then
            return pending 'prometheus is not installed'
        end
        local m = master.start {
            script = [[require('dutch-master').start { worker = { 'sleep', '1000' }, numWorkers = 20,
                ready = { alive = 0.01 } }]],
        }
        m:await 'Cluster ready'
        local port, own = http.free_port(), http.free_port()
        local web = cli.start(m, { 'web', '--listen', '127.0.0.1:' .. port })
        web:await_output 'http://'
        m:rewrite('prometheus.yml', ([[
global: { scrape_interval: 1s }
scrape_configs:
  - job_name: dutch
    static_configs: [ { targets: [ '127.0.0.1:%d' ] } ]
]]):format(port))
        local prometheus = cli.start(m, { '--config.file=prometheus.yml', '--storage.tsdb.path=tsdb',
            '--web.listen-address=127.0.0.1:' .. own }, { program = 'prometheus' })
        m:wait_until(function()
            local _, body = http.get { port = own, path = '/api/v1/query?query=dutch_master_workers_serving' }
            return body and body:find('"20"', 1, true)
        end, 'a scrape', { timeout = 30000 })
        prometheus:kill 'sigterm'
        prometheus:wait()
        local function scrape(times)
            for _ = 1, times do
                assert.equal(200, (http.get { port = port, path = '/metrics', name = 'localhost' }))
            end
            local status = io.open(('/proc/%d/status'):format(web.pid)):read '*a'
            return tonumber(status:match 'VmRSS:%s+(%d+)')
        end
        local before = scrape(500)
        local after = scrape(1000)
        if not os.getenv 'DM_SANITIZE' then -- which keeps what was freed
            assert.is_true(after < before + 2048, ('%d KiB before, %d after'):format(before, after))
        end
        web:kill 'sigterm'
        web:wait()
        m:finish()
    end)

    versions.it('hold what Node workers did, with metrics = true, and nothing without', function(_, binary)
        local port = http.free_port()
        local m = master.start {
            script = ([[require('dutch-master').start { worker = 'app.cjs', numWorkers = 1, metrics = true,
                interpreter = '%s' }]]):format(binary),
            files = { ['app.cjs'] = ([[
                const answer = (req, res) => {
                    if (req.url === '/break') { res.write('half'); setTimeout(() => res.destroy(), 20); return; }
                    res.statusCode = req.url === '/bad' ? 500 : 200;
                    setTimeout(() => res.end('x'), req.url === '/slow' ? 30 : 0);
                };
                // Two at once on one connection: the second waits for the first.
                const both = 'GET /slow HTTP/1.1\r\nHost: x\r\n\r\nGET /bad HTTP/1.1\r\nHost: x\r\n\r\n';
                require('http').createServer(answer).listen(%d, '127.0.0.1', function () {
                    const client = require('net').connect(this.address().port, '127.0.0.1', () => client.write(both));
                    let got = '';
                    client.on('data', (data) => { got += data; if (/ 200 [^]* 500 /.test(got)) client.end(); });
                });
                const http2 = require('http2').createServer(answer).listen(0, '127.0.0.1', () => {
                    const client = require('http2').connect('http://127.0.0.1:' + http2.address().port);
                    let open = 2;
                    for (const path of ['/', '/bad']) {
                        client.request({ ':path': path }).resume().on('end', () => { if (--open === 0) client.close(); });
                    }
                });
            ]]):format(port) },
        }
        m:await 'Cluster ready'
        for _, path in ipairs { '/', '/', '/', '/bad', '/break' } do
            pcall(http.get, { port = port, path = path })
        end
        local text
        m:wait_until(function()
            text = run(m, '--format', 'prometheus')
            return value(text, 'http_requests_total', 'broken') == 1 and value(text, 'http_requests_total', '5xx') == 3
        end, 'the requests')
        promtool(m, text)
        assert.same({ 5, 3, 9 }, { value(text, 'http_requests_total', '2xx'), value(text, 'http_requests_total', '5xx'),
            value(text, 'http_request_duration_seconds_count') })
        assert.is_true(value(text, 'worker_heap_used_bytes') > 1e6)
        assert.is_true(value(text, 'worker_event_loop_utilization_ratio') <= 1)
        m:rewrite('master.lua', ([[require('dutch-master').start { worker = 'app.cjs', numWorkers = 1,
            interpreter = '%s' }]]):format(binary))
        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        m:wait_until(function()
            return not value(run(m), 'http_requests_total')
        end, 'the old worker to be gone')
        m:finish()
    end)
end)
