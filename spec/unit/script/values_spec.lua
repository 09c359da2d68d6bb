local values = require 'dutch-master.script.values'

local function crossed(...)
    local line = assert(values.encode { results = assert(values.pack(false, ...)) })
    assert.is_nil(line:find('\n', 1, true))
    local results = values.decode(line).results
    return unpack(results, 1, results.n)
end

local function refused(...)
    local packed, why = values.pack(false, ...)
    assert.is_nil(packed)
    return why
end

describe('values', function()
    it('cross as they are: nil, booleans, numbers, strings of any bytes, tables', function()
        local bytes = {}
        for i = 0, 255 do
            bytes[#bytes + 1] = string.char(i)
        end
        bytes = table.concat(bytes)
        assert.same({ n = 9, nil, true, false, 0, -1.5, 'a\nb', bytes, '', nil },
            { n = select('#', crossed(nil, true, false, 0, -1.5, 'a\nb', bytes, '', nil)),
                crossed(nil, true, false, 0, -1.5, 'a\nb', bytes, '', nil) })
        for _, value in ipairs { {}, { 1, 2, 3 }, { a = 1 }, { [''] = 1 }, { { {} }, { { 'x' } } },
            { 'l', 'x' }, { 'm' }, { 'n', 'nan' }, { [1] = 'a', [3] = 'c' }, { [0] = 0, x = { [true] = { 2 } } },
            { [1.5] = 1 }, { [1e9] = { 1 } }, { ['1'] = 'text', [1] = 'number' }, { false, { false } } } do
            assert.same(value, (crossed(value)))
        end
    end)

    it('numbers cross whole', function()
        for _, n in ipairs { 2 ^ 53, -2 ^ 53, 2 ^ 53 - 1, 1e14, 123456789012345, 0.1, 1 / 3, 5e-324, 1.7976931348623157e308,
            1e300, 1 / 0, -1 / 0, 1e15 + 0.5 } do
            assert.equal(n, (crossed(n)))
        end
        local nan = crossed(0 / 0)
        assert.is_true(nan ~= nan)
    end)

    it('what cannot cross is refused, with the way to it', function()
        assert.equal('value: a function cannot be passed', refused(print))
        assert.equal('value.a.b[3]: a function cannot be passed', refused { a = { b = { 1, 2, print } } })
        assert.equal('value.x: a userdata cannot be passed', refused { x = io.stdout })
        assert.equal('value: a thread cannot be passed', refused(coroutine.create(print)))
        assert.matches('^value%.k%[.*%]: a table cannot be a key of what is passed$', refused { k = { [{}] = 1 } })
        local loop = { a = {} }
        loop.a.b = loop
        assert.equal('value.a.b: a table that contains itself cannot be passed', refused(loop))
        local deep = {}
        for _ = 1, 40 do
            deep = { deep }
        end
        assert.matches('tables nested deeper than 32 cannot be passed', refused(deep))
        assert.equal('more than 1 MiB cannot be passed', refused(('x'):rep(1024 * 1024 + 1)))
        local shared = {}
        for _ = 1, 30 do
            shared = { shared, shared }
        end
        assert.equal('more than 1 MiB cannot be passed', refused(shared))
    end)

    it('functions and userdata cross as stand-ins when they may', function()
        local options = values.unpack(values.decode(values.encode { v = values.pack(true, { f = print, u = io.stdout,
            t = coroutine.create(print) }) }).v)
        assert.same({ 'function', 'userdata', 'userdata' }, { type(options.f), type(options.u), type(options.t) })
        assert.has_error(options.f, 'a function of the script lives in the process of the script')
    end)

    it('are read raw', function()
        local trap = setmetatable({ a = 1 }, { __index = error, __pairs = error, __len = error })
        assert.same({ a = 1 }, (crossed(trap)))
    end)

    it('no line of another hand does harm', function()
        for _, line in ipairs { '', '{', '[]', '1', 'null', '"x"', '{"a":[', ('['):rep(1000), '\0' } do
            local message = values.decode(line)
            assert.is_true(message == nil or type(message) == 'table')
        end
        for _, json in ipairs { '["l",["m",1]]', '["l",["m",null,1,["n","nan"],2]]', '["l",["x",1]]', '["l",["n"]]', '["m"]',
            '["l",["f"],["u"],["n","1e999"]]', '{}', '["l",[[],[[]]]]', '["l",["n",{}]]', '["l",[null]]' } do
            assert.is_true((pcall(values.unpack, values.decode('{"v":' .. json .. '}').v)))
        end
    end)
end)
