local wire = require 'dutch-master.control.wire'

describe('wire', function()
    it('writes a message as one line that reads as it was', function()
        local message = { v = wire.VERSION, path = '/run/a "b"\\c', text = 'two\nlines', list = wire.list {},
            full = wire.list { 1, 2 } }
        local line = assert(wire.encode(message))
        assert.is_nil(line:find '\n')
        assert.truthy(line:find('"path":"/run/a', 1, true), line) -- paths are for people too
        assert.truthy(line:find('"list":[]', 1, true), line)
        message.list = {}
        assert.same(message, wire.decode(line))
    end)

    it('says why a message cannot be written', function()
        for _, value in ipairs { print, 0 / 0, 1 / 0 } do
            local line, why = wire.encode { value = value }
            assert.is_nil(line)
            assert.is_string(why)
        end
    end)

    it('reads nothing but JSON, nested only so deep', function()
        for _, line in ipairs { '', 'x', '{"v":1', '{v:1}', ('['):rep(100) .. (']'):rep(100) } do
            assert.is_nil(wire.decode(line), line)
        end
        assert.same({ 1 }, wire.decode '[1]')
    end)
end)
