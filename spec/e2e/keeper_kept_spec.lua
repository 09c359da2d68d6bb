-- What outlives a master beside its workers: sessions of TLS, the log file, releases, a canary, a scale, the backoff of a
-- slot, the store; and what of hooks does not.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local kept = require 'spec.support.kept'
local master = require 'spec.support.master'
local node_app = require 'spec.support.node_app'
local tls = require 'spec.support.tls'
local versions = require 'spec.support.node_versions'

-- The records of a log file, each whole.
local function read_log(path)
    local file = assert(io.open(path))
    local text = file:read '*a'
    file:close()
    assert.is_true(text == '' or text:sub(-1) == '\n', text)
    local records = {}
    for line in text:gmatch '[^\n]+' do
        records[#records + 1] = cjson.decode(line)
    end
    return records, text
end

local function count(records, msg, pid)
    local found = 0
    for _, record in ipairs(records) do
        found = found + (record.msg == msg and (not pid or record.workerPid == pid) and 1 or 0)
    end
    return found
end

-- Where the workers run.
local function releases(m)
    local set = {}
    for _, pid in ipairs(m:workers()) do
        set[#set + 1] = (uv.fs_readlink(('/proc/%d/cwd'):format(pid)) or ''):match '[^/]+$'
    end
    return table.concat(set, ' ')
end

local function deploy(m, release)
    assert(uv.fs_symlink('releases/' .. release, m:path 'next'))
    assert(uv.fs_rename(m:path 'next', m:path 'current'))
end

describe('the death of a master', function()
    after_each(master.cleanup)

    versions.it('keeps sessions of TLS, for the workers there are and for later ones', function(_, binary)
        local m, port = node_app.start { binary = binary, app = tls.app }
        local _, session = tls.ask(binary, port)
        kept.kill(m)
        assert.equal('true true true true true true', (tls.ask(binary, port, session)))
        node_app.roll(m)
        assert.equal('true true true true true true', (tls.ask(binary, port, session)))
        m:finish { code = 0 }
    end, { versions = { '22' } })

    -- With one processor for both whoever reads a record goes on before whoever wrote it does.
    it('makes no record come twice, however soon after it', function()
        local own = uv.os_getpid()
        local mask = io.popen(('taskset -p %d'):format(own)):read '*a':match 'mask: (%x+)'
        assert(os.execute(('taskset -p 1 %d >/dev/null'):format(own)) == 0)
        local ok, why = pcall(function()
            local m = kept.start { wrap = { 'taskset', '1' }, files = { ['app.lua'] = apps.idle },
                script = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 1,
                    backoff = { first = 0.01, max = 0.01 } }]] }
            local over = kept.without_pauses(m)
            for i = 1, 20 do
                m:await('Worker listening', { count = i })
                kept.await_snapshot(m, function(state)
                    return state.cluster.workers[1] and state.cluster.workers[1].ready_at
                end, 'a worker that serves')
                local former = kept.pid(m)
                uv.kill(m:records('Worker listening')[i].workerPid, 'sigkill')
                m:await('Worker exited', { count = i })
                uv.kill(former, 'sigkill')
                m:await('The former master died, this one has taken over', { count = i })
            end
            over()
            m:finish { code = 0 }
            assert.same({}, kept.gaps_in_story(m))
        end)
        os.execute(('taskset -p %s %d >/dev/null'):format(mask, own))
        assert(ok, why)
    end)

    it('loses and tears no record of the log file, and the next one reopens it', function()
        local dir = master.temp_dir()
        local path = dir .. '/log'
        local m = kept.start { files = { ['app.lua'] = apps.idle }, script = ([[local dutch = require 'dutch-master'
            dutch.start { worker = 'app.lua', restartSoak = 0, backoff = { first = 0.05, max = 0.05 },
                logger = dutch.logger { path = '%s' } }]]):format(path) }
        local function await(msg, times)
            m:wait_until(function() return uv.fs_stat(path) and count(read_log(path), msg) >= times end,
                msg .. ' ' .. times)
        end
        await('Cluster ready', 1)
        local before, killed = '', {}
        for i = 1, 3 do
            local records, text = read_log(path)
            assert.equal(before, text:sub(1, #before))
            before = text
            -- A worker that ends while nobody is there is told of too.
            local pid
            for _, record in ipairs(records) do
                pid = record.msg == 'Worker listening' and record.workerPid or pid
            end
            kept.await_snapshot(m, function(state)
                local ready = {}
                for _, worker in ipairs(state.cluster.workers) do
                    ready[worker.pid or 0] = worker.ready_at
                end
                return ready[pid] and not ready[killed[i - 1]]
            end, 'the last death, and a new worker')
            local former = kept.pid(m)
            uv.kill(former, 'sigstop')
            uv.kill(pid, 'sigkill')
            uv.kill(former, 'sigkill')
            killed[i] = pid
            await('The former master died, this one has taken over', i)
            await('Worker listening', 2 + i)
        end
        assert(uv.fs_rename(path, path .. '.1'))
        m:signal 'SIGUSR1'
        await('Log reopened', 1)
        m:signal 'SIGUSR2'
        await('Restart complete', 1)
        m:finish { code = 0 }
        local old, new = read_log(path .. '.1'), read_log(path)
        for _, pid in ipairs(killed) do
            assert.equal(1, count(old, 'Worker exited', pid))
        end
        assert.same({ 0, 1 }, { count(new, 'Cluster ready'), count(new, 'Cluster shutdown cleanly') })
    end)

    it('keeps the releases: what fails after it is rolled back, and a crash afterwards starts the old one', function()
        local m = kept.start { script = [[
                local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', restartSoak = 1, restartConcurrency = 1, restartAttempts = 1,
                    beforeFork = function() dutch.chdir(dutch.directory .. '/current') end }]],
            files = { ['releases/1/app.lua'] = apps.idle,
                ['releases/2/app.lua'] = 'if io.open "../../broken" then os.exit(3) end ' .. apps.idle,
                ['run.sh'] = '#!/bin/sh\nln -s releases/1 current\nexec "$@"\n' },
            wrap = { './run.sh' } }
        m:await 'Cluster ready'
        deploy(m, '2')
        local restart = cli.start(m, { 'restart', '--wait' })
        m:await 'Replacement worker available - disconnecting' -- one slot has the new release
        m:rewrite('broken', '')
        kept.kill(m)
        restart:wait()
        assert.equal(11, restart.code, restart.out .. restart.err)
        m:wait_until(function() return releases(m) == '1 1' end, 'the old release')
        kept.kill(m)
        uv.kill(m:workers()[1], 'sigkill')
        m:await { msg = 'Worker exited', signal = 'SIGKILL' }
        m:wait_until(function() return releases(m) == '1 1' end, 'the old release')
        assert(uv.fs_unlink(m:path 'broken'))
        local again = cli.run(m, { 'restart', '--wait' })
        assert.equal(0, again.code, again.out .. again.err)
        m:wait_until(function() return releases(m) == '2 2' end, 'the new release')
        m:finish { code = 0 }
    end)

    it('ends neither the judgement of a canary nor a scale', function()
        local m = kept.start { script = [[require('dutch-master').start { worker = 'app.lua',
            restartConcurrency = { after = 1, canary = { soak = 0.5, judge = function(new, old)
                return new.generation == old.generation, 'worse' end } } }]], files = { ['app.lua'] = apps.idle } }
        m:await 'Cluster ready'
        local before = m:workers()
        local restart = cli.start(m, { 'restart', '--wait' })
        m:await('Worker listening', { count = 3 })
        kept.kill(m)
        restart:wait()
        assert.equal(10, restart.code, restart.out .. restart.err)
        assert.matches('the canary was rejected: worse', restart.err)
        m:wait_until(function() return #m:workers() == 2 end, 'the canary to end')
        kept.same_workers(m, before)
        local mark = m:mark()
        local scale = cli.start(m, { 'scale', '4' })
        m:await('Creating new worker', { after = mark })
        kept.kill(m)
        assert.equal(0, scale:wait().code, scale.err)
        m:wait_until(function()
            return cli.run(m, { 'status' }).out:find('4 of 4 workers serving', 1, true)
        end, 'four workers')
        m:finish { code = 0 }
    end)

    it('does not forget how often a slot has failed', function()
        local m = kept.start { files = { ['app.lua'] = 'if io.open "broken" then os.exit(3) end ' .. apps.idle },
            script = [[require('dutch-master').start { worker = 'app.lua', backoff = { first = 0.25, max = 60 } }]] }
        m:await 'Cluster ready'
        m:rewrite('broken', '')
        uv.kill(m:workers()[1], 'sigkill')
        local failed = m:await('Waiting before the next fork', { count = 3 })
        kept.kill(m)
        local forked = m:await('Creating new worker', { after = failed })
        local function time_of(record) -- of the day, in s
            local hours, minutes, seconds = record.time:match 'T(%d+):(%d+):([%d.]+)'
            return hours * 3600 + minutes * 60 + seconds
        end
        local waited = (time_of(forked) - time_of(failed)) % 86400
        assert.truthy(waited > 0.7 and waited < 3600, waited) -- a second, less a quarter at most
        local next_wait = m:await('Waiting before the next fork', { after = forked })
        assert.equal(failed.failures + 1, next_wait.failures)
        assert.truthy(next_wait.wait > 1.4, next_wait.wait)
        assert(uv.fs_unlink(m:path 'broken'))
        m:await('Worker listening', { after = forked })
        m:finish { code = 0 }
    end)

    it('leaves the place taken, and whoever asks waits for the next one', function()
        local m = kept.start { script = "require('dutch-master').start { worker = 'app.lua', numWorkers = 1 }",
            files = { ['app.lua'] = apps.idle } }
        m:await 'Cluster ready'
        for _ = 1, 4 do -- those that follow have to wait longer and longer
            kept.kill(m)
        end
        assert(uv.kill(kept.pid(m), 'sigkill'))
        local status = cli.start(m, { 'status' })
        local second = master.start { script_path = m.script, cwd = m.app,
            env = { DUTCH_MASTER_RUNTIME_DIR = m.dir .. '/run' } }
        assert.same({ code = 1 }, second:exit())
        m:wait_until(function() return second.err_ended end, 'its last words')
        assert.matches('is running already', second.stderr)
        assert.equal(0, status:wait().code, status.err)
        assert.matches('of 1 worker serving', status.out)
        m:wait_until(function() return cli.run(m, { 'status' }).out:find '1 of 1 worker' end, 'the worker to serve')
        second:finish { code = 1, files_left = true }
        m:finish { code = 0 }
    end)

    it('lets those go on who stay connected: logs, events, status', function()
        local m = kept.start { script = "require('dutch-master').start { worker = 'app.lua', ready = 'message' }",
            files = { ['app.lua'] = [[
                local worker = require 'dutch-master.worker'
                require('luv').new_signal():start('sigusr1', function()
                    io.stderr:write('said ' .. worker.id .. '\n')
                end)
                worker.ready()]] } }
        m:await 'Cluster ready'
        local logs = cli.start(m, { 'logs', '--follow', m.script })
        local plain = cli.start(m, { 'logs', '--follow', '--json', m.script })
        local events = cli.start(m, { 'events', '--follow', '--last', '1', '--json', m.script })
        local status = cli.start(m, { 'status', '--watch', '--json', m.script })
        local function talk(times)
            uv.kill(m:workers()[1], 'sigusr1')
            for _, command in ipairs { logs, plain } do
                command:await_output(('said 1[^\n]*\n'):rep(times, '.*'))
            end
        end
        talk(1)
        status:await_output '\n'
        events:await_output '\n'
        for round = 1, 3 do
            kept.await_quiet(m)
            if round < 3 then
                kept.kill(m)
                events:await_output(('The former master died.*'):rep(round))
            else
                assert.equal(0, cli.run(m, { 'upgrade', m.script }).code)
                events:await_output 'The new program has taken over'
            end
            status:await_output('"master_pid":' .. kept.pid(m))
            talk(round + 1)
            logs:await_output(('%(the master died, another one goes on: [^\n]*\n.*'):rep(round))
        end
        m:signal 'SIGTERM'
        for _, command in ipairs { logs, plain, events, status } do
            assert.equal(1, command:wait().code, command.out .. command.err)
            assert.truthy(command.err:find('went away', 1, true), command.err)
        end
        m:finish { code = 0 }
    end)

    it('ends a hook that was running, which begins anew, and neither the store nor later hooks', function()
        local m = kept.start { files = { ['app.lua'] = apps.idle }, script = [[local dutch = require 'dutch-master'
            dutch.start { worker = 'app.lua', hookTimeout = 60,
                beforeFork = function() dutch.store.forks = (dutch.store.forks or 0) + 1 end,
                onWorkerExit = function(report)
                    dutch.log:info({ of = report.pid, forks = dutch.store.forks }, 'begun')
                    repeat local go = io.open(dutch.directory .. '/go') until go
                    dutch.log:info({ of = report.pid }, 'done')
                end }]] }
        m:await 'Cluster ready'
        local first = m:workers()[1]
        uv.kill(first, 'sigkill')
        assert.equal(first, m:await('begun').of)
        m:await('Worker listening', { count = 3 })
        kept.kill(m)
        m:await({ msg = 'begun', of = first }, { count = 2 })
        m:rewrite('go', '')
        m:await { msg = 'done', of = first }
        local second
        m:wait_until(function() -- those of before may have been replaced, and the log says so in a moment
            second = m:workers()[1]
            return second
        end, 'a worker')
        uv.kill(second, 'sigkill')
        assert.is_true(m:await({ msg = 'begun', of = second }).forks >= 3)
        m:await { msg = 'done', of = second }
        m:finish { code = 0 }
        assert.equal(1, #m:records { msg = 'done', of = first })
    end)
end)
