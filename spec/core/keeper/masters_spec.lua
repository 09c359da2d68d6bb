-- The masters of a keeper: which death is followed by another one, how soon, and with what; and which is the end.
local masters = require 'spec.support.kept_masters'
local p = require 'spec.support.process'

describe('the masters of a keeper', function()
    p.leaves_nothing()

    it('are followed by none where there is nothing to go on from, or the last has ended by itself', function()
        for steps, ended in pairs { od = 'SIGKILL', oe = 9, soe = 9, sox = 0 } do
            local lines, status = masters.run('a' .. steps, 'a')
            assert.same({ '1 goes on', ended }, { lines[1], status.signal or status.code })
            assert.equal(1, #lines)
        end
    end)

    it('are followed by another one where a library has ended one for want of memory', function()
        local lines, status = masters.run('ason', 'aox')
        assert.same({ { '1 goes on', '2 goes on' }, 0 }, { lines, status.code })
        assert.equal(255, select(2, masters.run 'aon').code)
    end)

    it('are followed after longer and longer pauses, unless they have lived a second', function()
        local lines = masters.run('csocd', 'cocd', 'cocd', 'coc1cd', 'cox')
        local times = {}
        for i, line in ipairs(lines) do
            times[i] = tonumber(line:match ' (%d+)$')
        end
        assert.equal(10, #times)
        assert.is_true(times[5] - times[4] >= 100, table.concat(lines, '\n'))
        assert.is_true(times[7] - times[6] >= 200, table.concat(lines, '\n'))
        assert.is_true(times[10] - times[9] < 400 * p.patience, table.concat(lines, '\n'))
    end)

    it('are followed by one that does without the state when three could not go on from it', function()
        -- What gives up before it supervises has failed, whatever it says.
        assert.same({ '2 goes on', '3 goes on', '4 goes on', '5 does without the state' },
            (masters.run('sod', 'ad', 'ae', 'af', 'aox')))
        assert.same({ '4 goes on', '5 does without the state' }, (masters.run('sod', 'of', 'of', 'aof', 'aox')))
    end)

    it('go on from a state under which three were killed', function()
        assert.same({ '5 goes on' }, (masters.run('sod', 'od', 'od', 'od', 'aox')))
    end)

    it('know that a channel was in use, also from one before the last, which had no snapshot after it', function()
        assert.same({ '2 in use', '3 in use' }, (masters.run('soMd', 'md', 'mox')))
        assert.same({ '2 clear' }, (masters.run('sod', 'mox')))
    end)

    it('know that a line did not go out which the last was to send at once', function()
        assert.same({ '2 queued' }, (masters.run('soQd', 'mox')))
    end)

    it('are not followed any more when the end was asked for and none can take over', function()
        local lines, status = masters.run('soTrd', 'ad', 'ad', 'ad', 'ad', 'a')
        assert.same({ '1 SIGTERM 1', '2 goes on', '3 goes on', '4 goes on', '5 does without the state' }, lines)
        assert.equal('SIGKILL', status.signal)
    end)
end)
