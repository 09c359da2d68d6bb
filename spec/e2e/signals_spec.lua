-- Signals to the master: each does one thing, and none hides another.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local master = require 'spec.support.master'

local function start(options, more)
    more = more or {}
    more.script = ([[local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', restartSoak = 0, backoff = { first = 0.01, max = 0.05 }, %s }]]):format(
        options or '')
    more.files = { ['app.lua'] = apps.idle }
    return master.start(more)
end

describe('signals', function()
    after_each(master.cleanup)

    it('in a burst of 10,000 hide no exit and no stop', function()
        local m = start 'numWorkers = 10,'
        m:await 'Cluster ready'
        local names = { 'sigusr1', 'sighup', 'sigchld', 'sigcont', 'sigusr2', 'sigwinch', 'sigpipe' }
        local victims = m:workers()
        for i = 1, 10000 do
            assert(uv.kill(m.pid, names[i % #names + 1]))
            if i % 1000 == 0 then
                uv.kill(victims[i / 1000], 'sigkill')
            end
        end
        m:wait_until(function()
            local requested = #m:records 'Restart requested'
            local created, exited = #m:records 'Creating new worker', #m:records 'Worker exited'
            return requested > 0 and created - exited == 10 and #m:workers() == 10
                and requested == #m:records 'Restart complete' + #m:records 'Restart superseded by a later one'
        end, 'the cluster to settle', { timeout = 30000 })
        for _, pid in ipairs(victims) do
            assert.equal(1, #m:records { msg = 'Worker exited', workerPid = pid })
        end
        local seen = {}
        for _, record in ipairs(m:records 'Worker exited') do
            assert.is_nil(seen[record.workerPid])
            seen[record.workerPid] = true
        end
        for i = 1, 5000 do
            uv.kill(m.pid, names[i % #names + 1])
            if i == 2500 then
                uv.kill(m.pid, 'sigterm')
            end
        end
        m:exit()
        m:finish { code = 0 }
        assert.equal(1, #m:records 'Shutdown requested')
    end)

    it('restart by the name that the script gives, which an edit may change', function()
        local m = start "restartSignal = 'SIGALRM',"
        m:await 'Cluster ready'
        m:signal 'SIGALRM'
        assert.equal('SIGALRM', m:await('Restart requested').signal)
        m:await 'Restart complete'
        m:rewrite('master.lua', [[require('dutch-master').start { worker = 'app.lua', restartSoak = 0,
            restartSignal = 'SIGWINCH' }]])
        m:signal 'SIGHUP'
        m:await('Restart complete', { count = 2 })
        m:signal 'SIGWINCH'
        assert.equal('SIGWINCH', m:await('Restart requested', { count = 3 }).signal)
        m:await('Restart complete', { count = 3 })
        m:finish()
    end)

    it('of others, of children and of a closed pipe do no harm', function()
        local m = start()
        m:await 'Cluster ready'
        for _, name in ipairs { 'SIGPIPE', 'SIGCHLD', 'SIGCONT', 'SIGWINCH', 'SIGURG' } do
            m:signal(name)
        end
        m:signal 'SIGTTIN'
        m:await('Worker listening', { count = 3 })
        assert.equal(3, #m:workers())
        m:finish()
    end)

    it('that stop the master for a while do not make it lose patience with its workers', function()
        local m = start "readyTimeout = 1,"
        m:await 'Cluster ready'
        -- The replacements become ready while the master sleeps longer than it would wait.
        m:rewrite('app.lua', 'require("luv").sleep(300)\n' .. apps.idle)
        m:signal 'SIGUSR2'
        m:await({ msg = 'Creating new worker', generation = 2 }, { count = 2 })
        assert(uv.kill(m:process_pid(), 'sigstop'))
        local timer, over = uv.new_timer(), false
        timer:start(1500, 0, function()
            timer:close()
            over = true
        end)
        master.wait_until(function() return over end)
        assert(uv.kill(m:process_pid(), 'sigcont'))
        m:await 'Restart complete'
        assert.equal(2, #m:records { msg = 'Creating new worker', generation = 2 })
        m:finish()
    end)
end)
