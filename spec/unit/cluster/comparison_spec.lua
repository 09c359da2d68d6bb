local Comparison = require 'dutch-master.cluster.comparison'
local measured = require 'dutch-master.channel.measured'

local function work(good, bad, class)
    local buckets = {}
    for i = 1, 14 do
        buckets[i] = i == (class or 1) and good + bad or 0
    end
    return measured.read { answers = { 0, good, 0, 0, bad }, buckets = buckets, seconds = good + bad, lag = { 0, 0.01 } }
end

describe('comparison', function()
    it('has the canary against all old workers, from the moment it began', function()
        local canary = { forks = 2, failures = 1, current = { id = 1, measured = work(100, 50) },
            incoming = { id = 5, measured = work(0, 0) } }
        local other = { forks = 1, failures = 0, current = { id = 2, measured = work(100, 0) } }
        local comparison = Comparison.new({ canary, other }, canary)
        canary.current.measured, other.current.measured = work(110, 50), work(130, 1)
        canary.incoming.measured = work(8, 2, 9)
        other.forks = 3
        local new, old = comparison:sides()
        assert.same({ 10, 2, 1 }, { new.requests, new.errors, new.restarts })
        assert.same({ 41, 1, 2 }, { old.requests, old.errors, old.restarts })
        assert.is_true(new.p95 > 0.25 and old.p95 < 0.001)
    end)

    it('knows nothing of requests where nobody measures', function()
        local canary = { forks = 1, failures = 0, current = { id = 1 }, incoming = { id = 2 } }
        local new, old = Comparison.new({ canary }, canary):sides()
        assert.same({ { restarts = 0 }, { restarts = 0 } }, { new, old })
    end)

    it('has numbers of a canary that was asked nothing, and of old workers that have reported nothing yet', function()
        local canary = { forks = 1, failures = 0, current = { id = 1 }, incoming = { id = 2 } }
        local new, old = Comparison.new({ canary }, canary, true):sides()
        for _, side in ipairs { new, old } do
            assert.same({ 0, 0, 0 }, { side.requests, side.errors, side.restarts })
            assert.is_nil(side.p95)
        end
    end)
end)
