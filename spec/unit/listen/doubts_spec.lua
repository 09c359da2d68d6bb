-- Connections that a former master had in hand: whose each is, and that it is never two workers'.
local Platform = require 'spec.support.fake_platform'
local Doubts = require 'dutch-master.listen.doubts'
local Hand = require 'dutch-master.listen.hand'
local State = require 'dutch-master.keeper.estate'

describe('connections in doubt', function()
    local platform, doubts, hand, fates, touched, closed, rescued, records

    local function add(store)
        for name, fd in pairs(store) do
            platform.store[name] = fd
        end
        for _, connection in ipairs(hand:resume(State.former({}, { store = platform.store }, platform), 1)) do
            doubts:add(connection, function(free)
                rescued[#rescued + 1] = free.fd
                hand:close(free) -- its new worker has it
            end)
        end
    end

    before_each(function()
        platform, fates, touched, closed, rescued, records = Platform.new(), {}, {}, {}, {}, {}
        function platform.close_fd(fd)
            assert(not closed[fd], 'closed twice')
            closed[fd] = true
        end
        function platform.untouched(fd)
            assert(not closed[fd], 'asked after its end')
            return not touched[fd]
        end
        hand = Hand.new { platform = platform }
        doubts = Doubts.new { platform = platform, hand = hand, keep_ms = 5000,
            log = { info = function(_, fields, message)
                records[#records + 1] = { fields = fields, message = message }
            end },
            fate = function(worker, fd)
                assert(not closed[fd], 'asked after its end')
                local fate = fates[worker]
                if fate ~= 'unseen' then
                    return fate or 'free'
                end
            end }
    end)

    after_each(function()
        doubts:close()
        assert.is_nil(next(platform.timers))
        assert.is_nil(next(platform.store))
    end)

    it('that nobody has are rescued: looked at twice, some time apart', function()
        add { ['conn/1.1.7'] = 10 }
        platform:advance(20)
        assert.same({}, rescued)
        assert.equal(1, doubts:count(1))
        platform:advance(20)
        assert.same({ 10 }, rescued)
        assert.equal(0, doubts:count(1))
        assert.same({ fields = { rescued = 1 }, message = 'Connections that the former master had in hand are settled' },
            records[1])
        platform:advance(10000)
        assert.same({ 10 }, rescued)
    end)

    it('that a worker has begun to serve are its: ours are closed', function()
        touched[10] = true
        fates[7] = 'held'
        add { ['conn/1.1.7'] = 10 }
        platform:advance(20)
        assert.is_true(closed[10])
        assert.same({ taken = 1 }, records[1].fields)
        assert.same({}, rescued)
    end)

    it('whose worker has begun to serve, and died, are nobody else\'s', function()
        add { ['conn/1.1.7'] = 10 }
        touched[10] = true
        platform:advance(10000)
        assert.is_true(closed[10])
        assert.same({}, rescued)
    end)

    it('that may be in a channel wait until that is read', function()
        fates[7] = 'unread'
        add { ['conn/1.1.7'] = 10, ['conn/1.2.7'] = 11, ['conn/1.3.7'] = 12 }
        platform:advance(4000)
        assert.same({}, rescued)
        assert.same({}, closed)
        fates[7] = 'held'
        touched[11] = true
        platform:advance(1000 - 1)
        assert.same({ [11] = true }, closed)
        fates[7] = 'free' -- it has closed, or ended, before it read of it
        platform:advance(1000)
        table.sort(rescued)
        assert.same({ 10, 12 }, rescued)
    end)

    it('that are found free once, and then not, are not rescued', function()
        add { ['conn/1.1.7'] = 10 }
        platform:advance(20)
        fates[7] = 'held'
        platform:advance(40)
        assert.same({}, rescued)
        fates[7] = nil
        platform:advance(100)
        assert.same({ 10 }, rescued)
    end)

    it('that were about to go from one worker to another may be with either', function()
        fates[8] = 'unread'
        add { ['conn/1.1.7'] = 10, ['conn/1.1.8'] = 11 }
        platform:advance(3000)
        assert.same({}, rescued)
        fates[8], fates[7] = nil, 'held'
        platform:advance(1500)
        assert.same({}, rescued)
        fates[7] = nil
        platform:advance(1000)
        assert.equal(1, #rescued)
    end)

    for _, fate in ipairs { 'held', 'unread', 'unseen' } do
        it('of which a worker does not begin to read are let go: ' .. fate, function()
            fates[7] = fate
            add { ['conn/1.1.7'] = 10 }
            platform:advance(4000)
            assert.same({}, closed)
            platform:advance(2000)
            assert.is_true(closed[10])
            assert.same({}, rescued)
            assert.same({ closed = 1 }, records[1].fields)
        end)
    end

    it('end with their listener', function()
        add { ['conn/1.1.7'] = 10 }
        doubts:drop(2)
        assert.same({}, closed)
        doubts:drop(1)
        assert.is_true(closed[10])
        platform:advance(1000)
        assert.same({}, rescued)
    end)

    it('are looked at a few at a time', function()
        local asked, most, store, untouched = 0, 0, {}, platform.untouched
        function platform.untouched(fd)
            asked = asked + 1
            return untouched(fd)
        end
        for i = 1, 100 do
            store[('conn/1.%d.7'):format(i)] = 100 + i
        end
        add(store)
        for _ = 1, 1000 do
            asked = 0
            platform:advance(1)
            most = math.max(most, asked)
        end
        assert.equal(16, most)
        assert.equal(100, #rescued)
    end)

    it('are looked at less and less often', function()
        local asked, untouched = 0, platform.untouched
        function platform.untouched(fd)
            asked = asked + 1
            return untouched(fd)
        end
        fates[7] = 'held'
        add { ['conn/1.1.7'] = 10 }
        platform:advance(4900)
        assert.is_true(asked <= 12, asked)
    end)
end)
