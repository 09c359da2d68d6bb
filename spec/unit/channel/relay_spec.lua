local cjson = require 'cjson'
local relay = require 'dutch-master.channel.relay'

-- Key order is nobody's: texts are compared as sets of what they say.
local function canonical(text)
    local chars = {}
    for char in text:gmatch '.' do
        chars[#chars + 1] = char
    end
    table.sort(chars)
    return table.concat(chars)
end

local function through(text)
    local ok, value = relay.decode(text)
    assert(ok, value)
    return assert(relay.encode(value))
end

describe('relay', function()
    it('gives back what went in', function()
        for _, text in ipairs {
            '[]', '{}', 'null', 'true', '0', '-1.5', '""', '"[]"', '[[]]', '[[],{}]', '{"a":[],"b":{}}', '[null]', '[1,null,3]',
            '[null,null]', '{"a":null}', '{"a":null,"b":[null,1.5,"x"]}', '9007199254740991', '-9007199254740991', '0.1', '1e+21',
            '1.7976931348623157e+308', '123456789.12345679', '{"1":"a","2":"b"}', '["\\"[]\\\\",[]]', '"\\u0000x"',
            '{"rooms":[],"except":[],"flags":{},"nested":[[[]]]}', '["\\\\",[],"\\\\\\"[ ]"]', '{"k[]":[]}', '[[[],[]],[null,[]]]',
        } do
            assert.equal(canonical(text), canonical(through(text)), text)
            assert.same(cjson.decode('[' .. text .. ']'), cjson.decode('[' .. through(text) .. ']'))
        end
    end)

    it('shows a script plain tables, without nulls', function()
        local _, value = relay.decode '{"a":null,"b":[null,1.5,"x"],"c":[ \n ]}'
        assert.is_nil(value.a)
        assert.equal('x', value.b[3])
        assert.same({}, value.c)
        assert.is_nil(getmetatable(value.c))
    end)

    it('passes on what a script has changed', function()
        local _, value = relay.decode '{"list":[],"gone":1,"was":null}'
        value.list[1], value.gone, value.was = 'one', nil, false
        assert.equal(canonical '{"list":["one"],"was":false}', canonical(assert(relay.encode(value))))
    end)

    it('takes tables of the script\'s own', function()
        assert.equal('{}', relay.encode {})
        assert.equal('[1,2]', relay.encode { 1, 2 })
        assert.equal('[1,null,3]', relay.encode { 1, nil, 3 })
        assert.equal('{"1000":1}', relay.encode { [1000] = 1 })
        assert.equal('null', relay.encode(cjson.null))
        assert.equal('"a\\nb"', relay.encode 'a\nb')
    end)

    it('says what JSON does not have', function()
        local deep, cycle = {}, {}
        local inner = deep
        for _ = 1, 100 do
            inner[1] = {}
            inner = inner[1]
        end
        cycle[1] = cycle
        for words, value in pairs { ['a function'] = print, ['a number that'] = 0 / 0, ['a number'] = math.huge,
            ['nested more than 64'] = deep, ['more than 64 deep'] = cycle, ['a key that is a boolean'] = { [true] = 1 } } do
            local text, message = relay.encode(value)
            assert.is_nil(text)
            assert.truthy(message:find(words, 1, true), message)
        end
        for _, text in ipairs { '', '[', '"', '["\\"]', '[]]', ('['):rep(100) .. (']'):rep(100), '{"a":[}' } do
            assert.is_nil((relay.decode(text)), text)
        end
    end)

    it('survives random values', function()
        local seed = os.time()
        math.randomseed(seed)
        local function any(depth)
            local kind = math.random(depth > 3 and 5 or 8)
            if kind == 1 then return 'null'
            elseif kind == 2 then return math.random(2) == 1 and 'true' or 'false'
            elseif kind == 3 then return ('%d'):format(math.random(-2 ^ 31, 2 ^ 31))
            elseif kind == 4 then return ('"%s"'):format(({ '[]', '\\"[', ']\\\\', '{}', 'x' })[math.random(5)])
            elseif kind == 5 then return math.random(2) == 1 and '[]' or '{}' end
            local parts, object = {}, kind == 8
            for i = 1, math.random(4) do
                parts[i] = (object and ('"k%d":'):format(i) or '') .. any(depth + 1)
            end
            return (object and '{%s}' or '[%s]'):format(table.concat(parts, ','))
        end
        for _ = 1, 500 do
            local text = any(0)
            assert.equal(canonical(text), canonical(through(text)), ('seed %d: %s'):format(seed, text))
        end
    end)
end)
