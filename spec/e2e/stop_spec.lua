-- Stopping: by which signal, how patiently, and that it always ends.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

local function start(options, app, more)
    local port = http.free_port()
    more = more or {}
    more.script = ([[local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', logger = dutch.logger { level = 'debug' },
            workerEnvironment = { LISTEN = '127.0.0.1:%d' }, %s }]]):format(port, options or '')
    more.files = { ['app.lua'] = app or apps.http }
    local m = master.start(more)
    m.port = port
    return m
end

local function milliseconds_since(time)
    return (uv.hrtime() - time) / 1e6
end

describe('a stop', function()
    after_each(master.cleanup)

    for _, signal in ipairs { 'SIGTERM', 'SIGINT', 'SIGQUIT' } do
        it('by ' .. signal .. ' is graceful: what is in flight is answered', function()
            local m = start()
            m:await 'Cluster ready'
            local l = load.start { port = m.port, clients = 4, path = '/slow' }
            m:wait_until(function() return l.active == 4 end, 'requests')
            -- They are accepted once they could have been answered if they were not slow.
            assert.equal(200, (http.get { port = m.port }))
            l.running = false
            m:signal(signal)
            local requested = m:await 'Shutdown requested'
            assert.same({ signal, uv.os_getpid() }, { requested.signal, requested.by and requested.by.pid })
            local counts = l:stop()
            assert.equal(0, counts.failed, counts.text)
            assert.equal(4, counts.ok)
            m:await 'Cluster shutdown cleanly'
            m:exit()
            m:finish { code = 0 }
        end)
    end

    it('comes when those who wait are served, in a queue of all workers too', function()
        for _, balance in ipairs { 'queue', 'shared' } do
            local port = http.free_port()
            local m = master.start { script = ([[require('dutch-master').start { worker = { 'python3', 'server.py' },
                listen = '127.0.0.1:%d', balance = '%s' }]]):format(port, balance), files = { ['server.py'] = [[
import os, signal, socket, threading
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
s = socket.socket(fileno=3)
s.setblocking(True)
while True:
    c, _ = s.accept()
    if c.recv(65536):
        threading.Event().wait(0.15)
        c.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi')
    c.close()
]] } }
            m:await 'Cluster ready'
            local l = load.start { port = port, clients = 10, path = '/' }
            l:await(2)
            l.running = false
            m:signal 'SIGTERM'
            local counts = l:stop()
            assert.equal(0, counts.failed, balance .. ': ' .. counts.text)
            assert(counts.ok >= 10, counts.text)
            m:exit()
            m:finish { code = 0 }
        end
    end)

    it('is repeated by a duplicate within 200 ms, which counts as the same', function()
        local m = start()
        m:await 'Cluster ready'
        local l = load.start { port = m.port, clients = 2, path = '/slow' }
        m:wait_until(function() return l.active == 2 end, 'requests')
        assert.equal(200, (http.get { port = m.port }))
        l.running = false
        m:signal 'SIGTERM'
        m:signal 'SIGTERM'
        m:signal 'SIGINT'
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        m:exit() -- finish() would send another one
        m:finish { code = 0 }
        assert.equal(0, #m:records 'Shutdown requested again, killing the workers')
    end)

    it('requested twice is at once', function()
        local running = {}
        for first, second in pairs { SIGTERM = 'SIGINT', SIGINT = 'SIGTERM', SIGQUIT = 'SIGTERM' } do
            running[start('', apps.stubborn)] = { first, second }
        end
        for m, signals in pairs(running) do
            m:await 'Cluster ready'
            m:signal(signals[1])
            m:await 'Shutdown requested'
        end
        master.wait_until(function()
            for m, signals in pairs(running) do
                if not m.ended then m:signal(signals[2]) end
            end
            local over = true
            for m in pairs(running) do over = over and m.ended end
            return over
        end, { timeout = 5000, what = 'the masters to end' })
        for m, signals in pairs(running) do
            assert.equal(signals[2], m:records('Shutdown requested again, killing the workers')[1].signal)
            assert.equal(2, #m:records { msg = 'Worker exited', signal = 'SIGKILL' })
            m:finish { code = 1 }
        end
    end)

    it('by SIGQUIT stays graceful however often', function()
        local m = start('stopTimeout = 1.2, killTimeout = 0.5', apps.stubborn)
        m:await 'Cluster ready'
        local before = uv.hrtime()
        m:signal 'SIGQUIT'
        m:await 'Shutdown requested'
        master.wait_until(function()
            if not m.ended then m:signal 'SIGQUIT' end
            return m.ended
        end)
        assert.is_true(milliseconds_since(before) >= 1100)
        m:finish { code = 1 }
    end)

    it('takes stubborn workers step by step, within stopTimeout', function()
        local m = start('stopTimeout = 0.8, killTimeout = 0.3', apps.stubborn)
        m:await 'Cluster ready'
        local before = uv.hrtime()
        m:signal 'SIGTERM'
        m:exit()
        local took = milliseconds_since(before)
        assert.is_true(took >= 750 and took <= 3000 * require('spec.support.wait').scale, took)
        assert.equal(20, m:await('Hard-killing worker as it did not die gracefully').level)
        assert.equal(40, m:await('Cluster did not shutdown cleanly within timeout, exiting').level)
        m:finish { code = 1 }
    end)

    it('reaches a worker that is stopped by SIGSTOP', function()
        local m = start('stopTimeout = 1, killTimeout = 0.7', apps.idle)
        m:await 'Cluster ready'
        for _, pid in ipairs(m:workers()) do
            uv.kill(pid, 'sigstop')
        end
        m:signal 'SIGTERM'
        m:exit()
        assert.equal(0, #m:records 'Hard-killing worker as it did not die gracefully')
        m:finish { code = 0 }
    end)

    it('ends a worker that hangs', function()
        local m = start('numWorkers = 1, stopTimeout = 0.6, killTimeout = 0.3')
        m:await 'Cluster ready'
        local connection = http.connect({ port = m.port }, function(_, c)
            c:write(http.request_text { path = '/hang' })
        end)
        m:wait_until(function()
            local file = io.open(('/proc/%d/stat'):format(m:workers()[1]))
            local state = file:read('*a'):match '%) (%u)'
            file:close()
            return state == 'R'
        end, 'the worker to hang')
        m:signal 'SIGTERM'
        m:exit()
        connection:close()
        uv.run 'nowait'
        -- A loop in Lua does not see SIGTERM unless that has its default action, which it has.
        assert.equal('SIGTERM', m:records('Worker exited')[1].signal)
        m:finish { code = 0 }
    end)

    it('in the middle of the boot leaves nothing', function()
        local m = start('', apps.never_ready)
        m:await('Creating new worker', { count = 2 })
        m:signal 'SIGTERM'
        m:exit { timeout = 5000 }
        m:finish { code = 0 }
        m = start('backoff = { first = 20, max = 20 }', 'os.exit(1)')
        m:await('Waiting before the next fork', { count = 2 })
        m:signal 'SIGTERM'
        m:exit { timeout = 3000 }
        m:finish { code = 0 }
    end)

    it('at any moment of the first second leaves nothing', function()
        -- The moments are spread over what a boot takes; before its signals are set up, SIGTERM has its default action.
        for i = 0, 15 do
            local m = start('onReady = function() end')
            local timer = uv.new_timer()
            timer:start(i * 4, 0, function()
                timer:close()
                uv.kill(m.pid, 'sigterm')
            end)
            m:exit { timeout = 5000 }
            local by_signal = m.ended.signal ~= nil
            if by_signal then
                assert.equal(0, #m.log, m:dump())
            end
            m:finish { code = not by_signal and 0 or nil, signal = by_signal and 'SIGTERM' or nil }
        end
        uv.run 'nowait'
    end)

    it('in the middle of a roll ends both generations', function()
        local m = start('onRestart = function(verdict) dutch.log:info({ verdict = verdict }, "hook: verdict") end')
        m:await 'Cluster ready'
        m:rewrite('app.lua', apps.never_ready)
        m:signal 'SIGUSR2'
        m:await({ msg = 'Creating new worker', generation = 2 }, { count = 2 })
        m:signal 'SIGTERM'
        m:exit { timeout = 8000 }
        assert.equal(4, #m:records 'Worker exited')
        assert.equal('stopped', m:records('hook: verdict')[1].verdict.result)
        m:finish { code = 0 }
    end)

    it('has no error of ours after the log is closed', function()
        local dir = master.temp_dir()
        os.execute(("cp -r lua '%s/lua'"):format(dir))
        local file = assert(io.open(dir .. '/lua/dutch-master/machine.lua', 'w'))
        file:write([[
            local M = dofile ']] .. uv.cwd() .. [[/lua/dutch-master/machine.lua'
            io.stderr:write 'this machine.lua\n'
            local agenda = M.agenda
            function M.agenda(options)
                function options.on_error(message)
                    io.stderr:write('hidden: ', message, '\n')
                end
                return agenda(options)
            end
            return M
        ]])
        file:close()
        local m = start(nil, nil, { env = { DUTCH_MASTER_LUA = dir .. '/lua' } })
        m:await 'Cluster ready'
        m:signal 'SIGTERM'
        m:await 'Cluster shutdown cleanly'
        m:exit()
        assert.matches('this machine.lua\n', m.stderr)
        assert.is_nil(m.stderr:match 'hidden: [^\n]*')
        m:finish { code = 0 }
    end)

    it('with a restart after it is still a stop', function()
        local m = start('stopTimeout = 1, killTimeout = 0.5', apps.stubborn)
        m:await 'Cluster ready'
        m:signal 'SIGTERM'
        m:await 'Shutdown requested'
        m:signal 'SIGUSR2'
        m:signal 'SIGTTIN'
        m:exit()
        assert.equal(2, #m:records 'Creating new worker')
        m:finish { code = 1 }
    end)
end)
