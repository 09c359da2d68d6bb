--- relay.lua: JSON that a script passes on comes out as it went in: what `decode` has made of a text, `encode` makes
-- that text of again, with its empty arrays, its nulls and its large integers. Pure; used where the script runs.
--
-- In Lua an empty array and an empty object are both {}, and null is nil. What told them apart is noted beside the
-- tables that came out of `decode`, for as long as these live: a script sees plain tables. A copy that it makes of one
-- is judged like any other table: {} is an object, a table with the keys 1 to n an array.
local cjson = require('cjson').new()

local M = {}

M.MAX_DEPTH = 64

cjson.decode_max_depth(M.MAX_DEPTH)
cjson.decode_invalid_numbers(false)

-- Stands for an empty array while cjson decodes: [] becomes ["..."]. A text that has it as a string is not touched.
local MARK = '\1dutch-master: empty array\1'
local MARKED = '["\\u0001dutch-master: empty array\\u0001"]'

-- Decoded table -> {array = true or nil, nulls = set of keys or nil}
local notes = setmetatable({}, { __mode = 'k' })

-- [] outside of strings.
local function mark_empty_arrays(text)
    if not text:find '%[%s*%]' or text:find('dutch-master: empty array', 1, true) then
        return text
    end
    local parts, from, at = {}, 1, 1
    while true do
        local found = text:find('["%[]', at)
        if not found then
            break
        elseif text:byte(found) == 34 then
            at = found + 1
            repeat -- behind the string: a quote with an even number of backslashes before it
                local quote = text:find('"', at, true)
                if not quote then
                    return text -- no JSON: cjson says so
                end
                local _, backslashes = text:sub(at, quote - 1):match '^(.-)(\\*)$'
                at = quote + 1
            until #backslashes % 2 == 0
        else
            local last = select(2, text:find('^%s*%]', found + 1))
            if last then
                parts[#parts + 1] = text:sub(from, found - 1)
                parts[#parts + 1] = MARKED
                from, at = last + 1, last + 1
            else
                at = found + 1
            end
        end
    end
    parts[#parts + 1] = text:sub(from)
    return table.concat(parts)
end

local function settle(value)
    if type(value) ~= 'table' then
        return value
    end
    local note = {}
    if #value == 1 and value[1] == MARK then
        value[1], note.array = nil, true
    end
    for key, inner in pairs(value) do
        if inner == cjson.null then
            note.nulls = note.nulls or {}
            note.nulls[key] = true
            value[key] = nil -- allowed during pairs
        else
            settle(inner)
        end
    end
    if next(note) then
        note.array = note.array or note.nulls and note.nulls[1] and true or nil
        notes[value] = note
    end
    return value
end

--- A JSON text as a Lua value; null is nil.
-- @return true, value; or nil, message
function M.decode(text)
    local ok, value = pcall(cjson.decode, mark_empty_arrays(text))
    if not ok then
        return nil, value
    elseif value == cjson.null then
        return true, nil
    end
    return true, settle(value)
end

-- -------------------------------------------------------------------------------------------------------------------

-- The shortest text that is this number again. JSON has no others than finite ones.
local function number_text(value)
    if value ~= value or value == math.huge or value == -math.huge then
        error('a number that JSON does not have', 0)
    elseif value % 1 == 0 and math.abs(value) <= 2 ^ 53 then
        return ('%.0f'):format(value)
    end
    for digits = 14, 17 do
        local text = ('%.' .. digits .. 'g'):format(value)
        if tonumber(text) == value then
            return text
        end
    end
end

-- Holes are nulls, unless there are more of them than values: such a table is an object.
local function array_length(value, note)
    local length, count = 0, 0
    for key in pairs(value) do
        if type(key) ~= 'number' or key < 1 or key % 1 ~= 0 then
            return nil
        end
        length, count = math.max(length, key), count + 1
    end
    for key in pairs(note.nulls or {}) do
        if type(key) ~= 'number' then
            return nil
        end
        length, count = math.max(length, key), count + (value[key] == nil and 1 or 0)
    end
    if length > 10 and length > 2 * count then
        return nil
    end
    return (length > 0 or note.array) and length or nil
end

local append

local function append_object(parts, value, note, depth)
    local first = true
    local function append_pair(key, inner)
        if type(key) ~= 'string' and type(key) ~= 'number' then
            error(('a key that is a %s'):format(type(key)), 0)
        end
        parts[#parts + 1] = (first and '' or ',') .. cjson.encode(tostring(key)) .. ':'
        first = false
        append(parts, inner, depth)
    end
    parts[#parts + 1] = '{'
    for key, inner in pairs(value) do
        append_pair(key, inner)
    end
    for key in pairs(note.nulls or {}) do
        if value[key] == nil then
            append_pair(key, cjson.null)
        end
    end
    parts[#parts + 1] = '}'
end

local NO_NOTE = {}

local function append_table(parts, value, depth)
    if depth > M.MAX_DEPTH then
        error(('tables nested more than %d deep'):format(M.MAX_DEPTH), 0)
    end
    local note = notes[value] or NO_NOTE
    local length = array_length(value, note)
    if not length then
        return append_object(parts, value, note, depth)
    end
    parts[#parts + 1] = '['
    for i = 1, length do
        parts[#parts + 1] = i > 1 and ',' or nil
        append(parts, value[i] == nil and cjson.null or value[i], depth)
    end
    parts[#parts + 1] = ']'
end

function append(parts, value, depth)
    local kind = type(value)
    if value == cjson.null or kind == 'nil' then
        parts[#parts + 1] = 'null'
    elseif kind == 'boolean' then
        parts[#parts + 1] = tostring(value)
    elseif kind == 'number' then
        parts[#parts + 1] = number_text(value)
    elseif kind == 'string' then
        parts[#parts + 1] = cjson.encode(value)
    elseif kind == 'table' then
        append_table(parts, value, depth + 1)
    else
        error(('a %s, which JSON does not have'):format(kind), 0)
    end
end

--- A Lua value as a JSON text of one line.
-- @return text, or nil, message
function M.encode(value)
    local parts = {}
    local ok, message = pcall(append, parts, value, 0)
    if not ok then
        return nil, message
    end
    return table.concat(parts)
end

return M
