-- The script's patterns are matched by code of our own (lua_match.c, lua_pattern.c): it gives what Lua's own gives, and
-- it can be stopped. What Lua's own gives is asked here, in the state of the specs.

local core = require 'dutch-master.core'

local ROUNDS, PATTERNS = 20, 100 -- so many patterns at once, for one call of a hook
local LONG = 20000 -- ms

local seed = tonumber(os.getenv 'DM_SEED') or os.time() % 1000000

-- Calls one function of the string library; an error counts by its text alone.
local CALL = [[
    local text = tostring
    local function call(name, ...)
        if name == 'gmatch' then
            local all = {}
            local ok, message = pcall(function(...)
                for a, b, c in string.gmatch(...) do
                    all[#all + 1] = text(a) .. ',' .. text(b) .. ',' .. text(c)
                    if #all > 50 then return end
                end
            end, ...)
            all[#all + 1] = ok and 'end' or message
            return all
        end
        local results = { pcall(string[name], ...) }
        for i = 1, select('#', pcall(string[name], ...)) do
            results[i] = type(results[i]) .. ' ' .. text(results[i])
        end
        return results
    end
    return function(cases)
        local answers = {}
        for i, case in ipairs(cases) do
            answers[i] = call(unpack(case, 1, case.n))
            for j, answer in ipairs(answers[i]) do
                answers[i][j] = answer:gsub('^[^ ]*:%d+: ', '')
            end
        end
        return answers
    end]]

local function new_sandbox(source)
    local sandbox = core.sandbox { host = function() end, memory = 64 * 1024 * 1024 }
    local ok, err = sandbox:run('@master.lua', source, LONG)
    assert(ok, err and err.message)
    return sandbox
end

local function compare(cases)
    local sandbox = new_sandbox("require('dutch-master').start { onReady = (function() " .. CALL .. ' end)() }')
    local ok, ours = sandbox:call('hook', LONG, 'onReady', cases)
    assert.is_true(ok, ours and ours.message)
    local theirs = assert(loadstring(CALL, '@spec'))()(cases)
    for i, case in ipairs(cases) do
        local words = {}
        for j = 1, case.n do
            words[j] = type(case[j]) == 'string' and ('%q'):format(case[j]) or tostring(case[j])
        end
        assert.same(theirs[i], ours[i], table.concat(words, ', ') .. ' (seed ' .. seed .. ')')
    end
    sandbox:close()
end

local function case(...)
    return { n = select('#', ...), ... }
end

-- A random text of these pieces.
local function made_of(pieces, most)
    local text = {}
    for i = 1, math.random(0, most) do
        text[i] = pieces[math.random(#pieces)]
    end
    return table.concat(text)
end

local LETTERS = { 'a', 'b', 'a', 'b', 'c', 'A', '1', ' ', '.', '-', '%', '(', ')', '[', ']', '^', '$', '\0', '\255', '\n' }
local ITEMS = {
    'a', 'b', 'a', '.', '%a', '%A', '%d', '%D', '%s', '%S', '%w', '%W', '%p', '%P', '%c', '%C', '%l', '%L', '%u', '%U',
    '%x', '%X', '%z', '%Z', '%g', '%G', '%%', '%.', '[ab]', '[^ab]', '[a-c]', '[^%s]', '[]a]', '[^]a]', '[a-]', '[%a-z]',
    '[%]]', '*', '+', '-', '?', '*', '?', '(', ')', '()', '(a', '(b*)', '(.-)', '%1', '%2', '%b()', '%bab', '%f[%a]',
    '%f[^a]', '$', '^', '[', ']', '%', '[a', '%f', '%b', '\0', '\255',
}
local REPLACEMENTS = { '', 'x', '%0', '%1', '<%0%1>', '%2', '%%', '%', '%a', 7 }

describe('patterns (seed ' .. seed .. ')', function()
    setup(function()
        math.randomseed(seed)
    end)

    it('match, fail and are refused as those of Lua', function()
        for _ = 1, ROUNDS do
            local cases = {}
            for i = 1, PATTERNS * 4, 4 do
                local subject, pattern = made_of(LETTERS, 12), made_of(ITEMS, 6)
                local init = math.random(4) == 1 and math.random(-15, 15) or nil
                cases[i] = case('find', subject, pattern, init, math.random(8) == 1 or nil)
                cases[i + 1] = case('match', subject, pattern, init)
                cases[i + 2] = case('gmatch', subject, pattern)
                cases[i + 3] = case('gsub', subject, pattern, REPLACEMENTS[math.random(#REPLACEMENTS)],
                    math.random(4) == 1 and math.random(-1, 3) or nil)
            end
            compare(cases)
        end
    end)

    it('are what people write', function()
        local line = '  2026-11-27T13:00:01 key_1 = "some value"; -- /deploys/app/releases/20261122103000/app.lua\n'
        local cases = {}
        for _, pattern in ipairs {
            '^%s*(.-)%s*$', '(%d+)-(%d+)-(%d+)', '([%w_]+)%s*=%s*"([^"]*)"', '([^/]+)%.lua', '/(%d+)/', '^.*/', '[^\n]+',
            '%S+', '%f[%w]%w+', '%b""', "(['\"])(.-)%1", '()%d()', '%-%-.*$', '', '.', '.-', '.*', '^', '$', '^$', '%z',
        } do
            for _, name in ipairs { 'find', 'match', 'gmatch' } do
                cases[#cases + 1] = case(name, line, pattern)
                cases[#cases + 1] = case(name, '', pattern)
            end
            cases[#cases + 1] = case('gsub', line, pattern, '[%0]')
            cases[#cases + 1] = case('gsub', line, pattern, { ['2026'] = 'year', key_1 = false })
            cases[#cases + 1] = case('gsub', line, pattern, '%1', 1)
        end
        compare(cases)
    end)

    it('are refused with Lua\'s own words', function()
        local cases = {}
        for _, arguments in ipairs {
            { 'find' }, { 'find', 'a' }, { 'match', nil, 'a' }, { 'gmatch', 'a' }, { 'gsub', 'a', 'a' },
            { 'gsub', 'a', 'a', true }, { 'gsub', 'a', 'a', 'b', 'x' }, { 'find', {}, 'a' }, { 'find', 'a', 'a', {} },
            { 'gsub', 'a', 'a', { a = {} } }, { 'gsub', 'a', 'a', { a = true } }, { 'find', 12, 2 }, { 'match', 'a', '%' },
            { 'match', 'a', '[a' }, { 'match', 'a', '[%' }, { 'match', 'a', '(a' }, { 'match', 'a', 'a)' },
            { 'match', 'a', '%1' }, { 'match', 'a', '(%1)' }, { 'match', 'a', '%f' }, { 'match', 'a', '%ba' },
            { 'match', ('a'):rep(40), ('(a)'):rep(33) }, { 'match', ('a'):rep(40), ('(a)'):rep(32) },
            { 'match', ('a'):rep(300), ('a?'):rep(300) }, { 'gsub', 'abc', '(', 'x' }, { 'gsub', 'abc', '%w', '%2' },
        } do
            cases[#cases + 1] = case(unpack(arguments, 1, math.max(table.maxn(arguments), 2)))
        end
        compare(cases)
    end)

    it('call a function for each replacement, as it is', function()
        local sandbox = new_sandbox [[
            local seen = {}
            local text, n = ('a1b2'):gsub('(%a)(%d)', function(letter, digit)
                seen[#seen + 1] = letter .. digit
                return digit == '1' and letter:upper() or nil
            end)
            assert(text == 'Ab2' and n == 2 and seen[1] == 'a1' and seen[2] == 'b2')
            local ok, message = pcall(string.gsub, 'a', 'a', function() error('no', 0) end)
            assert(not ok and message == 'no')
            assert(('x'):gsub('x', { x = 5 }) == '5')
            assert(('abc'):find('b') == 2 and ('abc'):match 'b' == 'b', 'methods of strings')]]
        sandbox:close()
    end)

    describe('that would take for ever are stopped:', function()
        for name, source in pairs {
            ['nested repetitions'] = [[local s = ('a'):rep(40) s:find(('a*'):rep(20) .. 'b')]],
            ['lazy ones'] = [[local s = ('a'):rep(40) s:match(('.-'):rep(20) .. 'b')]],
            ['optional ones'] = [[local s = ('a'):rep(60) s:match(('a?'):rep(60) .. ('a'):rep(61))]],
            ['in gmatch'] = [[for _ in (('a'):rep(40)):gmatch(('a*'):rep(20) .. 'b') do end]],
            ['in gsub'] = [[local s = (('a'):rep(40)):gsub(('a*'):rep(20) .. 'b', '')]],
            ['balanced ones'] = [[local s = ('('):rep(3e6) s:find '%b()']],
            ['long repetitions of a capture'] = [[local s = ('a'):rep(2e6) s:find '^(.*)%1b']],
            ['in pcall'] = [[while true do pcall(string.find, ('a'):rep(40), ('a*'):rep(20) .. 'b') end]],
        } do
            it(name, function()
                local sandbox = core.sandbox { host = function() end, memory = 32 * 1024 * 1024 }
                local before = core.now()
                local ok, err = sandbox:run('@master.lua', '\n' .. source, 200)
                assert.is_nil(ok)
                assert.same({ 'budget', 'master.lua:2' }, { err.kind, err.where })
                assert.is_true(core.now() - before < 3000)
                sandbox:close()
            end)
        end
    end)

    it('find plain text in time that grows with its length alone', function()
        local sandbox = new_sandbox [[
            local s = ('a'):rep(4e6)
            assert(not s:find(('a'):rep(2e6) .. 'b', 1, true))
            assert(not s:find(('a'):rep(2e6) .. 'b'))]]
        sandbox:close()
    end)
end)
