-- A kept master dies in every way at any moment of a life under load: while it is idle, boots, rolls, rolls back, tries a
-- canary, scales, stops. What must be true afterwards: see spec/support/deaths.lua. A short form of spec/bench/takeover.lua.
-- DM_KILLS: how often in each moment, twice unless given: a canary and a scaling have two forms.

local death_rows = require 'spec.support.death_rows'
local deaths = require 'spec.support.deaths'
local master = require 'spec.support.master'

local TIMES = tonumber(os.getenv 'DM_KILLS') or 2
local AT_ONCE, RATE = 3, 150

-- A sanitizer that gets no memory itself exits, and a master that exits is not followed by another one.
local ways = {}
for _, way in ipairs(deaths.in_turns) do
    ways[#ways + 1] = (way ~= 'memory' or not os.getenv 'DM_SANITIZE') and way or nil
end

local kinds, newest = {}, nil
for _, kind in ipairs((deaths.kinds())) do
    newest = kind.name:find '^node' and kind or newest
    kinds[kind.name] = kind
end

local function all_moments(kind, first)
    local wrong = {}
    local rows = death_rows.new(function(text, life)
        wrong[#wrong + 1] = text .. (life and '\n' .. life.m:dump() or '')
    end)
    local which = {}
    for _, moment in ipairs(deaths.moments) do
        which[moment] = true
    end
    rows:run({ kind }, which, { times = TIMES, at_once = AT_ONCE, rate = RATE, way_of = function(i)
        return ways[(first + i - 2) % #ways + 1]
    end })
    assert(#wrong == 0, table.concat(wrong, '\n\n'))
    for _, moment in ipairs(deaths.moments) do
        local sum = rows.sums[kind.name .. ' ' .. moment]
        assert.equal(TIMES, sum.deaths, moment)
        assert.is_true(moment == 'booting' or sum.requests > 0, moment)
    end
end

describe('a kept master', function()
    after_each(master.cleanup)

    it('may die at any moment under Lua workers', function()
        all_moments(kinds.lua, 1)
    end)

    it('may die at any moment under Node workers', function()
        if not newest then
            return pending 'no Node is installed'
        end
        all_moments(newest, 4) -- so that both together die in each way
    end)

    if os.getenv 'DM_SANITIZE' then
        pending 'may die of having no memory: a sanitizer that gets none exits, as no master does'
    end
end)
