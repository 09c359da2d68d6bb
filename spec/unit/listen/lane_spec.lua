local Lane = require 'dutch-master.listen.lane'
local Platform = require 'spec.support.fake_platform'
local fake_network = require 'spec.support.fake_network'

describe('a lane', function()
    local platform, socket, lane, records, rescue

    local log = setmetatable({}, {
        __index = function(_, level)
            return function(_, fields, message)
                records[#records + 1] = { level = level, fields = fields, message = message }
            end
        end,
    })

    before_each(function()
        platform, records = Platform.new(), {}
        fake_network.add(platform)
        socket = platform.listen(platform.address ':80', { reuseport = true }):lane()
        lane = Lane.new { platform = platform, log = log, socket = socket, address = ':80', stall_timeout_ms = 1000 }
        rescue = {
            takers = false, head = 5000, given = 0,
            possible = function(self)
                return self.takers
            end,
            head_ms = function(self)
                return self.head
            end,
            empty = function(self, from)
                local count = 0
                while self.takers and from:accept() do
                    count = count + 1
                end
                self.given = self.given + count
                return count
            end,
        }
    end)

    local function client()
        socket.waiting[#socket.waiting + 1] = 1000 + #socket.waiting
    end

    local function watch_for(ms, others)
        local changed = false
        for _ = 1, ms / 50 do
            platform:advance(50)
            changed = lane:watch(platform.now(), others ~= false, rescue, function() end) or changed
        end
        return changed
    end

    it('is what its users are: live before starting before leaving, then free', function()
        assert.equal('free', lane.state)
        lane:add(1)
        assert.equal('starting', lane.state)
        assert.is_true(lane:join(1))
        assert.is_false(lane:join(1))
        lane:add(2)
        assert.equal('live', lane.state)
        assert.is_true(lane:leave(1))
        assert.is_false(lane:leave(1))
        assert.equal('starting', lane.state)
        lane:remove(2)
        assert.equal('leaving', lane.state)
        lane:remove(1)
        assert.equal('free', lane.state)
    end)

    it('weighs what those weigh that make its state', function()
        lane:add(1)
        lane:add(2)
        lane:join(1)
        lane:join(2)
        assert.equal(2, lane.weight)
        assert.is_true(lane:weigh(1, 0.5))
        assert.is_false(lane:weigh(1, 0.5))
        assert.equal(1.5, lane.weight)
        lane:leave(2)
        assert.equal(0.5, lane.weight)
    end)

    it('names its worker only where it is one', function()
        assert.is_nil(lane:worker())
        lane:add(7)
        assert.equal(7, lane:worker())
        lane:add(8)
        assert.is_nil(lane:worker())
    end)

    it('stalls when nothing moves for the whole time, and somebody else can take', function()
        lane:add(1)
        lane:join(1)
        client()
        assert.is_false(watch_for(1500, false))
        assert.is_true(watch_for(50))
        assert.is_true(lane.stalled)
        assert.equal('Worker stalled', records[1].message)
        assert.same({ workerId = 1, address = ':80', waiting = 1 }, records[1].fields)
        table.remove(socket.waiting)
        assert.is_true(watch_for(50))
        assert.is_nil(lane.stalled)
        assert.equal('Worker takes connections again', records[2].message)
    end)

    it('is doubtful until that is known', function()
        lane:add(1)
        lane:join(1)
        client()
        assert.equal(0, lane:doubtful(platform.now()))
        watch_for(500)
        assert.is_true(lane:doubtful(platform.now()) >= 400)
        watch_for(1000)
        assert.same({ true, 0 }, { lane.stalled, lane:doubtful(platform.now()) })
    end)

    it('does not while its queue gets shorter, nor if the head has just come', function()
        lane:add(1)
        lane:join(1)
        for _ = 1, 30 do
            client()
        end
        for _ = 1, 20 do
            watch_for(500)
            table.remove(socket.waiting)
        end
        assert.is_nil(lane.stalled)
        rescue.takers, rescue.head = true, 300
        watch_for(3000)
        assert.is_nil(lane.stalled)
    end)

    it('is on probation, longer each time, once rescue has emptied it', function()
        lane:add(1)
        lane:join(1)
        rescue.takers = true
        local function stalls_for()
            client()
            watch_for(1000)
            client() -- and rescued
            local ms = 0
            while lane.stalled do
                watch_for(50)
                ms = ms + 50
            end
            return ms
        end
        local first = stalls_for()
        assert.is_true(first >= 950 and first <= 1050, tostring(first))
        local second = stalls_for()
        assert.is_true(second >= 1950 and second <= 2050, tostring(second))
    end)

    describe('between two looks', function()
        local asleep, others_idle

        before_each(function()
            asleep, others_idle = nil, true
            lane:add(1)
            lane:join(1)
        end)

        -- @return whether that was news, whether it is busy
        local function glance(depth)
            platform:advance(3)
            local changed = lane:glance(platform.now(), depth, function()
                return asleep
            end, function()
                return others_idle
            end)
            return { changed, lane.busy_at ~= nil }
        end

        it('is busy when nothing moved, for a moment, and says when that changes', function()
            assert.same({ false, false }, glance(1))
            assert.same({ true, true }, glance(1))
            assert.same({ false, true }, glance(2))
            assert.truthy(lane.since)
            assert.same({ false, true }, glance(1))
            assert.is_nil(lane.since) -- its worker took one
            for _ = 1, 2 do
                assert.same({ false, true }, glance(0))
            end
            assert.same({ true, false }, glance(0))
        end)

        it('only waits for a processor while all others are at work: it is busy when that lasts', function()
            others_idle = false
            for _ = 1, 5 do
                assert.same({ false, false }, glance(1))
            end
            assert.same({ true, true }, glance(1))
        end)

        -- { its worker is seen, others may be idle, busy for so many looks after the last at which it did not move }
        for _, case in ipairs { { true, true, 3 }, { nil, true, 3 }, { false, false, 3 }, { false, true, 33 } } do
            it(('has a worker that sleeps (%s) while others may be idle (%s)'):format(unpack(case, 1, 2)), function()
                glance(1)
                glance(1)
                asleep, others_idle = case[1], case[2]
                for _ = 1, case[3] do
                    assert.same({ false, true }, glance(0))
                end
                assert.same({ true, false }, glance(0))
            end)
        end

        it('is back when its worker sleeps again', function()
            asleep = false
            glance(1)
            glance(1)
            for _ = 1, 10 do
                assert.same({ false, true }, glance(0))
            end
            asleep = true
            assert.same({ true, false }, glance(0))
        end)

        it('does not move when it is rescued', function()
            socket.waiting = { 1 }
            glance(1)
            glance(1)
            lane:accept()
            glance(0)
            assert.truthy(lane.since)
            assert.is_falsy(lane.deaf)
        end)

        it('has a worker that does not hear when that sleeps while somebody waits', function()
            asleep = true
            for i = 1, 2 do
                for _ = 1, 10 do
                    glance(0)
                end
                lane.seen, socket.waiting = 0, { 1 }
                glance(1)
                glance(1)
                assert.equal(i, lane.deaf)
                socket.waiting, lane.seen = {}, 0
            end
        end)
    end)

    it('is under suspicion until its worker is seen to be well, however often it is emptied', function()
        lane:add(1)
        lane:join(1)
        local asleep = false
        rescue.takers = true
        local function busy_for(ms)
            for _ = 1, ms / 50 do
                client()
                lane:glance(platform.now(), lane:waiting(), function() end, function() return true end)
                platform:advance(3)
                lane:glance(platform.now(), lane:waiting(), function() end, function() return true end)
                lane:accept()
                platform:advance(47)
                lane:watch(platform.now(), true, rescue, function()
                    return asleep
                end)
            end
        end
        busy_for(800)
        platform:advance(50)
        asleep = true
        lane:watch(platform.now(), true, rescue, function()
            return asleep
        end)
        assert.is_nil(lane.since)
        asleep = false
        busy_for(1100)
        assert.is_true(lane.stalled)
    end)

    it('is emptied when nobody but the master can have connected to it', function()
        local closed = 0
        function platform.close_fd()
            closed = closed + 1
        end
        lane:add(1)
        client()
        lane:remove(1)
        assert.same({ 0, 1 }, { lane:waiting(), closed })
        client() -- before its next user comes
        lane:add(2)
        lane:remove(2)
        assert.equal(1, lane:waiting())
    end)

    it('is a new one for its next user', function()
        lane:add(1)
        lane:join(1)
        client()
        watch_for(1500)
        lane:remove(1)
        lane:add(2)
        assert.is_nil(lane.stalled)
        assert.equal(1, lane:waiting())
    end)

    it('says once that it is broken, and who did what to it', function()
        lane:add(1)
        lane:join(1)
        socket.repairs = { 'shutdown' }
        lane:repair()
        assert.same({ workerId = 1, address = ':80', repaired = 'shutdown' }, records[1].fields)
        assert.equal(1, lane.disturbed)
        local repair = socket.repair
        function socket.repair()
            return nil, 'no way'
        end
        lane:repair()
        lane:repair()
        assert.equal(2, #records)
        assert.equal('no way', lane.broken)
        socket.repair = repair
        lane:repair()
        assert.is_nil(lane.broken)
    end)

    it('makes no news of the backlog while somebody is about to listen there for the first time', function()
        local function level()
            socket.repairs = { 'backlog' }
            lane:repair()
            return records[#records].level
        end
        lane:add(1, { name = 'one' })
        lane:add(2, { name = 'two' })
        lane:join(1)
        assert.equal('debug', level())
        lane:join(2)
        assert.equal('warn', level())
    end)

    it('closes when it is free, empty, and was out of rotation for a while', function()
        lane:steer(true)
        platform:advance(10000)
        lane:steer(false)
        assert.is_false(lane:close_unused(platform.now()))
        platform:advance(5000)
        client()
        assert.is_false(lane:close_unused(platform.now()))
        lane:accept()
        lane:add(1)
        assert.is_false(lane:close_unused(platform.now()))
        lane:remove(1)
        lane.socket = { queue = socket.queue, close = function()
            return true
        end }
        assert.is_true(lane:close_unused(platform.now()))
    end)
end)
