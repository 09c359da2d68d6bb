-- Sockets in a listener's group that are not its own: counted, named by their holders, and steered round.
local core = require 'dutch-master.core'
local net = require 'spec.support.net'

local function for_each(list)
    local i = 0
    return function()
        i = i + 1
        return list[i]
    end
end

for text in for_each { '127.0.0.1:0', ':0', '[::1]:0' } do
    describe('strangers at ' .. text, function()
        local listener, port, opened, before
        local host = text:match '^127' or text:match '::1' and '::1' or '::'

        before_each(function()
            before, opened = net.descriptors(), {}
            listener = assert(core.listen(assert(core.address(text)), { reuseport = true }))
            opened.first = listener:lane()
            port = listener:address().port
        end)
        after_each(function()
            listener:close()
            for _, fd in ipairs(opened) do
                net.C.close(fd)
            end
            assert.equal(before, net.descriptors())
        end)

        local function stranger()
            local fd = assert(net.bind(host == '127' and '127.0.0.1' or host, port, true))
            opened[#opened + 1] = fd
            return fd
        end
        local function count()
            local inodes, number = listener:strangers()
            assert.equal(#inodes, number)
            return number, inodes
        end
        -- How many of 40 connections come out of these lanes.
        local function arrive(lanes)
            local clients, number = {}, 0
            for i = 1, 40 do
                clients[i] = assert(net.connect(text:match '^%[?::1' and '::1' or '127.0.0.1', port))
            end
            for _, lane in ipairs(lanes) do
                local fd = lane:accept()
                while fd do
                    number = number + 1
                    core.close_fd(fd)
                    fd = lane:accept()
                end
            end
            for _, client in ipairs(clients) do
                net.abort(client)
            end
            return number
        end

        it('are not there by themselves', function()
            listener:lane()
            assert.equal(0, (count()))
        end)

        it('get nothing, whoever came first, whatever comes and goes', function()
            local a = opened.first
            stranger()
            assert.equal(1, (count()))
            local b = listener:lane()
            listener:steer { { lane = b } }
            assert.equal(40, arrive { b })
            stranger()
            assert.equal(2, (count()))
            local c = listener:lane()
            listener:steer { { lane = a }, { lane = c } }
            assert.equal(40, arrive { a, c })
            net.C.close(table.remove(opened, 1)) -- c, the last one, moves into its place
            assert.equal(1, (count()))
            assert.equal(40, arrive { a, c })
            assert.is_true(b:close())
            assert.equal(40, arrive { a, c })
            net.C.shutdown(a:fd(), 2)
            assert.same({ 'shutdown' }, a:repair())
            listener:steer { { lane = a } }
            assert.equal(40, arrive { a })
            net.C.close(table.remove(opened, 1))
            assert.equal(0, (count()))
            assert.equal(40, arrive { a })
        end)

        it('get nothing while another master takes over, before it says who gets connections and after', function()
            local a = opened.first
            stranger()
            assert.equal(1, (count()))
            local b = listener:lane()
            listener:steer { { lane = b } }
            stranger() -- of which this master does not know yet
            local kept = listener:keep()
            assert.same({ 0, 2 }, kept.indexes)
            kept.lanes, kept.uncertain = { net.C.dup(a:fd()), net.C.dup(b:fd()) }, true
            local next_one = assert(core.listen(listener:address(), { kept = kept }))
            local its = next_one:lanes()[2]
            assert.equal(40, arrive { its })
            assert.equal(2, select(2, next_one:strangers()))
            assert.equal(40, arrive { its })
            next_one:steer { { lane = its } }
            assert.equal(40, arrive { its })
            net.C.close(table.remove(opened, 1)) -- the last one moves into its place
            assert.equal(1, select(2, next_one:strangers()))
            assert.equal(40, arrive { its })
            next_one:close()
        end)

        it('disturb nobody unseen, where as many lanes follow as the ones in use need: see spares.lua', function()
            stranger()
            stranger()
            assert.equal(2, (count()))
            local used = listener:lane()
            assert.equal(3, used:index())
            listener:lane()
            listener:lane() -- four of ours: 3 is below that
            stranger() -- not counted
            listener:steer { { lane = used } }
            while #opened > 0 do
                net.C.close(table.remove(opened, 1))
                assert.equal(40, arrive { used })
            end
        end)

        it('are named by who holds them, and only they', function()
            local fd = stranger()
            local _, inodes = count()
            local holders = core.holders(inodes)
            assert.equal(1, #holders)
            assert.equal(core.pid(), holders[1].pid)
            assert.is_true(#holders[1].name > 0)
            assert.same({}, core.holders {})
            assert.is_true(core.group_has(holders[1].group, fd))
            local other = net.C.socket(2, 1, 0)
            assert.is_true(core.group_has(holders[1].group, other))
            net.C.close(other)
            assert.equal('EBADF', select(3, core.group_has(holders[1].group, other)))
        end)
    end)
end
