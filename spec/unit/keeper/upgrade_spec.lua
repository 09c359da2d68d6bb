-- Who asked for an upgrade gets one verdict, from whichever master runs in the end.

local Commit = require 'dutch-master.keeper.commit'
local State = require 'dutch-master.keeper.estate'
local Upgrade = require 'dutch-master.keeper.upgrade'

local function new_world()
    local world = { became = {}, log = {}, verdicts = {}, timers = {}, settled = 0, wall = 100,
        commit = Commit.new {} }
    local function note(level)
        return function(_, _, message)
            world.log[#world.log + 1] = level .. ': ' .. message
        end
    end
    local log = { info = note 'info', error = note 'error' }
    local platform = {
        wall = function() return world.wall end,
        touch = function() end,
        settled = function() world.settled = world.settled + 1 end,
        become = function(path)
            if world.refuses then
                return nil, world.refuses
            end
            world.became[#world.became + 1] = path
            return true
        end,
        timer = function(fn)
            local timer = { fn = fn }
            function timer:start(ms) self.ms = ms end
            function timer:close() self.closed = true end
            world.timers[#world.timers + 1] = timer
            return timer
        end,
    }
    function world.new(version)
        return Upgrade.new {
            platform = platform, version = version, image = '/bin/dm-' .. version,
            log = function() return log end,
            write = function()
                if world.full then
                    return nil, world.full
                end
                return true
            end,
            commit = world.commit,
            on_verdict = function(verdict) world.verdicts[#world.verdicts + 1] = verdict end,
        }
    end
    return world
end

local function wish(fields)
    local all = { binary = '/bin/dm-2', version = '2', reads = { State.VERSION }, key = 'k' }
    for key, value in pairs(fields or {}) do
        all[key] = value
    end
    return all
end

local function nobody() end

-- Asks the first master; -> what the next one finds.
local function asked(world)
    local first = world.new '1'
    assert.is_true(first:request(wish(), nobody))
    return first:keep()
end

describe('an upgrade', function()
    it('is asked of the keeper when the state is written, once at a time', function()
        local world = new_world()
        local first = world.new '1'
        assert.is_true(first:request(wish(), nobody))
        assert.same({ '/bin/dm-2' }, world.became)
        local ok, message = first:request(wish { version = '3' }, nobody)
        assert.is_nil(ok)
        assert.equal('an upgrade to 2 is under way', message)
    end)

    it('to what cannot read the state, or is no path, or cannot be had, changes nothing', function()
        local world = new_world()
        local first = world.new '1'
        for _, case in ipairs {
            { wish { reads = { 7 } }, '/bin/dm-2 cannot read the state of this version: restart the service instead' },
            { wish { reads = 'all' }, '/bin/dm-2 cannot read the state of this version: restart the service instead' },
            { wish { binary = 'dm' }, 'expected the absolute path of a program' },
        } do
            local ok, message = first:request(case[1], nobody)
            assert.is_nil(ok)
            assert.equal(case[2], message)
        end
        world.full = 'no room'
        assert.same({ n = 2, nil, 'no room' }, { n = select('#', first:request(wish(), nobody)),
            first:request(wish(), nobody) })
        world.full, world.refuses = nil, 'no such file'
        assert.is_nil((first:request(wish(), nobody)))
        assert.same({}, world.became)
        assert.same({}, first:keep())
    end)

    it('has succeeded when the next program has lived for a moment: who asks again is told then', function()
        local world, heard = new_world(), {}
        local second = world.new '2'
        second:resume(asked(world), { failed = false })
        assert.is_true(second:hear('k', function(verdict) heard[#heard + 1] = verdict.result end))
        assert.is_false(second:hear('other', nobody))
        assert.same({}, heard)
        assert.equal(0, world.settled)
        world.timers[1].fn()
        assert.same({ 'done' }, heard)
        assert.equal(1, world.settled)
        assert.same({ 'info: Upgrade requested', 'info: Upgraded' }, world.log)
        assert.equal('/bin/dm-2', world.verdicts[1].image)
        assert.is_true(second:hear('k', function(verdict) heard[#heard + 1] = verdict.to end))
        assert.same({ 'done', '2' }, heard)
        -- and whoever takes over from it knows it still
        local third = world.new '2'
        third:resume(second:keep(), nil)
        assert.is_true(third:hear('k', function(verdict) heard[#heard + 1] = verdict.from end))
        assert.equal('1', heard[3])
        assert.equal(1, #world.verdicts)
    end)

    -- Else the next master, which knows of no verdict, would find no way back, and say that it has failed.
    it('keeps its way back, and tells nobody, until its verdict is kept', function()
        local world, heard = new_world(), {}
        world.commit = Commit.new { touch = function() end }
        local second = world.new '2'
        second:resume(asked(world), { failed = false })
        assert.is_true(second:hear('k', function(verdict) heard[#heard + 1] = verdict.result end))
        world.timers[1].fn()
        assert.is_true(second:hear('k', function(verdict) heard[#heard + 1] = verdict.to end))
        assert.same({ 0, {} }, { world.settled, heard })
        world.commit:written()
        assert.same({ 1, { 'done', '2' } }, { world.settled, heard })
    end)

    it('has failed with a reason when the former program is back', function()
        for reason, case in pairs {
            died = { 'SIGSEGV', 'its master died of SIGSEGV' },
            exited = { 70, 'its master exited with code 70: see stderr' },
            late = { 10000, 'its master did not take over within 10 s' },
            ['not run'] = { 'Exec format error', 'it could not be run: Exec format error' },
            refused = { 0, 'it does not understand what the keeper hands over' },
        } do
            local world = new_world()
            local back = world.new '1'
            back:resume(asked(world), { failed = true, reason = reason, detail = case[1] })
            assert.same({ 'failed', case[2] }, { world.verdicts[1].result, world.verdicts[1].message })
            assert.equal('/bin/dm-1', world.verdicts[1].image)
            assert.equal(1, world.settled)
            assert.equal('error: Upgrade failed, the former program goes on', world.log[2])
        end
    end)

    it('has failed when the master died before it could give place', function()
        local world = new_world()
        local other = world.new '1'
        other:resume(asked(world), nil)
        assert.equal('the master or its keeper died before it could give place', world.verdicts[1].message)
        assert.is_true(other:request(wish { key = 'again' }, nobody))
    end)

    it('is done when the keeper dies while it is to prove itself: nobody could call it back', function()
        local world = new_world()
        local second = world.new '2'
        second:keeper_lost()
        assert.same({}, world.verdicts)
        second:resume(asked(world), { failed = false })
        second:keeper_lost()
        assert.equal('done', world.verdicts[1].result)
        assert.is_true(world.timers[1].closed)
        second:keeper_lost()
        assert.equal(1, #world.verdicts)
    end)

    it('of which nothing is known is settled, and nobody is told', function()
        local world = new_world()
        world.new '2':resume({}, { failed = false })
        assert.equal(1, world.settled)
        assert.same({}, world.verdicts)
    end)
end)
