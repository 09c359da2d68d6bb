-- Workers that die without being told to: replaced at once, then more and more slowly, and nobody else notices.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

-- Processor time that a process has used, in ms.
local function cpu_ms(pid)
    local file = assert(io.open(('/proc/%d/stat'):format(pid)))
    local user, system = file:read('*a'):match '%) %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ (%d+) (%d+)'
    file:close()
    return (tonumber(user) + tonumber(system)) * 10 -- clock ticks, 100 a second
end

local function start(script, app)
    local port = http.free_port()
    local m = master.start {
        script = ([[
            local dutch = require 'dutch-master'
            dutch.start { worker = 'app.lua', workerEnvironment = { LISTEN = '127.0.0.1:%d' }, %s }]]):format(port, script),
        files = { ['app.lua'] = app or apps.http },
    }
    m.port = port
    return m
end

describe('a crash', function()
    after_each(master.cleanup)

    it('is replaced at once while the others serve', function()
        local m = start [[onWorkerExit = function(report) dutch.log:info({ report = report }, 'hook: exit') end]]
        m:await 'Cluster ready'
        local l = load.start { port = m.port, clients = 2, rate = 200 }
        local victim = m:records 'Worker listening'[1]
        uv.kill(victim.workerPid, 'sigkill')
        local unexpected = m:await 'Worker disconnection was unexpected'
        assert.same({ 40, victim.workerId, victim.workerPid }, { unexpected.level, unexpected.workerId,
            unexpected.workerPid })
        local exited = m:await 'Worker exited'
        assert.same({ 'SIGKILL', victim.workerPid }, { exited.signal, exited.workerPid })
        m:await('Worker listening', { count = 3 })
        local report = m:await('hook: exit').report
        assert.same({ 'SIGKILL', victim.workerId, true, true },
            { report.signal, report.worker or report.id, report.unexpected, report.was_ready })
        l:await(l.counts.total + 20)
        -- What the dead one had accepted is lost with it; what it had not is not.
        local counts = l:stop()
        assert.is_true(counts.failed <= 2, counts.text)
        assert.equal(0, counts.refused + counts.timeout, counts.text)
        m:wait_until(function() return #m:workers() == 2 end, 'two workers')
        m:finish()
    end)

    it('tells code, signal and last words apart', function()
        local m = start([[numWorkers = 1, backoff = { first = 5, max = 5 },
            onWorkerExit = function(report) dutch.log:info({ report = report }, 'hook: exit') end]],
            'io.stderr:write("first line\\nlast words\\n") os.exit(5)')
        local exited = m:await 'Worker exited'
        assert.equal(5, exited.code)
        assert.is_nil(exited.signal)
        local report = m:await('hook: exit').report
        assert.matches('last words', report.stderr)
        assert.same({ 5, false }, { report.code, report.was_ready })
        assert.matches('last words', m.stderr)
        m:await 'Worker disconnected unexpectedly while starting'
        m:finish()
    end)

    it('is repeated ever more slowly, at almost no cost, and costs the other slot nothing', function()
        local m = start([[kind = 'lua']], [[
            if os.getenv 'DUTCH_MASTER_SLOT' == '1' then os.exit(1) end
            ]] .. apps.http)
        local serving = m:await('Worker listening').workerPid
        local l = load.start { port = m.port, clients = 1, rate = 100 }
        m:await('Waiting before the next fork', { count = 3 })
        local pid, forks = m:process_pid(), #m:records 'Creating new worker'
        local before, mark = cpu_ms(pid), uv.hrtime()
        -- The first is replaced at once, then 0.1, 0.2, 0.4 and 0.8 s, each a quarter more or less.
        local fifth = m:await({ msg = 'Waiting before the next fork', failures = 5 }, { timeout = 15000 })
        assert.is_true(fifth.wait >= 0.59 and fifth.wait <= 1.01, fifth.wait)
        local seconds = (uv.hrtime() - mark) / 1e9
        assert.is_true(#m:records 'Creating new worker' - forks <= 2)
        local used = cpu_ms(pid) - before -- in steps of 10
        assert.is_true(used <= (30 + seconds * 20) * wait.scale, 'the master used ' .. used .. ' ms')
        local waits = {}
        for _, record in ipairs(m:records 'Waiting before the next fork') do
            waits[record.failures] = record.wait
        end
        assert.is_true(waits[5] > waits[2] * 4, ('%g s, then %g s'):format(waits[2], waits[5]))
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.is_truthy((' ' .. table.concat(m:workers(), ' ') .. ' '):find(' ' .. serving .. ' ', 1, true))
        assert.equal(0, #m:records { msg = 'Worker exited', workerPid = serving })
        m:finish()
    end)

    it('after readiness does not spin either, and is forgotten after a time of service', function()
        local m = start([[numWorkers = 1, backoff = { first = 0.05, max = 10, reset = 0.5 }]], [[
            local uv, worker = require 'luv', require 'dutch-master.worker'
            worker.ready()
            local life = io.open 'life'
            local timer = uv.new_timer()
            timer:start(life and 700 or 0, 0, function() os.exit(4) end)]])
        m:await { msg = 'Waiting before the next fork', failures = 4 }
        assert.is_true(#m:records 'Worker listening' >= 4)
        m:rewrite('life', '')
        -- The one that is running may be of before.
        local first = m:await('Worker exited', { after = m:await('Creating new worker', { after = m:mark() }) })
        m:await('Creating new worker', { after = first })
        m:await('Worker exited', { after = first })
        assert.equal(0, #m:records('Waiting before the next fork', first))
        m:finish()
    end)

    it('of all workers at once is survived', function()
        local m = start [[numWorkers = 8]]
        m:await 'Cluster ready'
        for _, pid in ipairs(m:workers()) do
            uv.kill(pid, 'sigsegv')
        end
        m:await('Worker listening', { count = 16 })
        assert.equal(8, #m:records { msg = 'Worker exited', signal = 'SIGSEGV' })
        assert.equal(200, (http.get { port = m.port }))
        m:finish()
    end)
end)
