local p = require 'spec.support.process'

describe('a full table of watches', function()
    p.leaves_nothing()

    it('ends nothing: what is new is refused, what was there goes on', function()
        local output, record = p.output_of({ p.runner, 'spec/support/full_watches.lua' }, 40000)
        assert.equal('went on\n', output, record.tail)
        assert.equal(0, record.status.code)
    end)
end)
