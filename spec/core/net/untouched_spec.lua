-- Whether an accepted connection is as it was accepted, whatever its client has sent by then.
local core = require 'dutch-master.core'
local ffi = require 'ffi'
local net = require 'spec.support.net'

for _, text in ipairs { '127.0.0.1:0', '[::1]:0' } do
    describe('a connection accepted at ' .. text, function()
        local listener, client, fd, before
        local byte = ffi.new 'char[16]'

        before_each(function()
            before = net.descriptors()
            listener = assert(core.listen(assert(core.address(text)), { reuseport = true }))
            local lane = listener:lane()
            client = assert(net.connect(text:match '^%[' and '::1' or '127.0.0.1', listener:address().port))
            local is_kept
            fd, is_kept = lane:accept 'conn/1.1.1'
            assert.is_true(fd > 2)
            assert.is_false(is_kept) -- there is no keeper
        end)
        after_each(function()
            core.close_fd(fd)
            net.abort(client)
            listener:close()
            assert.equal(before, net.descriptors())
        end)

        local function says(data)
            assert.equal(#data, tonumber(net.C.send(client, data, #data, 0)))
        end
        local function reads(count)
            return tonumber(net.C.recv(fd, byte, count, 0))
        end

        it('is untouched, silent or not', function()
            assert.is_true(core.untouched(fd))
            says 'hello'
            assert.is_true(core.untouched(fd))
            assert.equal(2, tonumber(net.C.recv(fd, byte, 2, 2))) -- MSG_PEEK
            assert.is_true(core.untouched(fd))
        end)

        it('is untouched when its client has said all, and when it has left', function()
            says 'hello'
            net.C.shutdown(client, 1)
            assert.is_true(core.untouched(fd))
            assert.equal(5, reads(16))
            assert.is_false(core.untouched(fd))
            net.C.close(client)
            client = assert(net.connect(text:match '^%[' and '::1' or '127.0.0.1', listener:address().port))
            local other = listener:lanes()[1]:accept()
            net.C.shutdown(client, 1)
            assert.is_true(core.untouched(other))
            core.close_fd(other)
        end)

        it('is not when something was read of it, though more has come since', function()
            says 'hello'
            assert.equal(1, reads(1))
            assert.is_false(core.untouched(fd))
            says 'hello'
            assert.is_false(core.untouched(fd))
            assert.equal(9, reads(16))
            assert.is_false(core.untouched(fd))
        end)

        it('is not when something was written to it', function()
            assert.equal(1, tonumber(net.C.send(fd, 'x', 1, 0)))
            assert.is_false(core.untouched(fd))
        end)

        it('is not when it was shut down, or reset', function()
            net.C.shutdown(fd, 1)
            assert.is_false(core.untouched(fd))
        end)

        it('is not when its client has reset it', function()
            net.abort(client)
            assert.is_false(core.untouched(fd))
            client = assert(net.connect(text:match '^%[' and '::1' or '127.0.0.1', listener:address().port))
        end)
    end)
end

describe('what is no TCP connection', function()
    it('is neither', function()
        local fd = net.C.socket(1, net.STREAM, 0)
        assert.is_nil(core.untouched(fd))
        net.C.close(fd)
        assert.is_nil(core.untouched(fd))
    end)
end)
