-- Restarts of a whole cluster (restart_spec: the machine alone).
-- Longer than 400 lines: one kind of event, and all that can come between.

local fake = require 'spec.support.fake_cluster'
local snapshot = require 'dutch-master.cluster.snapshot'

local good, booted, restart, generations = fake.good, fake.booted, fake.restart, fake.generations

describe('a roll of the cluster', function()
    it('replaces all at once by default, and lets nobody go before all replacements serve', function()
        local slow
        local world
        world = booted { behaviour = function()
            return { ready_ms = world and world.platform.spawned == 3 and slow or 10, exit_ms = 5 }
        end }
        slow = 5000
        local verdicts = {}
        restart(world, verdicts)
        world.platform:advance(1)
        assert.equal(4, #world.platform:live_children())
        world.platform:advance(4000)
        assert.equal(4, #world.platform:live_children())
        assert.same({ 1, 1 }, generations(world))
        world.platform:advance(1100)
        assert.same({ 2, 2 }, generations(world))
        assert.equal(2, #world.platform:live_children())
        assert.equal('done', verdicts[1].result)
    end)

    it('replaces as many at a time as restartConcurrency says', function()
        for _, case in ipairs { { 1, 5 }, { 0.5, 6 }, { 3, 7 }, { 0.01, 5 } } do
            local world = booted { plan = fake.plan { num_workers = 4, restart_concurrency = case[1] } }
            local most = 0
            restart(world, {})
            world.platform:run_until(function()
                most = math.max(most, #world.platform:live_children())
                return world.cluster.state == 'steady'
            end, 60000)
            assert.equal(case[2], most, 'restartConcurrency = ' .. case[1])
            assert.same({ 2, 2, 2, 2 }, generations(world))
        end
    end)

    it('lets a replacement serve restartSoak before its predecessor goes, and keeps that one if it crashes', function()
        local bad
        local world = booted { plan = fake.plan { num_workers = 1, restart_soak_ms = 1000, restart_attempts = 2 },
            behaviour = function()
                return bad and { ready_ms = 10, crash_ms = 500, code = 3 } or good()
            end }
        local _, old = next(world.cluster.workers)
        bad = true
        local verdicts = {}
        restart(world, verdicts)
        world.await('steady')
        assert.equal('aborted', verdicts[1].result)
        assert.equal(3, verdicts[1].failure.code)
        assert.equal('running', old.state)
        assert.equal(old, world.cluster.slots[1].current)
    end)

    it('has failed by a replacement that closes its servers, or hangs, while it has to prove itself', function()
        for _, what in ipairs { 'closed', 'tried', 'hung' } do
            local world = booted { plan = fake.plan { num_workers = 1, restart_soak_ms = 3000, restart_attempts = 1,
                watchdog_ms = 1000, ready_timeout_ms = 20000 } }
            local _, old = next(world.cluster.workers)
            local verdicts = {}
            restart(world, verdicts)
            world.platform:advance(what == 'tried' and 100 or 2000)
            local new = world.cluster.slots[1].incoming
            if what == 'hung' then
                world.agenda:post(new, 'hung', 'it says so')
            else
                new.conversation.on_close_server({ stream = true }, {})
                world.platform:advance(what == 'tried' and 900 or 0)
                assert.equal(what == 'tried', old.state == 'retiring')
            end
            world.platform:advance(8000)
            assert.equal('aborted', verdicts[1] and verdicts[1].result, what)
            assert.matches('while it had to prove itself', verdicts[1].message)
            assert.same({ old, 'running' }, { world.cluster.slots[1].current, old.state })
        end
    end)

    it('lets a canary serve alone with its share, and asks the judge before the others are replaced', function()
        local answer, seen = false
        local world = booted {
            plan = fake.plan { num_workers = 3, hooks = { judge = true },
                restart_concurrency = { canary = { soak_ms = 5000, weight = 0.1, judge = true } } },
            hooks = { judge = function(new, old)
                seen = { new = new.generation, old = old.generation }
                return true, answer, 'too slow'
            end },
        }
        local verdicts = {}
        restart(world, verdicts)
        world.platform:advance(4900)
        assert.equal(4, #world.platform:live_children())
        assert.is_true(math.abs(world.sockets.weights[4] - 1 / 3) < 1e-9) -- a tenth, when three others have 1 each
        assert.is_nil(seen)
        world.await('steady')
        assert.same({ new = 2, old = 1 }, seen)
        assert.equal('aborted', verdicts[1].result)
        assert.equal('the canary was rejected: too slow', verdicts[1].message)
        assert.same({ 1, 1, 1 }, generations(world))
        answer = true
        restart(world, verdicts)
        world.platform:advance(5100)
        assert.equal('done', verdicts[2].result)
        assert.same({ 3, 3, 3 }, generations(world))
        for _, slot in ipairs(world.cluster.slots) do
            assert.equal(1, world.sockets.weights[slot.current.id] or 1)
        end
    end)

    it('aborts a roll whose replacement fails restartAttempts times; the old workers stay', function()
        local bad
        local world = booted { behaviour = function()
            return bad and { crash_ms = 5, code = 7 } or good()
        end }
        bad = true
        local verdicts = {}
        restart(world, verdicts)
        world.await('steady')
        assert.equal(1, #verdicts)
        local verdict = verdicts[1]
        assert.equal('aborted', verdict.result)
        assert.equal(7, verdict.failure.code)
        assert.equal(0, verdict.done)
        assert.matches('^replacement of slot %d failed 3 times: exited with code 7$', verdict.message)
        assert.same({ 1, 1 }, generations(world))
        world.platform:advance(5000)
        assert.equal(2, #world.platform:live_children())
        assert.equal(1, world.cluster.generation)
        bad = false
        restart(world, verdicts)
        world.await('steady')
        assert.equal('done', verdicts[2].result)
        assert.same({ 3, 3 }, generations(world))
    end)

    describe('that aborts a roll after some slots were replaced', function()
        local FAILED = 'replacement of slot 3 failed 3 times: exited with code 7'

        -- Four slots, one at a time; the release /b serves twice and fails then.
        local function halfway(options)
            local world
            options = options or {}
            options.plan = options.plan or fake.plan { num_workers = 4, restart_concurrency = 1 }
            options.cwd = options.cwd or function()
                return world and world.dir or '/a'
            end
            options.behaviour = function(fields)
                if fields.cwd == '/b' or world and world.broken then
                    world.served = (world.served or 0) + 1
                    return world.served > 2 and { crash_ms = 5, code = 7 } or good()
                end
                return good()
            end
            world = booted(options)
            world.dir, world.verdicts = '/b', {}
            return world
        end

        local function goes_back(world)
            return world.cluster.restarting and world.cluster.restarting.state == 'rolling_back'
        end

        local function directories(world)
            local list = {}
            for _, slot in ipairs(world.cluster.slots) do
                list[#list + 1] = slot.current and slot.current.release or 'nobody'
            end
            return list
        end

        it('brings them back to the release that the others run', function()
            local world = halfway()
            local progress = {}
            world.cluster:restart { cause = 'control', on_progress = function(state)
                progress[#progress + 1] = ('%d/%d%s'):format(state.done, state.total, state.back and ' back' or '')
            end, on_verdict = function(verdict)
                world.verdicts[#world.verdicts + 1] = verdict
            end }
            local most, summary = 0, nil
            world.platform:run_until(function()
                most = math.max(most, #world.platform:live_children())
                summary = goes_back(world) and snapshot.summary(world.cluster) or summary
                return world.cluster.state == 'steady'
            end, 60000)
            assert.same({ '1/4', '2/4', '1/2 back', '2/2 back' }, progress)
            assert.is_true(most <= 6, most)
            assert.same({ true, 2 }, { summary.roll.back, summary.roll.total })
            assert.equal(1, #world.verdicts)
            local verdict = world.verdicts[1]
            assert.same({ 'rolled_back', 2, 4, 0 },
                { verdict.result, verdict.generation, verdict.total, verdict.done })
            assert.same({ FAILED, 7 }, { verdict.message, verdict.failure.code })
            assert.equal(verdict, world.cluster.last_verdict)
            assert.same({ '/a', '/a', '/a', '/a' }, directories(world))
            assert.equal(1, world.count 'Restart rolled back, the old release serves')
            assert.equal(0, world.count 'Restart aborted, the old workers stay')
            -- A crash later on does not bring the failed release in, until the next restart.
            for _ = 1, 4 do
                world.platform:live_children()[1]:exit { signal = 'SIGSEGV' }
                world.platform:advance(2000)
            end
            assert.same({ '/a', '/a', '/a', '/a' }, directories(world))
            world.dir = '/c'
            restart(world, world.verdicts)
            world.await 'steady'
            assert.equal('done', world.verdicts[2].result)
            assert.same({ '/c', '/c', '/c', '/c' }, directories(world))
            world.dir = '/d'
            world.cluster.slots[1].current.child:exit { signal = 'SIGSEGV' }
            world.platform:advance(2000)
            assert.equal('/d', world.cluster.slots[1].current.release)
            assert.same({}, world.bugs)
        end)

        it('takes those along that were added, or crashed, meanwhile', function()
            for _, served in ipairs { 2, 0 } do -- the failed release serves no more, or once again: in an added slot
                local world = halfway()
                restart(world, world.verdicts)
                world.platform:run_until(function() return world.cluster.restarting.walk.done == 2 end, 60000)
                world.served = served == 0 and 1 or world.served
                world.cluster:scale(5)
                world.cluster.slots[1].current.child:exit { signal = 'SIGSEGV' }
                world.await 'steady'
                world.platform:advance(2000)
                assert.equal('rolled_back', world.verdicts[1].result)
                assert.same({ '/a', '/a', '/a', '/a', '/a' }, directories(world))
                assert.same({}, world.bugs)
                assert.same({}, world.errors)
            end
        end)

        it('brings back one that crashed while the verdict waited for the end of the failed worker', function()
            local dir, served = '/a', 0
            local world = booted {
                plan = fake.plan { num_workers = 2, restart_concurrency = 1, restart_attempts = 1 },
                cwd = function() return dir end,
                behaviour = function(fields)
                    served = served + (fields.cwd == '/b' and 1 or 0)
                    return served < 2 and good() or fields.cwd == '/b' and { ignores_term = true } or good()
                end,
            }
            dir, world.verdicts = '/b', {}
            restart(world, world.verdicts)
            world.platform:run_until(function() return served == 2 end, 60000)
            world.cluster.slots[2].incoming.child:close_channel()
            world.platform:advance(10)
            assert.same({ 1, 0 }, { world.cluster.generation, #world.verdicts })
            world.cluster.slots[1].current.child:exit { signal = 'SIGSEGV' }
            world.await 'steady'
            world.platform:advance(2000)
            assert.same({ '/a', '/a' }, directories(world))
            assert.equal(1, #world.verdicts)
        end)

        it('brings those back too that a superseded restart had replaced', function()
            local world = halfway()
            world.served = -10 -- /b is good
            restart(world, world.verdicts)
            world.platform:run_until(function() return world.cluster.restarting.walk.done == 2 end, 60000)
            world.served = 10 -- what comes now is not
            restart(world, world.verdicts)
            world.await 'steady'
            assert.same({ 'superseded', 'rolled_back' }, { world.verdicts[1].result, world.verdicts[2].result })
            assert.same({ '/a', '/a', '/a', '/a' }, directories(world))
            assert.same({}, world.bugs)
        end)

        it('knows them for what they are when later restarts fail too', function()
            local world = halfway()
            world.served = 1 -- it serves once
            for _ = 1, 3 do
                restart(world, world.verdicts)
                world.await 'steady'
                world.platform:advance(1000)
            end
            assert.equal('rolled_back', world.verdicts[1].result)
            assert.same({ 'aborted', 0 }, { world.verdicts[2].result, world.verdicts[2].done })
            assert.same({ 'aborted', 0 }, { world.verdicts[3].result, world.verdicts[3].done })
            assert.same({ '/a', '/a', '/a', '/a' }, directories(world))
        end)

        it('says how many stay replaced where there is no other release to go back to', function()
            local world = halfway { cwd = function() return '/app' end }
            world.broken = true
            restart(world, world.verdicts)
            world.await 'steady'
            assert.same({ 'aborted', 2, FAILED },
                { world.verdicts[1].result, world.verdicts[1].done, world.verdicts[1].message })
            assert.same({ 2, 2, 1, 1 }, generations(world))
            assert.equal(1, world.count 'Restart aborted, two releases serve')
        end)

        it('says how many stay replaced when the old release does not start any more', function()
            local world = halfway()
            restart(world, world.verdicts)
            world.platform:run_until(function() return goes_back(world) end, 60000)
            world.broken = true -- one is on its way back
            world.await 'steady'
            local verdict = world.verdicts[1]
            assert.same({ 'aborted', 1, 1 }, { verdict.result, verdict.done, #world.verdicts })
            assert.matches('^' .. FAILED .. '; the rollback was cut short: replacement of slot 2 failed 3 times',
                verdict.message)
            assert.same({ '/a', '/b', '/a', '/a' }, directories(world))
        end)

        it('lets a later restart, a stop and a smaller number of slots interrupt the way back', function()
            local function going_back()
                local world = halfway()
                restart(world, world.verdicts)
                world.platform:run_until(function() return goes_back(world) end, 60000)
                return world
            end
            local world = going_back()
            world.dir = '/c'
            restart(world, world.verdicts)
            world.await 'steady'
            assert.same({ 'superseded', 'done' }, { world.verdicts[1].result, world.verdicts[2].result })
            assert.same({ '/c', '/c', '/c', '/c' }, directories(world))

            world = going_back()
            world.cluster:stop { signal = 'SIGTERM' }
            assert.is_true(world.await 'stopped')
            assert.same({ 'stopped', 0 }, { world.verdicts[1].result, world.code })

            world = going_back()
            world.cluster:scale(1)
            world.await 'steady'
            assert.equal('rolled_back', world.verdicts[1].result)
            assert.same({ '/a' }, directories(world))
            assert.same({}, world.bugs)
            assert.same({}, world.errors)
        end)

        it('keeps to the old release after an abort, unless that is gone', function()
            local world = halfway { plan = fake.plan { num_workers = 1 } }
            world.served = 2
            restart(world, world.verdicts)
            world.await 'steady'
            assert.equal('aborted', world.verdicts[1].result)
            local function crash()
                world.platform:live_children()[1]:exit { signal = 'SIGSEGV' }
                world.platform:advance(2000)
                return directories(world)[1]
            end
            assert.equal('/a', crash())
            world.served = 0
            world.platform.realpath = function(path)
                return path ~= '/a' and path or nil
            end
            assert.equal('/b', crash())
            assert.equal(1, world.count 'The release of this generation is gone, its worker runs where the script says')
        end)
    end)

    it('gives a verdict that waits for the exit of a worker that only lost its channel', function()
        local bad
        local world = booted { plan = fake.plan { num_workers = 1, restart_attempts = 1 }, behaviour = function()
            return bad and { ignores_term = true } or good()
        end }
        bad = true
        local verdicts = {}
        restart(world, verdicts)
        world.platform:advance(10)
        local children = world.platform:live_children()
        children[#children]:close_channel()
        world.platform:advance(100)
        assert.equal(0, #verdicts)
        world.platform:advance(10500)
        assert.equal('aborted', verdicts[1].result)
        assert.equal('SIGKILL', verdicts[1].failure.signal)
    end)

    it('goes on replacing those who ask for it while such a verdict waits', function()
        local bad
        local world = booted { plan = fake.plan { restart_attempts = 1 }, behaviour = function()
            return bad and { ignores_term = true } or good()
        end }
        bad = true
        local verdicts = {}
        restart(world, verdicts)
        world.platform:advance(10)
        bad = false
        local children = world.platform:live_children()
        children[#children]:close_channel()
        local worker = world.cluster.slots[1].current
        worker.child:line('{"event":"request-restart"}')
        world.platform:advance(1000)
        assert.equal(0, #verdicts)
        assert.equal('exited', worker.state)
        assert.equal('serving', world.cluster.slots[1].state)
        world.platform:advance(10500)
        assert.equal('aborted', verdicts[1].result)
    end)

    it('lets the latest restart win, and tells the superseded requester', function()
        local world = booted { behaviour = function()
            return { ready_ms = 300, exit_ms = 5 }
        end }
        local verdicts = {}
        restart(world, verdicts)
        world.platform:advance(50)
        restart(world, verdicts)
        world.await('steady')
        assert.equal('superseded', verdicts[1].result)
        assert.equal('done', verdicts[2].result)
        assert.same({ 3, 3 }, generations(world))
        world.platform:advance(5000)
        assert.equal(2, #world.platform:live_children())
    end)

    it('does not fork in a storm when restarts come in a flood', function()
        local slow
        local world = booted { behaviour = function()
            return { ready_ms = slow and 100000 or 10, exit_ms = 5 }
        end, plan = fake.plan { num_workers = 1, ready_timeout_ms = 200000 } }
        slow = true
        local before, verdicts = world.platform.spawned, {}
        for _ = 1, 1000 do
            restart(world, verdicts)
            world.platform:advance(1)
        end
        assert.is_true(world.platform.spawned - before <= 7, (world.platform.spawned - before) .. ' forks in a second')
        assert.equal(999, #verdicts)
    end)
end)
