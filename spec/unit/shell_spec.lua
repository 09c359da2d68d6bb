local shell = require 'dutch-master.shell'

describe('a word for a shell', function()
    it('comes through as it is', function()
        for _, word in ipairs { 'plain', "it's", '', '$HOME `id` "x" \\ *', 'two\nlines', "''" } do
            local pipe = io.popen('printf %s ' .. shell.quote(word))
            assert.equal(word, pipe:read '*a')
            pipe:close()
        end
    end)
end)
