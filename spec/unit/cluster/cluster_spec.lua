-- The life of a cluster: boot, crashes, scale, stop, reload (cluster_rolls_spec: its restarts).
-- Longer than 400 lines: a case for each thing that may happen to it, all in one world.

local fake = require 'spec.support.fake_cluster'
local snapshot = require 'dutch-master.cluster.snapshot'

local good, booted, restart, generations = fake.good, fake.booted, fake.restart, fake.generations

describe('cluster', function()
    it('logs its life in the words of the original', function()
        local world = booted()
        local verdicts = {}
        restart(world, verdicts)
        assert.is_true(world.await('steady'))
        world.platform:advance(1000)
        world.cluster:stop { signal = 'SIGTERM' }
        assert.is_true(world.await('stopped'))
        assert.equal(0, world.code)
        local seen = {}
        for _, message in ipairs(world.messages('info')) do
            seen[#seen + 1] = message
        end
        assert.same({
            'Starting cluster', 'Creating new worker', 'Creating new worker', 'Worker listening', 'Worker listening',
            'Cluster ready', 'Restart requested', 'Restarting worker', 'Restarting worker', 'Creating new worker',
            'Creating new worker', 'Worker listening', 'Worker listening',
            'Replacement worker available - disconnecting',
            'Replacement worker available - disconnecting', 'Restart complete', 'Worker disconnected', 'Worker exited',
            'Worker disconnected', 'Worker exited', 'Shutdown requested', 'Worker disconnected', 'Worker exited',
            'Worker disconnected', 'Worker exited', 'Cluster shutdown cleanly',
        }, seen)
        assert.same({}, world.messages('warn'))
        world.platform:advance(10)
        assert.same('done', verdicts[1].result)
        assert.equal(0, world.platform:armed())
        assert.equal(0, world.asked_script)
    end)

    it('hands nothing over to a worker that is stopped', function()
        local world = booted()
        local worker, stopped = world.cluster:find(1), true
        function worker.rescue()
            return true
        end
        function world.platform.proc_stat(pid)
            return pid == worker.pid and { stopped = stopped } or nil
        end
        assert.is_false(world.cluster:rescue(40, error, 1))
        stopped = false
        assert.is_true(world.cluster:rescue(40, error, 1))
    end)

    it('gives up a boot in which a slot fails restartAttempts times and nothing was ever ready', function()
        local world = fake.new { behaviour = function()
            return { crash_ms = 5, code = 3 }
        end }
        world.boot()
        assert.is_true(world.await('stopped'))
        assert.equal(1, world.code)
        assert.matches('^Boot failed: worker of slot %d failed 3 times, and none was ever ready: exited with code 3$',
            world.messages('fatal')[1])
        assert.equal(world.messages('fatal')[1], snapshot.summary(world.cluster).failure)
        world.platform:advance(1000)
        assert.equal(0, world.platform:armed())
    end)

    it('says why a boot has failed at the end of the worker that failed, and forks no more meanwhile', function()
        local forks = 0
        local world = fake.new { plan = fake.plan { num_workers = 1, restart_attempts = 1 }, behaviour = function()
            forks = forks + 1
            return { exit_ms = 400 }
        end }
        world.boot()
        assert.is_true(world.await('stopping'))
        assert.same({}, world.messages('fatal'))
        assert.is_true(world.await('stopped'))
        assert.same({ 1, 1, 1 }, { world.code, forks, #world.messages('fatal') })
        assert.matches('^Boot failed: worker of slot 1 failed 1 time, and none was ever ready: was not ready within 60 s$',
            world.messages('fatal')[1])
        assert.equal(world.cluster.reports[1], world.cluster.failed_report)
        world.platform:advance(1000)
        assert.equal(0, world.platform:armed())
    end)

    it('goes on trying where something was ready once, or somebody stops it first', function()
        local forks = 0
        local world = fake.new { behaviour = function()
            forks = forks + 1
            return forks == 1 and good() or { crash_ms = 5, code = 3 }
        end }
        world.boot()
        world.platform:advance(10000)
        assert.equal('booting', world.cluster.state)
        assert.is_true(forks > 5)
        world.cluster:stop { signal = 'SIGTERM' }
        assert.is_true(world.await('stopped'))
        assert.equal(0, world.code)
    end)

    it('gives each worker the stopTimeout it was forked with', function()
        local world = booted { plan = fake.plan { stop_timeout_ms = 30000 }, behaviour = function()
            return { ready_ms = 10, exit_ms = 20000 }
        end }
        world.plan = fake.plan { stop_timeout_ms = 1000 }
        world.cluster:reload(nil, assert.truthy)
        world.cluster:stop { cause = 'signal', signal = 'SIGTERM' }
        assert.is_true(world.await 'stopped')
        assert.equal(1, world.count 'Cluster shutdown cleanly')
    end)

    it('shows onWorkerReady a worker that runs', function()
        local seen = {}
        booted { plan = fake.plan { num_workers = 1, hooks = { onWorkerReady = true } }, hooks = {
            onWorkerReady = function(info)
                table.insert(seen, info.state)
                return true
            end,
        } }
        assert.same({ 'running' }, seen)
    end)

    it('replaces a worker that asks for it before it has proved itself, but not faster than the pace', function()
        local plan = fake.plan { num_workers = 1, restart_soak_ms = 50 }
        local world = booted { plan = plan }
        local start = world.platform.clock
        world.on_transition = function(worker, _, event)
            if event == 'ready' and worker.child then
                worker.child:line '{"event":"request-restart"}'
            end
        end
        world.platform:live_children()[1]:line '{"event":"request-restart"}'
        assert.is_true(world.platform:run_until(function()
            return world.count 'Worker dying' == 6
        end, 10000))
        local took = world.platform.clock - start
        assert.is_true(took >= 900 and took <= 1500, took)
        assert.same({}, world.bugs)
        assert.is_true(#world.platform:live_children() <= 2)
    end)

    it('replaces the worker that asks for it, once, and only then lets it go', function()
        local world = booted()
        local _, worker = next(world.cluster.workers)
        for _ = 1, 3 do
            worker.child:line('{"event":"request-restart"}')
        end
        assert.equal('retiring', worker.state)
        world.platform:advance(300)
        assert.equal(3, world.platform.spawned)
        assert.equal('exited', worker.state)
        assert.equal('asked to be replaced', worker.report.why)
        assert.equal(1, world.count 'Worker dying')
    end)

    it('backs off per slot, and a slot that crash-loops costs the others nothing', function()
        local world = fake.new { behaviour = function(fields)
            for _, text in ipairs(fields.env) do
                if text == 'DUTCH_MASTER_SLOT=1' then
                    return { crash_ms = 1 }
                end
            end
            return good()
        end }
        world.boot()
        world.platform:advance(60000)
        assert.is_true(world.platform.spawned <= 14, world.platform.spawned .. ' forks in a minute')
        assert.equal('serving', world.cluster.slots[2].state)
        assert.equal(0, world.cluster.slots[2].failures)
    end)

    it('does not spin on workers that are ready and then crash', function()
        local world = fake.new { plan = fake.plan { num_workers = 1 }, behaviour = function()
            return { ready_ms = 1, crash_ms = 2 }
        end }
        world.boot()
        world.platform:advance(10000)
        assert.is_true(world.platform.spawned <= 10, world.platform.spawned .. ' forks in ten seconds')
    end)

    it('counts a death for want of memory once: it explains no other one', function()
        local world = booted()
        world.platform.oom = 1
        for _, slot in ipairs(world.cluster.slots) do
            slot.current.child:exit { signal = 'SIGKILL' }
        end
        world.platform:advance(10)
        local reports = world.cluster:why().exits
        assert.same({ true, false, 2 }, { reports[1].oom, reports[2].oom, #reports })
        assert.same({ 'was killed because memory ran out', 'was killed by SIGKILL' },
            { reports[1].message, reports[2].message })
    end)

    it('stops cleanly when every worker leaves then, whatever had to be killed before', function()
        local world
        world = booted { behaviour = function()
            return { ready_ms = 1, ignores_disconnect = world == nil, ignores_term = world == nil }
        end }
        restart(world, {})
        assert.is_true(world.platform:run_until(function() return #world.platform:live_children() == 2
            and world.cluster.state == 'steady' end, 60000))
        assert.equal(2, world.count 'Hard-killing worker as it did not die gracefully')
        world.cluster:stop { signal = 'SIGTERM' }
        assert.is_true(world.await('stopped', 10000))
        assert.equal(0, world.code)
        assert.equal(1, world.count 'Cluster shutdown cleanly')
    end)

    it('remembers who asked for what', function()
        local world = booted()
        local who = { pid = 7, uid = 8, command = 'ruby', parent = 'sshd' }
        world.cluster:scale(3, { cause = 'control', who = who })
        world.cluster:reload(who, assert.truthy)
        world.cluster:stop { cause = 'signal', signal = 'SIGTERM', who = who }
        world.platform:advance(1)
        local found = {}
        for _, record in ipairs(world.records) do
            if record.by then
                found[#found + 1] = record.msg
                assert.equal(who, record.by)
            end
        end
        assert.same({ 'Scaling cluster', 'Reload requested', 'Shutdown requested' }, found)
        local request = world.cluster.last_request
        assert.same({ 'stop', 'signal', 'SIGTERM', who }, { request.verb, request.cause, request.signal, request.by })
    end)

    it('scales by starting or draining the difference', function()
        local world = booted()
        local before = {}
        for id in pairs(world.cluster.workers) do
            before[id] = true
        end
        assert.is_true(world.cluster:scale(5))
        world.platform:advance(100)
        assert.equal(5, #world.platform:live_children())
        for id in pairs(before) do
            assert.equal('running', world.cluster.workers[id].state)
        end
        assert.is_true(world.cluster:scale(1))
        world.platform:advance(100)
        assert.equal(1, #world.platform:live_children())
        for _, count in ipairs { 0, -1, 1.5, 4097, 0 / 0, '3' } do
            assert.is_nil((world.cluster:scale(count)))
        end
    end)

    it('refuses more workers than its sockets can have, and serves on', function()
        local world = booted()
        world.sockets.most = 3
        assert.is_true(world.cluster:scale(3))
        world.await('steady')
        local ok, message, code = world.cluster:scale(4)
        assert.is_nil(ok)
        assert.same({ 'too many workers', 'E2BIG' }, { message, code })
        world.plan = fake.plan { num_workers = 4 }
        world.cluster:reload(nil, function(_, err)
            assert.equal('too many workers', err.message)
        end)
        local verdicts = {}
        restart(world, verdicts)
        world.platform:advance(100)
        assert.same({ 'aborted', 'too many workers' }, { verdicts[1].result, verdicts[1].message })
        assert.same({ 1, 1, 1 }, generations(world))
    end)

    it('keeps what was scaled by hand until numWorkers itself changes', function()
        local world = booted()
        world.cluster:scale(4)
        world.platform:advance(100)
        restart(world, {})
        world.await('steady')
        assert.equal(4, #world.cluster.slots)
        world.plan = fake.plan { num_workers = 3 }
        restart(world, {})
        world.await('steady')
        world.platform:advance(100)
        assert.equal(3, #world.platform:live_children())
    end)

    it('stops during boot, during a roll, and at once when asked twice', function()
        local world = fake.new { behaviour = function()
            return { exit_ms = 5 }
        end }
        world.boot()
        world.platform:advance(5)
        world.cluster:stop { signal = 'SIGTERM' }
        assert.is_true(world.await('stopped', 10000))
        assert.equal(0, world.code)

        world = booted()
        local verdicts = {}
        restart(world, verdicts)
        world.platform:advance(5)
        world.cluster:stop { signal = 'SIGTERM' }
        assert.is_true(world.await('stopped', 10000))
        assert.equal('stopped', verdicts[1].result)
        assert.equal(0, world.code)

        world = booted { behaviour = function()
            return { ready_ms = 5, ignores_disconnect = true, ignores_term = true }
        end }
        world.cluster:stop { signal = 'SIGINT' }
        world.platform:advance(100)
        world.cluster:stop { signal = 'SIGINT' } -- the same key press
        world.platform:advance(100)
        assert.is_nil(world.code)
        world.cluster:stop { signal = 'SIGINT' }
        world.platform:advance(5)
        assert.equal(1, world.code)
    end)

    it('is not stopped at once by a stop that it is told of again, however late', function()
        local world = booted { behaviour = function()
            return { ready_ms = 5, ignores_disconnect = true, ignores_term = true }
        end }
        local asked = world.platform.now()
        world.platform:advance(300) -- its master died, and another one hears of it
        world.cluster:stop { signal = 'SIGTERM', at = asked }
        world.platform:advance(300)
        world.cluster:stop { signal = 'SIGTERM', at = asked }
        world.cluster:stop { signal = 'SIGTERM', at = asked + 199 } -- of timeout(1): it and its group
        world.cluster:stop { signal = 'SIGINT', at = asked - 50 }
        world.platform:advance(100)
        assert.is_nil(world.code)
        world.cluster:stop { signal = 'SIGTERM', at = asked + 200 }
        assert.equal(1, #world.messages('warn'))
        world.cluster:stop { signal = 'SIGTERM', at = asked + 200 }
        assert.same({ 'Shutdown requested again, killing the workers' }, world.messages('warn'))
        world.platform:advance(5)
        assert.equal(1, world.code)
    end)

    it('refuses what comes after a stop', function()
        local world = booted { behaviour = function()
            return { ready_ms = 5, ignores_disconnect = true }
        end }
        world.cluster:stop { signal = 'SIGTERM' }
        local verdicts = {}
        restart(world, verdicts)
        assert.equal('stopped', verdicts[1].result)
        assert.is_nil((world.cluster:scale(3)))
    end)

    it('forks nothing for a reload that is answered when it stops already', function()
        local slow_ms = 0
        local world = booted { behaviour = function()
            return { ready_ms = 5, exit_ms = 2000 }
        end, script_ms = function()
            return slow_ms
        end }
        slow_ms, world.plan = 500, fake.plan { num_workers = 5 }
        local answers = {}
        world.cluster:reload(nil, function(changes, err)
            answers[#answers + 1] = changes or err.message
        end)
        world.cluster:stop { signal = 'SIGTERM' }
        world.platform:advance(1500)
        assert.same({ 'the cluster is stopping' }, answers)
        assert.same({ 2, 0 }, { world.platform.spawned, #world.cluster.slots })
        assert.is_true(world.await('stopped'))
        assert.equal(0, world.code)
        assert.equal(0, world.platform:armed())
    end)

    it('survives a bad script: the last good one serves on, a roll is refused', function()
        local bad
        local world = booted { evaluate = function()
            if bad then
                return nil, { message = 'master.lua:3: oh' }
            end
            return true
        end }
        bad = true
        local verdicts = {}
        restart(world, verdicts)
        assert.equal('aborted', verdicts[1].result)
        assert.equal('master.lua:3: oh', verdicts[1].message)
        assert.equal('steady', world.cluster.state)
        world.platform:live_children()[1]:exit { code = 1 }
        world.platform:advance(50)
        assert.equal(2, #world.platform:live_children())
        assert.equal(1, world.count 'Script is bad, the last good one stays in force: master.lua:3: oh')
    end)

    it('abandons a fork whose beforeFork throws or says no, and tries again later', function()
        local answer
        local world
        world = booted { plan = fake.plan { num_workers = 1, hooks = { beforeFork = true } }, hooks = {
            beforeFork = function()
                if answer == 'throw' then
                    return nil, { message = 'master.lua:5: beforeFork: oh' }
                elseif answer == 'no' then
                    return true, false, 'not now'
                end
                return true
            end,
        } }
        for _, how in ipairs { 'throw', 'no' } do
            answer = how
            world.platform:live_children()[1]:exit { code = 1 }
            world.platform:advance(500)
            assert.equal(0, #world.platform:live_children())
            answer = nil
            world.platform:advance(60000)
            assert.equal(1, #world.platform:live_children())
        end
        assert.is_true(world.count 'Fork abandoned: beforeFork said no: not now' >= 1)
        assert.is_true(world.count 'Fork abandoned: master.lua:5: beforeFork: oh' >= 1)
    end)

    it('ends with 71 when nothing can be forked, for a reason of the system: it would be the same for ever', function()
        local world = fake.new { plan = fake.plan { worker_output = '/nowhere/out' } }
        world.platform.open_append = function() return nil, '/nowhere/out: no such file or directory' end
        world.boot()
        world.platform:advance(10)
        assert.same({ 71, 'workerOutput: /nowhere/out: no such file or directory' },
            { world.code, snapshot.summary(world.cluster).failure })
        assert.equal(0, world.platform.spawned)
    end)

    it('ends with 78 when beforeFork throws before anything was forked', function()
        local world = fake.new { plan = fake.plan { hooks = { beforeFork = true } }, hooks = {
            beforeFork = function()
                return nil, { message = 'master.lua:5: beforeFork: oh' }
            end,
        } }
        world.boot()
        world.platform:advance(10)
        assert.equal(78, world.code)
        assert.equal(0, world.platform.spawned)
    end)

    it('retries a fork that the system refuses, and keeps the old worker meanwhile', function()
        local refused
        local world = booted { plan = fake.plan { num_workers = 1, restart_attempts = 5 }, behaviour = function()
            return refused and { fork_fails = 'EAGAIN' } or good()
        end }
        refused = true
        local verdicts = {}
        restart(world, verdicts)
        world.platform:advance(150)
        assert.equal(1, #world.platform:live_children())
        refused = false
        world.await('steady')
        assert.equal('done', verdicts[1].result)
    end)

    it('restarts while booting: the new generation boots', function()
        local world = fake.new { behaviour = function()
            return { ready_ms = 100, exit_ms = 1 }
        end }
        world.boot()
        world.platform:advance(50)
        local verdicts = {}
        restart(world, verdicts)
        world.await('steady')
        assert.same({ 2, 2 }, generations(world))
        assert.equal('done', verdicts[1].result)
        assert.equal(1, world.count 'Cluster ready')
    end)
end)
