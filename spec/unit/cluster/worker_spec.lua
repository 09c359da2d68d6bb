-- A worker from its start to its end, in a cluster of one slot.
-- Longer than 400 lines: one state table, each way through it.

local fake = require 'spec.support.fake_cluster'
local snapshot = require 'dutch-master.cluster.snapshot'

-- One worker of one slot, in a world of its own.
local function one(behaviour, changes)
    local plan = { num_workers = 1 }
    for key, value in pairs(changes or {}) do
        plan[key] = value
    end
    local world = fake.new { plan = fake.plan(plan), behaviour = function()
        return behaviour
    end }
    world.boot()
    world.platform:advance(0)
    local _, worker = next(world.cluster.workers)
    return worker, world
end

local function states(world, worker)
    local list = {}
    for _, transition in ipairs(world.transitions) do
        if transition.object == worker then
            list[#list + 1] = transition.to
        end
    end
    return table.concat(list, ' ')
end

describe('worker', function()
    after_each(function()
        collectgarbage()
    end)

    it('starts, serves, is asked to disconnect, and has its SIGTERM at the moment its channel closes', function()
        local worker, world = one { ready_ms = 10, ignores_disconnect = true }
        world.platform:advance(20)
        assert.equal('running', worker.state)
        assert.is_true(world.sockets.joined[worker.id])
        world.cluster:stop { signal = 'SIGTERM' }
        assert.is_nil(world.sockets.joined[worker.id])
        assert.matches('NODE_DUTCH_DRAIN', worker.child.lines[1])
        assert.matches('"disconnect"', worker.child.lines[2])
        worker.child:close_channel()
        world.platform:advance(1)
        assert.equal('starting running settling stopping terminating exited', states(world, worker))
        assert.equal(0, world.code)
    end)

    it('that starts is asked at once, and walks out if it may have served: under a master that died, beside others', function()
        for _, case in ipairs { {}, { taken_over = true }, { helped = true } } do
            local worker, world = one { ready_ms = 1000, exit_ms = 2000 }
            assert.equal('starting', worker.state)
            worker.taken_over = case.taken_over
            function world.sockets.is_helped() return case.helped end
            world.cluster:stop { signal = 'SIGTERM' }
            world.platform:advance(1)
            assert.equal(next(case) ~= nil, states(world, worker):find 'settling' ~= nil)
            assert.matches(next(case) and 'NODE_DUTCH_DRAIN' or '"disconnect"', worker.child.lines[1])
            assert.is_true(world.await('stopped', 60000))
        end
    end)

    it('that its master talked to when it died serves on until another one does, if it may serve and nobody else does', function()
        for _, alone in ipairs { true, false } do
            local worker, world = one { ready_ms = 1000 }
            function world.sockets.holds(_, id) return id == worker.id end
            worker.taken_over = true
            world.cluster.agenda:hold(function()
                worker:distrust(alone)
            end)
            world.platform:advance(500)
            assert.equal(alone and 'starting running retiring' or nil, states(world, worker):match '^starting running retiring$')
            assert.equal(alone, worker:serves())
            assert.equal(0, world.count 'Worker listening' + world.count 'Worker dying' + world.count 'Cluster ready')
            world.platform:advance(60000)
            assert.equal(1, world.count 'Worker listening')
            assert.equal(1, world.count 'Cluster ready')
            assert.equal(1, world.count 'Its channel was in use when the former master died: the worker is replaced')
            assert.equal('exited', worker.state)
            assert.equal(2, world.platform.spawned)
        end
    end)

    it('has all of stopTimeout after that SIGTERM', function()
        local worker, world = one { ready_ms = 10, ignores_disconnect = true, ignores_term = true }
        world.platform:advance(20)
        world.cluster:stop { signal = 'SIGTERM' }
        world.platform:advance(1000)
        worker.child:close_channel()
        world.platform:advance(28999)
        assert.equal('terminating', worker.state)
        world.platform:advance(2)
        assert.is_true(worker.state == 'killing' or worker.state == 'exited')
        assert.is_true(worker.leaving.killed)
    end)

    it('that closes all its servers is replaced at once, and serves what it has', function()
        local worker, world = one { ready_ms = 10 }
        world.platform:advance(20)
        world.platform:advance(1000)
        worker.conversation.on_close_server({ stream = true }, {})
        world.platform:advance(0)
        assert.equal('retiring', worker.state)
        assert.equal(2, world.platform.spawned)
        assert.equal(1, world.count 'Worker closed its servers')
    end)

    -- get-port and its like listen, close that, and listen there.
    it('that closes its servers as soon as they listen has a second to listen again', function()
        for _, again in ipairs { true, false } do
            local worker, world = one({ ready_ms = 10 }, { ready_timeout_ms = 5000 })
            world.platform:advance(20)
            worker.conversation.on_close_server({ stream = true }, {})
            world.platform:advance(900)
            assert.same({ 'running', 1, true }, { worker.state, world.platform.spawned, worker:is_closed() })
            if again then
                worker.conversation.on_listening { stream = true, port = 80, name = 'a', text = ':80' }
            end
            world.platform:advance(3000)
            assert.same(again and { 'running', 1 } or { 'exited', 2 }, { worker.state, world.platform.spawned })
            assert.equal(again and 0 or 1, world.count 'Worker closed its servers')
        end
    end)

    it('that has asked for another socket before it closed the last one has a moment to listen there', function()
        local worker, world = one { ready_ms = 10 }
        world.platform:advance(5000)
        worker.conversation.sockets['1.1'] = { stream = true, name = 'a', order = 1 }
        worker.conversation.on_close_server({ stream = true }, {})
        world.platform:advance(900)
        assert.equal(1, world.platform.spawned)
        world.platform:advance(200)
        assert.equal(2, world.platform.spawned)
    end)

    it('is sent SIGTERM killTimeout before the end of stopTimeout, and killed at its end', function()
        local worker, world = one { ready_ms = 10, ignores_disconnect = true, ignores_term = true }
        world.platform:advance(20)
        world.cluster:stop { signal = 'SIGTERM' }
        world.platform:advance(24999)
        assert.equal('stopping', worker.state)
        world.platform:advance(1)
        assert.equal('terminating', worker.state)
        world.platform:advance(4999)
        assert.equal('terminating', worker.state)
        world.platform:advance(2)
        assert.equal('exited', worker.state)
        assert.is_true(worker.report.killed)
        assert.equal(1, world.code)
        assert.equal(1, world.count 'Hard-killing worker as it did not die gracefully')
    end)

    it('is given up when it is not ready in time, and says so', function()
        local worker, world = one({}, { ready_timeout_ms = 500 })
        world.platform:advance(600)
        assert.equal('starting terminating exited', states(world, worker))
        assert.equal('was not ready within 0.5 s', worker.report.message)
        assert.is_true(worker.report.unexpected)
    end)

    it('of kind exec is ready when it has lived long enough, or at once when it says READY=1', function()
        local plan = { kind = 'exec', argv = { 'server' }, worker = false, ready = { type = 'auto' } }
        local worker, world = one({}, plan)
        world.platform:advance(990)
        assert.equal('starting', worker.state)
        world.platform:advance(10)
        assert.equal('running', worker.state)
        worker = one({}, plan)
        worker.notify.fn { STATUS = 'loading' }
        assert.equal('starting', worker.state)
        worker.notify.fn { READY = '1' }
        assert.equal('running', worker.state)
        assert.equal('loading', worker.health.said.status)
    end)

    it('has more time to become ready if it asks for it, up to ten times readyTimeout', function()
        local worker, world = one({}, { kind = 'exec', argv = { 'server' }, worker = false, ready = { type = 'notify' },
            ready_timeout_ms = 1000 })
        world.platform:advance(900)
        worker.notify.fn { EXTEND_TIMEOUT_USEC = '5000000' }
        worker.notify.fn { EXTEND_TIMEOUT_USEC = 'soon' }
        world.platform:advance(4999)
        assert.equal('starting', worker.state)
        worker.notify.fn { EXTEND_TIMEOUT_USEC = '3600000000' }
        world.platform:advance(4100)
        assert.equal('starting', worker.state)
        world.platform:advance(2)
        assert.equal('was not ready within 10 s: it has not said READY=1', worker.leaving.late)
    end)

    it('has more time to leave if it asks for it, and so has the cluster', function()
        local worker, world = one({ ignores_term = true }, { kind = 'exec', argv = { 'server' }, worker = false,
            ready = { type = 'notify' }, stop_timeout_ms = 1000, stop_signal = 'SIGTERM' })
        worker.notify.fn { READY = '1', RELOADING = '0', MAINPID = '77' }
        worker.notify.fn { EXTEND_TIMEOUT_USEC = '9000000' } -- it serves: nothing is to be extended
        world.cluster:stop { signal = 'SIGTERM' }
        world.platform:advance(900)
        worker.notify.fn { EXTEND_TIMEOUT_USEC = '5000000' }
        assert.equal(5000, snapshot.summary(world.cluster).asked_ms)
        world.platform:advance(4999)
        assert.equal('stopping', worker.state)
        world.platform:advance(2)
        assert.is_true(worker.leaving.killed)
        assert.equal(1, world.code)
    end)

    it('that says that it is stopping is replaced', function()
        local worker, world = one({}, { kind = 'exec', argv = { 'server' }, worker = false, ready = { type = 'notify' } })
        worker.notify.fn { READY = '1' }
        world.platform:advance(1000)
        worker.notify.fn { STOPPING = '1' }
        world.platform:advance(0)
        assert.same({ 'retiring', 2 }, { worker.state, world.platform.spawned })
        assert.is_true(worker.health.said.stopping)
    end)

    describe('that is asked for a page', function()
        local HTTP = { type = 'http', path = '/health', interval_ms = 500, timeout_ms = 1000 }
        local EXEC = { kind = 'exec', argv = { 'server' }, worker = false, ready = HTTP, ready_timeout_ms = 5000 }

        local function last(world)
            return world.platform.dials[#world.platform.dials]
        end

        -- Nothing is asked any more, and no timer left to do so.
        local function asks_no_more(world)
            local count = #world.platform.dials
            assert.is_false(last(world).open)
            world.platform:advance(3000)
            assert.equal(count, #world.platform.dials)
        end

        it('is ready at the first good answer', function()
            local worker, world = one({}, EXEC)
            worker.notify.fn { READY = '1' } -- not what was asked for
            last(world).on_data 'HTTP/1.1 503 No\r\n'
            world.platform:advance(500)
            assert.equal('starting', worker.state)
            last(world).on_data 'HTTP/1.1 200 OK\r\n'
            assert.equal('running', worker.state)
            asks_no_more(world)
        end)

        it('with a channel: once it listens, not when it says that it is ready', function()
            local worker, world = one({}, { ready = HTTP })
            worker.child:become_ready()
            assert.equal('starting', worker.state)
            assert.equal(0, #world.platform.dials)
            worker.conversation.on_listening { stream = true, port = 80, text = '127.0.0.1:80' }
            worker.conversation.on_listening { stream = true, port = 80, text = '127.0.0.1:80' }
            world.platform:advance(0)
            assert.equal(1, #world.platform.dials)
            last(world).on_data 'HTTP/1.1 302 Found\r\n'
            assert.equal('running', worker.state)
            asks_no_more(world)
        end)

        it('is given up in time, with the last result in words', function()
            local worker, world = one({ ignores_term = true }, EXEC)
            world.platform:advance(4900)
            last(world).on_data 'HTTP/1.1 503 No\r\n'
            assert.is_false(last(world).open)
            world.platform:advance(100)
            assert.equal('terminating', worker.state)
            assert.equal(1, world.count 'Worker was not ready in time: GET /health answered 503')
            assert.equal('quiet', worker.health.state)
            world.platform:advance(10000)
            assert.equal('was not ready within 5 s: GET /health answered 503', worker.report.message)
        end)

        it('that does not listen there is given up for that', function()
            local worker, world = one({}, { ready = HTTP, ready_timeout_ms = 500 })
            world.sockets.no_target = { 'it does not listen on a TCP port', 'ENOENT' }
            worker.conversation.on_listening { stream = true, path = '/s', text = 'unix:/s' }
            world.platform:advance(600)
            assert.equal(1, world.count 'Worker was not ready in time: it does not listen on a TCP port')
            assert.equal(0, #world.platform.dials)
        end)

        it('is not, where others have its socket: then the rule of its kind is enough', function()
            for _, kind in ipairs { 'exec', 'lua' } do
                local options = kind == 'exec' and EXEC or { ready = HTTP }
                local world = fake.new { plan = fake.plan(options) }
                world.sockets.no_target = { 'one socket', 'ENOTSUP' }
                world.boot()
                world.platform:advance(0)
                for _, worker in pairs(world.cluster.workers) do
                    if kind == 'lua' then
                        worker.conversation.on_listening { stream = true, port = 80, text = '127.0.0.1:80' }
                    end
                end
                assert.equal(2, world.count 'HTTP readiness check impossible, using the default rule')
                world.platform:advance(1000)
                assert.equal('steady', world.cluster.state)
                assert.equal(0, #world.platform.dials)
            end
        end)

        it('is asked no more when it ends, is told to leave, killed, or leaves', function()
            for _, ending in ipairs { 'exit', 'stop', 'kill', 'leaving', 'closed' } do
                local worker, world = one({ ignores_term = true, ignores_disconnect = true },
                    { ready = HTTP, backoff = { first_ms = 30000, max_ms = 30000, reset_ms = 0 } })
                worker.conversation.on_listening { stream = true, port = 80, text = '127.0.0.1:80' }
                world.platform:advance(0)
                assert.is_true(last(world).open)
                if ending == 'exit' then
                    worker.child:exit { code = 1 }
                else
                    worker.agenda:post(worker, ending)
                end
                asks_no_more(world)
            end
        end)
    end)

    describe('with a watchdog', function()
        local HTTP = { type = 'http', path = '/health', interval_ms = 500, timeout_ms = 1000 }
        local EXEC = { kind = 'exec', argv = { 'server' }, worker = false, ready = { type = 'notify' }, watchdog_ms = 2000 }

        local function serving(plan)
            local worker, world = one({}, plan or EXEC)
            worker.notify.fn { READY = '1' }
            return worker, world
        end

        it('is left alone until it has said WATCHDOG=1', function()
            local worker, world = serving()
            world.platform:advance(60000)
            assert.equal('running', worker.state)
        end)

        it('is replaced when it is silent, and asked to leave when the replacement serves', function()
            local worker, world = serving()
            for _ = 1, 5 do
                worker.notify.fn { WATCHDOG = '1' }
                world.platform:advance(1999)
                assert.equal('running', worker.state)
            end
            world.platform:advance(1)
            assert.equal('retiring', worker.state)
            assert.equal(1, world.count 'Worker hangs')
            local successor = world.cluster:find(worker.id + 1)
            successor.notify.fn { READY = '1' }
            world.platform:advance(1000)
            assert.equal('exited', worker.state)
            assert.equal('running', successor.state)
            assert.equal('gave no sign of life for 2 s', worker.report.why)
        end)

        it('is watched from a sign of life while it starts', function()
            local worker, world = one({}, EXEC)
            worker.notify.fn { WATCHDOG = '1' }
            world.platform:advance(3000)
            assert.equal('starting', worker.state) -- readyTimeout is for that
            worker.notify.fn { READY = '1' }
            world.platform:advance(0)
            assert.equal('retiring', worker.state)
        end)

        it('is replaced at once when it says trigger; other words mean nothing', function()
            local worker, world = serving()
            worker.notify.fn { WATCHDOG = '0' }
            worker.notify.fn { WATCHDOG = '' }
            world.platform:advance(60000)
            assert.equal('running', worker.state)
            worker.notify.fn { WATCHDOG = 'trigger' }
            assert.equal('retiring', worker.state)
            local plan = {}
            for key, value in pairs(EXEC) do
                plan[key] = key ~= 'watchdog_ms' and value or nil
            end
            worker, world = serving(plan)
            worker.notify.fn { WATCHDOG = 'trigger' }
            worker.notify.fn { WATCHDOG = '1' }
            world.platform:advance(60000)
            assert.equal('running', worker.state)
        end)

        it('is said to hang again until it is replaced', function()
            local worker, world = serving()
            worker.on.replace = function() end
            worker.notify.fn { WATCHDOG = '1' }
            world.platform:advance(6500)
            assert.equal(3, world.count 'Worker hangs')
        end)

        it('is asked in time from the first on, however seldom it was asked while it started', function()
            local worker, world = one({}, {
                ready = { type = 'http', path = '/', interval_ms = 5000, timeout_ms = 1000 }, watchdog_ms = 2000,
            })
            local dials = world.platform.dials
            worker.conversation.on_listening { stream = true, port = 80, text = '127.0.0.1:80' }
            world.platform:advance(0)
            for i = 1, 5 do
                assert.same({ i, true }, { #dials, dials[i].open })
                dials[i].on_data 'HTTP/1.1 200 OK\r\n'
                world.platform:advance(1000)
            end
            assert.equal('running', worker.state)
        end)

        it('is asked on while it serves, any status being a sign of life', function()
            local worker, world = one({}, { ready = HTTP, watchdog_ms = 2000 })
            local function last()
                return world.platform.dials[#world.platform.dials]
            end
            worker.conversation.on_listening { stream = true, port = 80, text = '127.0.0.1:80' }
            world.platform:advance(0)
            last().on_data 'HTTP/1.1 200 OK\r\n'
            assert.equal('running', worker.state)
            world.platform:advance(500)
            for _ = 1, 5 do
                last().on_data 'HTTP/1.1 503 No\r\n'
                assert.is_false(last().open)
                world.platform:advance(1000)
                assert.is_true(last().open)
            end
            assert.equal('running', worker.state)
            world.platform:advance(1000)
            assert.equal('retiring', worker.state)
            assert.equal(1, world.count 'Worker hangs')
            worker.agenda:post(worker, 'stop')
            assert.equal('quiet', worker.health.state)
        end)

        it('does not hang for one question that got lost', function()
            local worker, world = one({}, { watchdog_ms = 2000,
                ready = { type = 'http', path = '/', interval_ms = 1000, timeout_ms = 1000 } })
            local function last()
                return world.platform.dials[#world.platform.dials]
            end
            worker.conversation.on_listening { stream = true, port = 80, text = '127.0.0.1:80' }
            world.platform:advance(0)
            local function asked()
                return last().open
            end
            for _ = 1, 5 do
                world.platform:advance(10)
                last().on_data 'HTTP/1.1 200 OK\r\n'
                world.platform:run_until(asked, 5000)
                last().on_end 'ECONNRESET: connection reset by peer'
                world.platform:run_until(asked, 5000)
            end
            assert.equal('running', worker.state)
            assert.equal(0, world.count 'Worker hangs')
            worker.agenda:post(worker, 'stop')
        end)

        it('is not watched by notifications where it is asked', function()
            local worker, world = one({}, { kind = 'exec', argv = { 'server' }, worker = false, ready = HTTP,
                watchdog_ms = 2000 })
            world.platform.dials[1].on_data 'HTTP/1.1 200 OK\r\n'
            for _ = 1, 5 do
                world.platform:advance(500)
                worker.notify.fn { WATCHDOG = '1' }
            end
            assert.equal('retiring', worker.state)
        end)
    end)

    it('of kind exec is asked by its signal, and killed when that and SIGTERM do not help', function()
        local plan = { kind = 'exec', argv = { 'server' }, worker = false, stop_signal = 'SIGQUIT' }
        local worker, world = one({ ignores_term = true }, plan)
        local signals = {}
        world.platform:advance(1500)
        local original = worker.child.signal
        worker.child.signal = function(child, name)
            signals[#signals + 1] = name
            return original(child, name)
        end
        world.cluster:stop { signal = 'SIGTERM' }
        assert.same({ 'SIGQUIT', 'SIGCONT' }, signals)
        world.platform:advance(25000)
        assert.same({ 'SIGQUIT', 'SIGCONT', 'SIGTERM', 'SIGCONT' }, signals)
        world.platform:advance(5001)
        assert.equal(1, world.code)
        assert.equal(0, world.platform.notify_sockets)
    end)

    it('is lost once, whichever of exit and channel end comes first', function()
        for _, closes_first in ipairs { false, true } do
            local worker, world = one { ready_ms = 10, closes_first = closes_first }
            world.platform:advance(20)
            worker.child:exit { signal = 'SIGSEGV' }
            world.platform:advance(5)
            assert.equal(1, world.cluster.slots[1].failures)
            assert.equal(2, world.platform.spawned)
            assert.equal(1, world.count 'Worker disconnection was unexpected')
            assert.equal('SIGSEGV', worker.report.signal)
        end
    end)

    it('that closes its channel and lives on is terminated, and replaced meanwhile', function()
        local worker, world = one { ready_ms = 10, ignores_term = true }
        world.platform:advance(20)
        worker.child:close_channel()
        assert.equal('disconnected', worker.state)
        world.platform:advance(11)
        assert.equal(2, world.platform.spawned)
        world.platform:advance(31000)
        assert.equal('exited', worker.state)
        assert.is_true(worker.report.killed)
    end)

    it('that leaves by itself is not asked to disconnect, and is replaced', function()
        local worker, world = one { ready_ms = 10 }
        world.platform:advance(20)
        worker.child:line('{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":3}')
        assert.equal('stopping', worker.state)
        for _, line in ipairs(worker.child.lines) do
            assert.is_nil(line:find('"disconnect"', 1, true))
        end
        world.platform:advance(1)
        assert.equal(2, world.platform.spawned)
    end)

    it('that writes garbage loses its channel, and nobody else does', function()
        local worker, world = one { ready_ms = 10 }
        world.platform:advance(20)
        worker.child:line('{"half":')
        assert.equal('disconnected', worker.state)
        world.platform:advance(1000)
        assert.equal(1, world.count 'Worker sent a malformed message, its channel is closed')
        assert.equal('serving', world.cluster.slots[1].state)
    end)

    it('tells which step of its start failed', function()
        local failures = {
            chdir = { step = 'chdir', code = 'ENOENT', message = '/gone: no such file or directory' },
            script = { step = 'script', code = 'ENOENT', message = 'app.lua: no such file or directory' },
            exec = { step = 'exec', code = 'EACCES', message = '/app: permission denied' },
            interpreter = { step = 'interpreter', code = 'ENOENT', message = '/bin/nope: no such file or directory' },
        }
        local words = {
            chdir = 'Worker could not be started: its directory: /gone: no such file or directory',
            script = 'Worker could not be started: the worker: app.lua: no such file or directory',
            exec = 'Worker could not be started: the program: /app: permission denied',
            interpreter = 'Worker could not be started: the interpreter named in its #! line: '
                .. '/bin/nope: no such file or directory',
        }
        for step, failed in pairs(failures) do
            local worker, world = one { failed = failed }
            world.platform:advance(1)
            assert.equal(step, worker.report.step)
            assert.equal(1, world.count(words[step]))
        end
    end)

    it('says that memory ran out only when the kernel counted such a death', function()
        for _, counted in ipairs { true, false } do
            local worker, world = one { ready_ms = 10 }
            world.platform:advance(20)
            world.platform.oom = counted and 1 or 0
            worker.child:exit { signal = 'SIGKILL' }
            assert.equal(counted, worker.report.oom)
            assert.equal(counted and 'was killed because memory ran out' or 'was killed by SIGKILL',
                worker.report.message)
        end
    end)

    it('repeats SIGKILL until the process is gone', function()
        local worker, world = one { ready_ms = 10 }
        world.platform:advance(20)
        local killed = 0
        worker.child.signal_group = function()
            killed = killed + 1
        end
        world.agenda:post(worker, 'kill')
        world.platform:advance(3500)
        assert.equal(4, killed)
        assert.equal('killing', worker.state)
    end)

    describe('whose first process has ended while others of its group live', function()
        local BACKGROUND = 'Worker has put itself into the background, what it left behind is asked to end'
        local EXEC = { kind = 'exec', argv = { 'server' }, worker = false, ready = { type = 'auto' },
            stop_signal = 'SIGQUIT', kill_timeout_ms = 1000 }

        it('is replaced at once; the rest is asked by SIGTERM, and killed at the end of stopTimeout', function()
            local worker, world = one({ ignores_term = true }, EXEC)
            world.platform:advance(1010)
            assert.equal('running', worker.state)
            worker.child.signals = {}
            local signal = worker.child.signal_group
            worker.child.signal_group = function(self, name)
                table.insert(self.signals, name)
                return signal(self, name)
            end
            worker.child:end_leader { code = 1 }
            assert.equal('headless', worker.state)
            assert.same({ 'SIGTERM', 'SIGCONT' }, worker.child.signals)
            assert.equal(1, world.count 'Worker ended, what is left of its process group is asked to end')
            world.platform:advance(1200)
            local other = world.cluster.slots[1].current
            assert.is_true(other ~= nil and other ~= worker)
            world.platform:advance(28700)
            assert.equal('headless', worker.state)
            world.platform:advance(110)
            assert.equal('exited', worker.state)
            assert.is_true(worker.report.killed)
            assert.equal('exited with code 1', worker.report.message)
        end)

        it('is told from one that put itself into the background', function()
            local worker, world = one({}, EXEC)
            worker.child:end_leader { code = 0 }
            world.platform:advance(1)
            assert.equal(1, world.count(BACKGROUND))
            worker.child:exit { code = 0 }
            assert.matches('^put itself into the background: Let it run in the foreground', worker.report.message)
        end)

        it('goes on leaving when it was told to', function()
            local worker, world = one({}, EXEC)
            world.platform:advance(1010)
            world.cluster:stop { signal = 'SIGTERM' }
            worker.child:end_leader { code = 0 }
            assert.equal('headless', worker.state)
            assert.equal(0, world.count(BACKGROUND))
            worker.child:exit { code = 0 }
            assert.equal('exited', worker.state)
            assert.equal(0, world.code)
        end)
    end)
end)
