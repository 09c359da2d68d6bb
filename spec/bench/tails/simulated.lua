--- Who waits for a busy worker, simulated: see spec/support/mixed_load.lua. What other programs do on the machine changes
-- nothing, so two trees can be compared in a minute.
--   luajit spec/bench/tails/simulated.lua [TREE = .] [SECONDS = 300] [WORKERS... = 8 4 2]

local TREE, SECONDS = arg[1] or '.', tonumber(arg[2]) or 300
package.path = ('./?.lua;%s/lua/?.lua;'):format(TREE) .. package.path

local mixed_load = require 'spec.support.mixed_load'

local function simulate(count, kind, balance)
    local waited, programs, rescued = mixed_load.run(count, kind, balance, SECONDS)
    local function percentile(share)
        return waited[math.min(#waited, math.floor(share * #waited) + 1)]
    end
    print(('  %-5s %-8s p50 %5.1f  p90 %5.1f  p99 %6.1f  steered anew %5.1f/s  rescued %5.1f/s'):format(kind, balance,
        percentile(0.5), percentile(0.9), percentile(0.99), programs / SECONDS, rescued / SECONDS))
end

local counts = { unpack(arg, 3) }
for _, count in ipairs(#counts > 0 and counts or { 8, 4, 2 }) do
    print(count .. ' workers: waiting in ms')
    for _, kind in ipairs { 'node', 'lua' } do
        simulate(tonumber(count), kind, 'shared')
        simulate(tonumber(count), kind, 'steered')
    end
end
