local Steering = require 'dutch-master.listen.steering'

describe('steering', function()
    local now, lanes, told, refused, records

    local function lane(state, fields)
        local it = { state = state, weight = 1, users = {}, accepted = 0, disturbed = 0, socket = #lanes + 1 }
        for key, value in pairs(fields or {}) do
            it[key] = value
        end
        function it.held() return it.connections, it.work end
        function it.worker() return it.owner end
        function it.steer(_, chosen) it.chosen = chosen end
        function it.repair() end
        lanes[#lanes + 1] = it
        return it
    end

    local function new(balance)
        return Steering.new {
            platform = { now = function() return now end }, address = ':80', balance = balance or 'steered', want = 2,
            lanes = lanes,
            log = { warn = function(_, fields, message) records[#records + 1] = { message, fields.balance } end },
            listener = { steer = function(_, entries, options)
                told = { entries = entries, options = options }
                if refused then
                    return 'hash', 'not permitted'
                end
                return options.sticky and 'sticky' or 'steered'
            end },
        }
    end

    local function sockets()
        local list = {}
        for i, entry in ipairs(told.entries) do
            list[i] = entry.lane
        end
        return list
    end

    before_each(function()
        now, lanes, records, refused = 1000, {}, {}, false
    end)

    it('prefers who is idle, then who moves, then who lives, then where somebody will be first', function()
        local steering = new()
        for i, row in ipairs { { 'free' }, { 'leaving' }, { 'starting' }, { 'live', { stalled = true } },
            { 'live', { busy_at = 5 } }, { 'live' } } do
            lane(row[1], row[2])
            steering:apply()
            assert.same({ i }, sockets())
            assert.is_true(lanes[i].chosen)
        end
        assert.is_false(lanes[1].chosen)
    end)

    it('gives those that hold long-lived connections fewer new ones, and looks less often where they are short', function()
        local steering = new()
        lane('live', { connections = 10, work = 0 })
        lane('live', { connections = 0, work = 0 })
        steering:apply()
        assert.is_true(told.entries[1].weight < 0.01)
        assert.equal(1, told.entries[2].weight)
        assert.equal(10, steering.rebalance_ms)
        lanes[1].work, lanes[2].work = 900, 900
        steering:apply()
        assert.is_true(told.entries[1].weight > 0.1 and told.entries[1].weight < 1)
        assert.equal(200, steering.rebalance_ms)
    end)

    it('tells the kernel at most once in its time, and only what makes a difference', function()
        local steering = new()
        lane('live', { connections = 0 })
        lane('live', { connections = 20 })
        steering:apply()
        told = nil
        lanes[1].connections = 3
        steering:rebalance()
        assert.is_nil(told)
        now = now + steering.rebalance_ms
        steering:settle()
        assert.equal(2, #told.entries)
        told = nil
        steering:settle()
        assert.is_nil(told)
        lanes[1].connections, lanes[2].connections = 30, 47 -- each as many more
        now = now + steering.rebalance_ms
        steering:rebalance()
        assert.is_nil(told)
        lanes[1].connections = 100
        steering:rebalance()
        assert.equal(2, #told.entries)
    end)

    it('weighs, and leaves out what weighs nothing while others are there', function()
        local steering = new()
        lane('live', { weight = 0.25 })
        lane('live', { weight = 0 })
        steering:apply()
        assert.same({ 1 }, sockets())
        assert.equal(0.25, told.entries[1].weight)
    end)

    it('keeps each client at its worker where it is sticky, and any share will do while nobody lives', function()
        local steering = new 'sticky'
        lane('live', { owner = 1 })
        steering:join(1, 2)
        lane('live', { owner = 2 })
        steering:join(2, 2)
        local shares = { 0, 0 }
        for _, position in ipairs(told.options.sticky) do
            shares[position] = shares[position] + 1
        end
        assert.same({ 128, 128 }, shares)
        lanes[2].state = 'free'
        steering:leave(2, 2)
        assert.equal(1, told.options.sticky[1])
        lanes[1].state, lanes[1].owner = 'free', nil
        steering:leave(1, 2)
        assert.is_true(told.options.sticky)
    end)

    it('says once that the kernel refused', function()
        local steering = new()
        lane 'live'
        refused = true
        steering:apply()
        steering:apply()
        assert.same({ { 'Balancing changed', 'hash' } }, records)
        refused = false
        steering:apply()
        assert.same({ 'Balancing changed', 'steered' }, records[2])
    end)

    describe('with probes', function()
        local steering, mine

        before_each(function()
            steering, mine = new(), lane('starting', { users = { [1] = true } })
            lane 'live'
        end)

        it('leads a port to one lane, until it is over', function()
            assert.is_true(steering:probe(1, mine, 4000))
            assert.same({ { port = 4000, lane = 1 } }, told.options.probes)
            assert.is_true(steering:is_probed(mine))
            assert.is_true(steering:probed(1))
            assert.same({}, told.options.probes)
            assert.is_false(steering:is_probed(mine))
            assert.is_false(steering:probed(1))
        end)

        it('believes no answer that another may have given', function()
            for _, spoil in ipairs {
                function() mine.accepted = 1 end,
                function() mine.users = {} end,
                function() lanes[2].disturbed = 1 end,
                function() lanes[2].broken = true end,
            } do
                mine.accepted, mine.users, lanes[2].disturbed, lanes[2].broken = 0, { [1] = true }, 0, nil
                assert.is_true(steering:probe(1, mine, 4000))
                spoil()
                assert.is_false(steering:probed(1))
            end
        end)

        it('are bounded, and refused where the kernel steers nothing', function()
            for id = 1, 64 do
                assert.is_true(steering:probe(id, mine, 4000 + id))
            end
            assert.same({ nil, 'too many workers are asked at once', 'EAGAIN' }, { steering:probe(65, mine, 4100) })
            steering:unprobe(64)
            refused = true
            assert.same({ nil, 'steering is refused', 'EPERM' }, { steering:probe(65, mine, 4100) })
            assert.is_nil(steering.probes[65])
        end)
    end)
end)
