local Recent = require 'dutch-master.log.recent'

describe('recent', function()
    it('has the last records, the oldest first', function()
        local recent = Recent.new()
        assert.same({}, recent:list(10))
        for i = 1, 5 do
            recent:push('r' .. i, i % 2 == 0)
        end
        assert.same({ 'r1', 'r2', 'r3', 'r4', 'r5' }, recent:list(10))
        assert.same({ 'r3', 'r4', 'r5' }, recent:list(3))
        assert.same({}, recent:list(0))
    end)

    it('keeps what went wrong, whatever flood comes after it', function()
        local recent = Recent.new()
        recent:push('first error', true)
        for i = 1, 100000 do
            recent:push('flood ' .. i, false)
        end
        recent:push('last error', true)
        local list = recent:list(1000)
        assert.same({ 'first error', 'flood 99101', 'flood 100000', 'last error', 902 },
            { list[1], list[2], list[901], list[902], #list })
        for i = 1, 1000 do
            recent:push('error ' .. i, true)
        end
        assert.equal(1000, #recent:list(5000))
        assert.equal('error 1000', recent:list(1)[1])
    end)

    it('takes 1 MiB at most of each kind', function()
        local recent, long = Recent.new(), ('x'):rep(4096)
        for _ = 1, 1000 do
            recent:push(long, false)
            recent:push(long, true)
        end
        assert.equal(256 + 100, #recent:list(5000))
    end)
end)
