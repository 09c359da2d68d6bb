local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local lfs = require 'lfs'
local net = require 'spec.support.net'
local sys = require 'spec.support.sys'

describe('core.listen', function()
    local opened, before, dir
    local port = net.free_port()
    local here = '127.0.0.1:' .. port

    local function listen(text, options)
        local listener, message, code = core.listen(assert(core.address(text)), options)
        if listener then
            opened[#opened + 1] = listener
        end
        return listener, message, code
    end

    before_each(function()
        opened, before = {}, net.descriptors()
        dir = os.tmpname()
        os.remove(dir)
        lfs.mkdir(dir)
    end)

    after_each(function()
        for _, listener in ipairs(opened) do
            listener:close()
        end
        assert.equal(before, net.descriptors())
        for name in lfs.dir(dir) do
            assert.is_true(name == '.' or name == '..', 'left behind: ' .. name)
        end
        lfs.rmdir(dir)
    end)

    local function serves(listener, host, number)
        local client, code = net.connect(host, number)
        if not client then
            return nil, code
        end
        local fd
        for _, lane in ipairs(listener:lanes()) do
            fd = fd or lane:accept()
        end
        net.abort(client)
        return fd and core.close_fd(fd), 'nobody accepted'
    end

    for _, reuseport in ipairs { false, true } do
        describe(reuseport and 'with lanes' or 'shared', function()
            local options = { reuseport = reuseport }

            it('takes a free port and names it', function()
                local listener = listen('127.0.0.1:0', options)
                listener:lane()
                local a = listener:address()
                assert.is_true(a.port > 0)
                assert.equal('127.0.0.1:' .. a.port, a.text)
                assert.equal(not reuseport, listener:shared())
                assert.truthy(serves(listener, '127.0.0.1', a.port))
            end)

            it('serves IPv4 and IPv6 on :port, IPv6 alone on [::]', function()
                local both = listen(':0', options)
                both:lane()
                local p = both:address().port
                assert.is_true(both:address().dual)
                assert.truthy(serves(both, '127.0.0.1', p))
                assert.truthy(serves(both, '::1', p))
                local six = listen('[::]:0', options)
                six:lane()
                assert.truthy(serves(six, '::1', six:address().port))
                assert.equal('ECONNREFUSED', select(2, serves(six, '127.0.0.1', six:address().port)))
            end)

            it('sees a port that is taken, also by a group of its own user', function()
                for _, theirs in ipairs { false, true } do
                    local other = assert(net.bind('127.0.0.1', port, theirs))
                    local listener, message, code = listen(here, options)
                    net.C.close(other)
                    assert.is_nil(listener)
                    local held = (' (held by process %d, '):format(net.C.getpid())
                    local expected = 'EADDRINUSE: address already in use: ' .. here .. held
                    assert.equal(expected, message:sub(1, #expected))
                    assert.equal('EADDRINUSE', code)
                end
                local mine = listen(here, options)
                mine:lane()
                assert.equal('EADDRINUSE', select(3, listen(here, options)))
                assert.equal('EADDRINUSE', select(3, listen(':' .. port, options)))
            end)

            it('gives the port back at close', function()
                for _ = 1, 3 do
                    local listener = assert(listen(here, options))
                    listener:lane()
                    local client = net.connect('127.0.0.1', port)
                    listener:close()
                    net.C.close(client)
                    assert.equal('ECONNREFUSED', select(2, net.connect('127.0.0.1', port)))
                end
            end)

            it('knows the queue and its limit', function()
                local listener = listen('127.0.0.1:0', { reuseport = reuseport, backlog = 7 })
                local lane = listener:lane()
                local clients = {}
                for i = 1, 5 do
                    clients[i] = net.connect('127.0.0.1', listener:address().port)
                end
                assert.same({ 5, 7 }, { lane:queue() })
                assert.equal(0x800, bit.band(net.C.fcntl(lane:fd(), 3), 0x800)) -- O_NONBLOCK
                assert.equal(1, net.C.fcntl(lane:fd(), 1)) -- FD_CLOEXEC
                for i = 1, 5 do
                    assert(core.close_fd(lane:accept()))
                    net.abort(clients[i])
                end
                assert.equal('EAGAIN', select(3, lane:accept()))
                assert.same({ 0, 7 }, { lane:queue() })
            end)

            it('repairs what a worker did to a lane', function()
                local listener = listen('127.0.0.1:0', { reuseport = reuseport, backlog = 100 })
                local lane = listener:lane()
                assert.same({}, lane:repair())
                local fd = lane:fd()
                net.C.listen(fd, 5)
                net.C.fcntl(fd, 4, require('ffi').new('int', 0))
                -- On a lane of its own a worker may block: that harms nobody.
                assert.same({ 'backlog' }, lane:repair(true))
                assert.same(reuseport and {} or { 'nonblock' }, lane:repair())
                if reuseport then
                    assert.equal('EAGAIN', select(3, lane:accept()))
                    assert.equal(0, bit.band(net.C.fcntl(fd, 3), 0x800))
                end
                assert.equal(0x800, bit.band(net.C.fcntl(lane:fd(), 3), 0x800)) -- handed out it is as new
                assert.same({ 0, 100 }, { lane:queue() })
                net.C.shutdown(lane:fd(), 2)
                assert.equal('ECONNREFUSED', select(2, net.connect('127.0.0.1', listener:address().port)))
                assert.same({ 'shutdown' }, lane:repair())
                assert.truthy(serves(listener, '127.0.0.1', listener:address().port))
                assert.same({}, lane:repair())
                if reuseport then
                    assert(net.set_option(lane:fd(), 1, 15, 0)) -- SO_REUSEPORT
                    assert.same({ 'reuseport' }, lane:repair())
                    assert.equal(1, net.option(lane:fd(), 1, 15))
                end
            end)
        end)
    end

    it('closes a lane also when none is in the group any more', function()
        local listener = listen('127.0.0.1:0', { reuseport = true })
        local lanes = { listener:lane(), listener:lane() }
        for _, lane in ipairs(lanes) do
            net.C.shutdown(lane:fd(), 2)
        end
        -- Who has the port now keeps them from coming back.
        local other = listen(listener:address().text, {})
        for _, lane in ipairs(lanes) do
            assert.equal('EADDRINUSE', select(3, lane:repair()))
        end
        assert.is_true(lanes[1]:close())
        other:close()
        assert.same({ 'shutdown' }, lanes[2]:repair())
        assert.truthy(serves(listener, '127.0.0.1', listener:address().port))
    end)

    it('shares one UDP socket', function()
        local listener = listen('udp:127.0.0.1:0', { reuseport = true })
        assert.is_true(listener:shared())
        assert.equal(2, net.option(listener:lane():fd(), 1, 3)) -- SO_TYPE
        assert.equal('EADDRINUSE', select(3, listen(listener:address().text)))
        assert.equal('ENOTSUP', select(3, listener:lane():queue()))
    end)

    it('refuses an address that is not ours', function()
        local listener, message, code = listen('192.0.2.1:80')
        assert.is_nil(listener)
        assert.equal('EADDRNOTAVAIL', code)
        assert.matches('192.0.2.1:80', message, 1, true)
    end)

    describe('of a unix socket', function()
        local path
        before_each(function()
            path = dir .. '/app.sock'
        end)

        it('serves, with the mode asked for, and removes its path', function()
            for _, prefix in ipairs { 'unix:', 'unixgram:' } do
                local listener = assert(listen(prefix .. path, { mode = tonumber('660', 8) }))
                assert.equal('rw-rw----', lfs.attributes(path, 'permissions'))
                local kind = prefix == 'unix:' and net.STREAM or net.DGRAM
                assert.equal(0, net.C.close((net.connect(path, nil, { type = kind }))))
                listener:close()
                assert.is_nil(lfs.attributes(path))
            end
        end)

        it('has a mode beside what the umask leaves, and leaves the umask', function()
            local mask = sys.C.umask(tonumber('027', 8))
            for mode, want in pairs { ['444'] = 'r--r--r--', ['10444'] = 'rwxr-xr--', ['10222'] = 'rwxrwx-w-' } do
                local listener = assert(listen('unix:' .. path, { mode = tonumber(mode, 8) }))
                assert.equal(want, lfs.attributes(path, 'permissions'))
                listener:close()
            end
            assert.equal(tonumber('027', 8), sys.C.umask(mask))
        end)

        it('that another master goes on with is known by its inode, one that no double holds too', function()
            local first = assert(core.listen(core.address('unix:' .. dir .. '/s'), {}))
            local kept, fd = first:keep(), loop.dup_fd(first:lane():fd())
            assert.same({ 'number', 'number' }, { type(kept.inode), type(kept.device) })
            first:close()
            kept.lanes, kept.inode = { fd }, '9007199254740993'
            assert.equal('9007199254740993', assert(listen('unix:' .. dir .. '/s', { kept = kept })):keep().inode)
        end)

        it('serves an abstract name', function()
            local name = '@dutch-master-spec-' .. net.C.getpid()
            local listener = listen('unix:' .. name)
            assert.equal(0, net.C.close((net.connect(name))))
            assert.equal(name, listener:address().path)
            assert.equal('EADDRINUSE', select(3, listen('unix:' .. name)))
        end)

        it('replaces a stale socket, never a live one, never a file', function()
            local dead = net.C.socket(1, 1, 0)
            local name, size = net.sockaddr(path)
            assert.equal(0, net.C.bind(dead, name, size))
            net.C.close(dead)
            local listener = assert(listen('unix:' .. path))
            local again, message, code = listen('unix:' .. path)
            assert.is_nil(again)
            local held = (' (held by process %d, '):format(net.C.getpid())
            local expected = 'EADDRINUSE: address already in use: unix:' .. path .. held
            assert.equal(expected, message:sub(1, #expected))
            assert.equal('EADDRINUSE', code)
            listener:close()
            local file = io.open(path, 'w')
            file:write('precious')
            file:close()
            assert.equal('EEXIST', select(3, listen('unix:' .. path)))
            assert.equal(#'precious', lfs.attributes(path, 'size'))
            os.remove(path)
        end)

        it('puts a path back that a worker removed or took', function()
            local listener = listen('unix:' .. path)
            local lane = listener:lane()
            net.C.unlink(path)
            assert.same({ 'path' }, lane:repair())
            net.C.close((net.connect(path)))
            net.C.unlink(path)
            local theirs = net.bind(path)
            assert.same({ 'path' }, lane:repair())
            net.C.close((net.connect(path)))
            local count = 0
            while true do
                local fd = lane:accept()
                if not fd then
                    break
                end
                core.close_fd(fd)
                count = count + 1
            end
            net.C.close(theirs)
            assert.equal(2, count)
            assert.same({}, lane:repair())
        end)

        it('leaves a successor\'s path alone at close', function()
            local listener = listen('unix:' .. path)
            net.C.unlink(path)
            local theirs = net.bind(path)
            listener:close()
            assert.equal('socket', lfs.attributes(path, 'mode'))
            net.C.close(theirs)
            net.C.unlink(path)
        end)
    end)

    it('takes over a socket from outside and never shuts it down', function()
        local fd = net.bind('127.0.0.1', port)
        local copy = loop.dup_fd(fd)
        local listener = core.listen(core.address(here), { fd = fd, reuseport = true })
        assert.is_true(listener:shared())
        local lane = listener:lane()
        assert.same({}, lane:repair()) -- its backlog is its giver's: 16, see net.bind
        assert.equal(16, select(2, lane:queue()))
        net.C.listen(lane:fd(), 77)
        assert.same({ 'backlog' }, lane:repair())
        assert.same({}, lane:repair())
        assert.equal(16, select(2, lane:queue()))
        assert.truthy(serves(listener, '127.0.0.1', port))
        listener:close()
        assert.equal(1, net.option(copy, 1, 30)) -- SO_ACCEPTCONN
        core.close_fd(copy)
    end)

    it('gives a clean error after close', function()
        local listener = listen('127.0.0.1:0')
        local lane = listener:lane()
        listener:close()
        assert.same({ nil, 'closed', 'EBADF' }, { listener:address() })
        assert.same({ nil, 'closed', 'EBADF' }, { lane:queue() })
        assert.same({ nil, 'closed', 'EBADF' }, { lane:close() })
        assert.same({ nil, 'closed', 'EBADF' }, { listener:steer({}) })
    end)
end)
