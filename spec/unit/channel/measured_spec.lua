local measured = require 'dutch-master.channel.measured'

local function sample(n)
    local buckets = {}
    for i = 1, 14 do
        buckets[i] = i == 6 and n or 0 -- 25 to 50 ms
    end
    return measured.read { answers = { 0, n, 0, 0, 0 }, buckets = buckets, seconds = n * 0.04, open = 2,
        lag = { 0.001, 0.01, 0.05 }, heap = { 10, 20 }, utilization = 0.5 }
end

describe('what a worker measured', function()
    it('is numbers in their places, whatever it said', function()
        for _, message in ipairs {
            {}, { answers = 'x', buckets = { {}, -1, 0 / 0, math.huge }, lag = { 'a' }, heap = 3, open = {} },
            { answers = { 1, 2, 3, 4, 5, 6, 7 }, utilization = 7, broken = -3 },
        } do
            local values = measured.read(message)
            assert.same({ 5, 14, 3, 2 }, { #values.answers, #values.buckets, #values.lag, #values.heap })
            assert.is_true(values.utilization <= 1 and values.broken == 0)
            for _, list in ipairs { values.answers, values.buckets, values.lag, values.heap } do
                for _, value in ipairs(list) do
                    assert.is_true(value >= 0 and value < math.huge)
                end
            end
        end
    end)

    it('grows, and what grew since is told', function()
        local d = measured.digest(measured.since(sample(30), sample(10)))
        assert.equal(20, d.requests)
        assert.is_true(math.abs(d.mean - 0.04) < 1e-9)
        assert.equal(30, measured.digest(measured.since(sample(30))).requests)
        -- Another worker of the same name began again: never less than nothing.
        assert.equal(0, measured.digest(measured.since(sample(3), sample(10))).requests)
    end)

    it('adds up over workers; of lag the worse counts', function()
        local other = sample(5)
        other.lag[2] = 0.5
        other.answers[5], other.broken = 2, 1
        local d = measured.digest(measured.add(sample(10), other))
        assert.same({ 18, 3, 0.5, 4 }, { d.requests, d.errors, d.lag, d.open })
    end)

    it('gives quantiles within their class', function()
        assert.is_nil(measured.quantile(measured.zero(), 0.5))
        local q = measured.quantile(sample(100), 0.5)
        assert.is_true(q > 0.025 and q <= 0.05, q)
        local late = measured.zero()
        late.buckets[14] = 3
        assert.equal(10, measured.quantile(late, 0.99))
    end)
end)
