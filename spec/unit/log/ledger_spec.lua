local Commit = require 'dutch-master.keeper.commit'
local format = require 'dutch-master.log.format'
local Ledger = require 'dutch-master.log.ledger'

-- Masters one after the other, beside what outlives each of them.
local function new_world()
    local world = { said = 0, written = {}, snapshot = nil }
    local core = { name_json = '"app"', hostname_json = '"host"', pid = 1 }

    local function read(fields, at, text)
        local own, level = format.read(fields)
        return { text = text, at = at, msg = fields.msg, fields = own, level = level }
    end

    function world.master()
        local commit = Commit.new { touch = function() end }
        local ledger
        ledger = Ledger.new { commit = commit, platform = {
            said = function() return world.said end,
            say = function(number) world.said = number end,
        }, deliver = function(record)
            if world.within then
                world.within(ledger)
            end
            table.insert(world.written, record)
        end }
        if world.snapshot then
            ledger:resume(world.snapshot, read)
        end
        local master = { ledger = ledger, commit = commit }
        function master.log(msg, fields)
            local record = { level = 'warn', fields = fields or {}, msg = msg, at = 1700000000.25 }
            record.text = format.json(core, record)
            ledger:enter(record)
        end
        function master.keep()
            world.snapshot = ledger:keep()
        end
        return master
    end
    function world.messages()
        local list = {}
        for i, record in ipairs(world.written) do
            list[i] = record.msg
        end
        return list
    end
    return world
end

describe('records that wait for their state', function()
    local world

    before_each(function()
        world = new_world()
    end)

    it('are written when it is kept, in their order', function()
        local master = world.master()
        master.log 'a'
        master.log 'b'
        assert.same({}, world.messages())
        master.keep()
        master.commit:written()
        assert.same({ 'a', 'b' }, world.messages())
        assert.same({ { first = 3, texts = {}, times = {} }, 2 }, { master.ledger:keep(), world.said })
    end)

    -- Wherever the first one dies: nothing that a snapshot knows is lost or comes twice, and nothing else is said.
    it('are written once, by whichever master', function()
        for dies_at = 0, 6 do
            world = new_world()
            local master, step = world.master(), 0
            local function lives(fn)
                step = step + 1
                if step <= dies_at then
                    fn()
                end
            end
            lives(function() master.log 'a' end)
            lives(function() master.log 'b' end)
            lives(master.keep)
            world.within = function() -- between two records
                step = step + 1
                if step > dies_at then
                    error 'it dies'
                end
            end
            lives(function() pcall(master.ledger.flush, master.ledger) end)
            world.within = nil
            local next_one = world.master()
            next_one.log 'c'
            next_one.keep()
            next_one.commit:written()
            local third = world.master() -- which goes on from a snapshot that is older than what was written
            third.commit:written()
            assert.same(dies_at < 3 and { 'c' } or { 'a', 'b', 'c' }, world.messages(), dies_at)
        end
    end)

    it('come to another master as they were', function()
        local master = world.master()
        master.log('said', { workerId = 7, code = false, name = 'odd', list = { 1, { x = 'ä' } } })
        master.keep()
        local text = world.snapshot.texts[1]
        world.master().commit:written()
        local record = world.written[1]
        assert.same({ 'warn', 'said', 1700000000.25, text }, { record.level, record.msg, record.at, record.text })
        assert.same({ workerId = 7, code = false, name_ = 'odd', list = { 1, { x = 'ä' } } }, record.fields)
    end)

    it('take no more than their room: the oldest do not wait', function()
        local master = world.master()
        for i = 1, 200 do
            master.log(tostring(i), { text = ('x'):rep(8000) })
        end
        assert.is_true(#master.ledger:keep().texts < 70)
        master.commit:written()
        assert.equal(200, #world.messages())
        assert.equal('200', world.messages()[200])
        assert.equal(200, world.said)
    end)

    it('let those by that speak of no state, if none of them waits', function()
        local master = world.master()
        master.ledger:follow { msg = 'at once', text = '' }
        assert.same({ { 'at once' }, 0 }, { world.messages(), world.said })
        master.log 'a'
        master.ledger:follow { msg = 'b', text = '' }
        assert.same({ 'at once' }, world.messages())
        master.commit:written()
        assert.same({ { 'at once', 'a', 'b' }, 2 }, { world.messages(), world.said })
    end)

    it('that come while others are written are written once', function()
        local master = world.master()
        world.within = function()
            world.within = nil
            master.log 'within'
        end
        master.log 'a'
        master.commit:written()
        master.commit:written()
        assert.same({ 'a', 'within' }, world.messages())
        assert.equal(2, world.said)
    end)
end)
