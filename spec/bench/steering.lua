--- What steering costs, and how evenly it spreads: dm-spec spec/bench/steering.lua

local core = require 'dutch-master.core'
local ffi = require 'ffi'
local net = require 'spec.support.net'

ffi.cdef [[
struct dm_bench_time { long seconds; long nanoseconds; };
int clock_gettime(int, struct dm_bench_time *);
]]

local function now_us()
    local t = ffi.new 'struct dm_bench_time'
    ffi.C.clock_gettime(1, t)
    return tonumber(t.seconds) * 1e6 + tonumber(t.nanoseconds) / 1e3
end

-- Median and worst of `rounds` updates.
local function time(rounds, fn)
    local taken = {}
    for i = 1, rounds do
        local start = now_us()
        fn(i)
        taken[i] = now_us() - start
    end
    table.sort(taken)
    return taken[math.ceil(rounds / 2)], taken[math.ceil(rounds * 0.99)]
end

local function open(count)
    local listener = assert(core.listen(core.address '127.0.0.1:0', { reuseport = true, backlog = 4000 }))
    local lanes = {}
    for i = 1, count do
        lanes[i] = listener:lane()
    end
    return listener, lanes
end

local function updates(count)
    local listener, lanes = open(count)
    local function steer(test, weight, options)
        return function(round)
            local list = {}
            for i, lane in ipairs(lanes) do
                if test(i, round) then
                    list[#list + 1] = { lane = lane, weight = weight and weight(i, round) }
                end
            end
            assert(listener:steer(list, options) ~= 'hash')
        end
    end
    local buckets = {}
    for i = 1, 256 do
        buckets[i] = i % (count - 1) + 1
    end
    local function all_but_one(i, round)
        return i ~= round % count + 1
    end
    for _, case in ipairs {
        { 'all but one, equal weights', steer(all_but_one) },
        { 'every other one', steer(function(i, round)
            return (i + round) % 2 == 0
        end) },
        { 'each its own weight', steer(all_but_one, function(i, round)
            return i + round % 7
        end) },
        { 'sticky, 256 buckets', steer(all_but_one, nil, { sticky = buckets }) },
    } do
        print(('%3d lanes, %-28s median %6.1f us, 99%% %6.1f us'):format(count, case[1], time(1000, case[2])))
    end
    listener:close()
end

local function spread(count, connections)
    local listener, lanes = open(count)
    local port = listener:address().port
    local list, got = {}, {}
    for i, lane in ipairs(lanes) do
        list[i], got[i] = { lane = lane }, 0
    end
    for _, how in ipairs { 'hash', 'steered' } do
        listener:steer(how == 'hash' and {} or list)
        for i in ipairs(lanes) do
            got[i] = 0
        end
        for _ = 1, connections / 500 do
            for _ = 1, 500 do
                net.abort(assert(net.connect('127.0.0.1', port)))
            end
            for i, lane in ipairs(lanes) do
                while true do
                    local fd = lane:accept()
                    if not fd then
                        break
                    end
                    core.close_fd(fd)
                    got[i] = got[i] + 1
                end
            end
        end
        print(('%d connections over %d lanes, %-8s max/min %.3f (%s)'):format(connections, count, how .. ':',
            math.max(unpack(got)) / math.min(unpack(got)), table.concat(got, ' ')))
    end
    listener:close()
end

updates(8)
updates(64)
spread(8, 100000)
