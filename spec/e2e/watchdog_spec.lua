-- watchdog = seconds: a worker that lived and gives no sign of life any more is replaced, one that never gave any is left
-- alone. What it hangs in stays its own: the others serve, and the replacement is there before it is asked to leave.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'

-- Says READY=1, and WATCHDOG=1 as often as it was told to, once at least, while there is no file `hang`; what the file
-- says, if it is there.
local PYTHON = [[
import os, select, socket, signal
assert int(os.environ['WATCHDOG_PID']) == os.getpid(), 'WATCHDOG_PID is not mine'
every = int(os.environ['WATCHDOG_USEC']) / 1e6 / 4
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
n.connect(os.environ['NOTIFY_SOCKET'])
n.send(b'READY=1')
hang = 'hang' + os.environ['DUTCH_MASTER_WORKER']
while n.send(b'WATCHDOG=1') and not os.path.exists(hang):
    select.select([], [], [], every)
said = open(hang, 'rb').read()
if said:
    n.send(said)
signal.pause()
]]

local NODE = [[
require('http').createServer((request, response) => {
    if (request.url === '/hang') for (;;) { /* its loop is blocked */ }
    response.end(process.env.DUTCH_MASTER_WORKER)
}).listen(+process.env.PORT, '127.0.0.1')
]]

local function script(port, options)
    return ([[
        local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', restartSoak = 0, stopTimeout = 3, killTimeout = 2.5,
            beforeFork = function() dutch.chdir(dutch.directory) end,
            workerEnvironment = { LISTEN = '127.0.0.1:%d', PORT = '%d' }, %s }]]):format(port, port, options)
end

describe('a watchdog', function()
    after_each(master.cleanup)

    it('replaces a worker of kind exec that has stopped to say WATCHDOG=1, or says trigger', function()
        for text, reason in pairs {
            [''] = 'gave no sign of life for 2 s', ['WATCHDOG=trigger'] = 'it says that it must be replaced',
        } do
            local m = master.start { files = { ['app.py'] = PYTHON },
                script = script(1, "worker = { 'python3', 'app.py' }, ready = 'notify', watchdog = 2"),
            }
            m:await 'Cluster ready'
            m:rewrite('hang2', text)
            local hangs = m:await 'Worker hangs'
            assert.same({ 40, 2, reason }, { hangs.level, hangs.workerId, hangs.reason })
            local ready = m:await('Worker listening', { count = 3 })
            local exited = m:await { msg = 'Worker exited', workerId = 2 }
            assert.is_true(ready.index < exited.index)
            assert.equal(1, #m:records 'Worker exited')
            m:finish()
        end
    end)

    it('leaves alone who never said that it lives', function()
        local m = master.start {
            script = script(1, "worker = { 'sleep', '1000' }, numWorkers = 1, ready = { alive = 0 }, watchdog = 0.1"),
        }
        m:await 'Cluster ready'
        m:signal 'SIGTTIN'
        m:await('Worker listening', { count = 2 })
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        assert.same({}, m:records 'Worker hangs')
        m:finish()
    end)

    local function blocked(name, files, options)
        it('replaces a worker whose loop is blocked, while the others serve: ' .. name, function()
            local port = http.free_port()
            local m = master.start { files = files,
                script = script(port, options .. "numWorkers = 3, watchdog = 2, stallTimeout = 0.3,"
                    .. "ready = { http = '/health', interval = 0.2, timeout = 0.5 }"),
            }
            m:await 'Cluster ready'
            local stuck = uv.new_tcp()
            stuck:connect('127.0.0.1', port, function()
                stuck:write 'GET /hang HTTP/1.1\r\nHost: x\r\n\r\n'
            end)
            local hangs = m:await 'Worker hangs'
            assert.equal('gave no sign of life for 2 s', hangs.reason)
            local ready = m:await('Worker listening', { count = 4 })
            local exited = m:await { msg = 'Worker exited', workerId = hangs.workerId }
            assert.is_true(ready.index < exited.index)
            stuck:close()
            local l = load.start { port = port, clients = 4, rate = 200 }
            l:await(200)
            local counts = l:stop()
            assert.equal(0, counts.failed, counts.text)
            -- Those that answered were left alone.
            assert.equal(1, #m:records 'Worker exited')
            for _, record in ipairs(m:records 'Worker hangs') do
                assert.equal(hangs.workerId, record.workerId)
            end
            m:finish { code = 0 }
        end)
    end
    blocked('lua', { ['app.lua'] = apps.http }, '')
    versions.each(function(version, binary)
        blocked('Node ' .. version, { ['app.js'] = NODE }, ("worker = 'app.js', interpreter = '%s',"):format(binary))
    end, { '18', '24' })

    it('is refused where nothing could be seen, by name', function()
        for options, reason in pairs {
            ["watchdog = 1"] = 'watchdog: a worker of kind "lua" shows that it lives by its answers: '
                .. 'expected ready = { http = "/path" }',
            ["watchdog = 1, ready = 'message', worker = 'app.js'"] = 'watchdog: a worker of kind "node" shows',
            ["watchdog = 0"] = 'watchdog: expected a number of seconds, at least 0.1, found 0',
            ["watchdog = 0/0"] = 'watchdog: expected a number of seconds, at least 0.1, found NaN',
            ["watchdog = '1'"] = 'watchdog: expected a number of seconds',
        } do
            local m = master.start { script = script(1, options), files = { ['app.lua'] = apps.http } }
            m:exit()
            m:wait_until(function() return m.err_ended end)
            assert.matches(reason, m.stderr, 1, true)
            m:finish { code = 78 }
        end
    end)
end)
