-- The process group is the worker: what it started belongs to it, as long as it lives.

local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

-- Serves on descriptor 3, whoever it was for. SIGTERM lets it finish: GET /slow takes 600 ms.
local SERVER = [[
import os, signal, socket, sys, threading
s = socket.socket(fileno=3)
s.setblocking(True)
busy, leaving = set(), threading.Event()
def answer(c):
    head = c.recv(65536)
    if b'/slow' in head:
        threading.Event().wait(0.6)
    c.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ndone')
    c.close()
def accept():
    while True:
        c, _ = s.accept()
        t = threading.Thread(target=answer, args=(c,))
        busy.add(t)
        t.start()
def leave(*_):
    leaving.set()
signal.signal(signal.SIGTERM, leave)
threading.Thread(target=accept, daemon=True).start()
leaving.wait()
for t in list(busy):
    t.join()
print('left', os.getpid(), flush=True)
os._exit(0)
]]

local function is_alive(pid)
    local file = io.open(('/proc/%d/stat'):format(pid))
    local state = file and (file:read '*a' or ''):match '%) (%a)' -- it may end while it is read
    if file then file:close() end
    return state ~= nil and state ~= 'Z' and state ~= 'X'
end

local function start(argv, options, ready)
    local port = http.free_port()
    return master.start {
        script = ([[require('dutch-master').start { worker = %s, numWorkers = 1, listen = { '127.0.0.1:%d' },
            ready = %s, %s }]]):format(argv, port, ready or '{ alive = 0.3 }', options or ''),
        files = { ['server.py'] = SERVER },
    }, port
end

describe('the group of a worker', function()
    after_each(master.cleanup)

    it('may finish its requests when its first process, a shell without exec, has ended', function()
        local m, port = start [[{ 'sh', '-c', 'python3 server.py; exit 0' }]]
        m:await 'Cluster ready'
        local l = load.start { port = port, path = '/slow', clients = 4 }
        l:await(4)
        for i = 1, 2 do
            m:signal 'SIGUSR2'
            m:await('Restart complete', { count = i })
        end
        m:await('Worker exited', { count = 2 })
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        local record = m:await 'Worker ended, what is left of its process group is asked to end'
        assert.equal(1, #record.processes)
        m:finish()
    end)

    it('is killed at the end of stopTimeout, not before', function()
        local m = start([[{ 'sh', '-c', '(trap "" TERM; while :; do sleep 1; done) & wait' }]],
            'stopTimeout = 1.5, killTimeout = 0.5')
        m:await 'Cluster ready'
        local asked = uv.hrtime()
        m:signal 'SIGTERM'
        m:await 'Worker exited'
        assert.is_true(uv.hrtime() - asked >= 1.4e9)
        m:finish { code = 1 }
    end)

    for name, code in pairs { ['in it'] = '', ['each in a session of its own'] = 'os.setsid()' } do
        it('that forks faster than it can be killed is ended: ' .. name, function()
            local m = start([[{ 'python3', 'server.py' }]], 'stopTimeout = 1, killTimeout = 0.5')
            m:await 'Cluster ready'
            m:rewrite('server.py', ([[
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end = time.monotonic() + 30
for _ in range(3):
    if os.fork() == 0:
        while time.monotonic() < end:
            if os.fork(): os._exit(0)
            %s
        os._exit(0)
print('forks', flush=True)
while True: signal.pause()
]]):format(code))
            m:signal 'SIGUSR2'
            m:await_output 'forks'
            m:await 'Restart complete'
            m:signal 'SIGTERM'
            m:exit()
            m:finish { code = 1 }
        end)
    end

    it('that put itself into the background is told apart, and leaves nothing behind', function()
        local m = start([[{ 'sh', '-c', 'python3 server.py & exit 0' }]], 'backoff = { first = 0.2, max = 0.2 }')
        local record = m:await 'Worker has put itself into the background, what it left behind is asked to end'
        assert.matches('foreground', record.hint)
        m:await 'Worker exited'
        assert.is_false(is_alive(record.processes[1]))
        m:finish()
    end)

    it('that leaves its group as well is told apart, and a release that does so is refused', function()
        local m, port = start("{ 'python3', 'server.py' }", 'restartAttempts = 1, killTimeout = 0.5', 'nil')
        m:await 'Cluster ready'
        local l = load.start { port = port, clients = 2 }
        l:await(4)
        m:rewrite('server.py', [[import os, sys, threading
if os.fork(): threading.Event().wait(0.1), os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
threading.Event().wait(1000)
]])
        m:signal 'SIGUSR2'
        local aborted = m:await 'Restart aborted, the old workers stay'
        assert.matches('put itself into the background: Let it run in the foreground', aborted.reason, 1, true)
        local record = m:await 'Worker has put itself into the background, what it left behind is asked to end'
        assert.equal(1, #record.processes)
        m:wait_until(function() return not is_alive(record.processes[1]) end, 'the end of the daemon')
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        m:finish()
    end)

    it('dies with the master as a whole, if asked', function()
        local m = start([[{ 'sh', '-c', '(trap "" TERM; while :; do sleep 1; done) & python3 server.py' }]],
            'dieWithMaster = true')
        m:await 'Cluster ready'
        assert.is_true(#m:tree() >= 4)
        m:kill()
        m:exit()
        m:wait_until(function() return #m:tree() == 0 end, 'the end of all')
        m:finish { signal = 'SIGKILL', files_left = true }
    end)
end)
