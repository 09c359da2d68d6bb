local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local net = require 'spec.support.net'

-- What dm-spec is run by, for specs that need a process of their own.
local RUNNER = require('spec.support.files').text('/proc/self/cmdline'):match '^[^%z]+'

describe('a lane', function()
    it('is steered by an ordinary user just so', function()
        if net.C.getuid() ~= 0 then
            pending 'this run is an ordinary user\'s already'
            return
        end
        local SPEC = 'spec/core/net/steering_spec.lua'
        local as_nobody = 'setpriv --reuid=65534 --regid=65534 --clear-groups '
        assert(core.stat(SPEC))
        if os.execute(as_nobody .. 'test -x ' .. RUNNER .. ' -a -r ' .. SPEC) ~= 0 then
            pending 'the tree cannot be read by an ordinary user'
            return
        end
        local pipe = io.popen(as_nobody .. RUNNER .. ' /usr/bin/busted --run=core -o TAP ' .. SPEC .. ' 2>&1; echo "exit $?"')
        local said = '\n' .. pipe:read '*a'
        pipe:close()
        assert.matches('exit 0\n$', said)
        assert.matches('\nok 1 ', said)
    end)

    it('is one shared socket where the kernel refuses steering', function()
        assert.equal(0, os.execute(RUNNER .. ' spec/support/refused_steering.lua'))
    end)

    it('says how long the head of its queue has been silent', function()
        local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        local lane = listener:lane()
        local client = net.connect('127.0.0.1', listener:address().port)
        local fd = lane:accept()
        assert.is_true(core.quiet_ms(fd) < 1000)
        core.close_fd(fd)
        net.abort(client)
        listener:close()
        assert.equal('EBADF', select(3, core.quiet_ms(1000)))
    end)

    it('lets in who has sent something, and who is silent later', function()
        local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        local lane, port = listener:lane(), listener:address().port
        assert.equal(0, lane:defer())
        assert.equal(0, lane:defer(1))
        assert.equal(1, lane:defer())
        local silent, speaks = assert(net.connect('127.0.0.1', port)), assert(net.connect('127.0.0.1', port))
        local begun = core.now()
        assert.equal(0, (lane:queue()))
        assert.equal(1, tonumber(net.C.send(speaks, 'x', 1, 0)))
        assert.equal(1, (lane:queue())) -- on the loopback device it is there by now
        assert.equal(1, lane:defer(0))
        while lane:queue() == 1 and core.now() < begun + 10000 do
            loop.run_once(20)
        end
        assert.equal(2, (lane:queue()))
        assert.is_true(core.now() > begun + 800, core.now() - begun) -- when the kernel tries again
        for _, client in ipairs { silent, speaks } do
            core.close_fd(lane:accept())
            net.abort(client)
        end
        listener:close()
        assert.equal('EBADF', select(3, lane:defer(1)))
        listener = core.listen(core.address 'unix:/tmp/dm-spec-defer', {})
        assert.equal('ENOTSUP', select(3, listener:lane():defer(1)))
        listener:close()
    end)

    it('shuts out who begins to connect, not who waits', function()
        local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        local lane, port = listener:lane(), listener:address().port
        local waiting = assert(net.connect('127.0.0.1', port))
        assert.is_true(lane:shut_out())
        assert.equal('EINPROGRESS', select(2, net.connect('127.0.0.1', port))) -- no answer, and no refusal
        assert.equal(1, (lane:queue()))
        local fd = lane:accept()
        assert.equal(1, tonumber(net.C.send(waiting, 'x', 1, 0)))
        local byte = require('ffi').new 'char[1]'
        assert.equal(1, tonumber(net.C.recv(fd, byte, 1, 0)))
        core.close_fd(fd)
        net.abort(waiting)
        listener:close()
        assert.equal('EBADF', select(3, lane:shut_out()))
    end)

    it('shuts out by its backlog where it may have no filter', function()
        local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        local lane, port = listener:lane(), listener:address().port
        local waiting = assert(net.connect('127.0.0.1', port))
        assert.is_true(net.set_option(lane:fd(), 1, 44, 1)) -- SO_LOCK_FILTER
        assert.is_true(lane:shut_out())
        assert.same({ 'locked' }, lane:repair()) -- and stays shut
        assert.equal('EINPROGRESS', select(2, net.connect('127.0.0.1', port)))
        local fd = lane:accept()
        assert.is_number(fd)
        core.close_fd(fd)
        net.abort(waiting)
        listener:close()
    end)

    it('loses a filter that a worker attached', function()
        local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        local lane, other, port = listener:lane(), listener:lane(), listener:address().port
        assert.same({}, lane:repair())
        if not net.drop_all(lane:fd()) then
            listener:close()
            return pending 'this kernel takes a filter of a TCP socket from root alone'
        end
        assert.equal('steered', listener:steer { { lane = lane } })
        assert.equal('EINPROGRESS', select(2, net.connect('127.0.0.1', port)))
        assert.same({ 'filter' }, lane:repair())
        assert.same({}, lane:repair())
        net.abort(assert(net.connect('127.0.0.1', port)))
        assert.is_true(other:shut_out())
        assert.same({}, other:repair()) -- our own
        listener:close()
    end)

    it('is named when a worker has locked its filters', function()
        local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        local lane = listener:lane()
        assert.same({}, lane:repair())
        assert.is_true(net.set_option(lane:fd(), 1, 44, 1)) -- SO_LOCK_FILTER
        assert.same({ 'locked' }, lane:repair())
        listener:close()
    end)

    it('is handed out non-blocking, blocking, or as it is', function()
        local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        local lane = listener:lane()
        local function is_blocking()
            return bit.band(net.C.fcntl(lane:fd 'as it is', 3), 0x800) == 0 -- F_GETFL, O_NONBLOCK
        end
        lane:fd()
        assert.is_false(is_blocking())
        lane:fd 'blocking'
        assert.is_true(is_blocking())
        assert.equal('EAGAIN', select(3, lane:accept())) -- the master never blocks on it
        assert.is_true(is_blocking())
        lane:fd 'nonblocking'
        assert.is_false(is_blocking())
        assert.has_error(function()
            lane:fd 'anyhow'
        end)
        listener:close()
    end)

    it('says in one call where connections wait', function()
        local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        local lanes, clients = { listener:lane(), listener:lane() }, {}
        assert.is_nil(listener:queued())
        listener:steer { { lane = lanes[2] } }
        for i = 1, 3 do
            clients[i] = net.connect('127.0.0.1', listener:address().port)
        end
        assert.same({ [lanes[2]] = 3 }, listener:queued())
        listener:close()
        for i = 1, 3 do
            net.abort(clients[i])
        end
        assert.is_nil(listener:queued())
    end)

    it('outlives its userdata, and is gone with its listener', function()
        local before = net.descriptors()
        local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        for _ = 1, 5 do
            listener:lane()
        end
        collectgarbage()
        collectgarbage()
        local lanes = listener:lanes()
        assert.equal(5, #lanes)
        assert.equal(lanes[3], listener:lanes()[3])
        for i, lane in ipairs(lanes) do
            assert.equal(i - 1, lane:index())
        end
        listener = nil -- luacheck: ignore
        collectgarbage()
        collectgarbage()
        assert.equal(before, net.descriptors())
        assert.same({ nil, 'closed', 'EBADF' }, { lanes[1]:fd() })
    end)

    it('is not lost by the master if a worker holds and closes it', function()
        local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        local lane = listener:lane()
        local copy = loop.dup_fd(lane:fd())
        local client = net.connect('127.0.0.1', listener:address().port)
        core.close_fd(copy)
        assert.same({ 1, 511 }, { lane:queue() })
        net.abort(client)
        listener:close()
    end)

    it('is not for misuse', function()
        for _, wrong in ipairs { 0, 1, 2 } do
            assert.has_error(function()
                core.close_fd(wrong)
            end)
        end
        assert.equal('EBADF', select(3, loop.dup_fd(1000)))
        assert.equal('EBADF', select(3, core.close_fd(1000)))
    end)
end)
