-- Connections that wait in a queue behind busy workers, when something happens to those workers: all are answered.
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

-- Each request holds its worker, so of 16 at once 14 wait.
local CLIENTS, HOLD_S = 16, 0.2

local WSGI = ([[
import threading
def application(environ, start_response):
    if environ['PATH_INFO'] == '/busy':
        threading.Event().wait(%g)
    start_response('200 OK', [('Content-Length', '2'), ('Connection', 'close')])
    return [b'ok']
]]):format(HOLD_S)
local RACK = ("run ->(env) { sleep %g if env['PATH_INFO'] == '/busy'; [200, { 'Content-Length' => '2' }, ['ok']] }\n")
    :format(HOLD_S)

local SERVERS = {
    gunicorn = {
        worker = "dutch.gunicorn { app = 'app:application', args = { '--log-level', 'warning' } }",
        files = { ['app.py'] = WSGI },
    },
    unicorn = { worker = 'dutch.unicorn {}', files = { ['config.ru'] = RACK } },
    puma = {
        worker = "dutch.puma { app = 'config.ru', args = { '--quiet', '--threads', '1:1' } }",
        files = { ['config.ru'] = RACK },
    },
    uwsgi = {
        worker = "dutch.uwsgi { app = 'app:application', args = { '--plugin', 'python3', '--disable-logging' } }",
        files = { ['app.py'] = WSGI },
    },
}

describe('connections that wait behind busy workers', function()
    after_each(master.cleanup)

    local m, port

    local function start(name, options)
        local server = SERVERS[name]
        if os.execute('command -v ' .. name .. ' >/dev/null') ~= 0 then
            pending(name .. ' is not installed')
            return false
        end
        port = http.free_port()
        m = master.start {
            script = ([[local dutch = require 'dutch-master'
                dutch.start { worker = %s, numWorkers = 2, listen = '127.0.0.1:%d', restartSoak = 0.1, %s }
                ]]):format(server.worker, port, options or ''),
            files = server.files, env = { PYTHONDONTWRITEBYTECODE = '1' },
        }
        m:await('Cluster ready', { timeout = 20000 })
        return true
    end

    local function status()
        return cjson.decode(cli.run(m, { 'status', '--json' }).out)
    end

    -- So many clients ask at once; when most of them wait, `act` happens. All must be answered.
    local function all_answered(act)
        local l = load.start { port = port, clients = CLIENTS, path = '/busy', timeout = 30000, expect = '^ok$' }
        m:wait_until(function()
            local queues = {}
            for _, worker in ipairs(status().workers) do
                queues[#queues + 1] = worker.queue
            end
            return math.max(0, unpack(queues)) >= 4
        end, 'a queue')
        l:no_more()
        act()
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text .. m:dump())
        io.stdout:write(('[%d answered, the slowest after %.1f s] '):format(counts.total, counts.max_ms / 1000))
        return counts
    end
    local function roll()
        m:signal 'SIGUSR2'
    end

    for name in pairs(SERVERS) do
        it('are all answered when ' .. name .. ' is restarted', function()
            if start(name) then
                all_answered(roll)
                m:await('Restart complete', { timeout = 20000 })
                m:finish()
            end
        end)
    end

    for what, options in pairs { ['one at a time'] = 'restartConcurrency = 1',
        ['with a canary'] = "restartConcurrency = 'canary'" } do
        it('are all answered when workers are replaced ' .. what, function()
            if start('gunicorn', options) then
                all_answered(roll)
                m:await('Restart complete', { timeout = 20000 })
                m:finish()
            end
        end)
    end

    it('are all answered when there are fewer workers, and when one crashes', function()
        if not start 'gunicorn' then
            return
        end
        local counts = all_answered(function()
            cli.run(m, { 'scale', '1' })
        end)
        assert.is_true(counts.ok >= CLIENTS)
        cli.run(m, { 'scale', '2' })
        m:wait_until(function()
            local serving = 0
            for _, worker in ipairs(status().workers) do
                serving = serving + (worker.state == 'running' and 1 or 0)
            end
            return serving == 2
        end, 'two workers')
        -- What is inside the worker that is killed is lost, and nothing else: gunicorn's own worker holds one.
        local l = load.start { port = port, clients = CLIENTS, path = '/busy', timeout = 30000, expect = '^ok$' }
        l:await(2)
        os.execute('kill -KILL ' .. status().workers[1].pid)
        m:await('Worker exited', { count = 2 })
        local lost = l:stop()
        assert.is_true(lost.reset + lost.empty <= 1 and lost.failed == lost.reset + lost.empty, lost.text .. m:dump())
        m:finish { code = 0 }
    end)

    it('are served before a stop, and nobody new comes in meanwhile', function()
        if not start('gunicorn') then
            return
        end
        all_answered(function()
            m:signal 'SIGTERM'
            m:await 'Shutdown requested'
            local status_code, why = http.get { port = port, path = '/', timeout = 300 }
            assert.is_nil(status_code, 'somebody new was served')
            assert.equal('ECANCELED', why) -- by us: no answer, and no refusal
        end)
        m:exit()
        m:finish()
        assert.equal(0, #m:records 'Waiting connections lost, their socket is closed')
    end)
end)
