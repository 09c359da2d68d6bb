local Acceptance = require 'dutch-master.cluster.acceptance'
local fake_platform = require 'spec.support.fake_platform'

-- Doors that note what is done to them, and an acceptance at them.
local function at(count)
    local platform = fake_platform.new()
    local world = { platform = platform, doors = {}, done = 0, log = {} }
    for i = 1, count do
        local door = { address = { text = '127.0.0.1:' .. 80 + i }, alone = true, queue = 0 }
        function door.probe(_, id, port)
            table.insert(world.log, ('probe %d %d'):format(i, id))
            assert.equal(40000, port)
            return unpack(door.refusal or { true })
        end
        function door.probed()
            table.insert(world.log, 'probed ' .. i)
            return door.alone
        end
        function door.unprobe()
            table.insert(world.log, 'unprobe ' .. i)
        end
        function door.waiting()
            return door.queue
        end
        world.doors[i] = door
    end
    world.acceptance = Acceptance.new { platform = platform, id = 7, doors = world.doors, on_done = function()
        world.done = world.done + 1
    end }
    platform:advance(0)
    function world.dial()
        return platform.dials[#platform.dials]
    end
    return world
end

describe('acceptance', function()
    it('is waited for by one connection, which says nothing, until a process has it', function()
        local world = at(1)
        assert.equal('', world.dial().text)
        world.dial().is_accepted = false
        world.doors[1].queue = 1
        world.platform:advance(60000)
        assert.equal(1, #world.platform.dials)
        assert.equal('nobody accepted a connection at 127.0.0.1:81', world.acceptance:words())
        world.dial().is_accepted, world.doors[1].queue = true, 0
        world.platform:advance(30)
        assert.equal(1, world.done)
        assert.is_nil(world.acceptance:words())
        assert.is_false(world.dial().open)
        assert.same({ 'probe 1 7', 'probed 1' }, world.log)
        assert.equal(0, world.platform:armed())
    end)

    it('is shown by its end, or by data: a server that closed it, or greets', function()
        local world = at(2)
        world.dial().on_end()
        assert.equal(0, world.done)
        assert.equal('nobody accepted a connection at 127.0.0.1:82', world.acceptance:words())
        world.platform:advance(0)
        world.dial().on_data '220 hello'
        assert.equal(1, world.done)
        assert.same({ 'probe 1 7', 'probed 1', 'probe 2 7', 'probed 2' }, world.log)
    end)

    it('is not shown by a failure, nor by an acceptance that may have been another worker\'s', function()
        local world = at(1)
        world.dial().on_end 'connection reset by peer'
        assert.matches('%(connection reset by peer%)$', world.acceptance:words())
        world.platform:advance(100)
        assert.equal(2, #world.platform.dials)
        world.doors[1].alone = false
        world.dial().on_end()
        assert.matches('%(it may have been accepted by another worker%)$', world.acceptance:words())
        world.doors[1].alone = true
        world.platform:advance(100)
        world.dial().on_end()
        assert.equal(1, world.done)
    end)

    it('is shown by an empty queue where the kernel does not say more', function()
        local world = at(1)
        world.doors[1].queue = 1
        world.platform:advance(1000)
        assert.equal(0, world.done)
        world.doors[1].queue = 0
        world.platform:advance(30)
        assert.equal(1, world.done)
    end)

    it('is asked for again if the connection came to another queue, and not before that is sure', function()
        local world = at(1)
        world.dial().is_accepted = false
        world.platform:advance(80)
        world.doors[1].queue = 1 -- on its way until now
        world.platform:advance(60000)
        assert.equal(1, #world.platform.dials)
        world.doors[1].queue = 0
        world.platform:advance(210)
        assert.equal(2, #world.platform.dials)
        assert.is_false(world.platform.dials[1].open)
        assert.matches('%(a connection came to another queue%)$', world.acceptance:words())
        world.dial().is_accepted = true
        world.platform:advance(30)
        assert.equal(1, world.done)
        assert.same({ 'probe 1 7', 'unprobe 1', 'probe 1 7', 'probed 1' }, world.log)
    end)

    it('waits its turn while too many others are asked', function()
        local world = at(1)
        world.acceptance:close()
        world = at(1)
        world.dial().on_end 'x'
        world.doors[1].refusal = { nil, 'too many', 'EAGAIN' }
        world.platform:advance(150)
        world.doors[1].refusal = nil
        world.platform:advance(30)
        world.dial().on_end()
        assert.equal(1, world.done)
        for _, dial in ipairs(world.platform.dials) do
            assert.is_false(dial.open)
        end
    end)

    it('leaves nothing when it is given up, before and after', function()
        local world = at(1)
        world.acceptance:close()
        world.acceptance:close()
        assert.is_false(world.dial().open)
        assert.equal(0, world.platform:armed())
        assert.same({ 'probe 1 7', 'unprobe 1' }, world.log)
    end)
end)
