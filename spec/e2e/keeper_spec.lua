-- A master with a keeper dies: the workers of all kinds serve on, another master supervises them, and whoever asks
-- for something gets it.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'

local KILLS = 5

-- Kills the master again and again under load. Nobody that it trusts is asked to leave, and no request fails.
-- @return the workers, when all that are to be replaced have been
local function survive(m, options)
    options.expect = options.expect or '.'
    local running = load.start(options)
    local before = m:workers()
    running:await(20)
    local same, count = true, nil
    for i = 1, KILLS do
        kept.kill(m, i == 2 and 'sigsegv' or i == 3 and 'sigabrt' or 'sigkill')
        running:await(running.counts.total + 50)
        same = kept.same_workers(m, before) and same
        count = count or kept.descriptors(m.pid)
    end
    assert.is_true(not same or count == kept.descriptors(m.pid))
    local counts = running:stop()
    assert.equal(0, counts.failed, counts.text .. m:dump())
    assert.same({}, m:records { level = 50 }, m:dump())
    for pid in pairs(kept.distrusted(m)) do
        m:await { msg = 'Worker exited', workerPid = pid }
    end
    return m:workers()
end

-- What was taken over is as good as new: a worker that dies is replaced, a roll completes, and all of it ends.
local function go_on(m, before)
    local mark = m:mark()
    uv.kill(before[1], 'sigterm')
    local exit = m:await({ msg = 'Worker exited', workerPid = before[1] }, { after = mark })
    m:await('Worker listening', { after = mark })
    assert.is_true(exit.signal == 'SIGTERM' or exit.code ~= nil)
    m:signal 'SIGUSR2'
    m:await('Restart complete', { after = mark })
    m:await({ msg = 'Worker exited', workerPid = before[2] }, { after = mark })
    m:finish { code = 0 }
end

