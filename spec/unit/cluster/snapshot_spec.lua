local fake = require 'spec.support.fake_cluster'
local snapshot = require 'dutch-master.cluster.snapshot'

describe('snapshot', function()
    local world

    before_each(function()
        world = fake.new { behaviour = function()
            return { ready_ms = 100, exit_ms = 50, closes_first = true }
        end }
        world.platform.proc_stat = function(pid)
            return pid == 1 and { rss_kb = 9000, cpu_ms = 7 } or { rss_kb = 2000, cpu_ms = 3 }
        end
        world.platform.version = '1.2.3'
        world.sockets.snapshot = function()
            return { balance = 'steered', { queue = 4, steered = true } }
        end
        world.boot()
    end)

    it('shows a cluster that boots, its slots and its workers', function()
        world.platform:advance(10)
        local full = snapshot.full(world.cluster)
        assert.same({ 'booting', 1, 2, 10, 9000, 7, 'steered', '1.2.3' }, { full.state, full.generation, full.wanted,
            full.uptime_ms, full.rss_kb, full.cpu_ms, full.balance, full.version })
        local worker = full.workers[1]
        assert.same({ 1, 1, 101, 'starting', 1, '/release', 10, false, 0, 2000, 3, 4, true }, { worker.id, worker.slot,
            worker.pid, worker.state, worker.generation, worker.release, worker.uptime_ms, worker.ready, worker.restarts,
            worker.rss_kb, worker.cpu_ms, worker.queue, worker.steered })
        assert.same({ 2, nil }, { full.workers[2].id, full.workers[2].queue })
        assert.same({ slot = 1, state = 'filling', failures = 0, restarts = 0 }, full.slots[1])
        assert.same({ 2, 0, nil }, { full.wanted, snapshot.summary(world.cluster).serving, full.roll })
    end)

    it('shows both workers of a slot during a restart, in the order of slots, and how far it is', function()
        assert.is_true(world.await 'steady')
        assert.equal(2, snapshot.summary(world.cluster).serving)
        world.cluster:restart { cause = 'signal', signal = 'SIGUSR2' }
        world.platform:advance(60)
        local full = snapshot.full(world.cluster)
        local order = {}
        for i, worker in ipairs(full.workers) do
            order[i] = ('%d/%d %s'):format(worker.slot, worker.id, worker.state)
        end
        assert.same({ '1/1 retiring', '1/3 starting', '2/2 retiring', '2/4 starting' }, order)
        assert.same({ generation = 2, total = 2, done = 0, elapsed_ms = 60 }, full.roll)
        assert.same({ 'restart', 'SIGUSR2' }, { full.last_request.verb, full.last_request.signal })
        local summary = snapshot.summary(world.cluster)
        assert.same({ 'rolling', 4, 2, 0 }, { summary.state, summary.processes, summary.serving, summary.roll.done })
        assert.is_true(world.await 'steady')
        assert.same({ 'done', nil }, { snapshot.full(world.cluster).last_verdict.result, snapshot.full(world.cluster).roll })
        assert.is_true(snapshot.summary(world.cluster).restarts > summary.restarts - 1)
    end)

    it('says how long a slot waits for its next fork, and only while it waits', function()
        assert.is_true(world.await 'steady')
        for _ = 1, 3 do
            world.platform:run_until(function() return world.cluster.slots[1].incoming or world.cluster.slots[1].current end,
                60000)
            local slot = world.cluster.slots[1]
            ;(slot.incoming or slot.current).child:exit { code = 1 }
        end
        local slot = snapshot.full(world.cluster).slots[1]
        assert.same({ 'filling', 3 }, { slot.state, slot.failures })
        assert.is_true(slot.backoff_ms > 100 and slot.backoff_ms <= 250, slot.backoff_ms)
        assert.is_nil(snapshot.full(world.cluster).slots[2].backoff_ms)
    end)

    it('tells why: of one worker or of all, with what was asked and what came of it', function()
        assert.is_true(world.await 'steady')
        world.cluster:restart { cause = 'control', who = { pid = 9 } }
        assert.is_true(world.await 'steady')
        world.platform:advance(1000)
        local all = snapshot.why(world.cluster)
        assert.same({ 2, 3, 2, 'steady', 'done', 9, nil }, { #all.exits, all.exits[1].worker + all.exits[2].worker, #all.slots, all.state,
            all.verdict.result, all.request.by.pid, all.alive })
        local gone, alive = snapshot.why(world.cluster, 2), snapshot.why(world.cluster, 3)
        assert.same({ 1, 2, nil }, { #gone.exits, gone.exits[1].worker, gone.alive })
        assert.same({ 0, 3, 'running' }, { #alive.exits, alive.alive.id, alive.alive.state })
    end)
end)
