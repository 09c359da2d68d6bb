local Buckets = require 'dutch-master.listen.sticky'
local Platform = require 'spec.support.fake_platform'
local Sockets = require 'dutch-master.listen.sockets'
local fake_network = require 'spec.support.fake_network'

local A = '127.0.0.1:80'

describe('sockets', function()
    local platform, network, sockets, records, rescued, rescue, idle

    local log = setmetatable({}, {
        __index = function(_, level)
            return function(_, fields, message)
                records[#records + 1] = { level = level, fields = fields, message = message }
            end
        end,
    })

    local function new(options)
        options = options or {}
        options.platform, options.log = platform, log
        options.want = options.want or 2
        options.rescue = function(...)
            return rescue(...)
        end
        options.idle = function(id)
            return idle[id]
        end
        sockets = Sockets.new(options)
        return sockets
    end

    before_each(function()
        platform = Platform.new()
        network = fake_network.add(platform)
        records, rescued, idle = {}, {}, {}
        function rescue(fd, done, worker)
            rescued[#rescued + 1] = { fd = fd, worker = worker }
            done(true)
            return true
        end
    end)

    after_each(function()
        sockets:close()
        assert.is_nil(next(network.open), 'a listener stayed open')
        assert.is_nil(next(platform.timers), 'a timer stayed open')
    end)

    local function logged(message)
        local count = 0
        for _, record in ipairs(records) do
            count = count + (record.message == message and 1 or 0)
        end
        return count
    end

    -- The worker ids whose lanes get new connections of a listener.
    local function rotation(text)
        local ids = {}
        for _, listener in ipairs(sockets:snapshot().listeners) do
            if listener.address == (text or A) then
                for _, lane in ipairs(listener.lanes) do
                    if lane.steered then
                        ids[#ids + 1] = lane.worker or lane.state
                    end
                end
            end
        end
        table.sort(ids)
        return ids
    end

    local function request(text, fields)
        local port = tonumber(text:match ':(%d+)$')
        local made = { name = text, text = text, type = 'tcp4', stream = true, port = port, index = 0 }
        for key, value in pairs(fields or {}) do
            made[key] = value
        end
        return made
    end

    local function query(id, text, fields)
        local answer = {}
        sockets:query(id, request(text, fields), function(...)
            answer = { ... }
        end)
        return unpack(answer, 1, 3)
    end

    -- Workers without a channel.
    local function serving(...)
        for _, id in ipairs { ... } do
            assert(sockets:take(id))
            sockets:join(id)
        end
    end

    -- Workers with one.
    local function asking(...)
        for _, id in ipairs { ... } do
            assert(query(id, A))
            sockets:join(id)
        end
    end

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
            sockets:close_unused()
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
            assert.equal(150, settled - asked)
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
            assert.is_true(settled - asked >= 450 and settled - asked < 500)
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
            assert.is_true(took >= 9000 and took <= 9300, tostring(took))
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

        it('shares one socket when asked to; another word is an error', function()
            new { balance = 'shared' }
            sockets:open { A }
            assert.equal(sockets:take(1)[1], sockets:take(2)[1])
            assert.has_error(function()
                Sockets.new { platform = platform, log = log, balance = 'fair' }
            end)
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

    describe('of a worker that died', function()
        it('are emptied into live workers', function()
            new()
            sockets:open { A }
            asking(1)
            network.open[A].client()
            network.open[A].client()
            asking(2)
            sockets:drop(1)
            assert.same({ 2, 2 }, { rescued[1].worker, rescued[2].worker })
            assert.is_nil(next(network.live_fds))
        end)

        it('keep a connection that no worker takes, until one does', function()
            new()
            sockets:open { A }
            asking(1)
            network.open[A].client()
            asking(2)
            local yes = rescue
            function rescue()
                return false
            end
            sockets:drop(1)
            assert.truthy(next(network.live_fds))
            rescue = yes
            platform:advance(600)
            assert.equal(2, rescued[1].worker)
            assert.is_nil(next(network.live_fds))
        end)

        it('ask another worker when the first refuses later, and give up at last', function()
            new { want = 3 }
            sockets:open { A }
            asking(1)
            network.open[A].client()
            asking(2, 3)
            local asked = {}
            function rescue(_, done, worker)
                asked[#asked + 1] = worker
                platform:after(10, function()
                    done(false)
                end)
                return true
            end
            sockets:drop(1)
            platform:advance(1000)
            assert.equal(8, #asked)
            assert.not_equal(asked[1], asked[2])
            assert.is_nil(next(network.live_fds))
            assert.equal(1, logged 'Waiting connection closed, no worker takes it')
        end)

        it('ask on for as long as workers end before they have taken it', function()
            new { want = 3 }
            sockets:open { A }
            asking(1)
            local _, fd = network.open[A].client()
            asking(2, 3)
            local asked = 0
            function rescue(_, done)
                asked = asked + 1
                local ended = asked <= 20
                platform:after(10, function()
                    done(not ended, ended)
                end)
                return true
            end
            sockets:drop(1)
            platform:advance(1000)
            assert.equal(21, asked)
            assert.is_nil(network.live_fds[fd])
            assert.equal(0, logged 'Waiting connection closed, no worker takes it')
        end)
    end)

    describe('at which a worker is asked', function()
        local listener

        local function open()
            new { want = 3 }
            sockets:open { A }
            listener = network.open[A]
            asking(1, 2)
            assert(query(3, A)) -- starting
        end

        it('send the connection to its lane, though that is not in rotation', function()
            open()
            local target = assert(sockets:probe_target(3))
            assert.equal(target, sockets:probe_target(3, 80))
            assert.is_true(target:probe(3, 40000))
            assert.is_true(target:probe(1, 40001))
            assert.same({ 1, 2 }, rotation())
            local ports = {}
            for _, probe in ipairs(listener.probes) do
                ports[probe.port] = probe.lane
            end
            assert.same({ [40000] = listener.all[3], [40001] = listener.all[1] }, ports)
            assert.is_true(target:probed(3))
            assert.equal(1, #listener.probes)
            target:unprobe(1)
            assert.same({}, listener.probes)
            assert.is_false(target:probed(1))
        end)

        it('are the plan\'s in its order, then those asked for in theirs', function()
            new()
            sockets:open { 'unix:/s', 'udp:127.0.0.1:53', A, '127.0.0.1:81' }
            sockets:take(1)
            assert.equal(A, sockets:probe_target(1).address.text)
            assert.equal('127.0.0.1:81', sockets:probe_target(1, 81).address.text)
            query(2, '127.0.0.1:83')
            query(2, '127.0.0.1:82')
            assert.equal('127.0.0.1:83', sockets:probe_target(2).address.text)
            assert.equal('127.0.0.1:82', sockets:probe_target(2, 82).address.text)
            assert.same({ 'it does not listen on port 81', 'ENOENT' }, { select(2, sockets:probe_target(2, 81)) })
            assert.same({ 'it does not listen on a TCP port', 'ENOENT' }, { select(2, sockets:probe_target(9)) })
        end)

        it('stay those where it was first asked, though the plan has others by now', function()
            new()
            sockets:open { A, '127.0.0.1:81' }
            sockets:take(1)
            sockets:join(1)
            local target = sockets:probe_target(1)
            assert.truthy(sockets:update { '127.0.0.1:82', '127.0.0.1:81' })
            assert.equal(target, (sockets:probe_target(1)))
            assert.is_true(target:probe(1, 40000))
            assert.is_true(target:probed(1))
            sockets:take(2)
            assert.equal('127.0.0.1:82', sockets:probe_target(2).address.text)
            sockets:drop(1)
            assert.is_nil((sockets:probe_target(1)))
        end)

        it('are no shared ones', function()
            new { balance = 'shared' }
            sockets:open { A }
            sockets:take(1)
            assert.same({ 'all workers have one socket at ' .. A, 'ENOTSUP' }, { select(2, sockets:probe_target(1)) })
        end)

        it('are none while steering is refused', function()
            open()
            local target = sockets:probe_target(3)
            network.steering_fails = true
            assert.same({ 'steering is refused', 'EPERM' }, { select(2, target:probe(3, 40000)) })
            network.steering_fails = false
            sockets:tick()
            assert.same({}, listener.probes)
            assert.is_true(target:probe(3, 40000))
        end)

        it('take a limited number of questions at a time', function()
            new { want = 100 }
            sockets:open { A }
            for id = 1, 65 do
                sockets:take(id)
                local ok, _, code = sockets:probe_target(id):probe(id, id)
                assert.same(id <= 64 and { true } or { nil, 'EAGAIN' }, { ok, code })
            end
            sockets:probe_target(1):unprobe(1)
            assert.is_true(sockets:probe_target(65):probe(65, 65))
        end)

        it('do not trust an answer when the question may have gone to another worker', function()
            open()
            local target = sockets:probe_target(1)
            -- It waited in the lane of a worker that stalled, and was handed on.
            target:probe(1, 40000)
            table.insert(listener.all[1].waiting, 1)
            network.live_fds[1] = true
            assert.is_true(platform:run_until(function()
                return logged 'Worker stalled' == 1
            end, 3000))
            assert.is_false(target:probed(1))
            -- A lane was shut down: the kernel's order was another one for a moment, whether that is known already or not.
            for _, known in ipairs { true, false } do
                target:probe(3, 40000)
                listener.all[2].repairs = { 'shutdown' }
                if known then
                    platform:advance(1000)
                end
                assert.is_false(target:probed(3))
            end
            target:probe(3, 40000)
            assert.is_true(target:probed(3))
            -- It was dropped.
            target:probe(3, 40000)
            sockets:drop(3)
            assert.same({}, listener.probes)
            assert.is_false(target:probed(3))
        end)
    end)

    describe('of a worker that is stalled', function()
        it('are steered around, emptied, and tried again', function()
            new()
            sockets:open { A }
            asking(1, 2)
            platform:advance(360)
            idle[1] = false
            network.open[A].client() -- just after a tick
            local before = platform.now()
            assert.is_true(platform:run_until(function()
                if #rotation() == 2 then
                    network.open[A].client()
                end
                return logged 'Worker stalled' == 1
            end, 2000))
            assert.is_true(platform.now() - before <= 1350)
            assert.same({ 2 }, rotation())
            assert.equal(2, rescued[1].worker)
            assert.is_true(platform:run_until(function()
                return logged 'Worker takes connections again' == 1
            end, 3000))
            assert.same({ 1, 2 }, rotation())
        end)

        it('come back as soon as their queue moves, where nothing can be rescued', function()
            new()
            sockets:open { A }
            serving(1, 2)
            local lane = network.open[A].client()
            network.open[A].client()
            network.open[A].client()
            platform:advance(1600)
            assert.same({ 2 }, rotation())
            lane.accept()
            platform:advance(100)
            assert.equal(1, logged 'Worker takes connections again')
            lane.accept()
            lane.accept()
            platform:advance(100)
            assert.same({ 1, 2 }, rotation())
            assert.same({}, rescued)
        end)

        it('keep their connections where no other worker takes any: what is accepted cannot be put back', function()
            local taking = {}
            new { want = 3, takes = function(id)
                return taking[id]
            end }
            sockets:open { A }
            asking(1, 2, 3)
            local lane = network.open[A].client()
            platform:advance(1600)
            assert.same({ 2, 3 }, rotation())
            assert.same({ 1, {} }, { #lane.waiting, rescued })
            taking[3] = true
            platform:advance(600)
            assert.same({ 0, 3 }, { #lane.waiting, rescued[1].worker })
        end)

        it('are not stalled if the head of the queue has just come', function()
            new()
            sockets:open { A }
            asking(1, 2)
            network.open[A].client()
            network.quiet_ms = 100
            platform:advance(1500)
            assert.equal(0, logged 'Worker stalled')
            assert.equal(1, #rescued)
        end)

        it('stay in rotation while the queue moves, or when there is nobody else', function()
            new()
            sockets:open { A }
            serving(1)
            local first = network.open[A].client()
            platform:advance(5000)
            assert.same({ 1 }, rotation())
            assert.equal(0, logged 'Worker stalled')
            first.accept()
            platform:advance(600)
            serving(2)
            for _ = 1, 50 do
                network.open[A].client()
                network.open[A].client()
                platform:advance(100)
                for _, lane in ipairs(network.open[A].all) do
                    for _ = 1, math.max(#lane.waiting - 1, 1) do
                        lane.accept()
                    end
                end
                platform:advance(100)
            end
            assert.equal(0, logged 'Worker stalled')
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
                sockets:forsake(1, { text = address, name = address, stream = true, port = port })
            end
            platform:advance(2000)
            local count = 0
            for _ in pairs(network.open) do
                count = count + 1
            end
            assert.equal(33, count)
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

describe('buckets', function()
    local seed = tonumber(os.getenv 'DM_SPEC_SEED') or os.time()

    it('move only by need, through random comings and goings (seed ' .. seed .. ')', function()
        math.randomseed(seed)
        for _ = 1, 20 do
            local want = math.random(2, 12)
            local buckets, here, next_id = Buckets.new(want), {}, 0
            local function copy()
                local list = {}
                for bucket = 1, buckets.count do
                    list[bucket] = buckets.owner[bucket]
                end
                return list
            end
            for _ = 1, 60 do
                local before = copy()
                local gone
                if #here > 0 and (#here > want or math.random(2) == 1) then
                    gone = table.remove(here, math.random(#here))
                    buckets:leave(gone, want)
                else
                    next_id = next_id + 1
                    here[#here + 1] = next_id
                    buckets:join(next_id, want)
                end
                local held = {}
                for bucket = 1, buckets.count do
                    local owner = buckets.owner[bucket]
                    if #here > 0 then
                        assert.truthy(owner)
                        held[owner] = (held[owner] or 0) + 1
                    end
                    if before[bucket] and owner ~= before[bucket] then
                        -- A bucket moves from who left, or to who came.
                        assert.is_true(before[bucket] == gone or not gone and owner == next_id)
                    end
                end
                for _, id in ipairs(here) do
                    assert.equal(buckets.held[id], held[id] or 0)
                end
            end
        end
    end)

    it('are shared out evenly when the cluster grows, and come back to a successor after a crash', function()
        local buckets = Buckets.new(4)
        for id = 1, 4 do
            buckets:join(id, 4)
        end
        for id = 1, 4 do
            assert.equal(64, buckets.held[id])
        end
        local of_two = {}
        for bucket, owner in ipairs(buckets.owner) do
            of_two[bucket] = owner == 2 or nil
        end
        buckets:leave(2, 4)
        buckets:join(5, 4)
        for bucket, owner in ipairs(buckets.owner) do
            assert.equal(of_two[bucket] or false, owner == 5)
        end
    end)

    it('of who is away are stood in for', function()
        local buckets = Buckets.new(2)
        buckets:join('a', 2)
        buckets:join('b', 2)
        for _, owner in ipairs(buckets:owners_of { 'b' }) do
            assert.equal('b', owner)
        end
        assert.equal(128, buckets.held.a)
    end)
end)
