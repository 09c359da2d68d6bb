local Leaving = require 'dutch-master.cluster.leaving'

describe('leaving', function()
    local now, leaving

    local function remaining()
        return math.max(leaving.until_ms - now, 0)
    end

    before_each(function()
        now = 1000
        leaving = Leaving.new { now = function() return now end }
    end)

    it('keeps the first reason', function()
        leaving:order 'too old'
        leaving:order 'stop'
        assert.same({ 'too old', true }, { leaving.why, leaving.told })
    end)

    it('remembers what a worker is replaced for before anything is ordered, and what it has done', function()
        leaving:blame 'too large'
        leaving:fail 'was not ready'
        leaving:hide 'has gone into the background'
        leaving:order 'restart'
        assert.same({ 'too large', 'was not ready', 'has gone into the background' },
            { leaving.why, leaving.late, leaving.daemon })
    end)

    it('is a loss once, and none for who was told', function()
        assert.is_true(leaving:lose())
        assert.is_false(leaving:lose())
        assert.is_true(leaving.lost)
        local told = Leaving.new(leaving.platform)
        told:order()
        assert.is_false(told:lose())
        assert.is_false(told.lost)
    end)

    it('has an end, which begin does not move and allow does', function()
        leaving:begin(300)
        now = 1100
        leaving:begin(300)
        assert.equal(200, remaining())
        leaving:allow(300)
        assert.equal(300, remaining())
        now = 2000
        assert.equal(0, remaining())
    end)

    it('may be longer if it asks for it, up to ten times what it was allowed', function()
        leaving:begin(300)
        leaving:extend(200) -- less than it has
        assert.equal(300, remaining())
        leaving:extend(500)
        assert.equal(500, remaining())
        leaving:extend(1e9)
        assert.equal(3000, remaining())
    end)

    it('is the same for another master, who can be asked for more time as well', function()
        leaving:order 'scaled down'
        leaving:begin(300)
        local resumed = Leaving.new { now = function() return now end }
        resumed:resume(leaving:keep())
        assert.same({ true, 'scaled down', 300 }, { resumed.told, resumed.why, resumed.until_ms - now })
        resumed:go_on_until(now + 200)
        assert.equal(300, resumed.until_ms - now)
        resumed:go_on_until(now + 400) -- its master hung for so long that nothing was left
        assert.equal(400, resumed.until_ms - now)
        resumed:extend(500)
        assert.equal(500, resumed.until_ms - now)
    end)

    it('that is a kill begins now, if it has not', function()
        leaving:kill()
        assert.same({ true, 0 }, { leaving.killed, remaining() })
    end)
end)
