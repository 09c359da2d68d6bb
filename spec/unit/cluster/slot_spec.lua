local machine = require 'dutch-master.machine'
local Platform = require 'spec.support.fake_platform'
local Slot = require 'dutch-master.cluster.slot'

local worker_told = machine.define { name = 'worker', initial = 'told', events = { 'retire', 'keep', 'stop' }, states = {
    told = {
        retire = function(worker)
            table.insert(worker.heard, 'retire')
        end,
        keep = function(worker)
            table.insert(worker.heard, 'keep')
        end,
        stop = function(worker, why)
            table.insert(worker.heard, 'stop: ' .. why)
        end,
    },
} }

describe('slot', function()
    local platform, agenda, slot, forked, owner, refuse, bugs, doubt_ms

    before_each(function()
        platform, forked, owner, refuse, bugs, doubt_ms = Platform.new(), {}, {}, nil, {}, 0
        agenda = machine.agenda { timer = platform.timer, on_error = error, on_bug = function(object, event)
            table.insert(bugs, object.state .. ' ' .. event)
        end }
        slot = Slot.new {
            number = 1, generation = 1, platform = platform, agenda = agenda,
            rules = function()
                return { first_ms = 100, max_ms = 400, reset_ms = 10000, soak_ms = 500, stall_ms = 1000 }
            end,
            on = {
                fork = function(asking)
                    local worker = { id = #forked + 1, generation = asking.generation, heard = {},
                        log = { info = function() end } }
                    if refuse then
                        agenda:post(asking, 'lost', worker, refuse)
                        return worker
                    end
                    worker.pid = 100 + worker.id
                    forked[#forked + 1] = agenda:start(worker, worker_told)
                    return worker
                end,
                filled = function(filled)
                    table.insert(owner, 'filled ' .. filled.current.id)
                end,
                doubtful = function()
                    return doubt_ms
                end,
                proved = function(proved)
                    table.insert(owner, 'proved ' .. proved.incoming.id)
                end,
                failed = function(_, worker, why)
                    table.insert(owner, ('failed %s: %s'):format(worker and worker.id or 'fork', why))
                end,
            },
        }
    end)

    after_each(function()
        assert.same({}, bugs)
    end)

    local function post(event, ...)
        agenda:post(slot, event, ...)
    end

    local function told()
        local list = owner
        owner = {}
        return list
    end

    -- One that is served by the first worker.
    local function serving()
        platform:advance(0)
        post('ready', forked[1])
        platform:advance(20000)
        told()
    end

    -- The second worker serves beside the first, and is not proved yet.
    local function proving()
        serving()
        post('replace', 2)
        post('ready', forked[2])
    end

    it('forks as soon as the loop turns, and is served by whoever is ready', function()
        assert.equal(0, #forked)
        platform:advance(0)
        assert.same({ 1, 'filling' }, { #forked, slot.state })
        post('ready', {}) -- somebody else's
        assert.equal('filling', slot.state)
        post('ready', forked[1])
        assert.same({ 'serving', forked[1], 'filled 1' }, { slot.state, slot.current, told()[1] })
        assert.equal(0, platform:armed())
    end)

    it('waits longer after each failure, and forgets them after good service', function()
        platform.random = function() return 0.5 end
        local waits = {}
        for i = 1, 5 do
            platform:run_until(function() return forked[i] end, 10000)
            post('lost', forked[i], 'crashed')
            waits[i] = slot.wait_ms
        end
        assert.same({ 0, 100, 200, 400, 400 }, waits)
        assert.equal(5, #told())
        platform:run_until(function() return forked[6] end, 10000)
        post('ready', forked[6])
        forked[6].ready_at = platform.now()
        platform:advance(9999)
        post('lost', forked[6], 'crashed')
        assert.equal(6, slot.failures)
        platform:run_until(function() return forked[7] end, 10000)
        post('ready', forked[7])
        forked[7].ready_at = platform.now()
        platform:advance(10000)
        post('lost', forked[7], 'crashed')
        assert.same({ 1, 0 }, { slot.failures, slot.wait_ms })
    end)

    -- The same slot in another master, from what is kept of it.
    local function of_another_master(kept, workers)
        local options = { platform = platform, agenda = agenda, rules = slot.rules, on = slot.on }
        agenda:finish(slot)
        slot = Slot.resume(options, kept, workers or {})
    end

    local function fail_three_times()
        for i = 1, 3 do
            platform:run_until(function() return forked[i] end, 10000)
            if i < 3 then
                post('lost', forked[i], 'crashed')
            end
        end
    end

    it('forks when it was said, also if its master dies meanwhile', function()
        fail_three_times()
        post('lost', forked[3], 'crashed')
        local at = platform.now() + slot.wait_ms
        assert.is_true(slot.wait_ms >= 150, slot.wait_ms)
        platform:advance(100)
        of_another_master(slot:keep())
        platform:run_until(function() return forked[4] end, 10000)
        assert.equal(at, platform.now())
    end)

    it('comes to the same wait again in a master that hears of the same failure', function()
        fail_three_times()
        local kept = slot:keep() -- before it failed
        kept.incoming = forked[3].id
        post('lost', forked[3], 'crashed')
        local said, failures = slot.wait_ms, slot.failures
        of_another_master(kept, { [forked[3].id] = forked[3] })
        post('lost', forked[3], 'crashed')
        assert.same({ said, failures }, { slot.wait_ms, slot.failures })
    end)

    it('waits as long as a master of before has said, which did not keep until when', function()
        fail_three_times()
        post('lost', forked[3], 'crashed')
        local kept = slot:keep()
        kept.fork_at, kept.jitter, kept.wait_ms = nil, nil, 300
        of_another_master(kept)
        platform:advance(299)
        assert.equal(3, #forked)
        platform:advance(1)
        assert.equal(4, #forked)
    end)

    it('tries again when a fork is refused', function()
        refuse = 'EAGAIN'
        platform:advance(0)
        assert.same({ 'failed fork: EAGAIN', 'failed fork: EAGAIN' }, told())
        refuse = nil
        platform:advance(200)
        assert.equal(1, #forked)
    end)

    it('lets the current worker go when its replacement has served soakMs and the owner commits', function()
        proving()
        assert.same({ 'proving', { 'retire' } }, { slot.state, forked[1].heard })
        platform:advance(499)
        assert.same({}, told())
        platform:advance(1)
        assert.same({ 'proved 2' }, told())
        assert.same({ 'retire' }, forked[1].heard)
        post 'commit'
        assert.same({ 'retire', 'stop: replaced' }, forked[1].heard)
        assert.same({ 'serving', forked[2], nil, { 'filled 2' } }, { slot.state, slot.current, slot.incoming, told() })
    end)

    it('waits while its replacement is not seen to take what waits for it, but not for ever', function()
        proving()
        doubt_ms = 300
        platform:advance(600)
        assert.same({}, told())
        assert.same({ true, false }, { slot:is_proving(forked[2]), slot:is_proving(forked[1]) })
        doubt_ms = 90
        platform:advance(50)
        assert.same({ 'proved 2' }, told())
        doubt_ms = 300
        platform:advance(2500)
        post('lost', forked[2], 'stalled')
        platform:advance(0)
        post('ready', forked[3])
        platform:advance(500 + 1999)
        told()
        platform:advance(51)
        assert.same({ 'proved 3' }, told())
    end)

    it('keeps the current worker when its replacement fails, before and after it was ready', function()
        serving()
        post('replace', 2)
        post('lost', forked[2], 'crashed')
        assert.same({ 'replacing', forked[1], { 'failed 2: crashed' } }, { slot.state, slot.current, told() })
        platform:advance(0)
        post('ready', forked[3])
        post('lost', forked[3], 'crashed')
        assert.same({ 'replacing', forked[1] }, { slot.state, slot.current })
    end)

    it('is served by the replacement when the current worker is lost meanwhile', function()
        serving()
        post('replace', 2)
        post('lost', forked[1], 'crashed')
        assert.equal('filling', slot.state)
        post('ready', forked[2])
        assert.same({ 'filled 2' }, told())
        post('replace', 3)
        post('ready', forked[3])
        post('lost', forked[2], 'crashed')
        assert.same({ 'serving', forked[3] }, { slot.state, slot.current })
    end)

    it('gives the replacement up on cancel, and is of the former generation again', function()
        proving()
        post('cancel', 1)
        assert.same({ 'serving', 1, { 'retire', 'keep' }, { 'stop: restart aborted' } },
            { slot.state, slot.generation, forked[1].heard, forked[2].heard })
        post 'commit' -- too late
        assert.equal(forked[1], slot.current)
        assert.same({}, told())
    end)

    it('replaces a replacement of an older generation, not faster than the pace', function()
        serving()
        post('replace', 2)
        post('replace', 2)
        assert.equal(2, #forked)
        post('replace', 3)
        assert.same({ 'stop: superseded' }, forked[2].heard)
        platform:advance(199)
        assert.equal(2, #forked)
        platform:advance(1)
        assert.same({ 3, 3 }, { #forked, forked[3].generation })
    end)

    it('replaces a worker that asks for it, also one that asks while it proves itself', function()
        serving()
        post('replace', nil, forked[1])
        assert.same({ 'replacing', 1 }, { slot.state, slot.generation })
        platform:advance(0)
        post('ready', forked[2])
        post('replace', nil, forked[2])
        post 'commit'
        assert.same({ 'replacing', forked[2], { 'retire' } }, { slot.state, slot.current, forked[2].heard })
    end)

    it('lets both go when it is given up, in any state, and does nothing more', function()
        proving()
        post('drain', 'scaled down')
        assert.same({ { 'retire', 'stop: scaled down' }, { 'stop: scaled down' } }, { forked[1].heard, forked[2].heard })
        assert.same({ 'drained', 0 }, { slot.state, platform:armed() })
        post('lost', forked[1], 'left')
        post('ready', forked[2])
        platform:advance(60000)
        assert.same({ 2, {} }, { #forked, told() })
    end)
end)
