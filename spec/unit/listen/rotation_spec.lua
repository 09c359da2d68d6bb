-- One listener and its lanes over a fake network.
-- Longer than 400 lines: the last 150 are a random walk over all that the cases before it show one by one.

local Platform = require 'spec.support.fake_platform'
local Rotation = require 'dutch-master.listen.rotation'
local books = require 'dutch-master.keeper.book'
local estate = require 'dutch-master.keeper.estate'
local fake_network = require 'spec.support.fake_network'
local fake_sockets = require 'spec.support.fake_sockets'

describe('a rotation', function()
    local platform, network, rotation, records, awaited

    local log = setmetatable({}, {
        __index = function(_, level)
            return function(_, fields, message)
                records[#records + 1] = { level = level, fields = fields, message = message }
            end
        end,
    })

    local function new(fields)
        local options = { platform = platform, log = log, key = ':80', address = platform.address ':80',
            balance = 'steered', backlog = 511, want = 2, stall_timeout_ms = 1000,
            stalled = function() end,
            awaits_workers = function()
                return awaited
            end,
            serves = function()
                return false
            end }
        options.hand, options.doubts = fake_sockets.hands(platform, log)
        for key, value in pairs(fields or {}) do
            options[key] = value
        end
        rotation = Rotation.new(options)
        assert(rotation:open())
        return rotation
    end

    before_each(function()
        platform, records, awaited = Platform.new(), {}, true
        network = fake_network.add(platform)
    end)

    after_each(function()
        rotation:close()
        assert.is_nil(next(network.open))
    end)

    -- Another master follows. @param left function(store): what is in the keeper's store, name -> descriptor, before that
    -- @return what that master finds
    local function follow(fields, left)
        local book = books.new(books.shared(), 0)
        local kept = { version = estate.VERSION, shared = {}, one = rotation:keep(book) }
        local store, text = {}, books.text(assert(book:close(kept)))
        for _, part in ipairs(book.parts) do
            for _, held in ipairs(part.fds) do
                store[held.name] = held.fd
            end
        end
        left(store)
        local options = { platform = platform, log = log, want = 2, stall_timeout_ms = 1000, stalled = function() end,
            awaits_workers = function() return awaited end }
        options.hand, options.doubts = fake_sockets.hands(platform, log)
        for key, value in pairs(fields) do
            options[key] = value
        end
        rotation:close()
        local former = assert(estate.read({ state = text, store = store }, platform))
        rotation = assert(Rotation.resume(options, former.state.one, former))
        return former
    end

    local function steered()
        local ids = {}
        for _, lane in ipairs(rotation:snapshot().lanes) do
            ids[#ids + 1] = lane.steered and (lane.worker or lane.state) or nil
        end
        table.sort(ids)
        return ids
    end

    it('gives each worker a lane, the same one again, and what a dead one left to the next', function()
        new()
        local first = rotation:assign(1)
        assert.equal(first, rotation:assign(1))
        local second = rotation:assign(2)
        assert.not_equal(first, second)
        rotation:drop(1)
        assert.equal(first, rotation:assign(3))
    end)

    it('goes on after the death of its master, with the lanes that are younger than the state', function()
        new()
        local fds = {}
        for id = 1, 2 do
            fds[id] = rotation:assign(id)
            rotation:join(id)
        end
        network.queues[901] = { 5, 6 }
        local former = follow({ balance = 'steered' }, function(store)
            assert.same({ ['lane/0.1'] = fds[1], ['lane/0.2'] = fds[2] }, store)
            store['lane/0.7'], store['lane/01.1'] = 901, 902
        end)
        assert.same({ 'lane/01.1' }, former:unknown 'lane/')
        assert.is_true(network.open[':80'].options.kept.uncertain)
        assert.same({ 1, 2 }, steered())
        assert.equal(fds[1], rotation:assign(1))
        assert.equal(901, rotation:assign(3)) -- two wait there
        assert.equal('0.8', rotation.users[rotation:assign(4) and 4].name) -- of which none had the name
        for _, lane in ipairs(network.open[':80'].all) do
            lane.waiting = {}
        end
    end)

    it('lets in at once whom a former master kept out, whether or not that could say so', function()
        for _, said in ipairs { true, false } do
            new { balance = 'queue', may_block = true }
            for id = 1, 3 do
                rotation:assign(id, nil, 1, true)
                rotation:join(id)
            end
            local listener = network.open[':80']
            listener.all[1].deferred = said and 60 or 1
            if said then
                rotation:leave(1)
                rotation:help(1)
                assert.equal(1, listener.all[1].deferred)
            end
            network.deferred = 1
            follow({ balance = 'queue', may_block = true }, function() end)
            assert.equal(said and 60 or 0, network.open[':80'].all[1].deferred)
            network.deferred = nil
            rotation:close()
        end
    end)

    it('lets them in at sockets that are borrowed of workers whose master and keeper died', function()
        network.deferred = 1
        new { borrowed = { { fd = 31, reuseport = true } } }
        assert.equal(0, network.open[':80'].all[1].deferred)
        network.deferred = nil
    end)

    it('prefers the free lane in which most wait', function()
        new { want = 3 }
        local fds = {}
        for id = 1, 3 do
            fds[id] = rotation:assign(id)
            rotation:join(id)
        end
        for id = 1, 3 do
            rotation:drop(id)
        end
        network.open[':80'].all[2].waiting = { 1, 2 }
        network.open[':80'].all[3].waiting = { 3 }
        assert.equal(fds[2], rotation:assign(4))
        assert.equal(fds[3], rotation:assign(5))
        network.open[':80'].all[2].waiting, network.open[':80'].all[3].waiting = {}, {}
    end)

    it('steers to those who are ready, then to whoever will be first', function()
        new()
        rotation:assign(1)
        rotation:assign(2)
        rotation:join(1)
        assert.same({ 1 }, steered())
        rotation:leave(1)
        assert.same({ 2 }, steered())
        rotation:drop(2)
        assert.same({ 1 }, steered())
        rotation:drop(1)
        assert.same({ 'free', 'free' }, steered())
    end)

    it('has no lanes where steering is refused: one socket for all', function()
        network.steering_fails = true
        new()
        assert.equal('shared', rotation:balance_in_force())
        assert.equal(rotation:assign(1), rotation:assign(2))
        assert.is_false(rotation:leave(1))
        assert.same({ true, false, false }, { rotation:has(1) })
        assert.equal('ENOTSUP', select(3, rotation:probe(1, 4000)))
        assert.is_true(rotation:is_used())
        rotation:drop(1)
        rotation:drop(2)
        assert.is_false(rotation:is_used())
    end)

    describe('with a busy lane', function()
        local given, idle, listener

        before_each(function()
            given, idle = {}, {}
            new { want = 3, idle = function(id)
                return idle[id]
            end, give = function(fd, done, worker)
                given[#given + 1] = { fd = fd, worker = worker, done = done }
                return true
            end }
            for id = 1, 3 do
                rotation:assign(id, { name = ':80' })
                rotation:join(id)
            end
            listener = network.open[':80']
        end)

        after_each(function()
            for _, lane in ipairs(listener.all) do
                lane.waiting = {}
            end
        end)

        local function glance()
            platform:advance(3)
            return rotation:glance(platform.now())
        end

        local function wait_in(index, count)
            for i = 1, count do
                network.live_fds[1000 * index + i] = true
                listener.all[index].waiting[i] = 1000 * index + i
            end
        end

        it('steers around it, back after a moment, and gives what waits to idle workers, one each', function()
            wait_in(1, 3)
            assert.is_true(glance())
            assert.same({ 1, 2, 3 }, steered())
            glance()
            assert.same({ 2, 3 }, steered())
            assert.equal(2, #given)
            assert.not_equal(given[1].worker, given[2].worker)
            glance()
            assert.equal(2, #given) -- nobody gets a second one before it has taken the first
            given[1].done(true)
            glance()
            assert.same({ 3, given[1].worker }, { #given, given[3].worker })
            assert.same({ 1, 1, 0 }, { rotation:count() })
            for _ = 1, 8 do
                glance()
            end
            assert.same({ 1, 2, 3 }, steered())
            assert.is_false(glance())
        end)

        it('gives nothing to who is seen at work, or has a queue of its own', function()
            idle[2] = false
            wait_in(1, 1)
            wait_in(3, 1)
            for _ = 1, 8 do
                glance()
            end
            assert.same({}, given)
            idle[2] = true
            glance()
            assert.equal(2, given[1].worker)
        end)

        it('steers around one that has just not moved only while another may be idle', function()
            idle[2], idle[3] = false, false
            wait_in(1, 1)
            glance()
            glance()
            assert.same({ 1, 2, 3 }, steered())
            idle[3] = nil -- not to be seen
            glance()
            assert.same({ 2, 3 }, steered())
            wait_in(2, 1) -- worker 3 has not taken yet what it was given
            glance()
            glance()
            assert.same({ 2, 3 }, steered())
        end)

        it('stays around it while its worker is seen at work, and another has nothing to do', function()
            wait_in(1, 1)
            glance()
            glance()
            listener.all[1].waiting, idle[1] = {}, false
            for _ = 1, 10 do
                glance()
                assert.same({ 2, 3 }, steered())
            end
            idle[2], idle[3] = false, false
            glance()
            assert.same({ 1, 2, 3 }, steered())
        end)

        it('asks each worker once in a look whether it sleeps, however many lanes are busy', function()
            local asked = {}
            function rotation.idle(id)
                asked[id] = (asked[id] or 0) + 1
            end
            wait_in(1, 2)
            wait_in(2, 2)
            glance()
            assert.same({}, asked)
            glance()
            assert.same({ 1, 1, 1 }, asked)
        end)

        it('steers to all when all are busy', function()
            for i = 1, 3 do
                wait_in(i, 2)
            end
            glance()
            glance()
            assert.same({ 1, 2, 3 }, steered())
            assert.same({}, given)
        end)

        it('leaves the lane alone in which the master asks', function()
            wait_in(1, 1)
            rotation:probe(1, 4000)
            for _ = 1, 5 do
                glance()
            end
            assert.same({}, given)
        end)

        it('empties the lane of who leaves', function()
            wait_in(1, 1)
            rotation:leave(1)
            glance()
            glance()
            assert.equal(1, #given)
        end)
    end)

    describe('with connections that wait where nobody serves', function()
        local lane

        before_each(function()
            new { balance = 'queue', may_block = true, lost_after_ms = 30000 }
            for id = 1, 2 do
                rotation:assign(id, nil, id, true)
                rotation:join(id)
            end
            rotation:leave(1)
            lane = network.open[':80'].all[1]
            lane.waiting = { 1, 2 }
            rotation:drop(1)
        end)

        local function tick(ms)
            platform:advance(ms or 100)
            rotation:tick(platform.now())
        end

        it('says so once, keeps them for the next worker, and resets them at last', function()
            network.resets = true
            tick()
            tick()
            assert.equal(2, rotation:snapshot().unserved)
            local said = {}
            for _, record in ipairs(records) do
                said[#said + 1] = record.level == 'warn' and record.message or nil
            end
            assert.same({ 'Connections wait in a queue that nobody serves' }, said)
            tick(29000)
            assert.equal(2, #rotation:snapshot().lanes)
            tick(2000)
            assert.equal(1, #rotation:snapshot().lanes)
            assert.equal('Waiting connections lost, nobody served them in time', records[#records].message)
            assert.same({ 0, 0, 2 }, { rotation:count() })
            assert.equal(0, rotation:snapshot().unserved)
        end)

        it('resets them at once where no worker is to come', function()
            network.resets, awaited = true, false
            tick()
            assert.same({ 0, 0, 2 }, { rotation:count() })
        end)

        it('keeps them while somebody is there who may take them in a moment', function()
            network.resets, awaited = true, false
            rotation:assign(3, { name = ':80' }, 2) -- has a channel; its server is closed now, or it is full
            rotation:join(3)
            tick()
            tick(29000)
            assert.same({ 2, 0 }, { rotation:snapshot().unserved, (select(3, rotation:count())) })
            tick(2000)
            assert.same({ 0, 0, 2 }, { rotation:count() })
        end)

        it('does the same in the lane of who is asked to go and takes none of them', function()
            network.resets = true
            rotation:assign(3, nil, 3, true)
            rotation:join(3)
            rotation:leave(3)
            assert.equal(2, rotation:waiting(3))
            awaited = false
            tick()
            assert.equal(2, rotation:waiting(3)) -- not asked yet
            rotation:give_up(3)
            awaited = true
            tick()
            assert.equal(2, rotation:waiting(3)) -- somebody may come for them
            awaited = false
            tick()
            assert.same({ 0, 0, 2 }, { rotation:count() })
            assert.equal(0, rotation:waiting(3))
            rotation:drop(3)
            assert.equal(1, #rotation:snapshot().lanes)
        end)

        it('leaves them to the next worker of any generation', function()
            tick()
            rotation:assign(3, nil, 3, true)
            rotation:join(3)
            assert.equal(0, rotation:snapshot().unserved)
            lane.waiting = {}
            tick(60000)
            assert.same({ 0, 0, 0 }, { rotation:count() })
        end)

        it('lets the kernel move them as soon as it may', function()
            tick()
            network.migrates = true -- switched on while running
            tick()
            assert.equal(1, #rotation:snapshot().lanes)
            assert.same({ 1, 2 }, network.open[':80'].all[1].waiting)
            assert.same({ 0, 0, 0 }, { rotation:count() })
        end)

        it('counts what waits when it is closed', function()
            assert.equal(2, rotation:close())
        end)
    end)

    it('gives fewer to who holds more', function()
        new { want = 3 }
        for id = 1, 3 do
            rotation:assign(id, { name = ':80' })
            rotation:join(id)
        end
        local listener = network.open[':80']
        local function weights()
            local list = {}
            for i, entry in ipairs(listener.steered) do
                list[i] = tonumber(('%.3f'):format(entry.weight))
            end
            return list
        end
        rotation:load(1, 1, 0)
        platform:advance(10)
        rotation:glance(platform.now())
        assert.same({ 0.063, 1, 1 }, weights()) -- the others have said nothing: they have none
        for id, held in ipairs { 3, 4, 5 } do
            rotation:load(id, held, 10)
        end
        platform:advance(10)
        rotation:glance(platform.now())
        assert.same({ 1, 0.063, 0.012 }, weights())
        for id, held in ipairs { 3, 4, 5 } do
            rotation:load(id, held, 800)
        end
        platform:advance(10)
        rotation:glance(platform.now())
        assert.same({ 1, 0.8, 0.667 }, weights()) -- at work: what they hold comes and goes
    end)

    describe('of one queue for each generation', function()
        before_each(function()
            new { balance = 'queue', may_block = true, give = function()
                return nil
            end }
        end)

        local function lanes()
            local list = {}
            for _, lane in ipairs(rotation:snapshot().lanes) do
                list[#list + 1] = ('%s %s %g'):format(lane.group or '-', lane.state, lane.steered and lane.weight or 0)
            end
            table.sort(list)
            return list
        end

        it('gives all workers of a generation the same lane, another generation another one', function()
            local first = rotation:assign(1, nil, 1, true)
            assert.equal(first, rotation:assign(2, nil, 1, true))
            rotation:join(1)
            assert.not_equal(first, rotation:assign(3, nil, 2, true))
            assert.same({ '1 live 1', '2 starting 0' }, lanes())
            rotation:join(2)
            rotation:join(3)
            assert.same({ '1 live 2', '2 live 1' }, lanes())
            rotation:weigh(3, 0.25)
            assert.same({ '1 live 2', '2 live 0.25' }, lanes())
            rotation:leave(1)
            assert.same({ '1 live 1', '2 live 0.25' }, lanes())
            rotation:leave(2)
            assert.same({ '1 leaving 0', '2 live 0.25' }, lanes())
        end)

        it('gives a lane that nobody has, with what waits in it, to the next generation', function()
            local first = rotation:assign(1, nil, 1, true)
            rotation:join(1)
            rotation:drop(1)
            network.open[':80'].all[1].waiting = { 1 }
            assert.equal(first, rotation:assign(2, nil, 2, true))
            network.open[':80'].all[1].waiting = {}
        end)

        it('makes the socket blocking for the first alone: others use it then', function()
            local how = {}
            network.open[':80'].all[1].fd = function(_, way)
                how[#how + 1] = way or 'nonblocking'
                return 7
            end
            rotation:assign(1, nil, 1, true)
            rotation:assign(2, nil, 1, true)
            rotation:drop(1)
            rotation:drop(2)
            rotation:assign(3, nil, 2, false)
            assert.same({ 'blocking', 'as it is', 'nonblocking' }, how)
        end)

        it('tells whether a worker alone has its lane', function()
            rotation:assign(1, nil, 1, true)
            assert.same({ true, true, true }, { rotation:has(1) })
            rotation:assign(2, nil, 1, true)
            assert.same({ true, true, false }, { rotation:has(1) })
            assert.is_true(rotation:probe(2, 4000))
            assert.equal(1, #network.open[':80'].probes)
        end)

        it('keeps one lane, when the others are free', function()
            rotation:assign(1, nil, 1, true)
            rotation:join(1)
            rotation:assign(2, nil, 2, true)
            rotation:join(2)
            rotation:leave(1)
            rotation:drop(1)
            platform:advance(6000)
            rotation:tick(platform.now())
            assert.same({ '2 live 1' }, lanes())
        end)
    end)

    it('closes a connection that came back only where all are full', function()
        local given = {}
        new { want = 3, give = function(_, done, worker)
            given[#given + 1] = worker
            done(true)
            return true
        end }
        for id = 1, 3 do
            rotation:assign(id, { name = ':80' })
            rotation:join(id)
        end
        for fd = 900, 902 do
            network.live_fds[fd] = true
        end
        rotation:returned(1, 900)
        rotation:returned(given[1], 901)
        local left = 6 - 1 - given[1]
        assert.equal(left, given[2])
        rotation:returned(left, 902)
        assert.equal(2, #given)
        assert.is_nil(network.live_fds[902])
        platform:advance(100)
        network.live_fds[903] = true
        rotation:returned(1, 903)
        assert.equal(3, #given)
    end)

    it('is busy while connections wait, unsettled while something is to come back to, else nothing', function()
        new()
        rotation:assign(1)
        rotation:assign(2)
        rotation:join(1)
        rotation:join(2)
        assert.is_nil(rotation:tick(platform.now()))
        local lane = network.open[':80'].client()
        assert.equal('busy', rotation:tick(platform.now()))
        lane.waiting = {}
        assert.is_nil(rotation:tick(platform.now()))
        rotation:wants(1)
        assert.equal('unsettled', rotation:tick(platform.now()))
    end)

    -- Random comings and goings of workers and clients. No connection is without an owner, and a lane is steered around
    -- only while another can take. DM_SEED repeats a run.
    describe('in random walks', function()
        local SEED = tonumber(os.getenv 'DM_SEED') or os.time()

        local function walk(seed, balance)
            local state = seed % 2147483647
            local function random(n)
                state = state * 48271 % 2147483647
                return state % n + 1
            end
            local in_flight, workers, next_id, clients = {}, {}, 1, {}
            network.resets = true
            new { balance = balance, want = 3, lost_after_ms = 3000, idle = function()
                return ({ true, false, nil })[random(3)]
            end, give = function(fd, done)
                if random(8) == 1 then
                    return nil
                end
                in_flight[#in_flight + 1] = { fd = fd, done = done }
                return true
            end }
            local listener = network.open[':80']

            local function pick()
                local ids = {}
                for id in pairs(workers) do
                    ids[#ids + 1] = id
                end
                table.sort(ids)
                return #ids > 0 and ids[random(#ids)] or nil
            end

            local function answer()
                local entry = table.remove(in_flight, random(#in_flight))
                local kind = random(6)
                entry.done(kind > 2, kind == 1)
                if kind > 2 then
                    clients[entry.fd] = nil
                end
            end

            local actions = {
                function() -- a worker comes
                    if #listener.all < 20 then
                        rotation:assign(next_id, random(4) > 1 and { name = ':80' } or nil, math.floor(next_id / 3), true)
                        workers[next_id] = 'starting'
                        next_id = next_id + 1
                    end
                end,
                function()
                    local id = pick()
                    if id and workers[id] == 'starting' then
                        rotation:join(id)
                        workers[id] = 'live'
                    end
                end,
                function()
                    local id = pick()
                    if id and random(3) == 1 then
                        rotation:leave(id)
                        workers[id] = 'leaving'
                    elseif id and random(3) == 1 then
                        rotation:drop(id)
                        workers[id] = nil
                    end
                end,
                function() -- a client comes
                    local entry = listener.steered[random(math.max(#listener.steered, 1))]
                    local lane = entry and entry.lane or listener.all[1]
                    network.next_fd = network.next_fd + 1
                    network.live_fds[network.next_fd], clients[network.next_fd] = true, true
                    table.insert(lane.waiting, network.next_fd)
                end,
                function() -- a worker accepts
                    local id = pick()
                    local lane = id and rotation.users[id]
                    local fd = lane and table.remove(lane.socket.waiting, 1)
                    if fd then
                        network.live_fds[fd], clients[fd] = nil, nil
                    end
                end,
                function()
                    if #in_flight > 0 then
                        answer()
                    end
                end,
            }

            local function check()
                local owned, live, steered_live = {}, 0, 0
                for _, lane in ipairs(listener.all) do
                    for _, fd in ipairs(lane.waiting) do
                        owned[fd] = true
                    end
                end
                for _, entry in ipairs(in_flight) do
                    owned[entry.fd] = true
                end
                for _, connection in ipairs(rotation.rescue.unplaced) do
                    owned[connection.fd] = true
                end
                local missing = 0
                for fd in pairs(clients) do
                    if not owned[fd] then
                        missing = missing + 1
                    end
                end
                local _, _, lost = rotation:count()
                local refused = 0
                for _, record in ipairs(records) do
                    refused = refused + (record.message:find 'no worker takes it' and 1 or 0)
                end
                assert.equal(lost + refused, missing, 'connections without an owner; seed ' .. seed)
                for _, lane in ipairs(rotation.lanes) do
                    live = live + (lane.state == 'live' and 1 or 0)
                    steered_live = steered_live + (lane.state == 'live' and lane.steered and 1 or 0)
                end
                assert.is_true(live == 0 or steered_live > 0, 'nobody live is steered to; seed ' .. seed)
                assert.is_true(#listener.steered > 0, 'nobody is steered to; seed ' .. seed)
            end

            for _ = 1, 300 do
                actions[random(#actions)]()
                platform:advance(random(10))
                if random(3) > 1 then
                    rotation:glance(platform.now())
                end
                if random(5) == 1 then
                    rotation:tick(platform.now())
                end
                check()
            end
            -- Whoever is left waits for somebody: a worker that serves gets all of it.
            while #in_flight > 0 do
                local entry = table.remove(in_flight)
                entry.done(true)
                clients[entry.fd] = nil
            end
            for _, lane in ipairs(listener.all) do
                for _, fd in ipairs(lane.waiting) do
                    network.live_fds[fd] = nil
                end
                lane.waiting = {}
            end
        end

        for _, balance in ipairs { 'steered', 'queue' } do
            it(('keeps its promises: %s, from seed %d'):format(balance, SEED), function()
                for i = 1, 40 do
                    if i > 1 then
                        rotation:close()
                        records = {}
                        network.closed = {}
                    end
                    walk(SEED + i, balance)
                end
            end)
        end
    end)
end)
