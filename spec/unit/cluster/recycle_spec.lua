local fake = require 'spec.support.fake_cluster'
local Recycle = require 'dutch-master.cluster.recycle'

local MIB = 1048576

describe('recycle', function()
    local world, recycle

    -- Three workers that serve, looked at by these limits.
    local function start(limits)
        world = fake.new { plan = fake.plan { num_workers = 3 }, behaviour = function()
            return { ready_ms = 10, exit_ms = 5, closes_first = true }
        end }
        world.boot()
        assert.is_true(world.await 'steady')
        recycle = Recycle.new { platform = world.platform, log = world.log, cluster = world.cluster }
        recycle:adopt(limits)
    end

    after_each(function()
        recycle:close()
        world.cluster:stop { now = true }
        world.platform:advance(1)
        assert.equal(0, world.platform:armed())
    end)

    it('looks again after a look that failed', function()
        start { max_lifetime_ms = 60000 }
        local now, fails = world.platform.proc_stat, 0
        recycle.plan = { max_memory = 1 }
        world.platform.proc_stat = function()
            fails = fails + 1
            error 'a look'
        end
        for i = 1, 3 do
            assert.has_error(function() world.platform:advance(5000) end)
            assert.equal(i, fails)
        end
        world.platform.proc_stat = now
    end)

    it('replaces workers that are too old, one at a time, and not all at one moment', function()
        start { max_lifetime_ms = 60000 }
        world.platform:advance(53000)
        assert.equal(3, world.platform.spawned)
        local most = 0
        world.platform:run_until(function()
            most = math.max(most, #world.platform:live_children())
            return world.platform.spawned == 6 and #world.platform:live_children() == 3
        end, 30000)
        assert.same({ 6, 4 }, { world.platform.spawned, most })
        assert.equal(3, world.count 'Recycling worker')
        assert.matches('^%d+ s old, maxLifetime is 60 s$', world.cluster:why(1).exits[1].why)
    end)

    it('replaces a worker that is too large, with the reason', function()
        start { max_memory = 512 * MIB }
        local large = world.cluster.slots[2].current
        world.platform.proc_stat = function(pid)
            return { rss_kb = (pid == large.pid and 600 or 512) * 1024 } -- what is allowed is not too much
        end
        world.platform:advance(5100)
        assert.same({ 'exited', 4 }, { large.state, world.platform.spawned })
        assert.equal('600 MiB of memory, maxMemory is 512 MiB', large.report.why)
    end)

    it('waits while a slot is not served, or a restart goes on', function()
        start { max_lifetime_ms = 1 }
        world.platform:live_children()[1]:exit { code = 1 }
        recycle:look()
        assert.equal(0, world.count 'Recycling worker')
        world.platform:advance(100)
        world.cluster:restart { cause = 'signal' }
        recycle:look()
        assert.equal(0, world.count 'Recycling worker')
        assert.is_true(world.await 'steady')
        recycle:look()
        assert.equal(1, world.count 'Recycling worker')
        world.platform:advance(1000)
    end)

    it('looks at nobody without a limit', function()
        start { max_lifetime_ms = 1 }
        recycle:adopt {}
        world.platform:advance(60000)
        assert.equal(3, world.platform.spawned)
    end)
end)
