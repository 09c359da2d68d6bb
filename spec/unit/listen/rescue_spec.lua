local Rescue = require 'dutch-master.listen.rescue'
local fake_sockets = require 'spec.support.fake_sockets'

describe('rescue', function()
    local rescue, lane, takers, given, closed, records, answers, clock, store, touched, full

    before_each(function()
        takers, given, closed, records = { { worker = 1 }, { worker = 2 } }, {}, {}, {}
        clock = 1000
        answers = {} -- worker -> function(done): what it does with a connection; else it takes it at once
        store, touched, full = {}, {}, false
        lane = { waiting = {}, state = 'free' }
        function lane.accept(_, name)
            local fd = table.remove(lane.waiting, 1)
            if fd then
                store[name] = fd
            end
            return fd, fd and true
        end
        function lane.worker() end
        local platform = {
            now = function()
                return clock
            end,
            close_fd = function(fd)
                assert(not closed[fd], 'closed twice')
                closed[fd] = true
            end,
            quiet_ms = function(fd)
                return fd
            end,
            keep_fd = function(name, fd)
                if full then
                    return nil, 'try again', 'EAGAIN'
                end
                store[name] = fd
                return true
            end,
            drop_fd = function(name)
                assert(store[name], 'dropped twice')
                store[name] = nil
            end,
            untouched = function(fd)
                return not touched[fd]
            end,
        }
        local log = setmetatable({}, { __index = function()
            return function(_, _, message)
                records[#records + 1] = message
            end
        end })
        local hand, doubts = fake_sockets.hands(platform, log)
        rescue = Rescue.new {
            address = ':80', keep_ms = 5000, listener = 3, hand = hand, doubts = doubts, platform = platform, log = log,
            takers = function(except)
                return except == 'nobody' and {} or takers
            end,
            give = function(fd, done, worker, request)
                if answers[worker] == false then
                    return nil
                end
                local names = {}
                for name, kept in pairs(store) do
                    names[#names + 1] = kept == fd and name or nil
                end
                assert(#names == 1 and names[1]:match '^conn/3%.%d+%.(%d+)$' == tostring(worker),
                    'given to a worker whom the store does not name')
                given[#given + 1] = { fd = fd, worker = worker, request = request, done = done }
                if not answers[worker] then
                    done(true)
                end
                return true
            end,
        }
    end)

    after_each(function()
        for name, fd in pairs(store) do
            assert.is_nil(closed[fd], name)
        end
        for fd in pairs(closed) do
            for name, kept in pairs(store) do
                assert.not_equal(fd, kept, name)
            end
        end
    end)

    it('gives nobody else what a worker had begun to serve when it ended', function()
        answers = { [1] = true, [2] = true }
        lane.waiting = { 10, 11 }
        assert.equal(2, rescue:empty(lane))
        touched[10] = true
        given[1].done(false, true)
        given[2].done(false, true)
        assert.same({ [10] = true }, closed)
        assert.equal(3, #given)
        assert.equal(11, given[3].fd)
    end)

    it('keeps what the store has under the name of another worker, until that is changed', function()
        answers = { [1] = true }
        lane.waiting = { 10 }
        rescue:empty(lane)
        full = true
        takers = { { worker = 3 - given[1].worker } }
        given[1].done(false)
        assert.equal(1, #given)
        assert.equal(1, rescue:waiting())
        full = false
        rescue:retry()
        assert.equal(2, #given)
        assert.not_equal(given[1].worker, given[2].worker)
        assert.same({}, store)
    end)

    it('spreads what waits in turn, and closes our copies', function()
        lane.waiting = { 10, 11, 12 }
        assert.equal(3, rescue:empty(lane))
        assert.equal(given[1].worker, given[3].worker)
        assert.not_equal(given[1].worker, given[2].worker)
        assert.same({ [10] = true, [11] = true, [12] = true }, closed)
    end)

    it('lets go of what a worker never speaks of, and gives it to nobody else', function()
        takers = { { worker = 1 } }
        answers[1] = function() end
        lane.waiting = { 10, 11 }
        rescue:empty(lane)
        assert.is_true(rescue:is_at_work())
        clock = clock + 4999
        given[2].done(false, true) -- its worker has ended: given once more, from now
        rescue:retry()
        assert.same({}, closed)
        clock = clock + 1
        rescue:retry()
        assert.same({ [10] = true }, closed)
        clock = clock + 4999
        rescue:retry()
        assert.same({ [10] = true, [11] = true }, closed)
        assert.is_false(rescue:is_at_work())
        assert.is_true(rescue:awaits(1)) -- it gets no more than others that do not answer
        given[1].done(true)
        given[3].done(false)
        assert.is_false(rescue:awaits(1))
        assert.equal(1, rescue.total)
        assert.equal(3, #given)
    end)

    it('takes nothing out while there is nobody to give it to', function()
        takers = {}
        lane.waiting = { 10 }
        assert.equal(0, rescue:empty(lane))
        assert.same({ 10 }, lane.waiting)
        assert.is_false(rescue:possible(lane))
    end)

    it('keeps what nobody took after all, and tries again', function()
        answers = { [1] = false, [2] = false }
        lane.waiting = { 10, 11 }
        assert.equal(0, rescue:empty(lane))
        assert.equal(1, rescue:waiting())
        assert.same({ 11 }, lane.waiting)
        answers = {}
        rescue:retry()
        assert.equal(0, rescue:waiting())
        assert.same({ [10] = true }, closed)
    end)

    it('asks the next one when one refuses late; whose worker ended was not refused', function()
        answers = { [1] = true, [2] = true }
        lane.waiting = { 10 }
        rescue:empty(lane)
        for _ = 1, 20 do
            given[#given].done(false, true)
        end
        for _ = 1, 8 do
            assert.is_nil(closed[10])
            given[#given].done(false)
        end
        assert.is_true(closed[10])
        assert.equal('Waiting connection closed, no worker takes it', records[#records])
    end)

    it('has at most 256 on their way', function()
        for worker = 1, 10 do
            takers[worker], answers[worker] = { worker = worker }, true
        end
        for i = 1, 300 do
            lane.waiting[i] = 100 + i
        end
        assert.equal(256, rescue:empty(lane))
        assert.equal(44, #lane.waiting)
        given[1].done(true)
        assert.equal(1, rescue:empty(lane))
        rescue:relieve(lane, { { worker = 11 } })
        assert.equal(43, #lane.waiting)
    end)

    it('gives no more to a worker that does not answer, late or never: it goes to those that do', function()
        answers = { [1] = true }
        for i = 1, 200 do
            lane.waiting[i] = 100 + i
        end
        assert.equal(200, rescue:empty(lane))
        local to, first = {}, nil
        for _, one in ipairs(given) do
            to[one.worker] = (to[one.worker] or 0) + 1
            first = first or one.worker == 1 and one
        end
        assert.same({ 32, 168 }, to)
        answers[2] = true
        for i = 1, 50 do
            lane.waiting[i] = 400 + i
        end
        assert.equal(32, rescue:empty(lane)) -- nobody is left who could be given more: the rest waits where it is
        assert.equal(18, #lane.waiting)
        rescue:relieve(lane, { { worker = 1 } })
        assert.equal(18, #lane.waiting)
        assert.is_true(rescue:awaits(1))
        first.done(true)
        assert.equal(1, rescue:empty(lane))
        assert.is_nil(closed[given[#given].fd])
    end)

    it('says how long the head had waited, and gives it away', function()
        lane.waiting = { 700, 3 }
        assert.equal(700, rescue:head_ms(lane))
        assert.equal(700, given[1].fd)
        assert.same({ 3 }, lane.waiting)
    end)

    it('closes what it has at the end, and what comes back later', function()
        answers = { [1] = true, [2] = false }
        lane.waiting = { 10, 11 }
        rescue:empty(lane)
        answers = { [1] = false, [2] = false }
        given[2].done(false)
        assert.equal(1, rescue:waiting())
        rescue:close()
        assert.same({ [11] = true }, closed)
        given[1].done(false)
        assert.same({ [10] = true, [11] = true }, closed)
    end)
end)
