-- Connections that wait in lanes, or come back from a worker: who is given them.
-- Longer than 400 lines: as long as the ways in which one may wait.
local fake_sockets = require 'spec.support.fake_sockets'

local A = fake_sockets.A

describe('sockets', function()
    local world, sockets, platform, network, rescued, idle
    local logged, rotation, query, serving, asking

    local function new(options)
        sockets = world.new(options)
        return sockets
    end

    before_each(function()
        world = fake_sockets.new()
        platform, network, rescued, idle = world.platform, world.network, world.rescued, world.idle
        logged, rotation, query, serving, asking =
            world.logged, world.rotation, world.query, world.serving, world.asking
    end)

    after_each(function()
        world.finish()
    end)

    describe('that a worker has accepted and gives back', function()
        local answers

        before_each(function()
            answers = {}
            new { worker_of = function(group)
                return group > 0 and group or nil
            end }
            sockets:open { A }
            asking(1, 2)
            function world.rescue(fd, answer, worker)
                rescued[#rescued + 1], answers[#answers + 1] = { fd = fd, worker = worker }, answer
                return true
            end
        end)

        local function returned(fd, again)
            network.live_fds[fd] = true
            sockets:returned(1, world.request(A), fd, again)
        end

        it('go to another one, once more too, if a former master has not placed them', function()
            returned(900)
            answers[1](true)
            returned(901, true)
            answers[2](true)
            assert.same({ { fd = 900, worker = 2 }, { fd = 901, worker = 2 } }, rescued)
            assert.is_nil(next(network.live_fds))
        end)

        it('go nowhere once more if they are on their way, begun, or with another one', function()
            returned(900)
            network.inodes[901] = 900
            returned(901, true)
            network.touched[902] = true
            returned(902, true)
            network.groups[903] = 2
            returned(903, true)
            network.groups[904] = 1 -- itself
            returned(904, true)
            assert.same({ { fd = 900, worker = 2 }, { fd = 904, worker = 2 } }, rescued)
            assert.same({ [900] = true, [904] = true }, network.live_fds)
            answers[1](true)
            answers[2](true)
        end)
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
            local yes = world.rescue
            function world.rescue()
                return false
            end
            sockets:drop(1)
            assert.truthy(next(network.live_fds))
            world.rescue = yes
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
            function world.rescue(_, done, worker)
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
            function world.rescue(_, done)
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

    describe('that no worker has any more', function()
        local come

        local function forsaken(options)
            options.lost_after_ms = 3000
            options.awaits_workers = function()
                return come
            end
            come = false
            new(options)
            asking(1, 2)
            for id = 1, 2 do
                sockets:forsake(id, world.request(A))
            end
            return network.open[A]
        end

        it('keep who waits for as long as that is kept, and turn away who comes later at once', function()
            local listener = forsaken {}
            local _, fd = listener.client()
            platform:advance(2500)
            assert.truthy(network.live_fds[fd])
            platform:advance(1000)
            assert.is_nil(network.live_fds[fd])
            assert.equal(1, logged 'Waiting connections lost, no worker listens there any more')
            assert.equal(1, sockets:snapshot().totals.lost)
            platform:advance(60000) -- at rest
            listener.client()
            platform:advance(10)
            assert.is_nil(next(network.live_fds))
            -- The address stays: whoever listens again is served.
            asking(1)
            assert.same({ 1 }, rotation())
            _, fd = listener.client()
            platform:advance(10000)
            assert.truthy(network.live_fds[fd])
        end)

        it('keep it as long as a worker is to come', function()
            local listener = forsaken {}
            come = true
            local _, fd = listener.client()
            platform:advance(60000)
            assert.truthy(network.live_fds[fd])
            asking(3)
            assert.equal(1, sockets:snapshot()[3].queue)
        end)

        it('close after a restart has given them up, though somebody always waits', function()
            local listener = forsaken {}
            sockets:restarted()
            for _ = 1, 10 do
                if network.open[A] then
                    listener.client()
                end
                platform:advance(500)
            end
            assert.is_nil(network.open[A])
            assert.is_nil(next(network.live_fds))
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
end)
