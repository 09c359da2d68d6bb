local hints = require 'dutch-master.script.hints'

describe('hints', function()
    it('are added to the first line of errors that beginners get', function()
        assert.equal("a.lua:1: attempt to index global 'dutch' (a nil value) "
            .. "(is `local dutch = require 'dutch-master'` missing above?)\nmore",
            hints.add "a.lua:1: attempt to index global 'dutch' (a nil value)\nmore")
        assert.matches('did you mean "dutch%-master"', hints.add "a.lua:1: module 'dutchmaster' not found")
        assert.equal('a.lua:1: something else', hints.add 'a.lua:1: something else')
    end)
end)
