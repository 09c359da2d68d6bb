local p = require 'spec.support.process'

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

    it('tells what it used', function()
        local record = p.sh 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'
        local status = p.exit_of(record)
        assert.is_true(status.user_ms + status.system_ms > 0)
        assert.is_true(status.max_rss_kb > 100)
    end)
end)
