-- Ready means that it serves: a worker that was given sockets is ready when it accepts from them, whatever it says.

local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local netns = require 'spec.support.netns'
local wait = require 'spec.support.wait'

-- By its release, which is the content of the file `mode`: what it does before it accepts, and instead.
local SERVER = [[
import os, signal, socket, sys, threading
mode = open('mode').read().strip()
def say(text):
    n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = os.environ['NOTIFY_SOCKET']
    n.connect('\0' + path[1:] if path[0] == '@' else path)
    n.send(text)
def rest(s):
    threading.Event().wait(s)
def serve(s, how='http'):
    s.setblocking(True)
    while True:
        c, _ = s.accept()
        busy.add(c)
        if how == 'http':
            data = c.recv(65536)
            if data:
                c.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\n' + mode[:4].encode())
            else:
                pass # a connection that says nothing is no request
        elif how == 'greets':
            c.sendall(b'220 hello\r\n')
            c.recv(65536)
        elif how == 'keeps':
            kept.append(c)
        c.close() if how != 'keeps' else None
        busy.discard(c)
        leave()
kept, busy, asked = [], set(), []
def leave(*signal):
    asked.extend(signal)
    if asked and not busy:
        os._exit(0)
signal.signal(signal.SIGTERM, leave)
s = socket.socket(fileno=3)
second = socket.socket(fileno=4) if os.environ.get('LISTEN_FDS') == '2' else None
if mode == 'slow':
    say(b'READY=1')
    rest(1.2)
elif mode == 'fail':
    say(b'READY=1')
    rest(0.6)
    print('cannot import app', file=sys.stderr, flush=True)
    os._exit(3)
elif mode == 'silent':
    rest(1000)
elif mode == 'defer':
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
if second and mode != 'drops':
    threading.Thread(target=serve, args=(second,), daemon=True).start()
if mode == 'good' or mode == 'slow':
    say(b'READY=1')
if mode == 'stalls':
    s.accept()[0].close()
    rest(1000)
if mode == 'probes':
    while True:
        c, _ = s.accept()
        if c.recv(65536).startswith(b'GET /health '):
            c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')
            rest(1000)
        c.close()
if mode == 'ends':
    os._exit(0)
if mode == 'dies':
    s.accept()[0].close()
    rest(0.6)
    os._exit(3)
serve(s, mode if mode in ('greets', 'keeps') else 'http')
]]

local function start(mode, options, listeners, attempts, workers)
    local port = http.free_port()
    local addresses = ("'127.0.0.1:%d'"):format(port)
    for _ = 2, listeners or 1 do
        addresses = addresses .. (", '127.0.0.1:%d'"):format(http.free_port())
    end
    local text = ([[require('dutch-master').start { worker = { 'python3', 'server.py' }, numWorkers = %d,
        listen = { %s }, restartAttempts = %d, restartSoak = 0.2, backoff = { first = 0.05, max = 0.05 }, %s }]])
        :format(workers or 2, addresses, attempts or 1, options or '')
    local m = master.start { script = text, files = { ['server.py'] = SERVER, mode = mode } }
    m.text = text
    return m, port
end

local function roll(m, mode, port)
    m:rewrite('mode', mode)
    local l = load.start { port = port, clients = 4, slow_ms = 900 }
    local before = m:mark()
    m:signal 'SIGUSR2'
    local record = m:await(function(r)
        return r.msg == 'Restart complete' or r.msg:find '^Restart aborted'
    end, { timeout = 20000, after = before })
    local counts = l:stop()
    assert.equal(0, counts.failed, counts.text)
    return record.msg:match '^Restart (%l+)', l
end

