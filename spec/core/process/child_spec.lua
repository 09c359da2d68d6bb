local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local p = require 'spec.support.process'
local sys = require 'spec.support.sys'

describe('child', function()
    p.leaves_nothing()

    it('runs a program and reports its exit once, as the last event', function()
        local record = p.sh 'exit 3'
        local status = p.exit_of(record)
        assert.are.equal(3, status.code)
        assert.is_nil(status.signal)
        assert.are.equal(record.pid, status.pid)
        assert.are.same({ 'exec', 'exit' }, record.events)
    end)

    it('reports a signal by its name', function()
        local record = p.sh 'kill -USR1 $$'
        assert.are.equal('SIGUSR1', p.exit_of(record).signal)
        assert.is_nil(record.status.code)
        assert.is_false(record.status.core)
    end)

    it('of a former master that cannot be watched is not adopted, and all that was kept of it is closed', function()
        local before = sys.count_fds()
        local ours, theirs = sys.socketpair()
        local out, out_end = sys.pipe()
        local err, err_end = sys.pipe()
        local child, _, code = core.adopt { pid = 4194303, pidfd = sys.open('/dev/null', sys.O_RDONLY), channel = ours,
            out = out, err = err, stdout = 1, stderr = 2 }
        assert.is_nil(child)
        assert.equal('EPERM', code) -- what has no poll() in the kernel cannot be watched
        for _, fd in ipairs { theirs, out_end, err_end } do
            sys.close(fd)
        end
        loop.close()
        assert.equal(before, sys.count_fds())
    end)

    it('that cannot be watched is not ended later, when it is another one, with its master', function()
        -- By somebody else's name: the place that the group's number would have in the memory of the watcher.
        local output, record = p.output_of { p.runner, 'spec/support/unwatched_group.lua' }
        assert.equal('', output, record.tail)
        assert.equal(0, record.status.code, record.tail)
    end)

    it('tells what it used', function()
        local record = p.sh 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'
        local status = p.exit_of(record)
        assert.is_true(status.user_ms + status.system_ms > 0)
        assert.is_true(status.max_rss_kb > 100)
    end)
end)
