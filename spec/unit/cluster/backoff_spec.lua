local backoff = require 'dutch-master.cluster.backoff'

describe('backoff', function()
    local rule = { first_ms = 100, max_ms = 30000 }
    local function middle()
        return 0.5
    end

    it('forks at once after the first failure, then waits twice as long each time up to the limit', function()
        local waits = {}
        for failures = 1, 12 do
            waits[failures] = backoff.delay(failures, rule, middle)
        end
        assert.same({ 0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000 }, waits)
    end)

    it('spreads by a quarter to either side', function()
        assert.equal(75, backoff.delay(2, rule, function()
            return 0
        end))
        assert.equal(125, backoff.delay(2, rule, function()
            return 1
        end))
    end)

    it('stays a number for any count of failures', function()
        assert.equal(30000, backoff.delay(1e9, rule, middle))
    end)
end)
