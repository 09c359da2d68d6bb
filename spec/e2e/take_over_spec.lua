-- Keeper and master are killed, as a `kill -9` of everything of a user's does it. Servers that were given their sockets
-- serve on: a new master says who they are, and with --take-over has their sockets, serves, and ends them then. Node and
-- Lua workers end with their channel: the next master finds the address free, or takes it over all the same.

local cjson = require 'cjson'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local servers = require 'spec.support.servers'

local SCRIPT = [[local dutch = require 'dutch-master'
    dutch.start { worker = %s, numWorkers = 2, restartSoak = 0, stopTimeout = 10, %s
        workerEnvironment = { LISTEN = '127.0.0.1:%d', PORT = '%d' } }]]

local function start(worker, port, files, listens)
    local listen = listens and ("listen = '127.0.0.1:%d',"):format(port) or ''
    local m = kept.start { files = files, script = SCRIPT:format(worker, listen, port, port) }
    m:await 'Cluster ready'
    return m
end

-- Neither of them sees the other die; and both are gone, with their lock.
local function kill_both(m)
    local process = kept.pid(m)
    m:kill()
    m:exit()
    m:wait_until(function()
        local file = io.open(('/proc/%d/stat'):format(process))
        local stat = file and file:read '*a' or ''
        if file then
            file:close()
        end
        return not stat:find '%) [^ZX]'
    end, 'the end of the master')
end

-- The next master, under a load that began before; nobody of `before` is left, and no request failed.
-- @param at_path another load, or nil
local function take_over(m, before, running, message, at_path)
    local second = cli.start(m, { 'master.lua', '--take-over' }, { env = { DM_SPEC_ID = m.id } })
    if message then
        second:await_output(message)
        second:await_output 'The workers of the former master have ended'
    end
    second:await_output 'Cluster ready'
    if running then
        running:await(running.counts.total + 50)
        local counts = running:stop()
        assert.equal(0, counts.failed, counts.text .. second.out)
    end
    if at_path then
        local counts = at_path:stop()
        assert.is_true(counts.total > 20)
        assert.equal(0, counts.failed, counts.text .. second.out)
    end
    local alive = {}
    for _, pid in ipairs(m:tree()) do
        alive[pid] = true
    end
    for _, pid in ipairs(before) do
        assert.is_nil(alive[pid])
    end
    local now = cjson.decode(cli.run(m, { 'status', '--json' }).out)
    assert.same({ 'steady', 2, 0, 0 }, { now.state, #now.workers, now.unserved, now.strangers })
    assert.equal(0, cli.run(m, { 'stop', '--wait' }).code, second.out)
    assert.equal(0, second:wait().code)
    m:finish { signal = 'SIGKILL' }
end

local SERVES_ON = 'serve on until those of this one are ready'

describe('after keeper and master were killed', function()
    after_each(master.cleanup)

    it('the workers serve on, are named, and give their place to those of another master', function()
        local tried = 0
        for _, server in ipairs(servers.installed()) do
            if server[1] == 'gunicorn' or server[1] == 'puma' then
                tried = tried + 1
                local port = http.free_port()
                local m = start(server.worker, port, servers.files(server, 'good'), true)
                local running = load.start { port = port, clients = 4, expect = '^works$' }
                local before = m:workers()
                running:await(20)
                kill_both(m)
                running:await(running.counts.total + 20)
                if server[1] == 'gunicorn' then
                    local refused = cli.run(m, { 'master.lua' })
                    assert.equal(71, refused.code)
                    for _, pid in ipairs(before) do
                        assert.truthy(refused.err:find(('(pid %d)'):format(pid), 1, true), refused.err)
                    end
                    assert.truthy(refused.err:find('Start with --take-over', 1, true), refused.err)
                end
                take_over(m, before, running, SERVES_ON)
            end
        end
        assert.is_true(tried > 0 or pending 'neither gunicorn nor puma is installed' == nil)
    end)

    it('so do those with a socket each, and at a path', function()
        local port, dir = http.free_port(), master.temp_dir()
        local m = kept.start { script = ([[require('dutch-master').start { worker = { 'python3', 'server.py' },
            numWorkers = 2, restartSoak = 0, balance = 'steered', listen = { '127.0.0.1:%d', 'unix:%s/web.sock' } }]])
            :format(port, dir), files = { ['server.py'] = [[
import os, select, signal, socket, threading
leaving = threading.Event()
def serve(s):
    s.setblocking(False)
    while True:
        select.select([s], [], [], 0.05)
        try:
            c, _ = s.accept()
        except BlockingIOError:
            if leaving.is_set(): return
            continue
        c.setblocking(True)
        c.recv(65536)
        c.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi')
        c.close()
threads = [threading.Thread(target=serve, args=(socket.socket(fileno=fd),)) for fd in (3, 4)]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
for thread in threads: thread.start()
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
n.connect(os.environ['NOTIFY_SOCKET'])
n.send(b'READY=1')
signal.sigwait([signal.SIGTERM])
leaving.set()
for thread in threads: thread.join()
]] } }
        m:await 'Cluster ready'
        local running = load.start { port = port, clients = 4, expect = '^hi$' }
        local at_path = load.start { socket = dir .. '/web.sock', clients = 2, rate = 100, expect = '^hi$' }
        local before = m:workers()
        running:await(20)
        kill_both(m)
        take_over(m, before, running, SERVES_ON, at_path)
    end)

    it('a release that does not start changes nothing for those who serve', function()
        local port = http.free_port()
        local m = start("{ 'python3', 'server.py' }", port, { ['server.py'] = [[
import socket
s = socket.socket(fileno=3)
s.setblocking(True)
while True:
    c, _ = s.accept()
    c.recv(65536)
    c.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi')
    c.close()
]] }, true)
        local running = load.start { port = port, clients = 4, expect = '^hi$' }
        local before = m:workers()
        kill_both(m)
        local good = io.open(m.app .. '/server.py'):read '*a'
        m:rewrite('server.py', 'raise Exception("not today")')
        local failed = cli.run(m, { 'master.lua', '--take-over' })
        assert.equal(1, failed.code, failed.out)
        m:rewrite('server.py', good)
        running:await(running.counts.total + 20)
        take_over(m, before, running, SERVES_ON)
    end)

    it('Lua and Node workers have ended, and nobody is in the way', function()
        local node = { ['app.js'] = "require('http').createServer((q, a) => a.end('x')).listen(process.env.PORT)" }
        for _, case in ipairs { { 'app.lua', { ['app.lua'] = apps.http } }, { 'app.js', node } } do
            local m = start(("'%s'"):format(case[1]), http.free_port(), case[2])
            local before = m:workers()
            kill_both(m)
            take_over(m, before)
        end
    end)
end)
