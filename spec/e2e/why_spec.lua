-- `dutch-master why`: what became of a worker, in sentences.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local function start(app, more)
    local m = master.start {
        script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = 1, stopTimeout = %g,
            killTimeout = %g, backoff = { first = 0.05, max = 0.1 }, restartAttempts = 1000, %s }]]):format(wait.scale, 0.3 * wait.scale,
            more or ''),
        files = { ['app.lua'] = app },
    }
    return m
end

local function why(m, ...)
    local c = cli.run(m, { 'why', ... })
    return c.out, c
end

describe('why', function()
    after_each(master.cleanup)

    it('tells the exit code, the age, the release and the last words', function()
        local m = start [[
            require('dutch-master.worker').ready()
            io.stderr:write('first\n', 'the last words\27[2J\n')
            local timer = require('luv').new_timer()
            timer:start(200, 0, function() os.exit(42) end)
        ]]
        m:await { msg = 'Worker exited', code = 42 }
        local text = why(m, '1')
        assert.matches('Worker 1 %(pid %d+, slot 1, generation 1%) exited with code 42 at %d%d%d%d%-%d%d%-%d%d', text)
        assert.matches('Nobody had asked it to leave', text)
        assert.matches('It lived 0%.%ds, used 0%.%ds of CPU, %d+%.%dM of memory at most', text)
        assert.truthy(text:find('It ran in ' .. m.app, 1, true))
        assert.truthy(text:find('    first\n    the last words\\e[2J\n', 1, true), text)
        m:finish()
    end)

    it('names the signal', function()
        local m = start(apps.idle)
        m:await 'Cluster ready'
        uv.kill(m:workers()[1], 'sigsegv')
        m:await { msg = 'Worker exited', signal = 'SIGSEGV' }
        local text = why(m)
        assert.matches('was killed by SIGSEGV', text)
        assert.matches('a bug in native code', text)
        assert.falsy(text:find('does not say', 1, true))
        assert.matches('It wrote nothing to stderr', text)
        m:await('Worker listening', { timeout = 1 })
        m:finish()
    end)

    it('tells that the master killed it, and why it was to leave', function()
        local m = start(apps.stubborn, 'restartSoak = 0')
        m:await 'Cluster ready'
        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        m:await { msg = 'Worker exited', signal = 'SIGKILL' }
        local text = why(m, '1')
        assert.matches('was killed by SIGKILL', text)
        assert.matches('The master killed it: it had not left in time', text)
        assert.matches('A new worker had taken its place', text)
        m:finish { code = 1 }
    end)

    it('tells what can be known of a signal that somebody else sent', function()
        local m = start(apps.idle)
        m:await 'Cluster ready'
        for i, case in ipairs {
            { 'SIGKILL', 'The master did not send it, and the kernel does not say who did%. '
                .. '[^\n]*[Mm]emory [^\n]+%.\n' },
            { 'SIGTERM', 'The master did not send it, and the kernel does not say who did%.\n' },
        } do
            uv.kill(m:workers()[1], case[1]:lower())
            -- A Lua worker's runtime may take a SIGTERM for what it is, and go in peace.
            local record = m:await(function(record)
                return record.msg == 'Worker exited' and record.workerId == i
            end)
            m:await('Worker listening', { count = i + 1 })
            local text = why(m, tostring(i))
            if record.signal == case[1] then
                assert.matches('was killed by ' .. case[1] .. ' at [^\n]*%.\n  ' .. case[2], text)
            else
                assert.equal('SIGTERM', case[1])
            end
            assert.matches('Nobody had asked it to leave', text)
        end
        m:finish()
    end)

    it('tells who asked: the process, its command, and the user', function()
        local m = start(apps.idle, 'restartSoak = 0')
        m:await 'Cluster ready'
        local function is_ours(by)
            assert.same({ uv.os_getpid(), uv.getuid(), 'string' }, { by.pid, by.uid, type(by.command) })
        end
        local mark = m:mark()
        m:signal 'SIGUSR2'
        is_ours(m:await('Restart requested', { after = mark }).by)
        m:await('Restart complete', { after = mark })
        assert.matches(('The last restart was asked for by SIGUSR2, sent by process %d %%b() of user %s at '):format(
            uv.os_getpid(), uv.os_get_passwd().username), why(m))
        assert.matches('It was carried out %(generation 2%)%.', why(m))

        -- A command line is told by who ran it.
        local function is_client(record)
            assert.same({ 'dutch-master', uv.getuid(), 'string' },
                { record.by.command, record.by.uid, type(record.by.parent) })
        end
        mark = m:mark()
        for _, words in ipairs { { 'restart', '--wait' }, { 'scale', '+1' }, { 'reload' } } do
            assert.equal(0, cli.run(m, words).code)
        end
        for _, msg in ipairs { 'Restart requested', 'Scaling cluster', 'Reload requested' } do
            is_client(m:await(msg, { after = mark }))
        end
        local asked = 'asked for by the command line, process %d+ %(dutch%-master, run by [^\n]+%) of user '
        assert.matches('The last restart was ' .. asked, why(m))
        m:signal 'SIGTTOU'
        is_ours(m:await({ msg = 'Scaling cluster', signal = 'SIGTTOU' }).by)
        m:finish()
    end)

    it('tells who asked for the stop that goes on', function()
        local m = start(apps.stubborn, 'stopTimeout = 5')
        m:await 'Cluster ready'
        assert.equal(0, cli.run(m, { 'stop' }).code)
        assert.matches('The stop was asked for by the command line, process %d+ %(dutch%-master', why(m))
        m:exit()
        m:finish { code = 1 }
    end)

    it('tells which step of a start failed', function()
        local m = start(apps.idle)
        m:await 'Cluster ready'
        m:rewrite('master.lua', [[
            local dutch = require 'dutch-master'
            dutch.start { worker = { '/nowhere/server', 'x' }, numWorkers = 1, restartAttempts = 1 }
        ]])
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(10, c.code, c.err)
        assert.matches('could not be started: the program: ', c.err)
        assert.matches('/nowhere/server', c.err)
        local text = why(m)
        assert.matches('could not be started', text)
        assert.matches('The last restart was asked for by the command line, process %d+ %b() of user %S+ at ', text)
        assert.matches('It was aborted %(generation 2%): ', text)
        m:finish()
    end)

    it('tells what was not ready in time', function()
        local m = start(apps.idle, 'readyTimeout = 0.3, restartAttempts = 1')
        m:await 'Cluster ready'
        m:rewrite('app.lua', apps.never_ready)
        assert.equal(10, cli.run(m, { 'restart', '--wait' }).code)
        assert.matches('It was not ready within 0.3 s', why(m))
        m:finish()
    end)

    it('does not dwell on those that left as they should, and knows the living', function()
        local m = start(apps.idle, 'restartSoak = 0')
        m:await 'Cluster ready'
        assert.equal('No worker has ended.\n', why(m))
        assert.matches('Worker 1 %(pid %d+%) has not ended: it is running', why(m, '1'))
        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        m:await 'Worker exited'
        assert.matches('\nWorker 1 %(slot 1, generation 1%) left as it should', why(m))
        local _, c = why(m, '99')
        assert.equal(1, c.code)
        assert.matches('no worker 99 is known', c.err)
        m:finish()
    end)

    it('gives JSON', function()
        local m = start 'io.stderr:write("x\\n") os.exit(3)'
        m:await('Worker exited', { count = 2 })
        local answer = cjson.decode((why(m, '1', '--json')))
        local report = answer.exits[1]
        assert.same({ 1, 3, 'x\n', true, false },
            { report.worker, report.code, report.stderr, report.unexpected, report.was_ready })
        m:finish()
    end)

    it('keeps the last 64 KiB of stderr, and lets all of it through', function()
        local m = start([=[
            for i = 1, 20000 do
                io.stderr:write('line number ', i, '\n')
            end
            os.exit(3)
        ]=], 'backoff = { first = 1000, max = 1000 },') -- twice in all
        m:await 'Worker exited'
        local report = cjson.decode((why(m, '1', '--json'))).exits[1]
        assert.is_true(#report.stderr <= 65536 and #report.stderr > 60000, #report.stderr)
        assert.matches('line number 20000\n$', report.stderr)
        m:finish()
        assert.truthy(m.stderr:find('line number 1\n', 1, true))
    end)
end)