describe('a worker with sockets', function()
    after_each(master.cleanup)

    it('takes no connection before it accepts, whatever it has said: a slow good release', function()
        local m, port = start 'good'
        m:await 'Cluster ready'
        local record, l = roll(m, 'slow', port)
        assert.equal('complete', record)
        assert.equal(0, #l.slow, 'a request waited for the import of a release')
        m:finish()
    end)

    it('that fails after READY=1, or ends at once as if all was well, never takes traffic', function()
        local m, port = start 'good'
        m:await 'Cluster ready'
        for i, mode in ipairs { 'fail', 'ends' } do
            assert.equal('aborted', (roll(m, mode, port)))
            assert.matches('exited with code ' .. (mode == 'fail' and 3 or 0),
                m:records('Restart aborted, the old workers stay')[i].reason)
        end
        local status, body = http.get { port = port }
        assert.same({ 200, 'good' }, { status, body })
        m:finish()
    end)

    local function ms_between(first, second)
        local ms = (master.ms_of(second) - master.ms_of(first)) % 86400000
        return ms < 43200000 and ms or ms - 86400000 -- either may be the first
    end

    -- Who waits for such a one when it is given up: the kernel moves them, if it may; else they are told at once.
    local function fails_in_its_soak(m, port, mode, moves)
        m:rewrite('mode', mode)
        local l = load.start { port = port, clients = 8, rate = 100, timeout = 30000 }
        local mark = m:mark()
        m:signal 'SIGUSR2'
        local aborted = m:await('Restart aborted, the old workers stay', { timeout = 20000, after = mark })
        local ended = m:await(moves and 'Waiting connections moved to other workers by the kernel'
            or 'Waiting connections lost, nobody served them in time', { after = mark })
        local limit_ms = (mode == 'stalls' and 4000 or 1000) * wait.scale
        assert.is_true(ms_between(aborted, ended) < limit_ms, m:dump())
        l:await(l.counts.total + 50)
        local counts = l:stop()
        -- A handshake under way when it is moved is finished at the client's next try, one or three seconds later.
        assert.is_true(counts.max_ms < limit_ms + 4000 * wait.scale, counts.text)
        assert.equal(counts.reset, counts.failed, counts.text)
        if moves then
            assert.equal(0, counts.failed, counts.text .. m:dump())
        end
        return aborted
    end

    it('that takes none while it has to prove itself has failed, and keeps nobody waiting', function()
        local MIGRATE = 'net/ipv4/tcp_migrate_req'
        local leave = netns.enter()
        if not leave then
            return pending 'a network namespace needs root'
        elseif not netns.set(MIGRATE, 0) then
            leave()
            return pending 'the kernel has no tcp_migrate_req'
        end
        finally(function()
            master.cleanup()
            leave()
        end)
        local m, port = start('good', 'restartSoak = 1, stopTimeout = 20', 1, 1, 1)
        m:await 'Cluster ready'
        for _, moves in ipairs { 0, 1 } do
            netns.set(MIGRATE, moves)
            local aborted = fails_in_its_soak(m, port, 'stalls', moves == 1)
            assert.matches('took no connection for 1 s while it had to prove itself %(restartSoak%)$', aborted.reason)
            fails_in_its_soak(m, port, 'dies', moves == 1)
        end
        m:rewrite('master.lua', (m.text:gsub('stopTimeout', "ready = { http = '/health' }, %0")))
        fails_in_its_soak(m, port, 'probes', true)
        m:finish()
    end)

    it('must accept at each of them, or at the port that `ready` names', function()
        local m, port = start('good', 'readyTimeout = 6', 2)
        m:await 'Cluster ready'
        assert.equal('aborted', (roll(m, 'drops', port)))
        m:rewrite('master.lua', (m.text:gsub('readyTimeout = 6', ('ready = { port = %d }'):format(port))))
        assert.equal('complete', (roll(m, 'drops', port)), m:dump())
        m:finish()
    end)

    it('is not held to an address that its release gives up, and has the new one', function()
        local kept, dropped, new = http.free_port(), http.free_port(), http.free_port()
        local function script(other)
            return ([[require('dutch-master').start { worker = { 'python3', 'server.py' }, numWorkers = 2,
                listen = { '127.0.0.1:%d', '127.0.0.1:%d' }, restartAttempts = 1, restartSoak = 0.2 }]]):format(kept, other)
        end
        local m = master.start { script = script(dropped), files = { ['server.py'] = SERVER, mode = 'good' } }
        m:await 'Cluster ready'
        m:rewrite('master.lua', script(new))
        local l, old = load.start { port = kept, clients = 2 }, load.start { port = dropped, clients = 2 }
        m:signal 'SIGUSR2'
        local complete = m:await 'Restart complete'
        m:await('Worker exited', { count = 2 })
        m:wait_until(function()
            return old.counts.refused > 0
        end, 'the end of the address')
        assert.equal(200, (http.get { port = new }))
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        counts = old:stop()
        assert.is_true(counts.ok > 0)
        local seconds, micros = uv.gettimeofday()
        local since_ms = seconds * 1000 + micros / 1000 - uv.hrtime() / 1e6
        for _, failure in ipairs(old.failures) do -- nobody was let down before
            local after_ms = (since_ms + failure.started / 1e6 - master.ms_of(complete)) % 86400000
            assert.is_true(after_ms < 43200000, counts.text)
        end
        m:finish()
    end)

    for _, mode in ipairs { 'defer', 'greets', 'keeps' } do
        it('is seen to accept whichever way it does: ' .. mode, function()
            local m = start(mode, 'readyTimeout = 20')
            m:await 'Cluster ready'
            m:finish()
        end)
    end

    it('with ready = "notify" must do both', function()
        local m = start('defer', "ready = 'notify', readyTimeout = 4", 1, 10)
        m:await 'Worker was not ready in time: it accepts connections, but has not said READY=1'
        m:rewrite('mode', 'good')
        m:await 'Cluster ready'
        m:finish()
    end)

    it('whose boot fails ends the master, with the last words of the worker', function()
        local m = start('fail', "workerOutput = '/dev/null'")
        m:exit()
        m:finish { code = 1 }
        assert.matches('Boot failed: worker of slot %d failed 1 time, and none was ever ready: exited with code 3',
            m.stderr)
        assert.matches('the last words of worker %d+ %(pid %d+%):\ncannot import app', m.stderr)
    end)
end)
