local Asking = require 'dutch-master.listen.asking'

describe('what workers ask for', function()
    local asking, later, said

    -- A request is its answer; 'slow' ones are answered by later[n](answer).
    local function ask(id, request)
        asking:ask(id, request, function(...)
            said[#said + 1] = table.concat({ id, ... }, ' ')
        end)
    end

    before_each(function()
        later, said = {}, {}
        asking = Asking.new(function(_, request, done)
            if request == 'slow' then
                later[#later + 1] = done
                return false
            end
            return request
        end)
    end)

    it('is answered at once where it can be', function()
        ask(1, 'a')
        ask(2, 'b')
        assert.same({ '1 a', '2 b' }, said)
        assert.is_nil(next(asking.queues))
    end)

    it('is answered in order for each worker; none waits for another', function()
        ask(1, 'slow')
        ask(1, 'a')
        ask(1, 'slow')
        ask(1, 'b')
        ask(2, 'c')
        assert.same({ '2 c' }, said)
        later[1]('x')
        assert.same({ '2 c', '1 x', '1 a' }, said)
        later[2](nil)
        assert.same({ '2 c', '1 x', '1 a', '1', '1 b' }, said)
        assert.is_nil(next(asking.queues))
    end)

    it('may be asked for from an answer', function()
        asking:ask(1, 'a', function()
            ask(1, 'b')
            said[#said + 1] = 'first'
        end)
        assert.same({ '1 b', 'first' }, said)
        for i = 1, 20000 do -- at once, and no deeper for it
            ask(1, tostring(i))
        end
        assert.equal(20002, #said)
    end)

    it('is forgotten with its worker, and none of it comes to the next of that number', function()
        ask(1, 'slow')
        ask(1, 'a')
        asking:drop(1)
        ask(1, 'b')
        later[1]('x')
        assert.same({ '1 b' }, said)
        assert.is_nil(next(asking.queues))
    end)
end)
