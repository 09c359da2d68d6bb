-- balance = 'sticky': a client's address belongs to a worker, and changes hands only when that worker leaves. Who has
-- moved to a stand-in moves once more when the cluster is whole again.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

local CLIENTS = 40

local function start(options)
    local port = http.free_port()
    local m = master.start {
        script = ([[
            local dutch = require 'dutch-master'
            dutch.start { worker = 'app.lua', numWorkers = 4, balance = 'sticky', restartSoak = 0.05,
                workerEnvironment = { LISTEN = '127.0.0.1:%d' }, %s }]]):format(port, options or ''),
        files = { ['app.lua'] = apps.http },
    }
    m.port = port
    m:await 'Cluster ready'
    return m
end

-- The id of the worker that answers a client's address.
local function worker_of(m, client)
    local status, body = http.get { port = m.port, source = '127.0.3.' .. client }
    assert.equal(200, status, body)
    return tonumber(body:match '^%S+ (%d+)')
end

local function everybody(m)
    local map = {}
    for client = 1, CLIENTS do
        map[client] = worker_of(m, client)
    end
    return map
end

local function shares(map)
    local count, owners = {}, 0
    for _, id in ipairs(map) do
        owners = owners + (count[id] and 0 or 1)
        count[id] = (count[id] or 0) + 1
    end
    return count, owners
end

local function left(m)
    local gone = {}
    for _, record in ipairs(m.log) do
        if record.msg == 'Replacement worker available - disconnecting' or record.msg == 'Worker exited' then
            gone[record.workerId] = true
        end
    end
    return gone
end

describe('a sticky client', function()
    after_each(master.cleanup)

    it('reaches the same worker every time, and all workers have clients', function()
        local m = start()
        local first = everybody(m)
        local _, owners = shares(first)
        assert.equal(4, owners)
        for _ = 1, 3 do
            assert.same(first, everybody(m))
        end
        m:finish()
    end)

    it('moves when its worker dies, and no other does', function()
        local m = start 'backoff = { first = 1, max = 1 },'
        local first = everybody(m)
        local victim = m:records 'Worker listening'[2]
        -- The second death in a row leaves the place empty for a while, so that there are stand-ins.
        for round = 1, 2 do
            local pid = m:records 'Worker listening'[round == 1 and 2 or 5].workerPid
            uv.kill(pid, 'sigkill')
            m:await('Worker exited', { count = round })
            if round == 1 then
                m:await('Worker listening', { count = 5 })
            end
        end
        local between = everybody(m)
        m:await('Worker listening', { count = 6 })
        local after = everybody(m)
        local successor = m:records 'Worker listening'[6].workerId
        for client = 1, CLIENTS do
            if first[client] ~= victim.workerId then
                assert.equal(first[client], between[client])
                assert.equal(first[client], after[client])
            else
                assert.is_true(between[client] ~= victim.workerId)
                assert.equal(successor, after[client])
            end
        end
        assert.same(after, everybody(m))
        m:finish()
    end)

    it('moves once in a roll, from the worker that leaves', function()
        local m = start 'restartConcurrency = 1,'
        local before = everybody(m)
        local now, moves = { unpack(before) }, {}
        m:signal 'SIGUSR2'
        local complete
        repeat
            complete = #m:records 'Restart complete' > 0
            for client = 1, CLIENTS do
                local id = worker_of(m, client)
                if id ~= now[client] then
                    moves[client] = (moves[client] or 0) + 1
                    m:wait_until(function() return left(m)[now[client]] end,
                        ('client %d moved from %d to %d, which has not left'):format(client, now[client], id))
                    now[client] = id
                end
            end
        until complete
        for client = 1, CLIENTS do
            assert.is_true(now[client] > 4, client)
            assert.equal(1, moves[client], client)
        end
        local _, owners = shares(now)
        assert.equal(4, owners)
        m:finish()
    end)

    it('loses nothing in rolls under load, and sees one worker of each release', function()
        local m = start 'restartConcurrency = 1,'
        local clients = {}
        for client = 1, 10 do
            clients[client] = load.start { port = m.port, clients = 1, rate = 40, source = '127.0.3.' .. client }
        end
        for roll = 1, 3 do
            m:signal 'SIGUSR2'
            m:await('Restart complete', { count = roll, timeout = 20000 })
            m:await('Worker exited', { count = 4 * roll })
            for _, l in ipairs(clients) do
                l:await(l.counts.total + 5)
            end
        end
        for client, l in ipairs(clients) do
            local counts = l:stop()
            assert.equal(0, counts.failed, counts.text)
            assert.equal(4, l.distinct, 'workers that client ' .. client .. ' has seen')
        end
        m:finish()
    end)

    it('stays when the cluster grows, unless the newcomer takes it; and when it shrinks again', function()
        local m = start()
        local before = everybody(m)
        assert.equal(0, cli.run(m, { 'scale', '6' }).code)
        m:await('Worker listening', { count = 6 })
        local grown = everybody(m)
        local moved = 0
        for client = 1, CLIENTS do
            if grown[client] ~= before[client] then
                moved = moved + 1
                assert.is_true(grown[client] > 4)
            end
        end
        assert.is_true(moved > 0 and moved < CLIENTS / 2, moved)
        assert.equal(0, cli.run(m, { 'scale', '3' }).code)
        m:await('Worker exited', { count = 3 })
        local gone = left(m)
        local shrunk = everybody(m)
        for client = 1, CLIENTS do
            assert.is_true(shrunk[client] == grown[client] or gone[grown[client]], client)
        end
        m:finish()
    end)
end)
