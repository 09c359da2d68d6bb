-- Longer than 400 lines: one object, and lanes and a script for it that are worked by hand.

local cjson = require 'cjson'
local Commit = require 'dutch-master.keeper.commit'
local Hooks = require 'dutch-master.launch.hooks'
local Platform = require 'spec.support.fake_platform'

-- Lanes whose jobs are started by hand, with one process each; a script whose calls are answered by hand.
-- commit: as of Hooks.new, or nil.
local function new(commit)
    local world = { platform = Platform.new(), lanes = {}, calls = {}, evaluations = {}, log = {} }
    local script = { totals = {} }
    world.script = script
    function script.evaluate(_, process, options, done)
        table.insert(world.evaluations, options)
        if world.broken then
            return done(nil, { kind = 'runtime', message = 'settings.lua:1: broken' })
        end
        local session = { plan = world.script.newest.plan }
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
            table.insert(world.log, { level, fields.count or fields.hook, message })
        end
    end
    world.hooks = Hooks.new {
        platform = world.platform, log = log, script = script, commit = commit,
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
        world.script.newest = { source = 'text', plan = plan }
    end
    function world.answer(...)
        table.remove(world.calls, 1).answer(...)
    end
    function world.message(id, text)
        world.hooks:message({ id = id, describe = function() return { id = id } end }, text or 'text')
    end
    function world.messages() -- since it was called last
        local messages = {}
        for i, record in ipairs(world.log) do
            messages[i] = record[3]
        end
        world.log = {}
        return messages
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
        world.hooks:judge({ describe = function() return {} end }, nil, function(good) world.good = good end)
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

    it('that wait behind one that took all its time: messages of its worker are skipped, of all after a second', function()
        local world = new()
        world.adopt { onMessage = true, onWorkerExit = true }
        for _, worker in ipairs { 1, 1, 2, 1, 2, 3 } do
            world.message(worker)
        end
        world.hooks:of_worker({ id = 1 }, 'onWorkerExit', { worker = 1 })
        world.hooks:of_worker({ id = 4 }, 'onWorkerExit', { worker = 4 })
        world.answer(nil, SLOW)
        local skipped = 'Hook skipped: the script took too long a moment ago'
        assert.same({ 'Hook failed: ' .. SLOW.message, skipped, skipped }, world.messages())
        assert.same({ 'onMessage' }, world.names())
        assert.equal(2, world.calls[1].arguments[1].id)
        world.answer(nil, SLOW)
        assert.same({ 'Hook failed: ' .. SLOW.message, skipped, skipped }, world.messages())
        assert.same({ 'onWorkerExit' }, world.names())
        assert.equal(4, world.calls[1].arguments[1].worker)
        world.answer(true)
        assert.equal(1, world.calls[1].arguments[1].worker)
        world.answer(true)
        assert.same({}, world.calls)
        assert.equal(0, world.hooks.waiting)
    end)

    it('of one worker keep their order, and a flood delays and loses nothing of another', function()
        local world = new()
        world.adopt { onMessage = true, onWorkerReady = true, onWorkerExit = true }
        world.hooks:of_worker({ id = 1 }, 'onWorkerReady', { id = 1 })
        for i = 1, 1000 do
            world.message(1, tostring(i))
        end
        world.hooks:of_worker({ id = 1 }, 'onWorkerExit', { id = 1 })
        world.message(2, 'one')
        world.message(2, 'two')
        assert.same({ 'Messages skipped: too many of this worker wait for onMessage' }, world.messages())
        local heard, exits = { {}, {} }, 0
        for call = 1, 1000 do
            if not world.calls[1] then break end
            local hook, of, text = world.calls[1].hook, world.calls[1].arguments[1].id, world.calls[1].arguments[2]
            if hook == 'onMessage' then
                table.insert(heard[of], text)
            elseif hook == 'onWorkerReady' then
                assert.equal(0, #heard[1])
            else
                exits = exits + 1
                assert.equal(256, #heard[1])
            end
            world.answer(true)
            assert.is_true(call < 5 or #heard[2] == 2)
        end
        assert.equal(1, exits)
        assert.same({ 'one', 'two' }, heard[2])
        assert.same({ '1', '256' }, { heard[1][1], heard[1][256] })
        assert.same({ { 'warn', 744, 'Messages were skipped' } }, world.log)
        assert.same({}, world.hooks.turns.queues)
    end)

    it('are bounded, events of the cluster too; one of every waits at most', function()
        local world = new()
        world.adopt { onRestart = true, every = { { interval_ms = 1000 }, { interval_ms = 1000 } } }
        world.hooks:tick(1)
        world.hooks:tick(1)
        world.hooks:tick(2)
        for i = 1, 4100 do
            world.hooks:run('onRestart', i)
        end
        assert.same({ { 'warn', 'onRestart', 'Hook skipped: too many of them wait for the script' } }, world.log)
        assert.same({ 'every' }, world.names())
        world.answer(true)
        world.hooks:tick(1)
        assert.same({ 'warn', 6, 'Hooks skipped' }, world.log[2])
        for _ = 1, 4096 do
            world.answer(true)
        end
        assert.same({}, world.calls)
        assert.equal(0, world.hooks.waiting)
    end)

    it('every goes on after a time when too many events waited for it to be taken', function()
        local world = new()
        world.adopt { onRestart = true, every = { { interval_ms = 1000 } } }
        for i = 1, 4096 do
            world.hooks:run('onRestart', i)
        end
        world.hooks:tick(1)
        for _ = 1, 4096 do
            world.answer(true)
        end
        world.hooks:tick(1)
        assert.same({ 'every' }, world.names())
    end)

    it('every has its own function and time', function()
        local world = new()
        world.adopt { every = { { interval_ms = 1000 }, { interval_ms = 1000, timeout_ms = 20000 } } }
        world.hooks:tick(2)
        assert.same({ ms = 20000, option = 'every' }, world.calls[1].timeout)
        world.answer(true)
        world.hooks:tick(1)
        assert.is_nil(world.calls[1].timeout)
        world.answer(true)
        world.hooks:tick(3) -- the newest script has it no more
        assert.same({}, world.calls)
        assert.is_true(world.lanes[1].is_quiet())
    end)

    it('a judge is asked beside them, and its failure is no consent', function()
        local world = new()
        world.adopt({ judge = true, onReady = true }, { restart_concurrency = { canary = { timeout_ms = 30000 } } })
        world.hooks:run 'onReady'
        local verdicts = {}
        local worker = { describe = function() return { id = 2 } end }
        local function judge()
            world.hooks:judge(worker, nil, function(...) table.insert(verdicts, { ... }) end)
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

    describe('beside a keeper', function()
        local touched, commit, world
        local book = { constants = function(_, values, first, make)
            local list = {}
            for i = first, #values do
                list[#list + 1] = cjson.decode(cjson.encode(make(values[i])))
            end
            return list
        end }

        local function new_master(kept)
            commit = Commit.new { touch = function() touched = touched + 1 end }
            world = new(commit)
            world.adopt { onReady = true, onRestart = true, onWorkerExit = true, onMessage = true, every = { {}, {} } }
            world.hooks:resume(kept or {})
        end

        before_each(function()
            touched = 0
            new_master()
        end)

        it('begin when the state is kept of which they tell, and stay in it until they have ended', function()
            world.hooks:run('onRestart', { result = 'done' })
            assert.same({ {}, 1 }, { world.calls, touched })
            local kept = world.hooks:keep(book)
            assert.same({ { hook = 'onRestart', arguments = { { result = 'done' } } } }, kept)
            commit:written()
            assert.same({ { 'onRestart' }, kept }, { world.names(), world.hooks:keep(book) })
            touched = 0
            world.answer(true)
            assert.same({ {}, 1 }, { world.hooks:keep(book), touched })
        end)

        it('are called by the next master, in their order, unless they have ended', function()
            world.hooks:run 'onReady'
            world.hooks:of_worker({ id = 7 }, 'onWorkerExit', { code = 3 })
            world.hooks:run('onRestart', { result = 'done' })
            commit:written()
            world.answer(true)
            assert.same({ 'onWorkerExit' }, world.names())
            new_master(world.hooks:keep(book))
            assert.same({}, world.calls)
            assert.equal(2, #world.hooks:keep(book))
            commit:written()
            assert.same({ hook = 'onWorkerExit', arguments = { n = 1, { code = 3 } } },
                { hook = world.calls[1].hook, arguments = world.calls[1].arguments })
            world.answer(true)
            assert.same({ n = 1, { result = 'done' } }, world.calls[1].arguments)
            world.answer(nil, { kind = 'runtime', message = 'oh' })
            assert.same({ { 'Hook failed: oh' }, {} }, { world.messages(), world.hooks:keep(book) })
        end)

        it('are no matter of every and onMessage, which keep their order all the same', function()
            world.hooks:tick(1)
            assert.same({ 'every' }, world.names())
            world.hooks:of_worker({ id = 1 }, 'onWorkerExit', {})
            world.message(1)
            world.message(2)
            assert.equal(1, #world.hooks:keep(book))
            commit:written()
            local names = {}
            while world.calls[1] do
                names[#names + 1] = world.names()[1]
                world.answer(true)
            end
            assert.same({ 'every', 'onWorkerExit', 'onMessage', 'onMessage' }, names)
        end)

        it('are kept as far as there is room, and are waited for at the end', function()
            for _ = 1, 300 do
                world.hooks:run 'onReady'
            end
            assert.equal(256, #world.hooks:keep(book))
            local done
            world.hooks:settle(200, function() done = true end)
            world.platform:advance(2)
            assert.is_nil(done) -- they wait for a snapshot
            commit:written()
            for _ = 1, 300 do
                world.answer(true)
            end
            world.platform:advance(2)
            assert.is_true(done)
            assert.same({}, world.hooks:keep(book))
        end)
    end)
end)
