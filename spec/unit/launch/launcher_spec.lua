local fake = require 'spec.support.fake_cluster'

local function good()
    return { ready_ms = 10, exit_ms = 5 }
end

-- A world whose script takes world.takes ms for each answer.
local function slow(options)
    local world
    options.behaviour = options.behaviour or good
    options.script_ms = function()
        return world and world.takes or 0
    end
    world = fake.new(options)
    world.takes = 0
    return world
end

describe('launcher', function()
    it('gives a worker at once, which is preparing until the script has answered', function()
        local world = slow { plan = fake.plan { num_workers = 1 } }
        world.takes = 100
        world.boot()
        world.platform:advance(1)
        local slot = world.cluster.slots[1]
        assert.equal('preparing', slot.incoming.state)
        assert.same({ 0, 0 }, { world.cluster.process_count, world.platform.spawned })
        world.platform:advance(250)
        assert.same({ 1, 1 }, { world.cluster.process_count, world.platform.spawned })
        assert.is_true(world.await 'steady')
    end)

    it('a worker that is told to stop while it is prepared just ends, and its answer comes too late', function()
        local world = slow { plan = fake.plan { num_workers = 3 } }
        world.boot()
        assert.is_true(world.await 'steady')
        world.takes = 4000
        world.cluster:scale(5)
        world.platform:advance(100)
        assert.equal(2, (function()
            local count = 0
            for _, slot in ipairs(world.cluster.slots) do
                count = count + (slot.incoming and slot.incoming.state == 'preparing' and 1 or 0)
            end
            return count
        end)())
        world.cluster:stop { signal = 'SIGTERM' }
        world.platform:advance(200)
        assert.equal('stopped', world.cluster.state)
        assert.equal(3, world.platform.spawned)
        world.platform:advance(20000)
        assert.equal(3, world.platform.spawned)
        assert.same({}, world.bugs)
        assert.same({}, world.errors)
    end)

    it('a fork that waits for the script delays no other, no crash and no restart request', function()
        local world = slow { plan = fake.plan { num_workers = 2, hooks = { beforeFork = true } } }
        world.boot()
        assert.is_true(world.await 'steady')
        world.takes = 1000
        world.cluster:scale(3)
        world.platform:advance(100)
        world.takes = 0
        world.platform:live_children()[1]:exit { code = 1 }
        world.platform:advance(200) -- backoff, fork, ready
        assert.equal(2, #world.platform:live_children())
        world.cluster:restart { signal = 'SIGUSR2' }
        assert.equal('rolling', world.cluster.state)
        assert.is_true(world.await('steady', 10000))
        world.platform:advance(100)
        assert.equal(3, #world.platform:live_children())
        assert.same({}, world.bugs)
    end)

    -- Breaks a thing once; what follows is as it was.
    local function once(object, name, fn)
        local former = object[name]
        object[name] = function(...)
            object[name] = former
            return (fn or error)(former, ...)
        end
    end
    local BROKEN = {
        ['in the answer of the script'] = function(world)
            once(world.launcher, 'queue', function(former, ...)
                world.plan.hooks = nil
                local result = former(...)
                world.plan.hooks = {}
                return result
            end)
        end,
        ['with the first question'] = function(world)
            once(world.launcher.script, 'evaluate')
        end,
        ['before the fork'] = function(world)
            once(world.launcher.releases, 'place')
        end,
        ['in the fork'] = function(world)
            once(world.platform, 'spawn')
        end,
        ['behind the fork'] = function(world)
            once(world.platform, 'spawn', function(former, ...)
                local child = former(...)
                once(child, 'pid')
                return child
            end)
        end,
    }
    for where, break_it in pairs(BROKEN) do
        it('an error of ours ' .. where .. ' is the end of that fork, and the next one comes', function()
            local world = slow { plan = fake.plan { num_workers = 1 } }
            world.boot()
            assert.is_true(world.await 'steady')
            break_it(world)
            world.platform:live_children()[1]:exit { code = 1 }
            world.platform:advance(110) -- backoff
            local slot = world.cluster.slots[1]
            assert.is_nil(slot.incoming)
            world.platform:advance(400)
            assert.equal('running', slot.current.state)
            assert.equal(1, #world.platform:live_children())
            assert.equal(1, world.cluster.process_count)
            local said = {}
            for _, record in ipairs(world.records) do
                said[#said + 1] = record.msg:match '^Fork %w+: an internal error$' and record.traceback:match 'stack traceback'
            end
            assert.same({ 'stack traceback' }, said)
            assert.same({}, world.bugs)
            assert.same({}, world.errors)
            world.cluster:stop { signal = 'SIGTERM' }
            assert.is_true(world.await 'stopped')
        end)
    end

    it('uses the last good script when the newest is bad, from its text', function()
        local bad
        local world = slow { plan = fake.plan { num_workers = 1 }, evaluate = function()
            return not bad, { kind = 'syntax', message = 'master.lua:1: oh' }
        end }
        world.boot()
        assert.is_true(world.await 'steady')
        bad = true
        world.platform:live_children()[1]:exit { code = 1 }
        world.platform:advance(200)
        assert.equal(1, #world.platform:live_children())
        assert.equal(1, world.count 'Script is bad, the last good one stays in force: master.lua:1: oh')
    end)

    it('ends loads in the order in which they were asked for', function()
        local world = slow { plan = fake.plan { num_workers = 1 } }
        world.boot()
        local order = {}
        world.takes = 500
        world.launcher:load(function() table.insert(order, 'first') end)
        world.takes = 1
        world.launcher:load(function() table.insert(order, 'second') end)
        world.launcher:preview(function() table.insert(order, 'preview') end)
        world.platform:advance(1000)
        assert.same({ 'preview', 'first', 'second' }, order)
    end)

    it('evaluates once for all who ask while it evaluates, and each hears of an evaluation that began after it asked', function()
        local text, evaluated = 'first', {}
        local world = slow { plan = fake.plan { num_workers = 1 }, evaluate = function()
            evaluated[#evaluated + 1] = text
            return text ~= 'bad', { kind = 'syntax', message = 'master.lua:1: oh' }
        end }
        world.boot()
        assert.is_true(world.await 'steady')
        evaluated, world.takes = {}, 1000
        local said = {}
        local function load(name)
            world.launcher:load(function(loaded, err)
                said[#said + 1] = name .. (loaded and '' or ': ' .. err.message)
            end)
        end
        load 'a'
        world.platform:advance(1500) -- it is evaluated, and asked for its number of workers
        text = 'bad'
        for _, name in ipairs { 'b', 'c', 'd' } do
            load(name)
        end
        world.platform:advance(1600)
        text = 'good'
        load 'e'
        world.platform:advance(10000)
        assert.same({ 'a', 'b: master.lua:1: oh', 'c: master.lua:1: oh', 'd: master.lua:1: oh', 'e' }, said)
        assert.equal(3, #evaluated)
    end)

    it('a flood of restarts during a slow evaluation costs one more, and each has its verdict', function()
        local world = slow { plan = fake.plan { num_workers = 1 } }
        world.boot()
        assert.is_true(world.await 'steady')
        world.takes = 1000
        local before, verdicts = world.launcher.evaluations, {}
        for _ = 1, 20 do
            fake.restart(world, verdicts)
            world.platform:advance(10)
        end
        assert.is_true(world.platform:run_until(function()
            return #verdicts == 20
        end, 10000))
        for i = 1, 19 do
            assert.equal('superseded', verdicts[i].result)
        end
        assert.equal('done', verdicts[20].result)
        assert.equal(2 + 1, world.launcher.evaluations - before) -- and one of the fork
        assert.same({}, world.bugs)
    end)
end)
