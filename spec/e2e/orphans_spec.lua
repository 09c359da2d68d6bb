-- Queues that have lost their worker, of servers that can be handed nothing: the kernel moves what waits there, if it
-- may, also when that is switched on meanwhile; else it is shown, and reset and counted at the end. Nobody hangs.
local cjson = require 'cjson'
local uv = require 'luv'
local cli = require 'spec.support.cli'
local connections = require 'spec.support.connections'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local netns = require 'spec.support.netns'

local SERVER = [[
import socket
s = socket.socket(fileno=3)
while True:
    c, _ = s.accept()
    c.recv(65536)
    c.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok')
    c.close()
]]
local MIGRATE = 'net/ipv4/tcp_migrate_req'
local CLIENTS = 20

describe('a queue without an owner', function()
    local leave
    after_each(function()
        master.cleanup()
        if leave then
            leave()
            leave = nil
        end
    end)

    local m, port
    local function status()
        return cjson.decode(cli.run(m, { 'status', '--json' }).out)
    end

    -- A worker is frozen, clients come, some of them wait for it, it is killed, and none follows it.
    local function orphan()
        m:rewrite('veto', '')
        local victim
        for _, worker in ipairs(status().workers) do
            victim = worker.slot == 1 and worker.pid or victim
        end
        assert(connections.freeze(victim))
        local l = load.start { port = port, clients = CLIENTS, timeout = 20000, expect = '^ok$' }
        m:wait_until(function()
            return l.active == CLIENTS
        end, 'clients')
        l:no_more()
        uv.kill(victim, 'sigkill')
        m:await(function(record)
            return record.msg == 'Worker exited' and record.workerPid == victim
        end)
        return l
    end

    it('is emptied by the kernel, is shown until then, and is reset at the end where the kernel may not', function()
        leave = netns.enter()
        if not leave then
            return pending 'a network namespace needs root'
        elseif not netns.set(MIGRATE, 0) then
            return pending 'the kernel has no tcp_migrate_req'
        end
        port = http.free_port()
        m = master.start {
            script = ([[local dutch = require 'dutch-master'
                dutch.start { worker = { 'python3', 'server.py' }, numWorkers = 2, listen = '127.0.0.1:%d',
                    balance = 'steered', stopTimeout = 2, killTimeout = 0.5, backoff = { first = 0.4, max = 0.4 },
                    beforeFork = function()
                        local file = io.open(dutch.directory .. '/veto')
                        if file then file:close() return false, 'not now' end
                    end }]]):format(port),
            files = { ['server.py'] = SERVER },
        }
        m:await 'Cluster ready'
        assert.matches('kernel migration +no', cli.run(m, { 'check' }).out)

        local l = orphan() -- and nobody can help, at first
        m:await { msg = 'Connections wait in a queue that nobody serves', level = 40 }
        local unserved = status().unserved
        assert.is_true(unserved > 0)
        assert.matches('\n' .. unserved .. ' connections? waits? in a queue that nobody serves\n', cli.run(m, { 'status' }).out)
        netns.set(MIGRATE, 1)
        assert.equal(unserved, m:await('Waiting connections moved to other workers by the kernel').connections)
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text .. m:dump())
        assert.equal(0, status().unserved)
        assert.equal(0, status().sockets.lost)
        assert.matches('kernel migration +yes', cli.run(m, { 'check' }).out)

        os.remove(m.app .. '/veto') -- with it from the start nobody is shown to wait
        m:await('Worker listening', { count = 3 })
        l = orphan()
        m:await('Waiting connections moved to other workers by the kernel', { count = 2 })
        counts = l:stop()
        assert.equal(0, counts.failed, counts.text .. m:dump())

        netns.set(MIGRATE, 0) -- switched off while it runs
        os.remove(m.app .. '/veto')
        m:await('Worker listening', { count = 4 })
        l = orphan()
        local lost = m:await { msg = 'Waiting connections lost, nobody served them in time', level = 40 }
        counts = l:stop()
        assert.same({ lost.connections, lost.connections }, { counts.failed, counts.reset }, counts.text)
        assert.equal(lost.connections, status().sockets.lost)
        os.remove(m.app .. '/veto')
        m:finish()
    end)
end)
