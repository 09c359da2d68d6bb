local schema = require 'dutch-master.script.schema'

local function check(kind, value)
    local at = schema.place 'x'
    local inside = kind.check(value, at)
    if at.errors[1] then
        return nil, at.errors[1].path .. ': ' .. at.errors[1].text
    end
    return inside
end

describe('schema', function()
    it('names what was found so that it cannot be mistaken', function()
        local shown = {
            [1 / 0] = 'infinity', [-1 / 0] = 'minus infinity', [1.5] = '1.5', [1e6] = '1000000',
            ['4'] = '"4"', ['a"\n'] = '"a\\"\\010"', [true] = 'true', [print] = 'a function',
        }
        for value, text in pairs(shown) do
            assert.equal(text, schema.describe(value))
        end
        assert.equal('NaN', schema.describe(0 / 0))
        assert.equal('nothing', schema.describe(nil))
        assert.equal('an empty table', schema.describe {})
        assert.is_true(#schema.describe(('x'):rep(1000)) < 100)
    end)

    it('takes integers, and nothing that only looks like one', function()
        local kind = schema.integer(1, 4096)
        assert.equal(1, check(kind, 1))
        assert.equal(4096, check(kind, 4096))
        for _, bad in ipairs { 0, -1, 0 / 0, 1 / 0, -1 / 0, 1.5, '4', {}, 1e6, true } do
            local inside, message = check(kind, bad)
            assert.is_nil(inside)
            assert.equal('x: expected an integer from 1 to 4096, found ' .. schema.describe(bad), message)
        end
    end)

    it('turns seconds into milliseconds', function()
        assert.equal(1500, check(schema.seconds(0), 1.5))
        assert.equal(0, check(schema.seconds(0), 0))
        assert.equal(1, check(schema.seconds(0), 0.0009))
        for _, bad in ipairs { -1, 0 / 0, 1 / 0, 1e12, '5', {} } do
            assert.is_nil((check(schema.seconds(0), bad)))
        end
        assert.is_nil((check(schema.seconds(0.5), 0.4)))
    end)

    it('understands sizes', function()
        local kind = schema.size(0)
        assert.equal(512 * 1024 * 1024, check(kind, '512M'))
        assert.equal(1536, check(kind, '1.5K'))
        assert.equal(7, check(kind, 7))
        for _, bad in ipairs { '512MB', 'M', '-1', -1, 1.5, 0 / 0, 1 / 0, '1e9', {}, '' } do
            assert.is_nil((check(kind, bad)))
        end
    end)

    it('takes signals by both names and says why it refuses one', function()
        local kind = schema.signal { KILL = 'no process can handle it' }
        assert.equal('SIGUSR2', check(kind, 'SIGUSR2'))
        assert.equal('SIGUSR2', check(kind, 'USR2'))
        assert.equal('SIGHUP', check(kind, 'sighup'))
        local _, message = check(kind, 'SIGKILL')
        assert.equal('x: SIGKILL cannot be used: no process can handle it', message)
        for _, bad in ipairs { 'SIGFOO', 12, '', 'SIG', true } do
            assert.is_nil((check(kind, bad)))
        end
    end)

    it('gives the path of what is wrong in a nested table', function()
        local kind = schema.record('a record', {
            inner = { type = schema.list_of(schema.text), required = true },
            other = { type = schema.boolean, inside = 'changed', default = true },
        })
        assert.same({ inner = { 'a' }, changed = true }, check(kind, { inner = { 'a' } }))
        local at = schema.place ''
        kind.check({ inner = { 'a', 7 }, othr = 1 }, at)
        local texts = {}
        for _, err in ipairs(at.errors) do
            texts[err.path] = err.text
        end
        assert.equal('unknown option (did you mean "other"?)', texts.othr)
        assert.equal('expected a string that is not empty, found 7', texts['inner[2]'])
        assert.truthy(select(2, check(kind, {})):find('x.inner: expected a list, found nothing', 1, true))
        assert.is_nil((check(schema.list_of(schema.text), { 'a', nil, 'c' })))
        assert.is_nil((check(schema.list_of(schema.text), { 'a', x = 'c' })))
    end)

    it('refuses text that the system would cut off', function()
        assert.is_nil((check(schema.text, 'a\0b')))
        assert.is_nil((check(schema.absolute_path, '/a\0b')))
        assert.is_nil((check(schema.argument, 'a\0b')))
        assert.equal('8080', check(schema.argument, 8080))
        assert.is_nil((check(schema.argument, 0 / 0)))
    end)
end)
