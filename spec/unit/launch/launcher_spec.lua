local fake = require 'spec.support.fake_cluster'

local function slow(world)
    return function()
        world.calls = world.calls + 1
        world.platform.clock = world.platform.clock + 5000
        return nil, { kind = 'budget', message = 'master.lua:1: beforeFork took longer than its budget of 5 s' }
    end
end

describe('launcher', function()
    it('leaves a script alone that took all its time, so that the master hears of other things', function()
        local hooks = {}
        local world = fake.new { hooks = hooks, plan = fake.plan { num_workers = 10, hooks = { beforeFork = true } },
            behaviour = function() return { ready_ms = 10, exit_ms = 5 } end }
        world.calls = 0
        world.boot()
        assert.is_true(world.await 'steady')
        hooks.beforeFork = slow(world)
        world.cluster:restart { signal = 'SIGUSR2' }
        world.platform:advance(1)
        assert.equal(1, world.calls) -- not ten times in one turn
        assert.is_true(world.count 'Fork abandoned: the script took too long a moment ago' >= 9)
        world.cluster:stop { signal = 'SIGTERM' }
        assert.is_true(world.await 'stopped')
        assert.is_true(world.calls <= 2)
    end)

    it('runs such a script again after a rest', function()
        local hooks = {}
        local world = fake.new { hooks = hooks, plan = fake.plan { num_workers = 1, hooks = { beforeFork = true } },
            behaviour = function() return { ready_ms = 10, exit_ms = 5 } end }
        world.calls = 0
        world.boot()
        assert.is_true(world.await 'steady')
        hooks.beforeFork = slow(world)
        world.platform:live_children()[1]:exit { code = 1 }
        assert.is_true(world.platform:run_until(function() return world.calls == 2 end, 20000))
        hooks.beforeFork = nil
        assert.is_true(world.platform:run_until(function() return #world.platform:live_children() == 1 end, 20000))
    end)
end)
