local fake_sockets = require 'spec.support.fake_sockets'

local A = fake_sockets.A

describe('sockets', function()
    local world, sockets, platform, network, records
    local rotation, request, query, serving

    local function new(options)
        sockets = world.new(options)
        return sockets
    end

    before_each(function()
        world = fake_sockets.new()
        platform, network, records = world.platform, world.network, world.records
        rotation, request, query, serving = world.rotation, world.request, world.query, world.serving
    end)

    after_each(function()
        world.finish()
    end)

    describe('bound with others\' rights', function()
        local AS = { uid = 1000, gid = 1000, groups = {} }
        local answers

        local function ask(id, text)
            local asked = request(text, { as = AS, type = 'unix' })
            sockets:query(id, asked, function(fd, code)
                answers[#answers + 1] = ('%s %s %s'):format(id, text, fd and 'bound' or code)
            end)
        end

        before_each(function()
            answers = {}
            network.helpers = {}
            new()
        end)

        it('nobody waits but who asks there, and asks on', function()
            ask(1, 'unix:/a')
            ask(1, A)
            ask(2, 'unix:/a') -- the same socket
            ask(3, 'unix:/b')
            ask(4, A)
            assert.same({ '4 ' .. A .. ' bound' }, answers)
            assert.equal(2, #network.helpers)
            answers = {}
            network.helpers[2]()
            assert.same({ '3 unix:/b bound' }, answers)
            answers = {}
            network.helpers[1]()
            assert.same({ '1 unix:/a bound', '1 ' .. A .. ' bound', '2 unix:/a bound' }, answers)
            ask(5, 'unix:/a')
            assert.equal('5 unix:/a bound', answers[4])
        end)

        it('all who ask there hear why not, and may ask again', function()
            network.taken['unix:/a'] = true
            ask(1, 'unix:/a')
            ask(2, 'unix:/a')
            network.helpers[1]()
            assert.same({ '1 unix:/a EADDRINUSE', '2 unix:/a EADDRINUSE' }, answers)
            network.taken['unix:/a'] = nil
            ask(1, 'unix:/a')
            network.helpers[2]()
            assert.equal('1 unix:/a bound', answers[3])
        end)

        it('a worker that has gone meanwhile hears nothing, and its socket is closed when it is nobody\'s', function()
            ask(1, 'unix:/a')
            sockets:drop(1)
            ask(1, A)
            network.helpers[1]()
            assert.same({ '1 ' .. A .. ' bound' }, answers)
            sockets:join(1)
            sockets:tick()
            assert.is_nil(network.open['unix:/a'])
        end)

        it('a path is put back before whoever asks there is answered', function()
            ask(1, 'unix:/a')
            network.helpers[1]()
            local listener = network.open['unix:/a']
            listener.mending, answers = true, {}
            ask(2, 'unix:/a')
            ask(3, 'unix:/a')
            assert.same({}, answers)
            listener.mending = false
            listener.settled()
            assert.same({ '2 unix:/a bound', '3 unix:/a bound' }, answers)
        end)

        it('what is bound after the end is closed again', function()
            ask(1, 'unix:/a')
            sockets:close()
            network.helpers[1]()
            assert.same({}, answers)
            assert.is_nil(network.open['unix:/a'])
        end)
    end)

    describe('asked for by workers', function()
        it('are bound once for all that ask for the same', function()
            new()
            local a, b = query(1, A), query(2, A)
            assert.truthy(a and b)
            assert.not_equal(a, b)
            assert.equal(a, (query(1, A)))
            assert.is_nil((query(1, ':0x')))
        end)

        it('fail by the name of the error', function()
            new()
            network.taken[A] = true
            local fd, code = query(1, A)
            assert.is_nil(fd)
            assert.equal('EADDRINUSE', code)
            assert.equal('EINVAL', select(2, query(1, 'x', { text = false, type = 'fd' })))
        end)

        it('are refused when there are more workers than lanes', function()
            new { want = 513 }
            local fd, code, message = query(1, A)
            assert.is_nil(fd)
            assert.equal('E2BIG', code)
            assert.matches('^E2BIG: 127.0.0.1:80: 513 workers', message)
            assert.is_nil(next(network.open))
            sockets:want(512)
            assert(query(1, A))
            assert.equal('E2BIG', select(3, sockets:has_room(513)))
            assert.equal('E2BIG', select(3, sockets:update({}, 513)))
        end)

        it('that cannot be bound are answered with the reason', function()
            new()
            network.taken['127.0.0.1:81'] = true
            assert.same({ nil, 'EADDRINUSE', 'EADDRINUSE: address already in use: 127.0.0.1:81' },
                { query(1, '127.0.0.1:81') })
        end)

        it('are one random port for the n-th listen(0) of every worker', function()
            new()
            query(1, ':0', { name = 'tcp4:*:0#0' })
            query(1, ':0', { name = 'tcp4:*:0#1' })
            query(2, ':0', { name = 'tcp4:*:0#0' })
            local count = 0
            for _ in pairs(network.open) do
                count = count + 1
            end
            assert.equal(2, count)
        end)

        it('are live at once when the worker is', function()
            new()
            query(1, A)
            sockets:join(1)
            query(1, '127.0.0.1:81')
            assert.same({ 1 }, rotation '127.0.0.1:81')
        end)

        it('are out of rotation once it has closed its server there, and live again when it asks again', function()
            new()
            for id = 1, 2 do
                query(id, A)
                query(id, '127.0.0.1:81')
                sockets:join(id)
            end
            sockets:forsake(1, { text = '127.0.0.1:81', name = '127.0.0.1:81', stream = true, port = 81 })
            assert.same({ 2 }, rotation '127.0.0.1:81')
            assert.same({ 1, 2 }, rotation(A))
            query(1, '127.0.0.1:81')
            assert.same({ 1, 2 }, rotation '127.0.0.1:81')
            sockets:forsake(3, { text = A, name = A, stream = true, port = 80 })
            assert.same({ 1, 2 }, rotation(A))
        end)

        it('are not answered once it is leaving', function()
            new()
            query(1, A)
            sockets:join(1)
            sockets:leave(1, function() end)
            assert.is_nil((query(1, '127.0.0.1:81')))
        end)

        it('stay when nobody has them, and close after a restart in which nobody asked for them, empty', function()
            new { want = 1 }
            query(1, A)
            sockets:join(1)
            sockets:forsake(1, { text = A, name = A, stream = true, port = 80 })
            sockets:drop(1)
            query(2, '127.0.0.1:81')
            sockets:join(2)
            platform:advance(2000)
            assert.truthy(network.open[A])
            network.open[A].all[1].waiting[1] = 1 -- a client
            sockets:restarted()
            platform:advance(2000)
            assert.truthy(network.open[A])
            assert.truthy(network.open['127.0.0.1:81'])
            network.open[A].all[1].waiting[1] = nil
            platform:advance(6000)
            assert.is_nil(network.open[A])
        end)

        it('stay after a restart if a worker that stays has them, and if it asks for them again', function()
            new { want = 1 }
            query(1, A)
            sockets:join(1)
            query(2, A)
            sockets:join(2)
            sockets:leave(1, function() end)
            sockets:restarted()
            sockets:drop(1)
            sockets:drop(2)
            platform:advance(2000)
            assert.truthy(network.open[A])
            sockets:restarted() -- nobody at all was there
            platform:advance(2000)
            assert.truthy(network.open[A])
        end)

        it('where nobody ever served close when all workers serve elsewhere', function()
            new { want = 1 }
            query(1, A)
            sockets:drop(1)
            platform:advance(2000)
            query(2, '127.0.0.1:81')
            sockets:join(2)
            platform:advance(2000)
            assert.is_nil(network.open[A])
        end)

        it('of an app that takes new ones for ever are a bounded number', function()
            new { want = 1 }
            query(1, A)
            sockets:join(1)
            for port = 1000, 1099 do
                local address = '127.0.0.1:' .. port
                query(1, address)
                sockets.directory.by_key[address].times_busy = 1
                sockets:forsake(1, { text = address, name = address, stream = true, port = port })
            end
            platform:advance(2000)
            local count = 0
            for _ in pairs(network.open) do
                count = count + 1
            end
            assert.equal(33, count)
            assert.equal(100, sockets:snapshot().totals.busy) -- it only grows
        end)

        it('use the plan\'s listener of that address', function()
            new()
            sockets:open { A }
            assert.truthy((query(1, A)))
        end)
    end)

    it('give up lanes beyond what is wanted, empty ones alone, after a while', function()
        new()
        sockets:open { A }
        serving(1, 2, 3, 4)
        local lane = network.open[A].client()
        sockets:drop(1)
        sockets:drop(2)
        assert.equal(4, #network.open[A].all)
        platform:advance(4000)
        assert.equal(4, #network.open[A].all)
        platform:advance(3000)
        assert.equal(3, #network.open[A].all)
        while lane.accept() do end
        platform:advance(1000)
        assert.equal(2, #network.open[A].all)
        assert.same({ 3, 4 }, rotation())
    end)

    it('name the worker whose socket had to be repaired', function()
        new()
        sockets:open { A }
        serving(7)
        network.open[A].all[1].repairs = { 'shutdown' }
        platform:advance(600)
        assert.equal('Listening socket repaired', records[#records].message)
        assert.same({ 'warn', 7, 'shutdown' }, { records[#records].level, records[#records].fields.workerId,
            records[#records].fields.repaired })
    end)
end)
