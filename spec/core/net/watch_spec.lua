local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local net = require 'spec.support.net'
local sys = require 'spec.support.sys'

describe('core.watch', function()
    local listener, lane, watch, before, woken

    before_each(function()
        before, woken = net.descriptors(), 0
        listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        lane = listener:lane()
        watch = assert(core.watch(function()
            woken = woken + 1
        end))
    end)

    after_each(function()
        watch:close()
        listener:close()
        loop.run_once(0)
        assert.equal(before, net.descriptors())
    end)

    local function connect()
        return assert(net.connect('127.0.0.1', listener:address().port))
    end

    local function turn()
        for _ = 1, 3 do
            loop.run_once(0)
        end
    end

    it('wakes once at a connection, only when started', function()
        net.abort(connect())
        turn()
        assert.equal(0, woken)
        assert.is_true(watch:start { lane:fd() })
        local client = connect()
        sys.await(function() return woken == 1 end)
        net.abort(connect())
        turn()
        assert.equal(1, woken)
        assert.is_true(watch:start { lane:fd() }) -- somebody waits already
        sys.await(function() return woken == 2 end)
        watch:start { lane:fd() }
        watch:stop()
        turn()
        assert.equal(2, woken)
        net.abort(client)
    end)

    it('wakes when a holder of the socket shuts it down', function()
        watch:start { lane:fd() }
        turn()
        assert.equal(0, woken)
        local copy = loop.dup_fd(lane:fd())
        net.C.shutdown(copy, 2)
        sys.await(function() return woken == 1 end)
        core.close_fd(copy)
        assert.same({ 'shutdown' }, lane:repair())
        watch:start { lane:fd() }
        net.abort(connect())
        sys.await(function() return woken == 2 end)
    end)

    it('wakes at a shutdown alone, if that is all that is asked', function()
        assert.is_true(watch:start({ lane:fd() }, true))
        local client = connect()
        turn()
        assert.equal(0, woken)
        net.C.shutdown(lane:fd(), 2)
        sys.await(function() return woken == 1 end)
        assert.is_true(#lane:repair(false) > 0)
        assert.is_true(watch:start({ lane:fd() }, true))
        turn()
        assert.equal(1, woken)
        net.abort(client)
    end)

    it('hears nothing more once it is closed, though others hold the socket', function()
        watch:start { lane:fd() }
        local copy = loop.dup_fd(lane:fd())
        watch:close()
        watch:close()
        net.abort(connect())
        turn()
        assert.equal(0, woken)
        assert.same({ nil, 'EBADF' }, { (watch:start { lane:fd() }), (select(3, watch:start { lane:fd() })) })
        core.close_fd(copy)
    end)

    it('is kept while it is started, and goes with its last reference otherwise', function()
        local count = 0
        local other = listener:lane()
        core.watch(function() count = count + 1 end):start { lane:fd(), other:fd() }
        collectgarbage()
        collectgarbage()
        local clients = {}
        sys.await(function()
            clients[#clients + 1] = connect()
            loop.run_once(0)
            return count == 1
        end)
        for _, client in ipairs(clients) do
            net.abort(client)
        end
        collectgarbage()
        collectgarbage()
        turn()
        assert.equal(1, count)
    end)

    it('leaves blocking sockets as they are, and takes all or none', function()
        local fd = lane:fd()
        net.C.fcntl(fd, 4, require('ffi').new('int', 0))
        assert.same({ nil, 'EBADF' }, { (watch:start { fd, 999 }), (select(3, watch:start { fd, 999 })) })
        net.abort(connect())
        turn()
        assert.equal(0, woken)
        assert.is_true(watch:start { fd })
        assert.is_true(watch:start { fd }) -- again, in its place
        sys.await(function() return woken == 1 end)
        assert.equal(0, bit.band(net.C.fcntl(fd, 3), 0x800))
        assert.is_true(watch:start {})
        turn()
        assert.equal(1, woken)
        assert.has_error(function()
            core.watch()
        end)
    end)
end)
