-- `dutch-master restart --wait` against releases of every temper: its exit code is the verdict.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'

-- A cluster whose worker is good; the spec then rewrites app.lua.
local function start(more)
    local m = master.start {
        script = ([[
            require('dutch-master').start {
                worker = 'app.lua', restartAttempts = 2, backoff = { first = 0.05, max = 0.1 }, readyTimeout = 1,
                restartSoak = 0.3, stopTimeout = 2, killTimeout = 1, %s
            }
        ]]):format(more or ''),
        files = { ['app.lua'] = apps.idle },
    }
    m:await 'Cluster ready'
    return m
end

local function status(m)
    return cjson.decode(cli.run(m, { 'status', '--json' }).out)
end

--- The workers of the first release go on serving, and only these, at the end of `m`'s roll.
local function old_ones_serve(m, pids)
    m:wait_until(function()
        local now = status(m)
        return now.state == 'steady' and #now.workers == #pids
    end, 'the old workers to be alone')
    local found = {}
    for i, worker in ipairs(status(m).workers) do
        found[i] = worker.pid
        assert.equal('running', worker.state)
        assert.equal(1, worker.generation)
    end
    table.sort(found)
    assert.same(pids, found)
end

-- When the log says this, the verdict is there or nearly so.
local LATE = {
    ['Replacement worker available - disconnecting'] = true, ['Worker disconnected'] = true, ['Worker exited'] = true,
    ['Restart complete'] = true,
}

-- At once: with a sanitizer what a process does at its exit takes as long as a soak.
local CRASH = "function() local ffi = require 'ffi' ffi.cdef 'void _exit(int)' ffi.C._exit(9) end"

