local Hooks = require 'dutch-master.launch.hooks'
local Platform = require 'spec.support.fake_platform'

-- Lanes whose jobs are started by hand, with one process each; a script whose calls are answered by hand.
local function new()
    local world = { platform = Platform.new(), lanes = {}, calls = {}, evaluations = {}, log = {} }
    local script = { totals = {} }
    function script.evaluate(_, process, options, done)
        table.insert(world.evaluations, options)
        if world.broken then
            return done(nil, { kind = 'runtime', message = 'settings.lua:1: broken' })
        end
        local session = { plan = world.hooks.release.plan }
        function session.keep()
            process.kept = session
        end
        function session.call(_, hook, arguments, answer, timeout)
            table.insert(world.calls, { hook = hook, arguments = arguments, answer = answer, timeout = timeout })
        end
        done(session)
    end
    local log = {}
    for _, level in ipairs { 'warn', 'error' } do
        log[level] = function(_, fields, message)
            table.insert(world.log, { level, fields.hook or fields.count, message })
        end
    end
    world.hooks = Hooks.new {
        platform = world.platform, log = log, script = script,
        new_lane = function(most)
            assert.equal(1, most)
            local lane = { queue = {} }
            local process = { lane = lane }
            local function turn()
                if not lane.busy and lane.queue[1] then
                    lane.busy = true
                    table.remove(lane.queue, 1).start(process)
                end
            end
            function lane.add(_, job)
                table.insert(lane.queue, job)
                turn()
                return true
            end
            function lane.give_back()
                lane.busy = false
                turn()
            end
            function lane.waiting() return #lane.queue end
            function lane.is_quiet() return not lane.busy and #lane.queue == 0 end
            function lane.drop(_, fn)
                local kept = {}
                for _, job in ipairs(lane.queue) do
                    if not fn(job) then table.insert(kept, job) end
                end
                lane.queue = kept
            end
            function lane.close() lane.closed = true end
            lane.process = process
            table.insert(world.lanes, lane)
            return lane
        end,
    }
    function world.adopt(hooks, more)
        local plan = { hooks = hooks, hook_timeout_ms = 5000 }
        for key, value in pairs(more or {}) do
            plan[key] = value
        end
        world.hooks:adopt { source = 'text', plan = plan }
    end
    function world.answer(...)
        table.remove(world.calls, 1).answer(...)
    end
    function world.names()
        local names = {}
        for i, call in ipairs(world.calls) do
            names[i] = call.hook
        end
        return names
    end
    return world
end

local SLOW = { kind = 'budget', message = 'master.lua:4: onMessage took longer than its budget of 5 s (hookTimeout)' }

