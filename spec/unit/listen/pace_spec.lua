local Pace = require 'dutch-master.listen.pace'
local Platform = require 'spec.support.fake_platform'
local fake_network = require 'spec.support.fake_network'

describe('pace', function()
    local platform, network, pace, lanes, ticks, glances, state, waits, may_rest, mends

    before_each(function()
        platform, ticks, glances, mends = Platform.new(), {}, 0, 0
        network = fake_network.add(platform)
        state, waits, may_rest = 'quiet', false, true
        lanes = { near = function() return { 7 } end, frail = function() return { 7, 8 } end }
        function lanes.mend()
            mends = mends + 1
        end
        function lanes.tick()
            ticks[#ticks + 1] = platform.now()
            return state
        end
        function lanes.glance()
            glances = glances + 1
            return waits
        end
        function lanes.watched()
            if may_rest then
                return { 7, 8 }, 60000
            end
        end
        pace = Pace.new { platform = platform, busy_ms = 50, lanes = lanes }
    end)

    local function ticks_in(ms)
        local before = #ticks
        platform:advance(ms)
        return #ticks - before
    end

    it('comes again after a tick, or a glance, that failed', function()
        local fails = 0
        function lanes.tick()
            fails = fails + 1
            error 'a tick'
        end
        pace:start()
        for i = 1, 3 do
            assert.has_error(function() platform:advance(1000) end)
            assert.equal(i, fails)
        end
        function lanes.tick()
            ticks[#ticks + 1] = platform.now()
            return 'quiet'
        end
        assert.is_true(ticks_in(1000) >= 2)
        function lanes.glance()
            error 'a glance'
        end
        pace:stir()
        assert.has_error(function() platform:advance(1000) end)
        function lanes.glance() end
        assert.is_true(ticks_in(1000) >= 2)
    end)

    it('does nothing before it is started, and nothing when there is nobody to look after', function()
        assert.equal(0, ticks_in(5000))
        state = nil
        pace:start()
        assert.equal(1, ticks_in(5000))
        pace:close()
        assert.equal(0, ticks_in(5000))
    end)

    it('ticks three times a second while workers come and go', function()
        state = 'unsettled'
        pace:start()
        local count = ticks_in(3500)
        assert.is_true(count >= 8 and count <= 11, count)
    end)

    it('ticks faster, and glances between, while connections wait', function()
        state, waits = 'busy', true
        pace:start()
        platform:advance(400)
        local before = glances
        assert.is_true(ticks_in(1000) >= 15)
        assert.is_true(glances - before > 200, glances - before)
    end)

    it('rests after some quiet ticks: the kernel wakes it at the next connection', function()
        pace:start()
        assert.equal(4, ticks_in(30000))
        assert.is_function(network.watched[8])
        network.wake { number = 8 }
        assert.equal(5, #ticks)
        assert.equal(3, ticks_in(30000)) -- ticks count again, then it rests again
        assert.equal(0, ticks_in(30000))
    end)

    it('rests no longer than it may', function()
        pace:start()
        platform:advance(30000)
        local before = #ticks
        platform:advance(60000)
        assert.is_true(#ticks > before)
    end)

    it('goes on twice a second where lanes cannot be watched, or it is no time for rest', function()
        for _, why in ipairs { 'cannot', 'may not' } do
            network.watching_fails, may_rest = why == 'cannot', why == 'cannot'
            pace:start()
            platform:advance(10000)
            local count = ticks_in(10000)
            assert.is_true(count >= 19 and count <= 21, why .. ' ' .. count)
        end
    end)

    it('has what was shut down mended at once, between two ticks, but not for ever', function()
        state = 'unsettled'
        pace:start()
        platform:advance(400)
        local before = #ticks
        for i = 1, 10 do
            network.guarded[8]()
            assert.equal(i, mends)
            platform:advance(5)
        end
        assert.equal(before, #ticks)
        assert.is_nil(network.guarded[8])
        platform:advance(350)
        assert.is_function(network.guarded[8])
        pace:stir()
        assert.is_nil(network.guarded[8])
    end)

    it('is back at once when something happens', function()
        pace:start()
        platform:advance(30000)
        local before, seen = #ticks, glances
        pace:stir()
        assert.is_nil(next(network.watched)) -- lanes may close now
        platform:advance(5)
        assert.is_true(glances > seen)
        platform:advance(400)
        assert.is_true(#ticks > before)
    end)
end)
