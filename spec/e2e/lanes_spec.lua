-- Four workers on one port: rolled, killed, frozen, dead altogether, under connection-per-request load. Nothing fails
-- but what was inside a worker that was killed, and nothing is late but what was inside one that was frozen.
--
-- With sanitizers there are fewer rolls and kills; DM_FULL=1 runs the full numbers there too, and prints what was seen.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local connections = require 'spec.support.connections'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local FULL = os.getenv 'DM_FULL' ~= nil
local ALL = FULL or not os.getenv 'DM_SANITIZE'
local ROLLS = ALL and 100 or 25
local KILLING_MS = ALL and 20000 or 4000
local FROZEN_MS = ALL and 5000 or 2500
local SLOW_MS = 1500 * wait.scale -- stallTimeout and half a second

-- It serves by a handle of its own, so the master cannot hand anything over to it.
local RAW = [[
local uv = require 'luv'
local handle = assert(require('dutch-master.worker').listen(os.getenv 'LISTEN')):tcp()
assert(handle:listen(511, function()
    local connection = uv.new_tcp()
    handle:accept(connection)
    connection:read_start(function(_, data)
        if not data then
            return connection:is_closing() or connection:close()
        end
        connection:write 'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok'
        connection:shutdown()
    end)
end))
]]

local function start(options, app)
    local port = http.free_port()
    local m = master.start {
        script = ([[
            local dutch = require 'dutch-master'
            dutch.start { worker = 'app.lua', numWorkers = 4, restartSoak = 0,
                workerEnvironment = { LISTEN = '127.0.0.1:%d' }, %s }]]):format(port, options or ''),
        files = { ['app.lua'] = app or apps.http },
    }
    m.port, m.killed = port, {}
    m:await 'Cluster ready'
    return m
end

