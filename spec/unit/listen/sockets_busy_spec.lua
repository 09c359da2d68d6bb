local fake_sockets = require 'spec.support.fake_sockets'

local A = fake_sockets.A

describe('sockets of a busy worker', function()
    local world, sockets, platform, network, idle

    -- How long worker 1 is out of rotation although nobody waits.
    local function out_ms()
        idle[1] = false
        network.open[A].client()
        assert.is_true(platform:run_until(function()
            return #world.rotation() == 1
        end, 100))
        local begun = platform.now()
        assert.is_true(platform:run_until(function()
            return #world.rotation() == 2
        end, 1000))
        idle[1] = true
        return platform.now() - begun
    end

    before_each(function()
        world = fake_sockets.new()
        platform, network, idle, sockets = world.platform, world.network, world.idle, world.new()
        sockets:open { A }
        world.asking(1, 2)
        idle[2] = true
    end)

    after_each(function()
        world.finish()
    end)

    it('are out of rotation for 100 ms at most, though nothing wakes the master', function()
        for offset = 0, 350, 70 do -- wherever the next tick is
            platform:advance(offset)
            assert.equal(100, out_ms())
            platform:advance(2000)
        end
    end)

    it('cost the master one look more for that', function()
        local looks, queued = 0, network.open[A].queued
        network.open[A].queued = function()
            looks = looks + 1
            return queued()
        end
        platform:advance(30000)
        looks = 0
        out_ms()
        assert.is_true(looks <= 9, looks)
        looks = 0
        platform:advance(200)
        assert.equal(0, looks)
    end)
end)
