-- What workers and their masters ask of sockets (sockets_waiting_spec: with connections that wait).
-- Longer than 400 lines: one interface, over one fake network.

local fake_sockets = require 'spec.support.fake_sockets'

local A = fake_sockets.A

describe('sockets', function()
    local world, sockets, platform, network, records
    local logged, rotation, query, serving

    local function new(options)
        sockets = world.new(options)
        return sockets
    end

    before_each(function()
        world = fake_sockets.new()
        platform, network, records = world.platform, world.network, world.records
        logged, rotation, query, serving = world.logged, world.rotation, world.query, world.serving
    end)

    after_each(function()
        world.finish()
    end)

    describe('of the plan', function()
        it('are bound all, or none', function()
            new()
            network.taken['127.0.0.1:82'] = true
            local ok, message, code = sockets:open { A, '127.0.0.1:81', '127.0.0.1:82' }
            assert.is_nil(ok)
            assert.equal('EADDRINUSE: address already in use: 127.0.0.1:82', message)
            assert.equal('EADDRINUSE', code)
            assert.is_nil(next(network.open))
            assert.equal('EINVAL', select(3, sockets:open { A, 'nonsense' }))
            assert.is_nil(next(network.open))
            assert.equal('EADDRINUSE', select(3, sockets:open { A, A }))
            assert.is_nil(next(network.open))
        end)

        it('are refused when there are more workers than lanes, with nothing bound', function()
            new { want = 513 }
            local ok, message, code = sockets:open { 'unix:/s', A }
            assert.is_nil(ok)
            assert.equal("E2BIG: 127.0.0.1:80: 513 workers, and at most 512 can have a lane each: fewer workers, or "
                .. "balance = 'shared'", message)
            assert.equal('E2BIG', code)
            assert.is_nil(next(network.open))
            assert.is_true(sockets:open { 'unix:/s', 'udp:53' })
            assert.is_true(sockets:has_room(4096))
        end)

        it('cannot have more workers wanted than lanes, unless they are shared', function()
            new()
            sockets:open { A }
            assert.is_true(sockets:has_room(512))
            local ok, message, code = sockets:has_room(513)
            assert.is_nil(ok)
            assert.matches('^E2BIG: 127.0.0.1:80: 513 workers', message)
            assert.equal('E2BIG', code)
            assert.equal('E2BIG', select(3, sockets:update({ A }, 513)))
            assert.is_true(sockets:update({ 'unix:/s' }, 513)) -- the other one is not the plan's any more
            assert.is_true(sockets:has_room(513))
            sockets:close()
            new { want = 513, balance = 'shared' }
            assert.is_true(sockets:open { A })
            sockets:close()
            new { want = 513, inherited = { { fd = 3, address = platform.address(A) } } }
            assert.is_true(sockets:open { A })
            assert.is_true(sockets:has_room(4096))
        end)

        it('are given to a worker in their order, each worker a lane of its own', function()
            new()
            sockets:open { { text = A, name = 'http' }, { text = 'unix:/s', name = 'local' } }
            local fds, names = sockets:take(1)
            local more = sockets:take(2)
            assert.same({ { name = 'http', address = A }, { name = 'local', address = 'unix:/s' } }, names)
            assert.equal(2, #fds)
            assert.not_equal(fds[1], more[1])
            assert.equal(fds[2], more[2])
        end)

        it('change by update: new ones first, old ones when their last worker has gone', function()
            new()
            sockets:open { A, '127.0.0.1:81' }
            serving(1)
            network.taken['127.0.0.1:83'] = true
            assert.is_nil((sockets:update { '127.0.0.1:82', '127.0.0.1:83' }))
            assert.is_nil(network.open['127.0.0.1:82'])
            assert.truthy(network.open[A])
            assert.is_true(sockets:update { '127.0.0.1:82', A })
            assert.equal(2, #(sockets:take(2)))
            assert.truthy(network.open['127.0.0.1:81'])
            sockets:drop(1)
            assert.same({ '127.0.0.1:82', '127.0.0.1:81' }, network.closed)
        end)

        it('that came from outside are taken over', function()
            new { inherited = { { fd = 3, name = 'x', address = { text = A } } } }
            sockets:open { A }
            assert.equal(3, network.open[A].options.fd)
        end)

        it('that came from outside are known by their numbers too', function()
            new { inherited = {
                { fd = 3, name = 'x', address = { text = A } }, { fd = 4, name = 'y' },
                { fd = 5, name = 'z', address = { text = 'udp:127.0.0.1:53', type = 'dgram' } },
            } }
            local function by_number(id, fd)
                return query(id, ('fd:%d#0'):format(fd), { text = false, type = 'fd', fd = fd })
            end
            local fd = by_number(1, 3)
            assert.truthy(fd)
            assert.equal(3, network.open[A].options.fd)
            assert.equal(fd, (by_number(2, 3)))
            assert.equal(fd, (query(3, A))) -- another release may ask for the same by its address
            for _, number in ipairs { 4, 5, 6 } do
                assert.equal('EINVAL', select(2, by_number(1, number)))
            end
            for id = 1, 3 do
                sockets:drop(id)
            end
            assert.truthy(network.open[A]) -- it could not be had again
            assert.equal(fd, (by_number(4, 3)))
        end)
    end)

    describe('in rotation', function()
        it('are the lanes of the workers that are ready', function()
            new()
            sockets:open { A }
            sockets:take(1)
            sockets:take(2)
            assert.same({ 1, 2 }, rotation()) -- nobody is ready: connections wait for both
            sockets:join(1)
            assert.same({ 1 }, rotation())
            sockets:join(2)
            assert.same({ 1, 2 }, rotation())
        end)

        it('are no others before the old ones leave, and a worker leaves before it is asked to go', function()
            new { want = 1 }
            sockets:open { A }
            serving(1)
            sockets:take(2)
            assert.same({ 1 }, rotation())
            sockets:join(2)
            local settled
            sockets:leave(1, function()
                settled = platform.now()
            end)
            assert.same({ 2 }, rotation())
            local asked = platform.now()
            platform:advance(3000)
            assert.equal(300, settled - asked)
        end)

        it('waits for an empty queue, two seconds at most', function()
            new()
            sockets:open { A }
            serving(1)
            local lane = network.open[A].client()
            serving(2)
            local asked, settled = platform.now(), nil
            sockets:leave(1, function()
                settled = platform.now()
            end)
            platform:advance(300)
            assert.is_nil(settled)
            lane.accept()
            platform:advance(500)
            assert.is_true(settled - asked >= 600 and settled - asked < 650)
            network.open[A].client()
            sockets:leave(2, function()
                settled = platform.now()
            end)
            asked = platform.now()
            platform:advance(2500)
            assert.is_true(settled - asked >= 2000 and settled - asked < 2050)
        end)

        it('waits as long as the queue moves, within the limit, and half of it where nothing moves', function()
            new()
            sockets:open { A }
            serving(1)
            local lane
            for _ = 1, 10 do
                lane = network.open[A].client()
            end
            serving(2)
            local function leaves(id, step, sick)
                local begun, settled = platform.now(), nil
                sockets:leave(id, function()
                    settled = platform.now() - begun
                end, 12000, sick)
                while not settled do
                    platform:advance(100)
                    if step and #lane.waiting > 0 and (platform.now() - begun) % step == 0 then
                        lane.accept()
                    end
                end
                return settled
            end
            local took = leaves(1, 900)
            assert.is_true(took >= 9000 and took <= 9450, tostring(took))
            lane.waiting = {}
            lane = network.open[A].client()
            took = leaves(2)
            assert.is_true(took >= 6000 and took <= 6100, tostring(took))
            lane.waiting = {}
            serving(3)
            lane = network.open[A].client()
            took = leaves(3, nil, true)
            assert.is_true(took >= 2000 and took <= 2100, tostring(took))
        end)

        it('helps to empty a queue before it leaves others alone with it', function()
            new { balance = 'queue' }
            sockets:open { A }
            assert(sockets:take(1, 1))
            assert(sockets:take(2, 1))
            sockets:join(1)
            sockets:join(2)
            local lane = network.open[A].client()
            local left
            sockets:leave(1, function()
                left = true
            end, 10000)
            platform:advance(400)
            assert.is_nil(left)
            lane.accept()
            platform:advance(40)
            assert.is_true(left)
        end)

        -- So many workers of one generation serve at A. @return their socket
        local function together(balance, count)
            new { balance = balance }
            sockets:open { A }
            for id = 1, count do
                assert(sockets:take(id, 1))
                sockets:join(id)
            end
            return network.open[A].all[1]
        end

        -- Most servers close what they accepted and heard nothing of.
        it('keeps who has sent nothing out of a queue that others go on serving, until the leaving one has heard', function()
            for _, balance in ipairs { 'queue', 'shared' } do
                local lane, begun, left = together(balance, 3), platform.now(), {}
                lane.deferred = 5 -- a server's own wish
                local function leave(id)
                    sockets:leave(id, function()
                        left[id] = platform.now() - begun
                    end, 10000)
                end
                leave(1)
                platform:advance(299)
                assert.same({ 1, {} }, { lane.deferred, left })
                platform:advance(1)
                assert.same({ 1, { 300 } }, { lane.deferred, left })
                platform:advance(1999)
                assert.equal(1, lane.deferred)
                platform:advance(1)
                assert.equal(5, lane.deferred)

                begun, left = platform.now(), {}
                leave(2)
                platform:advance(400)
                assert.same({ 1, { [2] = 300 } }, { lane.deferred, left })
                sockets:drop(2)
                assert.equal(5, lane.deferred)
                begun = platform.now()
                leave(3) -- for whoever was kept out may come still, and finds nobody else
                platform:advance(5000)
                assert.same({ 5, balance == 'queue' and 1200 or 0 }, { lane.deferred, left[3] })
                sockets:close()
            end
        end)

        it('lets them in again when all leave', function()
            local lane = together('queue', 2)
            sockets:leave(1, function() end, 10000)
            platform:advance(10)
            assert.equal(1, lane.deferred)
            sockets:leave(2, function() end, 10000)
            assert.equal(0, lane.deferred)
        end)

        it('lets them in again when whoever goes on dies', function()
            for _, balance in ipairs { 'queue', 'shared' } do
                local lane = together(balance, 2)
                sockets:leave(1, function() end, 10000)
                platform:advance(10)
                assert.equal(1, lane.deferred)
                sockets:drop(2)
                assert.equal(0, lane.deferred)
                sockets:close()
            end
        end)

        it('gives all who leave a queue at once their time: what each has accepted last may still be silent', function()
            together('queue', 2)
            local left, asked = {}, platform.now()
            for id = 1, 2 do
                sockets:leave(id, function()
                    left[id] = platform.now() - asked
                end, 10000)
            end
            platform:advance(1000)
            assert.same({ 300, 300 }, left)
        end)

        it('is waited for by all that share it when the cluster stops, and by nobody in a restart', function()
            for _, stops in ipairs { true, false } do
                new { balance = 'shared' }
                sockets:open { A }
                local left = {}
                for id = 1, 2 do
                    assert(sockets:take(id, 1))
                    sockets:join(id)
                end
                local lane = network.open[A].client()
                if stops then
                    sockets:shut_out()
                end
                for id = 1, 2 do
                    sockets:leave(id, function()
                        left[#left + 1] = id
                    end, 10000)
                end
                platform:advance(400)
                assert.equal(stops and 0 or 2, #left)
                lane.accept()
                platform:advance(400)
                assert.equal(2, #left)
                sockets:close()
            end
        end)

        it('is open to all when the cluster stops, if others keep it for who comes after', function()
            for _, theirs in ipairs { false, true } do
                new { inherited = theirs and { { fd = 3, address = platform.address(A) } } or {} }
                sockets:open { A }
                sockets:take(1)
                sockets:shut_out()
                assert.equal(not theirs, network.open[A].all[1].is_shut == true)
                sockets:close()
            end
        end)

        it('a worker without a lane leaves at once, a dropped one is never called back', function()
            new()
            sockets:open { 'unix:/s', A }
            local count = 0
            local function done()
                count = count + 1
            end
            sockets:leave(9, done)
            assert.equal(1, count)
            serving(1, 2)
            sockets:leave(1, done)
            sockets:drop(1)
            sockets:drop(1)
            platform:advance(5000)
            assert.equal(1, count)
        end)

        it('refuses connections to nobody when all are dead: they wait for the next worker', function()
            new { want = 1 }
            sockets:open { A }
            serving(1)
            sockets:drop(1)
            assert.same({ 'free' }, rotation())
            local lane = network.open[A].client()
            local fds = sockets:take(2)
            assert.equal(lane.fd(), fds[1])
            sockets:join(2)
            assert.same({ 2 }, rotation())
        end)

        it('weighs', function()
            new()
            sockets:open { A }
            serving(1, 2)
            sockets:weigh(2, 0.05)
            assert.equal(0.05, network.open[A].steered[2].weight)
            sockets:weigh(2, 0)
            assert.same({ 1 }, rotation())
            for _, bad in ipairs { -1, 0 / 0, 1 / 0, 'x' } do
                assert.has_error(function()
                    sockets:weigh(1, bad)
                end)
            end
        end)

        it('shares one socket where steering is refused, and says so', function()
            network.steering_fails = true
            new()
            sockets:open { A }
            assert.equal(sockets:take(1)[1], sockets:take(2)[1])
            assert.equal('shared', sockets:snapshot().balance)
            assert.equal(1, logged 'Steering refused, one socket is shared')
            assert.equal(1, logged 'Balancing')
        end)

        it('shares one socket when asked to', function()
            new { balance = 'shared' }
            sockets:open { A }
            assert.equal(sockets:take(1)[1], sockets:take(2)[1])
        end)
    end)

    it('of a worker that has locked its filter are no other worker\'s', function()
        local spoilt = {}
        new { spoilt = function(id) spoilt[#spoilt + 1] = id end }
        assert(sockets:open { A })
        serving(1, 2)
        local lane = network.open[A].all[1]
        lane.repairs = { 'locked' }
        platform:advance(1000)
        assert.same({ 1 }, spoilt)
        assert.same({ 2 }, rotation())
        assert.equal(1, logged 'Listening socket spoilt')
        sockets:drop(1)
        serving(3)
        assert.same({ 2, 3 }, rotation())
        assert.equal(3, #network.open[A].all)
        platform:advance(10000)
        assert.equal(2, #network.open[A].all)
        for _, left in ipairs(network.open[A].all) do
            assert.not_equal(lane, left)
        end
    end)

    describe('wake', function()
        local ticks

        before_each(function()
            new()
            ticks = 0
            local tick = sockets.tick
            sockets.tick = function(...)
                ticks = ticks + 1
                return tick(...)
            end
            sockets:open { A }
        end)

        it('hardly ever when nothing happens, and not at all without workers', function()
            platform:advance(10000)
            assert.equal(0, ticks)
            serving(1, 2)
            platform:advance(10000)
            assert.is_true(ticks <= 6, ticks)
            ticks = 0
            platform:advance(20000)
            assert.is_true(ticks <= 4, ticks)
            sockets:drop(1)
            sockets:drop(2)
            platform:advance(1000)
            ticks = 0
            platform:advance(10000)
            assert.equal(0, ticks)
        end)

        it('twice a second at most where sockets cannot be watched', function()
            network.watching_fails = true
            serving(1, 2)
            platform:advance(2000)
            ticks = 0
            platform:advance(10000)
            assert.is_true(ticks <= 20 and ticks > 15, ticks)
        end)

        it('at a connection, so that a worker that stalls after a long rest is found out in time', function()
            serving(1, 2)
            platform:advance(20300)
            network.open[A].client()
            network.open[A].client()
            local before = platform.now()
            assert.is_true(platform:run_until(function()
                return logged 'Worker stalled' == 1
            end, 2000))
            assert.is_true(platform.now() - before <= 1050, platform.now() - before)
        end)

        it('when a worker shuts its lane down', function()
            serving(1, 2)
            platform:advance(20300)
            local lane = network.open[A].all[2]
            lane.repairs = { 'shutdown' }
            network.wake(lane)
            assert.equal(1, logged 'Listening socket repaired')
        end)

        it('for a unix path every second, which may be removed without a sign', function()
            assert(sockets:update { A, 'unix:/app.sock' })
            serving(1, 2)
            platform:advance(20300)
            network.open['unix:/app.sock'].all[1].repairs = { 'path' }
            platform:advance(1000)
            assert.equal(1, logged 'Listening socket repaired')
        end)

        it('for a unix path at once when a worker ends, as servers remove it then', function()
            assert(sockets:update { A, 'unix:/app.sock' })
            serving(1, 2)
            platform:advance(20300)
            local lane = network.open['unix:/app.sock'].all[1]
            lane.repairs = { 'path' }
            sockets:drop(1)
            assert.same({}, lane.repairs)
            local last = records[#records]
            assert.same({ 'Listening socket repaired', 'debug', 1 }, { last.message, last.level, last.fields.workerId })
        end)

        it('often as long as somebody comes or goes', function()
            serving(1, 2)
            platform:advance(20000)
            sockets:take(3)
            ticks = 0
            platform:advance(5000)
            assert.equal(14, ticks)
            sockets:join(3)
            platform:advance(20000)
            ticks = 0
            sockets:drop(3)
            platform:advance(1600)
            assert.equal(5, ticks)
        end)
    end)

    it('do not close a lane that was in rotation a moment ago because nobody served', function()
        new { want = 1 }
        sockets:open { A }
        serving(1, 2)
        sockets:drop(2)
        platform:advance(4900)
        sockets:drop(1) -- both lanes are free, and in rotation
        assert.same({ 'free', 'free' }, rotation())
        platform:advance(1000)
        serving(3)
        platform:advance(4000)
        assert.equal(2, #network.open[A].all)
        platform:advance(2000)
        assert.equal(1, #network.open[A].all)
    end)

    it('keep a client at its worker until that worker leaves (sticky)', function()
        new { balance = 'sticky', want = 4 }
        sockets:open { A }
        serving(1, 2, 3, 4)
        local function owners()
            local list, by_lane = {}, {}
            for _, lane in ipairs(sockets:snapshot().listeners[1].lanes) do
                by_lane[#by_lane + 1] = lane.worker
            end
            for bucket, position in ipairs(network.open[A].sticky) do
                local lane = network.open[A].steered[position].lane
                list[bucket] = by_lane[lane.index() + 1]
            end
            return list
        end
        local before = owners()
        sockets:take(5)
        sockets:join(5)
        assert.same(before, owners())
        sockets:leave(2, function() end)
        local after, to = owners(), {}
        for bucket, owner in ipairs(before) do
            assert.is_true(after[bucket] == owner or owner == 2)
            if owner == 2 then
                to[after[bucket]] = true
            end
        end
        assert.same({ [5] = true }, to)
    end)
end)
