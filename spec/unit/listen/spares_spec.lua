local Spares = require 'dutch-master.listen.spares'

-- A lane at this index of the kernel's group; "free" and steered to or not.
local function lane(index, state, steered)
    return { state = state or 'live', steered = steered or false, socket = { index = function() return index end } }
end

describe('lanes that keep a place', function()
    it('are none where those in use come first', function()
        assert.equal(0, Spares.needed {})
        assert.equal(2, Spares.needed { lane(0), lane(1, 'starting') })
        assert.equal(1, Spares.needed { lane(0), lane(3, 'free') })
    end)

    it('are as many as keep each lane in use below their number', function()
        assert.equal(4, Spares.needed { lane(0), lane(3, 'leaving') })
        assert.equal(4, Spares.needed { lane(3) })
        assert.equal(6, Spares.needed { lane(1), lane(5, 'free', true) }) -- nobody serves: there they wait
    end)

    it('have a limit', function()
        assert.equal(65, Spares.needed { lane(5000) })
    end)
end)
