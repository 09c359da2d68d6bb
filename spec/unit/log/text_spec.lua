local cjson = require 'cjson'
local text = require 'dutch-master.log.text'

describe('text of others', function()
    it('becomes valid UTF-8', function()
        local bad = '\239\191\189'
        assert.equal('äöü€𝄞', text.utf8 'äöü€𝄞')
        assert.equal(bad .. 'a', text.utf8 '\255a')
        assert.equal(bad .. bad, text.utf8 '\192\128') -- overlong NUL
        assert.equal(bad .. bad .. bad, text.utf8 '\237\160\128') -- surrogate
        assert.equal(bad .. bad .. bad .. bad, text.utf8 '\244\144\128\128') -- over U+10FFFF
        assert.equal('x' .. bad .. bad, text.utf8 'x\226\130') -- cut short
        assert.equal(bad .. bad .. bad, text.utf8 '\224\159\191') -- overlong
    end)

    it('is cut between two characters, with a mark', function()
        assert.equal('abc', text.shorten('abc', 3))
        assert.equal('ab...[truncated]', text.shorten('abc', 2))
        for max, kept in pairs { [3] = '€', [4] = '€', [5] = '€', [6] = '€€', [2] = '' } do
            assert.equal(kept .. '...[truncated]', text.shorten('€€€', max))
        end
    end)

    it('is quoted as JSON, with paths that can be read', function()
        for _, s in ipairs { '', 'plain words: 1.5, (a=b) @x', '/deploys/app', 'a"b\\c\n\0\127', 'ä\255' } do
            assert.equal(text.utf8(s), cjson.decode('[' .. text.quote(s) .. ']')[1])
        end
        assert.equal('"/deploys/app"', text.quote '/deploys/app')
        -- Nor does it act on a terminal: it says the same in other letters.
        local evil = '\27[2J \194\155 \226\128\174 \216\156 \226\129\166 \\'
        assert.equal([["\u001b[2J \u009b \u202e \u061c \u2066 \\"]], text.quote(evil))
        assert.equal(evil, cjson.decode('[' .. text.quote(evil) .. ']')[1])
    end)

    it('does nothing to a terminal', function()
        assert.equal('\\e[2J\\n\\r\\t\\x00\\x7f', text.printable '\27[2J\n\r\t\0\127')
        assert.equal('a\tb\\n', text.printable('a\tb\n', true))
        assert.equal('\\x9b31m \\u202e\\u2066 ä€', text.printable '\194\15531m \226\128\174\226\129\166 ä€')
        assert.equal('\239\191\189', text.printable '\155')
    end)
end)
