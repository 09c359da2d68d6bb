-- Signals that a keeper passes on: each is heard by a master that has a snapshot of what it asks for, once.
local masters = require 'spec.support.kept_masters'
local p = require 'spec.support.process'

describe('a signal to the keeper', function()
    p.leaves_nothing()

    -- @return what was heard by these masters, the last of which ends by itself
    local function heard_by(...)
        local lines, status = masters.run(...)
        assert.equal(0, status.code)
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
