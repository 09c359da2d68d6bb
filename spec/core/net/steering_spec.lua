local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local net = require 'spec.support.net'

-- DM_SPEC_SEED repeats a run.
local seed = tonumber(os.getenv 'DM_SPEC_SEED') or os.time()
local CONNECTIONS = 10000

describe('steering (seed ' .. seed .. ')', function()
    local before, listener
    math.randomseed(seed)

    local function open(text)
        listener = assert(core.listen(assert(core.address(text)), { reuseport = true, backlog = 4000 }))
        return listener:address().port
    end

    before_each(function()
        before = net.descriptors()
    end)

    after_each(function()
        listener:close()
        assert.equal(before, net.descriptors())
    end)

    local function take_all(lane)
        local count = 0
        while true do
            local fd = lane:accept()
            if not fd then
                return count
            end
            core.close_fd(fd)
            count = count + 1
        end
    end

    -- `count` connections; how many each lane got, in the order of `lanes`.
    local function spread(lanes, host, port, count, options)
        local got = {}
        for i in ipairs(lanes) do
            got[i] = 0
        end
        while count > 0 do
            local batch = math.min(count, 500)
            for _ = 1, batch do
                net.abort(assert(net.connect(host, port, options)))
            end
            for i, lane in ipairs(lanes) do
                got[i] = got[i] + take_all(lane)
            end
            count = count - batch
        end
        return got
    end

    -- Every lane alone in rotation gets everything: so the index we believe in is the kernel's.
    local function assert_order(lanes, host, port)
        for i, lane in ipairs(lanes) do
            assert.equal('steered', listener:steer { { lane = lane } })
            local got = spread(lanes, host, port, 3)
            assert.equal(3, got[i], ('lane %d of %d, index %d'):format(i, #lanes, lane:index()))
        end
    end

    -- Chi-square of the counts against the weights. The bound is beyond the 0.999999 quantile for up to 16 lanes.
    local function assert_weights(weights, got)
        local total, sum, chi = 0, 0, 0
        for i, weight in ipairs(weights) do
            total, sum = total + got[i], sum + weight
            if weight == 0 then
                assert.equal(0, got[i], 'connections on an excluded lane')
            end
        end
        for i, weight in ipairs(weights) do
            if weight > 0 then
                local expected = total * weight / sum
                chi = chi + (got[i] - expected) ^ 2 / expected
            end
        end
        assert.is_true(chi < 60, ('chi-square %.1f for %s'):format(chi, table.concat(got, ' ')))
    end

    local function steer_weights(lanes, weights)
        local list = {}
        for i, weight in ipairs(weights) do
            if weight > 0 then
                list[#list + 1] = { lane = lanes[i], weight = weight }
            end
        end
        assert.equal('steered', listener:steer(list))
    end

    for _, place in ipairs {
        { text = '127.0.0.1:0', host = '127.0.0.1' },
        { text = '[::1]:0', host = '::1' },
        { text = ':0', host = '127.0.0.1', also = '::1' },
    } do
        it('lands where the program says, through openings, closings and weights, on ' .. place.text, function()
            local port = open(place.text)
            local lanes = {}
            local left = CONNECTIONS
            while left > 0 do
                for _ = 1, math.random(4) do
                    lanes[#lanes + 1] = listener:lane()
                end
                local weights, some = {}, false
                for i = 1, #lanes do
                    weights[i] = math.random(3) == 1 and 0 or math.random(3) == 1 and math.random(20) / 10 or 1
                    some = some or weights[i] > 0
                end
                weights[#weights] = some and weights[#weights] or 1
                steer_weights(lanes, weights)
                local count = math.min(left, 800)
                assert_weights(weights, spread(lanes, math.random(2) == 1 and place.also or place.host, port, count))
                left = left - count
                -- Close some that are out of rotation, from anywhere in the group; the rest goes on as before.
                for i = #lanes, 1, -1 do
                    if weights[i] == 0 and math.random(2) == 1 then
                        local ok, _, code = lanes[i]:close()
                        if ok then
                            table.remove(lanes, i)
                            table.remove(weights, i)
                        else
                            assert.equal('EBUSY', code)
                        end
                    end
                end
                assert_weights(weights, spread(lanes, place.host, port, 200))
                while #lanes > 12 do
                    steer_weights({ lanes[1] }, { 1 })
                    assert(lanes[#lanes]:close())
                    table.remove(lanes)
                end
            end
            assert_order(lanes, place.host, port)
        end)
    end

    it('follows the kernel when lanes are shut down and revived', function()
        local port = open '127.0.0.1:0'
        local lanes = {}
        for i = 1, 6 do
            lanes[i] = listener:lane()
        end
        for _ = 1, 20 do
            local i = math.random(#lanes)
            net.C.shutdown(lanes[i]:fd(), 2)
            assert.same({ 'shutdown' }, lanes[i]:repair())
            assert.equal(#lanes - 1, lanes[i]:index())
            assert_order(lanes, '127.0.0.1', port)
        end
    end)

    for _, text in ipairs { '127.0.0.1:0', ':0' } do
        it('learns the order when several were shut down unseen, on ' .. text, function()
            local port = open(text)
            local lanes = {}
            for i = 1, 8 do
                lanes[i] = listener:lane()
            end
            for _ = 1, 10 do
                for _ = 1, math.random(2, 7) do
                    net.C.shutdown(lanes[math.random(8)]:fd(), 2)
                end
                for _, lane in ipairs(lanes) do
                    lane:repair()
                end
                for _, lane in ipairs(lanes) do
                    take_all(lane)
                end
                assert_order(lanes, '127.0.0.1', port)
            end
            local client = net.connect('127.0.0.1', port)
            assert.is_true(net.option(client, 6, 2) > 20000) -- TCP_MAXSEG is the device's again
            net.abort(client)
        end)
    end

    it('is not closed over: the lane in rotation, its last stand-in, the last lane of all', function()
        local port = open '127.0.0.1:0'
        local a = listener:lane()
        assert.equal('EBUSY', select(3, a:close()))
        local b = listener:lane()
        listener:steer { { lane = b } }
        assert.equal('EBUSY', select(3, b:close()))
        -- Closing a would move b, and while it moves no other lane could stand in.
        assert.equal('EBUSY', select(3, a:close()))
        assert.same({ 0, 50 }, spread({ a, b }, '127.0.0.1', port, 50))
        listener:steer { { lane = a } }
        assert.is_true(b:close())
        assert.same({ 20 }, spread({ a }, '127.0.0.1', port, 20))
        local c = listener:lane()
        listener:steer { { lane = c } }
        assert.equal('EBUSY', select(3, a:close()))
        assert.equal('EBUSY', select(3, c:close(true)))
        assert.is_true(a:close(true)) -- c moves
        assert.same({ 20 }, spread({ c }, '127.0.0.1', port, 20))
    end)

    it('removes a lane for all that hold it', function()
        local port = open '127.0.0.1:0'
        local a, b, c = listener:lane(), listener:lane(), listener:lane()
        local copy = loop.dup_fd(a:fd())
        listener:steer { { lane = b }, { lane = c } }
        assert.is_true(a:close())
        assert_order({ b, c }, '127.0.0.1', port)
        core.close_fd(copy)
    end)

    it('loses nothing while lanes come and go under connections', function()
        local port = open '127.0.0.1:0'
        local live = { listener:lane(), listener:lane() }
        local other = {}
        local count = 0
        for round = 1, 300 do
            other[#other + 1] = listener:lane()
            listener:steer { { lane = live[1] }, { lane = live[2] } }
            for _ = 1, 10 do
                net.abort(assert(net.connect('127.0.0.1', port)))
            end
            if round % 3 == 0 then
                while #other > 0 do
                    assert.same({ 0, 4000 }, { other[#other]:queue() })
                    assert(table.remove(other, math.random(#other)):close())
                end
            end
            count = count + take_all(live[1]) + take_all(live[2])
        end
        assert.equal(3000, count)
    end)

    for _, place in ipairs { { '127.0.0.1:0', '127.0.0.1', '127.1.%d.%d' }, { ':0', '127.0.0.1', '127.1.%d.%d' } } do
        it('keeps a client at its bucket\'s lane, on ' .. place[1], function()
            local port = open(place[1])
            local lanes = {}
            for i = 1, 8 do
                lanes[i] = listener:lane()
            end
            local left = CONNECTIONS
            while left > 0 do
                local list, map = {}, {}
                for i, lane in ipairs(lanes) do
                    if math.random(3) > 1 or i == 8 then
                        list[#list + 1] = { lane = lane }
                    end
                end
                for bucket = 1, ({ 256, 1024, 7, 1 })[math.random(4)] do
                    map[bucket] = math.random(#list)
                end
                assert.equal('sticky', listener:steer(list, { sticky = map }))
                for _ = 1, 500 do
                    local source = place[3]:format(math.random(0, 255), math.random(1, 254))
                    net.abort(assert(net.connect(place[2], port, { source = source })))
                    local lane = list[map[core.bucket(source, #map)]].lane
                    local fd = assert(lane:accept(), 'not where the map says')
                    core.close_fd(fd)
                end
                left = left - 500
            end
        end)
    end

    it('keeps an IPv6 client at its lane, and spreads addresses evenly over buckets', function()
        local port = open ':0'
        local lanes, list, map = {}, {}, {}
        for i = 1, 4 do
            lanes[i] = listener:lane()
            list[i] = { lane = lanes[i] }
        end
        for bucket = 1, 256 do
            map[bucket] = math.random(4)
        end
        assert.equal('sticky', listener:steer(list, { sticky = map }))
        local got = spread(lanes, '::1', port, 100)
        assert.equal(100, got[map[core.bucket('::1', 256)]])
        for _, pattern in ipairs { '10.0.%d.%d', '2001:db8::%x:%x', '2001:db8:%x:%x::1' } do
            local hits = {}
            for i = 1, 64 do
                hits[i] = 0
            end
            for a = 0, 127 do
                for b = 0, 127 do
                    local bucket = core.bucket(pattern:format(a, b), 64)
                    hits[bucket] = hits[bucket] + 1
                end
            end
            for _, hit in ipairs(hits) do
                assert.is_true(hit > 128 and hit < 384, pattern .. ': a bucket with ' .. hit)
            end
        end
    end)

    for _, host in ipairs { '127.0.0.1', '::1' } do
        it('sends the probe\'s port to its lane, in and out of rotation, from ' .. host, function()
            local port = open ':0'
            local a, b, c = listener:lane(), listener:lane(), listener:lane()
            local probe = { source = host, source_port = 31000 }
            local other = { source = '127.0.0.2', source_port = 31000 }
            for _, sticky in ipairs { {}, { 1, 2 } } do
                listener:steer({ { lane = a }, { lane = b } }, {
                    probes = { { port = 31001, lane = a }, { port = 31000, lane = c } }, sticky = sticky[1] and sticky })
                for _ = 1, 5 do
                    assert.same({ 0, 0, 1 }, spread({ a, b, c }, host, port, 1, probe))
                    if host == '127.0.0.1' then -- there is one address of IPv6 on a loopback device
                        assert.equal(0, spread({ a, b, c }, host, port, 1, other)[3])
                    end
                    assert.equal(0, spread({ a, b, c }, host, port, 10)[3])
                end
            end
        end)
    end

    it('sends each of many probes to its own lane, and refuses more', function()
        local port = open '127.0.0.1:0'
        local lanes, probes = {}, {}
        for i = 1, 64 do
            lanes[i] = listener:lane()
            probes[i] = { port = 31000 + i, lane = lanes[i] }
        end
        assert.equal('steered', listener:steer({ { lane = lanes[1] } }, { probes = probes }))
        for _, i in ipairs { 1, 2, 33, 64 } do
            assert.equal(1, spread(lanes, '127.0.0.1', port, 1, { source = '127.0.0.1', source_port = 31000 + i })[i])
        end
        assert.equal('EBUSY', select(3, lanes[64]:close()))
        probes[65] = { port = 31065, lane = lanes[1] }
        assert.has_error(function()
            listener:steer({ { lane = lanes[1] } }, { probes = probes })
        end)
        assert.equal('steered', listener:steer { { lane = lanes[1] } })
        assert.is_true(lanes[64]:close())
    end)

    it('takes hundreds of lanes of different weight', function()
        open '127.0.0.1:0'
        local list = {}
        local map = {}
        for i = 1, 300 do
            list[i], map[i] = { lane = listener:lane(), weight = i }, i
        end
        assert.equal('steered', listener:steer(list))
        assert.equal('sticky', listener:steer(list, { sticky = map }))
    end)

    it('falls back to hashing when there is nothing to steer to', function()
        local port = open '127.0.0.1:0'
        local lanes = { listener:lane(), listener:lane() }
        assert.equal('steered', listener:steer { { lane = lanes[1] } })
        assert.equal('hash', listener:steer {})
        local got = spread(lanes, '127.0.0.1', port, 200)
        assert.is_true(got[1] > 0 and got[2] > 0)
    end)

    it('goes through another member when a worker has locked the filters of its lane', function()
        open '127.0.0.1:0'
        local lanes = { listener:lane(), listener:lane() }
        assert.equal('steered', listener:steer { { lane = lanes[1] }, { lane = lanes[2] } })
        assert.is_true(net.set_option(lanes[1]:fd(), 1, 44, 1)) -- SO_LOCK_FILTER
        assert.equal('steered', (listener:steer { { lane = lanes[2] } }))
        assert.is_true(net.set_option(lanes[2]:fd(), 1, 44, 1))
        assert.equal('EPERM', select(3, listener:steer { { lane = lanes[1] } })) -- all of them: it is said
    end)

    it('refuses weights that are none, and foreign lanes', function()
        open '127.0.0.1:0'
        local lane = listener:lane()
        for _, weight in ipairs { 0, -1, 0 / 0, 1 / 0 } do
            assert.has_error(function()
                listener:steer { { lane = lane, weight = weight } }
            end)
        end
        local other = core.listen(core.address '127.0.0.1:0', { reuseport = true })
        local foreign = other:lane()
        assert.has_error(function()
            listener:steer { { lane = foreign } }
        end)
        other:close()
        assert.has_error(function()
            listener:steer({ { lane = lane } }, { sticky = { 2 } })
        end)
    end)
end)
