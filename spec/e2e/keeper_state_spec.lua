-- What a master has left cannot be used by the next one. It is set aside, the workers serve on, and are replaced one
-- after the other.

local json = require('cjson').new()
local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local State = require 'dutch-master.keeper.estate'
local versions = require 'spec.support.node_versions'

json.encode_sparse_array(true)
json.encode_max_depth(64)

local SET_ASIDE = 'The state of the former master cannot be used, it was set aside'

-- Ways in which a state is no use.
local function garbage()
    return ('\1\255{"'):rep(1000)
end

local function cut(text)
    return text:sub(1, math.floor(#text / 2))
end

local function of_the_future(text)
    local state = json.decode(text)
    state.version = 1000
    return json.encode(state)
end

local function poisonous(text) -- a number where a list is, deep inside
    return (text:gsub('"users":%b[]', '"users":7', 1))
end

-- All workers of before are replaced, without a request lost, and the cluster is as good as new.
local function survive(m, port, spoil, whole)
    local before, mark = m:workers(), m:mark()
    local loads = { load.start { port = port, clients = 3, mode = 'keepalive', rate = 200, expect = '.' },
        load.start { port = port, clients = 3, mode = 'close', rate = 200, expect = '.' } }
    loads[1]:await(20)
    local text = spoil(kept.snapshot(m))
    kept.leave(m, text, whole)
    local record = m:await(SET_ASIDE, { after = mark })
    assert.equal(whole == false and '' or text, assert(io.open(record.file, 'rb')):read '*a')
    assert.equal(tonumber('600', 8), uv.fs_stat(record.file).mode % 512)
    os.remove(record.file)
    m:await('Restart complete', { after = mark })
    for _, pid in ipairs(before) do
        m:await({ msg = 'Worker exited', workerPid = pid }, { after = mark })
    end
    loads[1]:await(loads[1].counts.total + 20)
    for _, running in ipairs(loads) do
        local counts = running:stop()
        assert.equal(0, counts.failed, counts.text .. m:dump())
    end
    assert.equal(#before, #m:workers())
    local out = cli.run(m, { 'status', m.script }).out
    assert.truthy(out:find(('%d of %d workers serving'):format(#before, #before), 1, true), out)
end

local function go_on(m)
    local mark = m:mark()
    kept.kill(m)
    m:signal 'SIGUSR2'
    m:await('Restart complete', { after = mark })
    m:finish { code = 0 }
end

describe('a state that is no use to a master', function()
    after_each(master.cleanup)

    it('is set aside, and Lua workers serve on until others do', function()
        local port = http.free_port()
        local m = kept.start { script = ([[require('dutch-master').start { worker = 'app.lua', restartSoak = 0,
            numWorkers = 2, workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]):format(port),
            files = { ['app.lua'] = apps.http } }
        m:await 'Cluster ready'
        local with_pauses = kept.without_pauses(m)
        for i, spoil in ipairs { garbage, cut, of_the_future, poisonous } do
            survive(m, port, spoil, i > 1)
        end
        with_pauses()
        go_on(m)
    end)

    versions.it('is set aside, and Node workers serve on until others do', function(_, binary)
        local port = http.free_port()
        local m = kept.start_node(binary, port)
        survive(m, port, of_the_future)
        go_on(m)
    end)

    it('is set aside, and a server that was given its sockets serves on until another does', function()
        local port, dir = http.free_port(), master.temp_dir()
        local m = kept.start { script = ([[require('dutch-master').start { worker = { 'python3', 'server.py' },
            numWorkers = 2, restartSoak = 0, listen = { '127.0.0.1:%d', 'unix:%s/web.sock' } }]]):format(port, dir),
            files = { ['server.py'] = [[
import os, signal, socket, threading
busy = threading.Lock()
def serve(s):
    s.settimeout(0.01)
    while True:
        with busy: # whoever has accepted answers before it leaves
            try:
                c, _ = s.accept()
            except socket.timeout:
                continue
            c.recv(65536)
            c.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi')
            c.close()
signal.signal(signal.SIGTERM, lambda *_: (busy.acquire(), os._exit(0)))
for fd in (3, 4):
    threading.Thread(target=serve, args=(socket.socket(fileno=fd),), daemon=True).start()
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
n.connect(os.environ['NOTIFY_SOCKET'])
n.send(b'READY=1')
while True:
    signal.pause()
]] } }
        m:await 'Cluster ready'
        survive(m, port, garbage)
        assert.equal('hi', select(2, http.get { socket = dir .. '/web.sock' }))
        assert.equal(0, cli.run(m, { 'restart', '--wait', m.script }).code)
        assert.equal('hi', select(2, http.get { socket = dir .. '/web.sock' }))
        m:finish { code = 0 }
        assert.is_nil(uv.fs_stat(dir .. '/web.sock'))
    end)

    -- spec/support/state_N.json is what a master of version N has left. What is true of this run alone (pids, times,
    -- names of descriptors) is put in its place; which fields there are is the former version's matter.
    -- A new version N: DM_RECORD_STATE=N writes the file of today's, and the former ones stay.
    for version = 1, State.VERSION do
        it(('of version %d is read'):format(version), function()
            local path = ('spec/support/state_%d.json'):format(version)
            local m = kept.start { script = ([[
                local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', restartSoak = 0, numWorkers = 2, keepOutput = '4K',
                    workerEnvironment = { LISTEN = '127.0.0.1:%d' }, backoff = { first = 0.01 },
                    onReady = function() dutch.store.ready = { once = true } end }]]):format(http.free_port()),
                files = { ['app.lua'] = apps.http } }
            m:await 'Cluster ready'
            local victim = m:workers()[1]
            uv.kill(victim, 'sigkill')
            m:await { msg = 'Worker exited', workerPid = victim }
            m:await('Worker listening', { count = 3 })
            assert.equal(0, cli.run(m, { 'restart', '--wait', m.script }).code)
            local live
            m:wait_until(function()
                live = json.decode(kept.snapshot(m))
                return live.cluster.last_verdict and #live.cluster.workers == 2
            end, 'two workers')
            if os.getenv 'DM_RECORD_STATE' == tostring(version) then
                local file = assert(io.open(path, 'w'))
                file:write(json.encode(live), '\n')
                file:close()
            end
            local file = assert(io.open(path), 'record it: DM_RECORD_STATE=' .. version)
            local former = kept.fill_in(json.decode(file:read '*a'), live)
            file:close()
            former.version = version
            local before = m:workers()
            kept.leave(m, json.encode(former))
            m:await 'The former master died, this one has taken over'
            assert.same({}, m:records(SET_ASIDE), m:dump())
            assert.same({}, m:records { level = 50 }, m:dump())
            kept.same_workers(m, before)
            local why = cli.run(m, { 'why', m.script }).out
            assert.truthy(why:find 'SIGKILL' and why:find('carried out (generation 2)', 1, true), why)
            go_on(m)
        end)
    end
end)