describe('restart --wait', function()
    after_each(master.cleanup)

    it('is 0 when the new release serves', function()
        local m = start()
        local before = m:workers()
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(0, c.code, c.err)
        assert.matches('1 of 2 replaced, worker %d+ is ready', c.out)
        assert.matches('Restart done %(generation 2, 2 of 2 replaced', c.out)
        assert.equal('', c.err)
        for _, worker in ipairs(status(m).workers) do
            if worker.state == 'running' then
                assert.is_true(worker.pid ~= before[1] and worker.pid ~= before[2])
            end
        end
        m:finish()
    end)

    it('is 10 for a release that exits at boot, with its exit code and its last words', function()
        local m = start()
        local pids = m:workers()
        m:rewrite('app.lua', [[
            io.stderr:write('connecting\n', 'Error: no such table: users\n')
            os.exit(7)
        ]])
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(10, c.code, c.out .. c.err)
        assert.matches('aborted: the old release goes on serving', c.err)
        assert.matches('worker %d+ %(pid %d+, slot %d%) exited with code 7', c.err)
        assert.matches('\n    Error: no such table: users\n', c.err)
        old_ones_serve(m, pids)
        local record = m:await 'Restart aborted, the old workers stay'
        assert.equal(7, record.code)
        assert.matches('no such table', record.stderr)
        m:finish()
    end)

    it('is 10 for a release that never becomes ready', function()
        local m = start()
        local pids = m:workers()
        m:rewrite('app.lua', apps.never_ready .. '\nio.stderr:write("still thinking\\n")')
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(10, c.code, c.out .. c.err)
        assert.matches('still thinking', c.err)
        old_ones_serve(m, pids)
        m:finish()
    end)

    it('is 10 for a release that hangs at boot, deaf to everything but SIGKILL', function()
        local m = start()
        local pids = m:workers()
        m:rewrite('app.lua', [[
            local signals = require 'ffi'
            signals.cdef 'void *signal(int, void *);'
            signals.C.signal(15, signals.cast('void *', 1)) -- SIG_IGN
            io.stderr:write 'waiting for the lock\n'
            while true do end
        ]])
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(10, c.code, c.out .. c.err)
        assert.matches('was not ready within 1 s', c.err)
        assert.matches('waiting for the lock', c.err)
        old_ones_serve(m, pids)
        m:finish()
    end)

    it('is 10 for a release that crashes just within its first second, with what is the default', function()
        local m = start()
        local pids = m:workers()
        m:rewrite('master.lua', "require('dutch-master').start { worker = 'app.lua', restartAttempts = 1 }")
        m:rewrite('app.lua', [[
            require('dutch-master.worker').ready()
            local timer = require('luv').new_timer()
            timer:start(900, 0, ]] .. CRASH .. [[)
        ]])
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(10, c.code, c.out .. c.err)
        assert.matches('exited with code 9', c.err)
        old_ones_serve(m, pids)
        m:finish()
    end)

    it('is 10 for a release that is ready and then crashes', function()
        local m = start()
        local pids = m:workers()
        m:rewrite('app.lua', [[
            local worker = require 'dutch-master.worker'
            worker.ready()
            local timer = require('luv').new_timer()
            timer:start(100, 0, ]] .. CRASH .. [[)
        ]])
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(10, c.code, c.out .. c.err)
        assert.matches('exited with code 9', c.err)
        old_ones_serve(m, pids)
        m:finish()
    end)

    it('is 1 when nobody serves: there is no old release that could go on', function()
        local m = start()
        m:rewrite('app.lua', "io.stderr:write 'no database\\n' os.exit(7)")
        for _, pid in ipairs(m:workers()) do
            uv.kill(pid, 'sigkill')
        end
        m:await({ msg = 'Worker exited', code = 7 }, { count = 2 })
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(1, c.code, c.out .. c.err)
        assert.matches('^Restart aborted: nobody serves %(generation 2, 0 of 2 replaced, 0 of 2 slots served, ', c.err)
        assert.matches('no database', c.err)
        assert.equal(0, m:await('Restart aborted, nobody serves').serving)
        m:finish()
    end)

    it('is 10 for a canary that is rejected, and says which, how long it served and why', function()
        local m = start [[restartConcurrency = { after = 1, canary = { soak = 0.3, judge = function(new, old)
            return new.generation == old.generation, 'error rate too high'
        end } },]]
        local pids = m:workers()
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(10, c.code, c.out .. c.err)
        local pid = c.err:match('^Restart aborted: the old release goes on serving %(generation 2, 0 of 2 replaced, '
            .. '[%d.]+s%)\n  the canary was rejected: error rate too high\n'
            .. '  worker 3 %(pid (%d+), slot 1%) had served %d[%d.]*s when judge rejected it\n$')
        assert.is_truthy(pid, c.err)
        local record = m:await 'Restart aborted, the old workers stay'
        assert.same({ 3, 1, true }, { record.failedWorkerId, record.slot, record.served >= 0.3 })
        old_ones_serve(m, pids)
        m:finish()
    end)

    it('is 10 for a script with an error, and says which', function()
        local m = start()
        local pids = m:workers()
        m:rewrite('master.lua', 'require("dutch-master").start { numWorker = 3, worker = "app.lua" }')
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(10, c.code, c.out .. c.err)
        assert.matches('master.lua:1: numWorker: unknown option %(did you mean "numWorkers"%?%)', c.err)
        old_ones_serve(m, pids)
        m:finish()
    end)

    -- As a large application does. The client hears nothing in that time but that its request was accepted.
    it('waits 20 s for a release that needs 20 s to boot, while the old one serves and is kept whole', function()
        local m = start()
        m:rewrite('master.lua', "require('dutch-master').start { worker = 'app.lua' }")
        m:rewrite('app.lua', [[
            local timer = require('luv').new_timer()
            timer:start(20000, 0, function() require('dutch-master.worker').ready() timer:close() end)
        ]])
        local begun, old = uv.hrtime(), m:workers()
        local c = cli.start(m, { 'restart', '--wait' })
        m:await('Creating new worker', { count = 4 })
        -- One of the old ones crashes meanwhile: its slot is not left to the one that boots.
        uv.kill(old[1], 'sigkill')
        m:await { msg = 'Worker exited', signal = 'SIGKILL' }
        local now = status(m)
        assert.same({ 'rolling', 0, 2 }, { now.state, now.roll.done, now.roll.total })
        assert.equal('', c.err)
        c:wait { timeout = 60000 }
        assert.equal(0, c.code, c.out .. c.err)
        assert.is_true(uv.hrtime() - begun >= 20e9)
        assert.matches('Restart done %(generation 2, 2 of 2 replaced', c.out)
        m:finish()
    end)

    it('is 124 when it takes longer than --timeout, and the restart goes on', function()
        local m = start 'numWorkers = 1, readyTimeout = 10,'
        m:rewrite('app.lua', [[
            local timer = require('luv').new_timer()
            timer:start(800, 0, function() require('dutch-master.worker').ready() timer:close() end)
        ]])
        local c = cli.run(m, { 'restart', '--wait', '--timeout', '0.2' })
        assert.equal(124, c.code)
        assert.matches('not decided within 0.2s', c.err)
        m:await 'Restart complete'
        m:finish()
    end)

    it('is 12 for a restart that a later one supersedes, and the later one is done', function()
        local m = start 'readyTimeout = 10,'
        m:rewrite('app.lua', [[
            local timer = require('luv').new_timer()
            timer:start(400, 0, function() require('dutch-master.worker').ready() timer:close() end)
        ]])
        local first = cli.start(m, { 'restart', '--wait' })
        m:await { msg = 'Creating new worker', generation = 2 }
        local second = cli.run(m, { 'restart', '--wait' })
        assert.equal(12, first:wait().code, first.err)
        assert.matches('superseded by a later restart', first.err)
        assert.equal(0, second.code, second.err)
        m:finish()
    end)

    it('is 1 when the master is stopped meanwhile, and the stop is clean', function()
        local m = start()
        m:rewrite('app.lua', apps.never_ready)
        local c = cli.start(m, { 'restart', '--wait' })
        m:await { msg = 'Creating new worker', generation = 2 }
        local again = cli.start(m, { 'restart', '--wait' })
        assert.equal(12, c:wait().code, c.err) -- so the master knows of the other one
        local stop = cli.run(m, { 'stop', '--wait' })
        assert.equal(0, stop.code, stop.err)
        assert.equal(1, again:wait().code, again.err)
        assert.equal(0, m:exit().code)
        m:finish()
    end)

    it('is 3 when nothing runs', function()
        local m = start()
        m:finish()
        local c = cli.run(nil, { 'restart', '--wait', '/nowhere/master.lua' })
        assert.equal(3, c.code)
        assert.matches('not running', c.err)
    end)

    it('gives the same verdict to onRestart', function()
        local m = start [[ onRestart = function(verdict)
            local code = verdict.failure and verdict.failure.code
            require('dutch-master').log.info({ result = verdict.result, code = code },
                'heard')
        end, ]]
        m:rewrite('app.lua', 'os.exit(5)')
        assert.equal(10, cli.run(m, { 'restart', '--wait' }).code)
        local heard = m:await 'heard'
        assert.same({ 'aborted', 5 }, { heard.result, heard.code })
        m:finish()
    end)

    it('gives JSON lines', function()
        local m = start()
        m:rewrite('app.lua', 'io.stderr:write("boo\\n") os.exit(5)')
        local c = cli.run(m, { 'restart', '--wait', '--json' })
        assert.equal(10, c.code)
        local last
        for line in c.out:gmatch '[^\n]+' do
            last = cjson.decode(line)
        end
        assert.same({ 'aborted', 5, 'boo\n' },
            { last.verdict.result, last.verdict.failure.code, last.verdict.failure.stderr })
        m:finish()
    end)

    -- The client dies when the master's log says so; the restart must end as if nothing had been.
    for _, phase in ipairs {
        'Restart requested', 'Restarting worker', 'Creating new worker', 'Worker listening',
        'Replacement worker available - disconnecting', 'Worker disconnected', 'Restart complete',
    } do
        it('goes on when its client is killed after "' .. phase .. '"', function()
            local m = start()
            m:rewrite('app.lua', apps.idle)
            local mark = m:mark()
            local c = cli.start(m, { 'restart', '--wait' })
            m:await(phase, { after = mark })
            c:kill()
            m:await('Restart complete', { after = mark })
            -- At the end the verdict may have been quicker than the signal.
            assert.is_true(c:wait().signal == 9 or LATE[phase] ~= nil and c.code == 0, c.err)
            m:wait_until(function() return #status(m).workers == 2 end, 'the old workers to leave')
            assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
            m:finish()
        end)
    end

    it('draws a bar on a terminal, and leaves none of it', function()
        local m = start()
        local c = cli.run(m, { '-qec', ('%s restart --wait'):format(master.binary()), '/dev/null' }, {
            program = 'script', env = { TERM = 'xterm', LANG = 'C.UTF-8' },
        })
        assert.equal(0, c.code, c.out .. c.err)
        assert.matches('█', c.out)
        assert.matches('\r\27%[K[^\n]*Restart .-done', c.out)
        m:finish()
    end)

    -- What a machine that loses power would leave: no goodbye of any kind.
    for _, phase in ipairs {
        'Restart requested', 'Restarting worker', 'Creating new worker', 'Worker listening',
        'Replacement worker available - disconnecting', 'Worker disconnected', 'Worker exited', 'Restart complete',
    } do
        it('and a master killed after "' .. phase .. '": the client is told, and a new master starts', function()
            local m = start()
            local mark = m:mark()
            local c = cli.start(m, { 'restart', '--wait' })
            m:await(phase, { after = mark })
            m:kill()
            assert.equal('SIGKILL', m:exit().signal)
            -- At the end of the restart its verdict may have been quicker than the signal.
            local code = c:wait().code
            assert.is_true(code == 1 or code == 0 and LATE[phase] ~= nil, c.err)
            -- Its workers leave by themselves: the channel has ended.
            m:wait_until(function() return #m:tree() == 0 end, 'the workers to leave')
            assert.equal(3, cli.run(m, { 'status' }).code)
            local second = cli.start(m, { 'master.lua' })
            second:await_output 'Cluster ready'
            assert.equal('steady', status(m).state)
            assert.equal(0, cli.run(m, { 'stop', '--wait' }).code)
            assert.equal(0, second:wait().code, second.err)
            m:finish { signal = 'SIGKILL', files_left = false }
        end)
    end

    for _, phase in ipairs { 'Starting cluster', 'Creating new worker', 'Worker listening', 'Shutdown requested' } do
        it('does not come into it when a master dies at "' .. phase .. '": a new one starts all the same', function()
            local m = master.start {
                script = [[require('dutch-master').start { worker = 'app.lua' }]], files = { ['app.lua'] = apps.idle },
            }
            if phase == 'Shutdown requested' then
                m:await 'Cluster ready'
                m:signal 'SIGTERM'
            end
            m:await(phase)
            m:kill()
            m:exit() -- a stop may have been quicker
            m:wait_until(function() return #m:tree() == 0 end, 'the workers to leave')
            local second = cli.start(m, { 'master.lua' })
            second:await_output 'Cluster ready'
            assert.equal('steady', status(m).state)
            assert.equal(0, cli.run(m, { 'stop', '--wait' }).code)
            assert.equal(0, second:wait().code, second.err)
            m:finish(phase == 'Shutdown requested' and { code = m.ended.code, signal = m.ended.signal, files_left = false }
                or { signal = 'SIGKILL', files_left = false })
        end)
    end
end)
