local linux = require 'dutch-master.linux'
local ffi = require 'ffi'
local net = require 'spec.support.net'

-- What libsystemd 252 does, row by row.
describe('linux.inherited', function()
    local function inherited(pid, fds, names)
        for name, value in pairs { LISTEN_PID = pid, LISTEN_FDS = fds, LISTEN_FDNAMES = names } do
            net.C.setenv(name, value, 1)
        end
        net.C.setenv('LISTEN_PIDFDID', '1', 1)
        local list, message, code = linux.inherited()
        for _, name in ipairs { 'LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES', 'LISTEN_PIDFDID' } do
            assert.is_nil(os.getenv(name), name)
        end
        return list, message, code
    end

    local function names(...)
        local found = {}
        for i, socket in ipairs(assert(inherited(...))) do
            assert.equal(2 + i, socket.fd)
            found[i] = socket.name
        end
        return found
    end

    local me = tostring(net.C.getpid())

    it('names what it was given', function()
        assert.same({ 'a', 'b' }, names(me, '2', 'a:b'))
        assert.same({ 'unknown', 'unknown' }, names(me, '2'))
        assert.same({ '', 'b' }, names(me, '2', ':b'))
        assert.same({ 'a', '' }, names(me, '2', 'a:'))
        assert.same({ 'a' }, names(' ' .. me, '1', 'a'))
        assert.same({ 'x' }, names(me, '1', 'x'))
    end)

    it('takes nothing that is meant for another process', function()
        assert.same({}, names(nil, '2'))
        assert.same({}, names('1', '2'))
        assert.same({}, names(me, nil))
        assert.same({}, names(nil, nil))
    end)

    it('refuses what is malformed', function()
        for _, case in ipairs {
            { me, '2', 'a' },
            { me, '2', 'a:b:c' }, { me, '2', '' }, { me .. 'x', '2' }, { '0' .. me, '2' }, { '', '2' },
            { '-1', '2' }, { '0', '2' }, { me, '0' }, { me, '-1' }, { me, 'x' }, { me, '2x' }, { me, '' },
            { me, '2147483647' },
        } do
            local list, _, code = inherited(unpack(case, 1, 3))
            assert.is_nil(list)
            assert.equal('EINVAL', code, table.concat(case, ' '))
        end
        assert.equal('ERANGE', select(3, inherited(me, '99999999999')))
        assert.equal('EBADF', select(3, inherited(me, '999999')))
    end)

    it('says what the sockets are, and keeps them from children', function()
        local fd = assert(net.bind('127.0.0.1', 0))
        local spare = net.C.fcntl(3, 1030, ffi.new('int', 64)) -- what is on 3 now, out of the way
        assert.equal(3, net.C.dup2(fd, 3))
        local list = inherited(me, '1', 'http')
        assert.equal('http', list[1].name)
        assert.equal('inet', list[1].address.family)
        assert.equal('stream', list[1].address.type)
        assert.is_true(list[1].address.port > 0)
        assert.equal(1, net.C.fcntl(3, 1))
        if spare >= 0 then
            net.C.dup2(spare, 3)
            net.C.fcntl(3, 2, ffi.new('int', 1))
            net.C.close(spare)
        else
            net.C.close(3)
        end
        net.C.close(fd)
    end)
end)
