-- The figures of spec/bench/tails, where no other program can change them: see spec/support/mixed_load.lua.

local mixed_load = require 'spec.support.mixed_load'

local SECONDS = 20
local SOON_MS = 0.2 -- a worker that sleeps has seen a connection

local function run(count, kind, balance)
    local waited, programs = mixed_load.run(count, kind, balance, SECONDS)
    local function percentile(share)
        return waited[math.floor(share * #waited)]
    end
    return { p50 = percentile(0.5), p90 = percentile(0.9), p99 = percentile(0.99), programs = programs / SECONDS }
end

describe('under quick and slow requests', function()
    for _, kind in ipairs { 'node', 'lua' } do
        -- { workers, how much longer than at one shared socket one in ten waits, in ms; one in a hundred;
        --   how often the kernel is told anew in a second }
        for _, case in ipairs { { 8, 4.2, 30, 90 }, { 4, 5.5, 50, 60 } } do
            it(('few wait long for one of %d %s workers while another is idle'):format(case[1], kind), function()
                local steered, shared = run(case[1], kind, 'steered'), run(case[1], kind, 'shared')
                assert.is_true(steered.p50 < SOON_MS, steered.p50)
                assert.is_true(steered.p90 - shared.p90 < case[2], ('%g, %g'):format(steered.p90, shared.p90))
                assert.is_true(steered.p99 - shared.p99 < case[3], ('%g, %g'):format(steered.p99, shared.p99))
                assert.is_true(steered.programs < case[4], steered.programs)
            end)
        end
    end
end)