describe('hooks', function()
    it('start no process for a script that has none', function()
        local world = new()
        world.hooks:run 'onReady'
        world.adopt {}
        world.hooks:run 'onReady'
        world.hooks:judge({}, nil, function(good) world.good = good end)
        assert.is_true(world.good)
        assert.same({}, world.lanes)
    end)

    it('run one after the other, in their order, evaluated once for each good script', function()
        local world = new()
        world.adopt { onReady = true, onWorkerExit = true }
        world.hooks:run('onReady')
        world.hooks:run('onWorkerExit', { worker = 1 }, nil)
        assert.same({ 'onReady' }, world.names())
        world.answer(true)
        assert.same({ 'onWorkerExit' }, world.names())
        assert.same({ n = 2, { worker = 1 } }, world.calls[1].arguments)
        world.answer(nil, { kind = 'runtime', message = 'master.lua:3: onWorkerExit: oh' })
        assert.same({ { 'error', 'onWorkerExit', 'Hook failed: master.lua:3: onWorkerExit: oh' } }, world.log)
        assert.same({ { source = 'text', repeated = true, budget_ms = 5000 } }, world.evaluations)
        world.adopt { onReady = true }
        world.hooks:run 'onReady'
        world.hooks:run 'onWorkerExit'
        world.answer(true)
        assert.equal(2, #world.evaluations)
        assert.equal(1, #world.lanes)
        assert.is_true(world.lanes[1].is_quiet())
    end)

    it('of the script before serve on when what it requires is broken now', function()
        local world = new()
        world.adopt { onReady = true }
        world.broken = true
        world.hooks:run 'onReady'
        assert.equal('Hook failed: settings.lua:1: broken', world.log[1][3])
        world.broken = false
        world.hooks:run 'onReady'
        world.answer(true)
        world.adopt { onReady = true }
        world.broken = true
        world.hooks:run 'onReady'
        assert.same({ 'onReady' }, world.names())
    end)

    it('that wait behind one that took all its time are skipped, the others are not', function()
        local world = new()
        world.adopt { onMessage = true, onWorkerExit = true }
        for _, hook in ipairs { 'onMessage', 'onMessage', 'onWorkerExit', 'onMessage' } do
            world.hooks:run(hook)
        end
        world.answer(nil, SLOW)
        assert.same({ 'onWorkerExit' }, world.names())
        assert.same({ 'Hook failed: ' .. SLOW.message, 'Hook skipped: the script took too long a moment ago',
            'Hook skipped: the script took too long a moment ago' },
            { world.log[1][3], world.log[2][3], world.log[3][3] })
    end)

    it('are bounded: messages more than the rest', function()
        local world = new()
        world.adopt { onMessage = true, onWorkerExit = true }
        for i = 1, 300 do
            world.hooks:run('onMessage', i)
        end
        assert.same({ { 'warn', 'onMessage', 'Hook skipped: too many of them wait for the script' } }, world.log)
        for _ = 1, 257 do
            world.answer(true)
        end
        assert.same({}, world.calls)
        world.hooks:run 'onWorkerExit'
        assert.same({ 'warn', 43, 'Hooks skipped' }, world.log[2])
    end)

    it('every has its own function and time', function()
        local world = new()
        world.adopt { every = { { interval_ms = 1000 }, { interval_ms = 1000, timeout_ms = 20000 } } }
        world.hooks:run('every', 2)
        assert.same({ ms = 20000, option = 'every' }, world.calls[1].timeout)
        world.answer(true)
        world.hooks:run('every', 1)
        assert.is_nil(world.calls[1].timeout)
        world.answer(true)
        world.hooks:run('every', 3) -- the newest script has it no more
        assert.same({}, world.calls)
        assert.is_true(world.lanes[1].is_quiet())
    end)

    it('a judge is asked beside them, and its failure is no consent', function()
        local world = new()
        world.adopt({ judge = true, onReady = true }, { restart_concurrency = { canary = { timeout_ms = 30000 } } })
        world.hooks:run 'onReady'
        local verdicts = {}
        local function judge()
            world.hooks:judge({ id = 2 }, nil, function(...) table.insert(verdicts, { ... }) end)
            assert.equal(2, #world.calls)
            return table.remove(world.calls, 2)
        end
        local call = judge()
        assert.same({ n = 2, { id = 2 } }, call.arguments)
        assert.same({ ms = 30000, option = 'canary.timeout' }, call.timeout)
        call.answer(true)
        judge().answer(true, false)
        judge().answer(true, false, 'too slow')
        judge().answer(nil, { kind = 'died', message = 'master.lua: judge was cut short' })
        assert.same({ { true, 'judge said no' }, { false, 'judge said no' }, { false, 'too slow' },
            { false, 'master.lua: judge was cut short' } }, verdicts)
        assert.equal(2, #world.lanes)
    end)

    it('a logger of the script has a process of its own; one that is slow is left alone until the next script', function()
        local world = new()
        world.adopt {}
        local failed = {}
        local function record(message)
            world.hooks:record('info', { a = 1 }, message, function(why) table.insert(failed, why) end)
        end
        record 'one'
        assert.same({ 'info', { a = 1 }, 'one' }, world.calls[1].arguments)
        assert.is_true(world.hooks:is_logger(world.lanes[1].process))
        assert.is_false(world.hooks:is_logger({}))
        world.answer(true)
        record 'two'
        record 'three'
        world.answer(nil, { kind = 'budget', message = 'logger took longer' })
        assert.same({ 'logger took longer', 'it took too long before' }, failed)
        record 'four'
        assert.equal('it took too long before', failed[3])
        world.adopt {}
        record 'five'
        assert.same({ 'logger' }, world.names())
        for _ = 1, 1001 do
            record 'more'
        end
        assert.equal('too many records wait for it', failed[4])
    end)

    it('settle: those that run are waited for, for a while', function()
        local world = new()
        world.adopt { onWorkerExit = true }
        local done
        world.hooks:settle(200, function() done = world.platform.now() end)
        world.platform:advance(0)
        assert.is_number(done)
        world.hooks:run 'onWorkerExit'
        done = nil
        local before = world.platform.now()
        world.hooks:settle(200, function() done = world.platform.now() end)
        world.platform:advance(1000)
        assert.is_true(done - before >= 200 and done - before < 250)
        assert.equal(0, world.platform:armed())
        world.hooks:close()
        assert.is_true(world.lanes[1].closed)
        world.hooks:run 'onWorkerExit'
        assert.equal(0, #world.lanes[1].queue)
    end)
end)
