local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local net = require 'spec.support.net'
local sys = require 'spec.support.sys'

local function run_until(test)
    for _ = 1, 500 do
        if test() then
            return
        end
        loop.run_once(20)
    end
    error('nothing came', 2)
end

describe('dial', function()
    local before, listener, lanes, dials

    before_each(function()
        before = net.descriptors()
        lanes, dials = {}, {}
    end)

    after_each(function()
        for _, d in ipairs(dials) do
            d.dial:close()
        end
        if listener then
            listener:close()
            listener = nil
        end
        loop.close()
        assert.equal(before, net.descriptors())
    end)

    local function open(text, count)
        listener = assert(core.listen(assert(core.address(text)), { reuseport = true, backlog = 1 }))
        for i = 1, count or 1 do
            lanes[i] = listener:lane()
        end
    end

    local function dial(address)
        local d = { data = '', ends = 0 }
        d.dial = assert(core.dial(address or listener:address().text, {
            on_data = function(data)
                d.data = d.data .. data
            end,
            on_end = function(message, code)
                d.ends, d.message, d.code = d.ends + 1, message, code
            end,
        }))
        dials[#dials + 1] = d
        return d
    end

    local function accept(lane)
        local fd
        run_until(function()
            fd = fd or lane:accept()
            return fd
        end)
        return fd
    end

    for _, text in ipairs { '127.0.0.1:0', '0.0.0.0:0', '[::1]:0', '[::]:0', ':0' } do
        it('reaches the lane that its port is steered to, on ' .. text, function()
            open(text, 3)
            for i = 1, 3 do
                local d = dial()
                assert.is_true(d.dial:port() > 0)
                listener:steer({ { lane = lanes[i % 3 + 1] } }, { probes = { { port = d.dial:port(), lane = lanes[i] } } })
                assert.is_true(d.dial:start 'hello\n')
                local fd = accept(lanes[i])
                local said
                run_until(function()
                    said = sys.read(fd)
                    return said
                end)
                assert.equal('hello\n', said)
                sys.write(fd, 'answer')
                run_until(function() return d.data == 'answer' end)
                core.close_fd(fd)
                run_until(function() return d.ends == 1 end)
                assert.is_nil(d.message)
                assert.equal('EISCONN', select(3, d.dial:start 'again'))
            end
        end)
    end

    it('says why it could not connect', function()
        open '127.0.0.1:0'
        local address = listener:address().text
        local d = dial(address)
        listener:close()
        listener = nil
        local ok, message, code = d.dial:start 'hello'
        if ok then
            run_until(function() return d.ends == 1 end)
            message, code = d.message, d.code
        end
        assert.same({ 'connection refused', 'ECONNREFUSED' }, { message, code })
    end)

    it('says that it was reset', function()
        open '127.0.0.1:0'
        local d = dial()
        d.dial:start 'hello'
        net.abort(accept(lanes[1]))
        run_until(function() return d.ends == 1 end)
        assert.equal('ECONNRESET', d.code)
    end)

    it('sends what does not fit at once', function()
        open '127.0.0.1:0'
        local d, text = dial(), ('x'):rep(8e6)
        assert.is_true(d.dial:start(text))
        local fd, got = accept(lanes[1]), 0
        run_until(function()
            got = got + #(sys.read(fd) or '')
            return got == #text
        end)
        core.close_fd(fd)
    end)

    it('hands nothing on once it is closed, also from a callback', function()
        open '127.0.0.1:0'
        local d
        d = { calls = 0, dial = core.dial(listener:address().text, {
            on_data = function()
                d.calls = d.calls + 1
                d.dial:close()
            end,
            on_end = function()
                d.calls = d.calls + 100
            end,
        }) }
        dials[1] = d
        d.dial:start 'hello'
        local fd = accept(lanes[1])
        sys.write(fd, 'one')
        run_until(function() return d.calls > 0 end)
        sys.write(fd, 'two')
        core.close_fd(fd)
        run_until(function() return not lanes[1]:accept() end)
        assert.equal(1, d.calls)
        assert.equal('EBADF', select(3, d.dial:start 'x'))
        assert.equal('EBADF', select(3, d.dial:port()))
        d.dial:close()
    end)

    it('refuses what is no TCP address, and options without callbacks', function()
        local none = { on_data = function() end, on_end = function() end }
        for _, text in ipairs { 'unix:/x', 'udp:127.0.0.1:1', 'nonsense' } do
            assert.equal('EINVAL', select(3, core.dial(text, none)))
        end
        assert.has_error(function()
            core.dial('127.0.0.1:1', {})
        end)
    end)

    for _, text in ipairs { '127.0.0.1:0', '[::1]:0', ':0' } do
        it('knows whether somebody has accepted it, at ' .. text, function()
            open(text)
            local d = dial()
            assert(d.dial:start('', true))
            run_until(function() return lanes[1]:queue() == 1 end)
            run_until(function() return d.dial:accepted() ~= nil end)
            assert.is_false(d.dial:accepted())
            assert.equal(0, d.ends)
            local fd = accept(lanes[1])
            assert.is_true(d.dial:accepted())
            assert.equal('', sys.read(fd, 10)) -- whoever reads first finds its end
            core.close_fd(fd)
            run_until(function() return d.ends == 1 end)
            assert.is_nil(d.message)
        end)
    end

    it('is let in by a listener that waits for data', function()
        open '127.0.0.1:0'
        assert(net.set_option(lanes[1]:fd(), 6, 9, 30)) -- TCP_DEFER_ACCEPT, s
        local d = dial()
        assert(d.dial:start('', true))
        core.close_fd(accept(lanes[1]))
        run_until(function() return d.ends == 1 end)
    end)
end)
