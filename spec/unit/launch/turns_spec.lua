local Turns = require 'dutch-master.launch.turns'

-- Events that are entered into a list, and ended by hand.
local function new()
    local world = { entered = {}, lost = {} }
    world.turns = Turns.new {
        enter = function(event) table.insert(world.entered, event.name) end,
        lost = function(worker_id, count) table.insert(world.lost, { worker_id, count }) end,
    }
    function world.message(worker_id, name, bytes)
        local admitted = world.turns:admits(worker_id, bytes or 1)
        if admitted then
            world.turns:add_message(worker_id, bytes or 1, { name = name })
        end
        return admitted
    end
    return world
end

describe('turns', function()
    it('one event of a worker is under way at a time, and the workers take turns', function()
        local world = new()
        for _, name in ipairs { 'a1', 'a2', 'b1', 'a3', 'b2' } do
            world.turns:add(name:sub(1, 1), { name = name })
        end
        assert.same({ 'a1', 'b1' }, world.entered)
        world.turns:ended 'a'
        world.turns:ended 'b'
        world.turns:ended 'a'
        assert.same({ 'a1', 'b1', 'a2', 'b2', 'a3' }, world.entered)
        world.turns:ended 'a'
        world.turns:ended 'b'
        assert.same({}, world.turns.queues)
        assert.same({}, world.lost)
    end)

    it('the bytes of a worker that may wait are bounded; one message always may', function()
        local world = new()
        assert.is_true(world.message(1, 'large', 1e6))
        assert.is_true(world.message(1, 'large', 1e6))
        assert.is_false(world.message(1, 'small', 1))
        assert.is_false(world.message(1, 'small', 1))
        assert.is_true(world.message(2, 'small', 1))
        assert.same({ { 1, 0 } }, world.lost)
        world.turns:ended(1)
        assert.is_true(world.message(1, 'small', 1))
        world.turns:ended(1)
        world.turns:ended(1)
        assert.same({ { 1, 0 }, { 1, 2 } }, world.lost)
    end)

    it('messages can be taken out, of one worker or of all; what else happened stays', function()
        local world = new()
        for _, worker_id in ipairs { 1, 2 } do
            for i = 1, 3 do
                world.message(worker_id, i)
            end
            world.turns:add(worker_id, { name = 'exit' })
        end
        local dropped = {}
        local function note(event) table.insert(dropped, event.name) end
        world.turns:drop_messages(1, note)
        assert.same({ 2, 3 }, dropped)
        world.turns:drop_messages(nil, note)
        assert.same({ 2, 3, 2, 3 }, dropped)
        world.turns:ended(1)
        world.turns:ended(2)
        assert.same({ 1, 1, 'exit', 'exit' }, world.entered)
    end)
end)
