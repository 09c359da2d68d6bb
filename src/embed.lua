-- Build time: writes the Lua files given as one C file, each as its text and compiled. A start reads 600 KiB of Lua,
-- which takes ten times as long from text. The text is for a LuaJIT other than the one that built this: see
-- src/lua/embedded.c.
--
-- Two builds of one tree are the same. string.dump orders constant tables by their hash, which differs from run to run,
-- and so does, since 2023, which of the names with the value nil are in them: they are sorted here, and without these.
-- usage: luajit embed.lua ROOT OUTPUT FILE...
-- A file is known by its path below ROOT, without ".lua": see src/lua/embedded_table.h.

-- ---------------------------------------------------------------------------------------------------------------------
-- Compiled Lua, as LuaJIT's lj_bcdump.h describes it

local function number(code, at) -- ULEB128
    local value, factor = 0, 1
    repeat
        local byte = code:byte(at)
        value, factor, at = value + byte % 128 * factor, factor * 128, at + 1
    until byte < 128
    return value, at
end

local function encoded(value)
    local bytes = {}
    while value >= 128 do
        bytes[#bytes + 1] = string.char(value % 128 + 128)
        value = math.floor(value / 128)
    end
    return table.concat(bytes) .. string.char(value)
end

local function skip_numbers(code, at, count)
    for _ = 1, count do
        at = select(2, number(code, at))
    end
    return at
end

-- How many numbers follow a type; what is larger is a string.
local IN_TABLE = { [0] = 0, 0, 0, 1, 2 } -- nil, false, true, integer, number
local IN_FUNCTION = { [0] = 0, false, 2, 2, 4 } -- function, table, int64, uint64, complex

local function skip_item(code, at, counts)
    local kind
    kind, at = number(code, at)
    if counts[kind] then
        return skip_numbers(code, at, counts[kind])
    end
    return at + kind - 5
end

local NIL = 0

-- A constant table from behind its type on. -> the same with its keys sorted, and where it ends
local function sorted_table(code, at)
    local array, hash
    array, at = number(code, at)
    hash, at = number(code, at)
    local begin = at
    for _ = 1, array do
        at = skip_item(code, at, IN_TABLE)
    end
    local items, pairs_of = code:sub(begin, at - 1), {}
    for _ = 1, hash do
        local value = skip_item(code, at, IN_TABLE)
        local after = skip_item(code, value, IN_TABLE)
        if number(code, value) ~= NIL then
            pairs_of[#pairs_of + 1] = code:sub(at, after - 1)
        end
        at = after
    end
    table.sort(pairs_of)
    return encoded(array) .. encoded(#pairs_of) .. items .. table.concat(pairs_of), at
end

-- One function, from behind its length on.
local function sorted_function(code, at)
    local upvalues = code:byte(at + 3)
    local begin = at
    local constants, instructions, debug
    constants, at = number(code, at + 4)
    at = skip_numbers(code, at, 1) -- how many constants are numbers
    instructions, at = number(code, at)
    debug, at = number(code, at)
    at = skip_numbers(code, at, debug > 0 and 2 or 0)
    at = at + 4 * instructions + 2 * upvalues
    local out = { code:sub(begin, at - 1) }
    for _ = 1, constants do
        local kind, behind = number(code, at)
        if kind == 1 then
            local text, finish = sorted_table(code, behind)
            out[#out + 1], at = code:sub(at, behind - 1) .. text, finish
        else
            local finish = skip_item(code, at, IN_FUNCTION)
            out[#out + 1], at = code:sub(at, finish - 1), finish
        end
    end
    return table.concat(out), at
end

local function compiled(chunk)
    local code = string.dump(chunk)
    assert(code:sub(1, 4) == '\27LJ\2', 'unknown bytecode')
    local at = select(2, number(code, 5)) -- flags
    local name
    name, at = number(code, at)
    at = at + name
    local out = { code:sub(1, at - 1) }
    while true do
        local length, begin = number(code, at)
        if length == 0 then
            out[#out + 1] = code:sub(at)
            break
        end
        local text, behind = sorted_function(code, begin)
        text = text .. code:sub(behind, begin + length - 1)
        out[#out + 1] = encoded(#text) .. text
        at = begin + length
    end
    local result = table.concat(out)
    assert(#result <= #code and load(result, nil, 'b'))
    return result
end

-- ---------------------------------------------------------------------------------------------------------------------

local root, output = arg[1], arg[2]
local names, out = {}, {}
for i = 3, #arg do
    names[#names + 1] = assert(arg[i]:match('^' .. root:gsub('%p', '%%%0') .. '/(.+)%.lua$'), arg[i])
end
table.sort(names)

local function add(name, source)
    local bytes = {}
    for i = 1, #source do
        bytes[i] = source:byte(i) .. (i % 24 == 0 and ',\n' or ',')
    end
    out[#out + 1] = ('static const unsigned char %s[] = {%s};'):format(name, table.concat(bytes))
end

out[#out + 1] = '#include "lua/embedded_table.h"'
for index, name in ipairs(names) do
    local file = assert(io.open(root .. '/' .. name .. '.lua', 'rb'))
    local source = file:read('*a')
    file:close()
    add('text' .. index, source)
    add('code' .. index, compiled(assert(loadstring(source, '@lua/' .. name .. '.lua'))))
end
out[#out + 1] = ('const char dm_embedded_by[] = "%s";'):format(jit.version)
out[#out + 1] = 'const struct dm_embedded dm_embedded[] = {'
for i, name in ipairs(names) do
    out[#out + 1] = ('    {"%s", text%d, sizeof text%d, code%d, sizeof code%d},'):format(name, i, i, i, i)
end
out[#out + 1] = '    {0, 0, 0, 0, 0},\n};'

local file = assert(io.open(output, 'wb'))
file:write(table.concat(out, '\n'), '\n')
file:close()
