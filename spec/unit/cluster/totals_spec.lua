local json = require 'cjson'
local read = require('spec.support.files').text
local Totals = require 'dutch-master.cluster.totals'

describe('totals', function()
    it('counts every end by its reason', function()
        local cases = {
            crash = { unexpected = true, was_ready = true },
            never_ready = { unexpected = true },
            start_failed = { unexpected = true, step = 'exec' },
            out_of_memory = { unexpected = true, was_ready = true, oom = true },
            asked = { why = 'asked to be replaced' },
            max_memory = { why = '600 MiB of memory, maxMemory is 512 MiB' },
            max_lifetime = { why = '3700 s old, maxLifetime is 3600 s' },
            hung = { why = 'gave no sign of life for 30 s' },
            scaled = { why = 'scaled down' },
            stopped = { why = 'stopped', killed = true },
            replaced = { why = 'replaced' },
        }
        local totals = Totals.new()
        for reason in pairs(totals.exits) do
            assert.equal(0, totals.exits[reason])
            totals:exit(assert(cases[reason], reason))
            assert.equal(1, totals.exits[reason], reason)
        end
        assert.equal(1, totals.killed)
    end)

    it('counts verdicts, and the time of restarts', function()
        local totals = Totals.new()
        totals:verdict { result = 'done', duration_ms = 1500 }
        totals:verdict { result = 'aborted', duration_ms = 500 }
        local now = totals:snapshot()
        assert.same({ 1, 1, 0, 2, 2000 }, { now.verdicts.done, now.verdicts.aborted, now.verdicts.superseded, now.rolls,
            now.roll_ms })
    end)

    it('goes on from those of a version that has not all reasons, or others', function()
        local kept = json.decode(read 'spec/support/state_2.json').cluster.totals
        kept.exits.hung, kept.exits.eaten, kept.verdicts.stopped = nil, 7, nil
        local totals = Totals.new()
        totals:resume(kept)
        totals:exit { why = 'gave no sign of life for 30 s' }
        totals:exit { unexpected = true, was_ready = true }
        totals:verdict { result = 'stopped' }
        local now = totals:snapshot()
        assert.same({ 1, 2, 7, 1, 2 }, { now.exits.hung, now.exits.crash, now.exits.eaten, now.verdicts.stopped, now.rolls })
        assert.equal(0, Totals.new().exits.crash)
    end)
end)