describe('a master with a keeper', function()
    after_each(master.cleanup)

    it('may die under Lua workers', function()
        local port, dir = http.free_port(), master.temp_dir()
        local m = kept.start { script = ([[require('dutch-master').start { worker = 'app.lua', restartSoak = 0,
            numWorkers = 2, workerEnvironment = { LISTEN = '127.0.0.1:%d' },
            pidFile = os.getenv('APP') .. '/pid' }]]):format(port), env = { APP = dir },
            files = { ['app.lua'] = apps.http } }
        m:await 'Cluster ready'
        assert.equal(m.pid, tonumber(io.open(dir .. '/pid'):read '*a'))
        local before = survive(m, { port = port, clients = 4 })
        m:wait_until(function() -- one that was in the middle of its fork is forked again
            return cli.run(m, { 'status', m.script }).out:find('2 of 2 workers serving, generation 1', 1, true)
        end, 'both workers to serve')
        go_on(m, before)
    end)

    versions.it('may die under Node workers', function(_, binary)
        local port = http.free_port()
        local m = kept.start_node(binary, port)
        local before = survive(m, { port = port, clients = 6, mode = 'keepalive' })
        go_on(m, before)
    end)

    it('may die under a server that was given its sockets', function()
        local port, dir = http.free_port(), master.temp_dir()
        local m = kept.start { script = ([[require('dutch-master').start { worker = { 'python3', 'server.py' },
            numWorkers = 2, restartSoak = 0, listen = { '127.0.0.1:%d', 'unix:%s/web.sock' } }]]):format(port, dir),
            files = { ['server.py'] = [[
import os, select, signal, socket, threading, time
def serve(s):
    s.setblocking(True)
    while True:
        c, _ = s.accept()
        c.recv(65536)
        c.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi')
        c.close()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
for fd in (3, 4):
    threading.Thread(target=serve, args=(socket.socket(fileno=fd),), daemon=True).start()
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
n.connect(os.environ['NOTIFY_SOCKET'])
n.send(b'READY=1')
while True:
    select.select([], [], [], 0.05)
    n.send(b'STATUS=%d' % time.monotonic())
]] } }
        m:await 'Cluster ready'
        local before = survive(m, { port = port, clients = 4 })
        local said -- what comes by its notify socket is read as before
        m:wait_until(function()
            local newest = cli.run(m, { 'status', '--json', m.script }).out:match '"status":"(%d+)"'
            said = said or newest
            return newest ~= said
        end, 'a later word of a worker')
        assert.equal('hi', select(2, http.get { socket = dir .. '/web.sock' }))
        go_on(m, before)
    end)

    it('may die in the middle of a restart: who waits for the verdict gets it, and it is true', function()
        local port = http.free_port()
        local m = kept.start { script = ([[require('dutch-master').start { worker = 'app.lua', restartSoak = 0.3,
            numWorkers = 3, restartConcurrency = 1, workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]):format(port),
            files = { ['app.lua'] = apps.http } }
        m:await 'Cluster ready'
        local before = m:workers()
        local running = load.start { port = port, clients = 4, expect = '.' }
        local restart = cli.start(m, { 'restart', '--wait', m.script })
        for i = 1, 3 do -- its first worker is forked, is proving itself, has taken over
            m:await({ msg = i == 3 and 'Worker exited' or i == 2 and 'Worker listening' or 'Creating new worker' },
                { after = m:await(i == 1 and 'Restart requested' or 'Restart goes on', { count = math.max(1, i - 1) }) })
            kept.kill(m)
        end
        if not pcall(restart.wait, restart) then error(tostring(restart.out) .. restart.err .. m:dump()) end
        assert.equal(0, restart.code, restart.err .. m:dump())
        assert.truthy(restart.out:find('Restart done', 1, true), restart.out)
        local counts = running:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.same({}, m:records { level = 50 }, m:dump())
        for _, pid in ipairs(before) do
            m:await { msg = 'Worker exited', workerPid = pid }
        end
        m:finish { code = 0 }
    end)

    it('may die before it has heard a word: whoever asked is heard by the next, once', function()
        local m = kept.start { script = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 2,
            restartSoak = 0 }]], files = { ['app.lua'] = apps.idle } }
        m:await 'Cluster ready'
        -- Connected, and what they ask is in the kernel's hands; or accepted, and what they ask is not read.
        for round, words in ipairs { { 'restart', '--wait' }, { 'scale', '+1' }, { 'reload' }, { 'status' } } do
            local former = kept.pid(m)
            assert(uv.kill(former, 'sigstop'))
            local asked = cli.start(m, { unpack(words) })
            m:wait_until(function()
                local text = io.open '/proc/net/unix':read '*a'
                return select(2, text:gsub('%d+ ' .. m.dir:gsub('%p', '%%%0') .. '[^\n]*%.sock', '')) > 1
            end, 'a connection')
            assert(uv.kill(former, 'sigkill'))
            assert.equal(0, asked:wait().code, words[1] .. asked.err .. m:dump())
            m:await('The former master died, this one has taken over', { count = round })
        end
        assert.equal(1, #m:records 'Restart requested')
        -- It does what was asked, and dies before or after it has written that down: it is done once in any case.
        local with_pauses, wanted = kept.without_pauses(m), 3
        for i = 1, 6 do
            local by, mark = i % 2 == 0 and '-1' or '+1', m:mark()
            local asked = cli.start(m, { 'scale', by })
            m:await('Scaling cluster', { after = mark })
            kept.kill(m)
            assert.equal(0, asked:wait().code, asked.err)
            wanted = wanted + tonumber(by)
            assert.matches(('^%d workers, were %d\n'):format(wanted, wanted - tonumber(by)), asked.out)
            assert.matches(('of %d workers? serving'):format(wanted), cli.run(m, { 'status' }).out)
        end
        with_pauses()
        m:finish { code = 0 }
    end)

    it('may die while it stops, and a worker that ends meanwhile is not forgotten', function()
        local m = kept.start { script = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 2,
            restartSoak = 0, stopTimeout = 2, killTimeout = 1 }]], files = { ['app.lua'] = apps.stubborn } }
        m:await 'Cluster ready'
        local master_pid, victim = kept.pid(m), m:workers()[1]
        uv.kill(master_pid, 'sigstop')
        uv.kill(victim, 'sigkill')
        uv.kill(master_pid, 'sigkill')
        m:await { msg = 'Worker exited', workerPid = victim, signal = 'SIGKILL' }
        m:await('Worker listening', { count = 3 })
        local stop = cli.start(m, { 'stop', '--wait', m.script })
        m:await 'Shutdown requested'
        kept.kill(m)
        m:exit()
        stop:wait()
        assert.equal(1, stop.code) -- they had to be killed
        m:finish { code = 1 }
    end)

    it('becomes a keeper when its own dies, and another one goes on: whoever is killed, no request fails', function()
        local port, dir = http.free_port(), master.temp_dir()
        local m = kept.start { script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = 3,
            restartSoak = 0, workerEnvironment = { LISTEN = '127.0.0.1:%d' }, pidFile = os.getenv('APP') .. '/pid' }]])
            :format(port), env = { APP = dir }, files = { ['app.lua'] = apps.http } }
        m:await 'Cluster ready'
        local running, before = load.start { port = port, clients = 4, expect = '.' }, m:workers()
        running:await(20)
        kept.await_quiet(m)
        kept.kill(m) -- now the workers are the keeper's children, and nobody's when it dies
        local keeper, count = m.pid, nil
        for i = 1, 3 do
            local former = kept.pid(m, keeper)
            kept.await_quiet(m, keeper)
            uv.kill(keeper, 'sigkill')
            local record = m:await('The former master has become the keeper, this one has taken over', { count = i })
            assert.equal(former, record.keeper, m:dump())
            assert.is_true(record.workers >= 3, m:dump())
            keeper = former
            assert.equal(keeper, tonumber(io.open(dir .. '/pid'):read '*a'))
            running:await(running.counts.total + 50)
            if i == 2 then
                kept.await_quiet(m, keeper)
                kept.kill(m, 'sigkill', keeper)
            end
            count = count or kept.descriptors(keeper)
            m:wait_until(function() return kept.descriptors(keeper) <= count end, 'no more descriptors than before')
            kept.same_workers(m, before)
        end
        -- Of those that somebody else reaps it is known how they ended, where the kernel tells (Linux 6.15).
        local mark, _, one = m:mark(), kept.same_workers(m, before)
        uv.kill(one, 'sigterm')
        local exit = m:await({ msg = 'Worker exited', workerPid = one }, { after = mark })
        assert.is_true(exit.signal == 'SIGTERM' or exit.code == 0 or exit.code == 255, m:dump())
        m:await('Worker listening', { after = mark })
        assert.equal(0, cli.run(m, { 'upgrade', m.script }).code, m:dump())
        assert.equal(0, cli.run(m, { 'restart', '--wait', m.script }).code, m:dump())
        assert.equal(0, running:stop().failed)
        assert.same({}, m:records { level = 50 }, m:dump())
        assert.equal(0, cli.run(m, { 'stop', '--wait', m.script }).code, m:dump())
        m:finish { signal = 'SIGKILL' }
    end)

    it('stops when its own dies under a service manager, which starts the service again', function()
        local m = kept.start { script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = 1,
            workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]):format(http.free_port()),
            env = { NOTIFY_SOCKET = '@nobody-is-there' }, files = { ['app.lua'] = apps.http } }
        m:await 'Cluster ready'
        uv.kill(m.pid, 'sigkill')
        m:await 'The keeper has died, which the service manager takes for the end: stopping'
        m:await 'Worker exited'
        m:finish { signal = 'SIGKILL' }
        assert.equal(1, #m:records { level = 50 }, m:dump())
    end)
end)
