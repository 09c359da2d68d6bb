local Output = require 'dutch-master.log.output'

local function new(limit)
    local clock = { now = 100 }
    local output = Output.new { limit = limit or 10000, platform = { wall = function() return clock.now end } }
    return output, clock
end

local function texts(output, wish)
    local list = {}
    for i, line in ipairs((output:read(wish or {}))) do
        list[i] = line.text
    end
    return list
end

describe('output', function()
    it('keeps lines, whatever pieces they come in, apart by worker and stream', function()
        local output = new()
        output:write(1, 'stdout', 'a')
        output:write(2, 'stdout', 'x\ny')
        output:write(1, 'stderr', 'oops\n')
        output:write(1, 'stdout', 'b\n\nc')
        output:ended(1)
        assert.same({ 'x', 'oops', 'ab', '', 'c' }, texts(output))
        assert.same({ 'ab', '', 'c' }, { unpack(texts(output, { worker = 1 }), 2) })
        local line = output:read({ worker = 1 })[1]
        assert.same({ number = 2, time = 100, worker = 1, stream = 'stderr', text = 'oops' }, line)
    end)

    it('keeps the last of it, never more than its limit', function()
        local output = new(2000)
        for i = 1, 5000 do
            output:write(i % 3, 'stdout', ('line %d\n'):format(i))
            assert.is_true(output.bytes <= 2000)
        end
        local list = texts(output)
        assert.equal('line 5000', list[#list])
        assert.is_true(#list >= 10 and #list <= 15, #list)
        local count = 0
        for _ in pairs(output.entries) do
            count = count + 1
        end
        assert.equal(#list, count)
        output:write(1, 'stdout', ('y'):rep(100000) .. '\nlast\n')
        assert.same({ 'last' }, texts(output))
    end)

    it('cuts a line that is too long into pieces, and only that', function()
        local output = new(1e6)
        output:write(1, 'stdout', ('x'):rep(8192) .. '\n' .. ('y'):rep(8193))
        output:write(1, 'stdout', '\n')
        local list = texts(output)
        assert.same({ 8192, 8192, 1 }, { #list[1], #list[2], #list[3] })
    end)

    it('is read on from the last line one has, and what was lost meanwhile is counted', function()
        local output = new(1000)
        output:write(1, 'stdout', 'one\ntwo\nthree\n')
        local list, next_from, lost, more = output:read { last = 2 }
        assert.same({ 'two', 'three' }, { list[1].text, list[2].text })
        assert.same({ 3, 0, false }, { next_from, lost, more })
        assert.same({}, (output:read { after = 3 }))
        for i = 4, 40 do
            output:write(1, 'stdout', i .. '\n')
        end
        list, next_from, lost = output:read { after = next_from }
        assert.equal(40, next_from)
        assert.equal(37, lost + #list)
        assert.is_true(lost > 0)
    end)

    it('is given in portions', function()
        local output = new(1e6)
        for i = 1, 100 do
            output:write(1, 'stdout', i .. '\n')
        end
        local after, all = nil, {}
        repeat
            local list, next_from, _, more = output:read { after = after, bytes = 1000 }
            assert.is_true(#list > 0 and #list < 10)
            for _, line in ipairs(list) do
                all[#all + 1] = tonumber(line.text)
            end
            after = next_from
        until not more
        assert.equal(100, #all)
        assert.same({ 1, 50, 100 }, { all[1], all[50], all[100] })
    end)

    it('knows the time of a line', function()
        local output, clock = new()
        output:write(1, 'stdout', 'early\n')
        clock.now = 200
        output:write(1, 'stdout', 'late\n')
        assert.same({ 'late' }, texts(output, { since = 150 }))
        assert.same({ 'late' }, texts(output, { since = 150, last = 5 }))
    end)

    it('tells whoever waits, once, when a whole line has come', function()
        local output = new()
        local told = 0
        output:wait(function() told = told + 1 end)
        local forget = output:wait(function() told = told + 100 end)
        output:write(1, 'stdout', 'half')
        forget()
        output:write(1, 'stdout', ' a line\n')
        output:write(1, 'stdout', 'more\n')
        assert.is_true(told == 1 or told == 2)
    end)

    it('of no size keeps nothing', function()
        local output = new(0)
        output:write(1, 'stdout', 'a\n')
        assert.same({}, texts(output))
        output:adopt { keep_output = 1000, worker_output = 'inherit' }
        output:write(1, 'stdout', 'b\n')
        output:adopt { keep_output = 0, worker_output = 'inherit' }
        assert.same({ {}, 0 }, { texts(output), output.bytes })
    end)
end)
