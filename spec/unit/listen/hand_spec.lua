local Hand = require 'dutch-master.listen.hand'
local State = require 'dutch-master.keeper.estate'

describe('the hand', function()
    local hand, store, closed, lane, fails, puts

    local platform = {
        close_fd = function(fd)
            assert(not closed[fd], 'closed twice')
            closed[fd] = true
        end,
        keep_fd = function(name, fd)
            puts = puts + 1
            if fails then
                return nil, 'timed out', fails
            end
            store[name] = fd
            return true
        end,
        drop_fd = function(name)
            assert(store[name], 'dropped twice')
            store[name] = nil
        end,
        stat = function(path)
            local fd = tonumber(path:match '^/proc/self/fd/(%d+)$')
            return fd ~= 99 and { ino = fd % 100 } or nil
        end,
        untouched = function(fd) return fd ~= 99 and (fd ~= 98 or nil) end,
    }

    before_each(function()
        store, closed, fails, puts = {}, {}, nil, 0
        hand = Hand.new { platform = platform }
        lane = { waiting = {} }
        function lane.accept(_, name)
            local fd = table.remove(lane.waiting, 1)
            return fd, fd and name and platform.keep_fd(name, fd) or false
        end
    end)

    it('has nothing that the keeper has not, from the moment at which it accepts until a worker has it', function()
        lane.waiting = { 10, 11 }
        local one, two = hand:accept(lane, 4, 7), hand:accept(lane, 4, 8)
        assert.same({ ['conn/4.1.7'] = 10, ['conn/4.2.8'] = 11 }, store)
        assert.is_nil(hand:accept(lane, 4, 7))
        hand:give(one, 7)
        assert.equal(2, puts) -- it was said
        hand:close(one)
        assert.same({ ['conn/4.2.8'] = 11 }, store)
        hand:close(two)
        assert.same({}, store)
        assert.same({ [10] = true, [11] = true }, closed)
    end)

    it('says who is given it next before that can have it, and never has it nameless', function()
        lane.waiting = { 10 }
        local connection = hand:accept(lane, 4, 7)
        local keep_fd = platform.keep_fd
        function platform.keep_fd(name, fd)
            assert.equal(10, store['conn/4.1.7'])
            return keep_fd(name, fd)
        end
        hand:give(connection, 8)
        platform.keep_fd = keep_fd
        assert.same({ ['conn/4.1.8'] = 10 }, store)
        hand:close(connection)
        assert.same({}, store)
    end)

    it('keeps what was accepted elsewhere', function()
        local connection = hand:adopt(12, 4, 7)
        assert.same({ ['conn/4.1.7'] = 12 }, store)
        hand:close(connection)
        assert.same({}, store)
    end)

    it('knows a connection that it has, by another descriptor too', function()
        lane.waiting = { 10 }
        local connection = hand:accept(lane, 4, 7)
        assert.is_true(hand:has(110))
        assert.same({ false, 11 }, { hand:has(111) })
        assert.same({ false }, { hand:has(99) })
        hand:close(connection)
        assert.is_false((hand:has(110)))
    end)

    it('goes on with a keeper that takes nothing', function()
        lane.waiting = { 10, 11, 12 }
        local one = hand:accept(lane, 4, 7)
        fails = 'EAGAIN'
        local two = hand:accept(lane, 4, 7)
        assert.equal(11, two.fd)
        assert.is_true(hand:give(two, 8)) -- it has no name that says otherwise
        assert.is_true(hand:give(one, 7))
        assert.is_false(hand:give(one, 8))
        assert.same({ ['conn/4.1.7'] = 10 }, store)
        fails = nil
        assert.is_true(hand:give(two, 9))
        assert.is_true(hand:give(one, 8))
        assert.same({ ['conn/4.1.8'] = 10, ['conn/4.2.9'] = 11 }, store)
        hand:close(one)
        hand:close(two)
        assert.same({}, store)
        assert.same({ [10] = true, [11] = true }, closed)
    end)

    it('leaves room in the store', function()
        for i = 1, 5000 do
            lane.waiting[i] = 100 + i
        end
        local all = {}
        for i = 1, 5000 do
            all[i] = hand:accept(lane, 4, 7)
        end
        assert.equal(4096, puts)
        assert.is_true(hand:give(all[5000], 8))
        assert.equal(4096, puts)
        assert.is_true(hand:give(all[1], 8)) -- in place of its other one
        assert.equal(4097, puts)
        for i = 1, 5000 do
            hand:close(all[i])
        end
        assert.same({}, store)
        lane.waiting = { 10 }
        hand:accept(lane, 4, 7)
        assert.equal(4098, puts)
    end)

    it('gives another keeper all of it', function()
        lane.waiting = { 10, 11 }
        hand:accept(lane, 4, 7)
        hand:close(hand:accept(lane, 4, 8))
        store = {}
        hand:keep_again()
        assert.same({ ['conn/4.1.7'] = 10 }, store)
    end)

    it('takes over what a former master had, by its listener, each connection once', function()
        store = { ['conn/4.17.7'] = 20, ['conn/4.17.8'] = 21, ['conn/4.3.7'] = 22, ['conn/5.30.7'] = 23,
            ['lane/4.1'] = 24, ['conn/4.'] = 25 }
        local left = {}
        for name, fd in pairs(store) do
            left[name] = fd
        end
        local former = State.former({}, { store = left }, platform)
        local list = hand:resume(former, 4)
        table.sort(list, function(a, b) return a.number < b.number end)
        assert.equal(2, #list)
        assert.same({ [7] = 'conn/4.3.7' }, list[1].names)
        assert.same({ [7] = 'conn/4.17.7', [8] = 'conn/4.17.8' }, list[2].names)
        local one_of_two = closed[20] or closed[21]
        assert.is_true(one_of_two)
        hand:resume(former, 5)
        lane.waiting = { 40 }
        hand:accept(lane, 4, 9)
        assert.equal(40, store['conn/4.31.9'])
        hand:close(list[2])
        assert.is_true(closed[20] and closed[21])
        former:close_rest()
        assert.same({ ['conn/4.31.9'] = 40, ['conn/4.3.7'] = 22, ['conn/5.30.7'] = 23 }, store)
    end)

    it('takes for touched whatever it cannot ask', function()
        assert.is_true(hand:is_untouched { fd = 10 })
        assert.is_false(hand:is_untouched { fd = 99 })
        assert.is_false(hand:is_untouched { fd = 98 })
    end)
end)
