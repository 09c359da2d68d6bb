-- Signals that a keeper passes on: each is heard by a master that has a snapshot of what it asks for, once.
local p = require 'spec.support.process'

local PROGRAM = p.runner:match '^.*/' .. 'kept-masters'

describe('a signal to the keeper', function()
    p.leaves_nothing()

    -- The masters, one after the other, by what each does (spec/support/kept_masters.c); the last ends by itself.
    -- @return what was heard, a line each
    local function heard_by(...)
        local null = assert(io.open('/dev/null', 'w')) -- the keeper says there that a master has died
        local output, record = p.output_of { PROGRAM, stderr = p.fileno(null), ... }
        null:close()
        assert(record.child, record.message)
        assert.equal(0, record.status.code, output)
        local lines = {}
        for line in output:gmatch '[^\n]+' do
            lines[#lines + 1] = line
        end
        return lines
    end

    it('is told again when the master dies before it has a snapshot that knows it', function()
        assert.same({ '1 SIGHUP 1', '2 SIGHUP 1' }, heard_by('soHrd', 'orx'))
    end)

    it('is told again when it was never read, and when the snapshot is torn', function()
        assert.same({ '2 SIGHUP 1' }, heard_by('soHd', 'orx'))
        assert.same({ '1 SIGHUP 1', '2 SIGHUP 1' }, heard_by('soHrtd', 'orx'))
    end)

    it('is told once when a snapshot knows it', function()
        assert.same({ '1 SIGHUP 1', '2 SIGUSR1 2' }, heard_by('soHrsd', 'oUrx'))
    end)

    it('waits for a master that supervises, however many die before', function()
        assert.same({ '1 SIGHUP 1', '4 SIGHUP 1', '5 SIGHUP 1', '6 SIGUSR1 2' },
            heard_by('soHrd', 'd', 'd', 'ord', 'orsd', 'oUrx'))
    end)

    it('is told in the order in which they came, the newest of each', function()
        assert.same({ '1 SIGUSR1 1', '1 SIGHUP 2', '1 SIGUSR1 3', '2 SIGHUP 2', '2 SIGUSR1 3' },
            heard_by('soUrHrUrd', 'orrx'))
    end)

    it('that asks for the end is told to each, as the same one', function()
        assert.same({ '1 SIGTERM 1', '1 SIGINT 2', '2 SIGTERM 1', '2 SIGINT 2', '3 SIGTERM 1', '3 SIGINT 2' },
            heard_by('soTrIrsd', 'orrsd', 'orrx'))
    end)

    it('crosses a change of the program, and is not told again by that', function()
        assert.same({ '1 SIGHUP 1', '2 SIGHUP 1', '3 SIGUSR1 2' }, heard_by('soHrb', 'orsb', 'oUrx'))
        assert.same({ '1 SIGTERM 1', '2 SIGUSR1 2' }, heard_by('soTrsb', 'oUrx'))
    end)
end)