-- Workers that serve: a pid each, and the record that says so.
local function serving(m)
    local list, gone = {}, setmetatable({}, { __index = m.killed })
    for _, record in ipairs(m:records 'Worker exited') do
        gone[record.workerPid] = true
    end
    for _, record in ipairs(m:records 'Worker listening') do
        if not gone[record.workerPid] then
            list[#list + 1] = record
        end
    end
    return list
end

-- Freezes a worker, notes whom it has inside, and kills it. `inside`: client's port -> when.
local function kill(m, victim, inside)
    assert(connections.freeze(victim.workerPid), 'it is gone already')
    m.killed[victim.workerPid] = true
    for port in pairs(connections.inside(victim.workerPid, m.port)) do
        inside[port] = inside[port] or {}
        table.insert(inside[port], uv.hrtime())
    end
    uv.kill(victim.workerPid, 'sigkill')
end

-- Failures that a killed worker does not account for: it did not have that connection while the request ran.
local function unexplained(l, inside)
    local list, explained = {}, 0
    for _, failure in ipairs(l.failures) do
        local within = false
        for _, killed in ipairs(inside[failure.port or 0] or {}) do
            within = within or failure.started < killed and killed < failure.ended
        end
        if within and (failure.outcome == 'reset' or failure.outcome == 'empty') then
            explained = explained + 1
        else
            list[#list + 1] = ('%s from port %s after %d ms'):format(failure.outcome, failure.port, failure.ms)
        end
    end
    return list, explained
end

describe('lanes', function()
    after_each(master.cleanup)

    it(('lose nothing in %d rolls'):format(ROLLS), function()
        local m = start()
        local l = load.start { port = m.port, clients = 8, rate = 1000 }
        for roll = 1, ROLLS do
            m:signal 'SIGUSR2'
            m:await('Restart complete', { count = roll, timeout = 20000 })
        end
        m:await('Worker exited', { count = 4 * ROLLS, timeout = 20000 })
        l:await(l.counts.total + 100)
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.is_true(counts.total > 15 * ROLLS, counts.text)
        assert.equal(4 * (ROLLS + 1), #m:records 'Creating new worker')
        assert.same({}, m:records 'Worker stalled')
        m:finish()
        for _, record in ipairs(m:records 'Worker exited') do
            assert.equal(0, record.code)
        end
    end)

    it('lose only what was inside, when a worker is killed every 100 ms', function()
        local m = start 'backoff = { first = 0.01, max = 0.02 },'
        local l = load.start { port = m.port, clients = 16, rate = 1000 }
        local inside, kills = {}, 0
        local ticker = uv.new_timer()
        local due, started = false, uv.now()
        ticker:start(100, 100, function() due = true end)
        while uv.now() - started < KILLING_MS do
            m:wait_until(function() return due and #serving(m) > 0 end, 'a victim')
            due = false
            local candidates = serving(m)
            kill(m, candidates[math.random(#candidates)], inside)
            kills = kills + 1
        end
        ticker:close()
        m:await('Worker exited', { count = kills })
        m:wait_until(function() return #serving(m) == 4 end, 'four workers again')
        l:await(l.counts.total + 200)
        local counts = l:stop()
        local outside, explained = unexplained(l, inside)
        if FULL then print(('%d kills: %s; inside a killed worker: %d'):format(kills, counts.text, explained)) end
        assert.same({}, outside, counts.text)
        assert.equal(explained, counts.failed, counts.text)
        assert.is_true(kills > KILLING_MS / 1000, kills)
        m:finish()
    end)

    it('go round a worker that is frozen: others wait for stallTimeout and half a second at most', function()
        local m = start()
        local l = load.start { port = m.port, clients = 16, rate = 400, slow_ms = SLOW_MS }
        l:await(200)
        local victim = serving(m)[2]
        assert(connections.freeze(victim.workerPid))
        local inside = connections.inside(victim.workerPid, m.port)
        -- What it was just being given waits in its channel: nobody but the master has a descriptor of it.
        for port in pairs(connections.inside(m:process_pid(), m.port)) do
            inside[port] = inside[port] or 1
        end
        local known = uv.hrtime() -- no client was served by this process meanwhile
        local stalled = m:await 'Worker stalled'
        assert.equal(victim.workerId, stalled.workerId)
        local mark = l.counts.total
        wait.let_run(FROZEN_MS)
        -- The kernel gives it nothing: what it missed is the others'.
        assert.is_true(l.counts.total > mark + 200, l.counts.total - mark)
        uv.kill(victim.workerPid, 'sigcont')
        m:await { msg = 'Worker takes connections again', workerId = victim.workerId }
        m:wait_until(function()
            return l.bodies[('- %d %d'):format(victim.workerId, victim.workerPid)]
        end, 'an answer of the worker that was frozen')
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        for _, request in ipairs(l.slow) do
            local ms = (request.ended - math.max(request.started, known)) / 1e6
            assert.is_true(ms < SLOW_MS or inside[request.port] ~= nil,
                ('%d ms, port %d, not inside'):format(ms, request.port))
        end
        m:finish()
    end)

    it('give a worker that is frozen nothing of what another one leaves', function()
        local m = start()
        local frozen, victim = unpack(serving(m))
        assert(connections.freeze(frozen.workerPid))
        assert(connections.freeze(victim.workerPid))
        local requests = {}
        for i = 1, 60 do
            requests[i] = http.begin { port = m.port }
        end
        wait.turn()
        uv.kill(victim.workerPid, 'sigkill')
        for i, outcome in ipairs(requests) do
            m:wait_until(outcome, 'an answer', { timeout = 10000 })
            assert.equal('done', (outcome()), i)
        end
        uv.kill(frozen.workerPid, 'sigcont')
        m:finish()
    end)

    it('lose nothing of a frozen worker where no other can be handed its connections', function()
        local m = start('stallTimeout = 0.3,', RAW)
        local l = load.start { port = m.port, clients = 200, rate = 400 }
        l:await(100)
        local victim = serving(m)[1]
        assert(connections.freeze(victim.workerPid))
        m:await { msg = 'Worker stalled', workerId = victim.workerId }
        local mark = l.counts.total
        l:await(mark + 50)
        uv.kill(victim.workerPid, 'sigcont')
        m:await { msg = 'Worker takes connections again', workerId = victim.workerId }
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        m:finish()
    end)

    it('keep connections while no worker lives', function()
        local m = start 'backoff = { first = 2, max = 2 },'
        local l = load.start { port = m.port, clients = 16, rate = 400, timeout = 20000 }
        l:await(100)
        -- Killed once, each is replaced at once; twice in a row, after two seconds.
        local inside = {}
        for round = 1, 2 do
            m:wait_until(function() return #serving(m) == 4 end, 'four workers')
            for _, victim in ipairs(serving(m)) do
                kill(m, victim, inside)
            end
            m:await('Worker exited', { count = 4 * round })
        end
        local before = l.counts.ok
        m:await('Worker listening', { count = 9 })
        local gap = l.counts.ok - before
        l:await(l.counts.total + 200)
        local counts = l:stop()
        local outside, explained = unexplained(l, inside)
        assert.same({}, outside, counts.text)
        assert.equal(0, counts.refused + counts.timeout, counts.text)
        assert.equal(explained, counts.failed)
        assert.is_true(gap < 50 and counts.max_ms > 500, ('%d answers in the gap, %s'):format(gap, counts.text))
        m:finish()
    end)
end)
