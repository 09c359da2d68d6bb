local Buckets = require 'dutch-master.listen.sticky'

describe('sticky buckets', function()
    local function shares(buckets)
        local held = {}
        for _, owner in ipairs(buckets.owner) do
            held[owner] = (held[owner] or 0) + 1
        end
        return held
    end

    local function moved(buckets, fn)
        local before, count = { unpack(buckets.owner) }, 0
        fn()
        for i, owner in ipairs(buckets.owner) do
            count = count + (owner ~= before[i] and 1 or 0)
        end
        return count
    end

    it('are more where there are many owners', function()
        assert.equal(256, Buckets.new(4).count)
        assert.equal(1024, Buckets.new(33).count)
    end)

    it('are shared evenly as the cluster grows, and each newcomer moves only its share', function()
        local buckets = Buckets.new(4)
        buckets:join(1, 4)
        for owner = 2, 4 do
            assert.equal(math.floor(256 / owner), moved(buckets, function() buckets:join(owner, 4) end))
        end
        assert.same({ 64, 64, 64, 64 }, shares(buckets))
    end)

    it('go from a worker that is replaced to its successor', function()
        local buckets = Buckets.new(2)
        buckets:join(1, 2)
        buckets:join(2, 2)
        assert.equal(0, moved(buckets, function() buckets:join(3, 2) end))
        assert.equal(128, moved(buckets, function() buckets:leave(1, 2) end))
        assert.same({ [2] = 128, [3] = 128 }, shares(buckets))
    end)

    it('of a crashed one come back to the next that joins, and nobody else is moved', function()
        local buckets = Buckets.new(3)
        for owner = 1, 3 do
            buckets:join(owner, 3)
        end
        local lost = shares(buckets)[2]
        assert.equal(lost, moved(buckets, function() buckets:leave(2, 3) end))
        assert.equal(85, moved(buckets, function() buckets:join(4, 3) end))
        assert.is_true(math.abs(shares(buckets)[4] - lost) <= 1)
    end)

    it('of who cannot serve are shared by the others', function()
        local buckets = Buckets.new(2)
        buckets:join(1, 2)
        buckets:join(2, 2)
        for _, owner in ipairs(buckets:owners_of { 2 }) do
            assert.equal(2, owner)
        end
        assert.same(buckets.owner, buckets:owners_of { 1, 2 })
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
