--- values.lua: values on their way between the master and the process of the script, as JSON: nil, booleans, numbers,
--- strings of any bytes, and tables of these, copied. Both ends run this file.
--
-- What JSON does not have is an array whose first item says what it is:
--   ["l", ...] list   ["m", key, value, ...] other keys than strings   ["n", "text"] a number that JSON would not keep
--   ["f"] a function   ["u"] userdata and the like: stand-ins that only tell their type
-- Tables are read raw: no metamethod of the sender runs here.

local cjson = require 'cjson.safe'

local M = {}

--- Bytes of one message. The master reads one at a time, in a few milliseconds.
M.MAX = 1024 * 1024
local DEPTH_MAX = 32
-- Arguments of a hook or results of one: Lua's stack bounds these too.
local VALUES_MAX = 200

local json = cjson.new()
json.decode_max_depth(2 * DEPTH_MAX)
json.encode_max_depth(2 * DEPTH_MAX)

local null = cjson.null
local type, next, pairs, rawget, tostring, tonumber, error = type, next, pairs, rawget, tostring, tonumber, error
local floor, min, format, concat = math.floor, math.min, string.format, table.concat
local unpack, pcall, select = unpack, pcall, select

-- "value.a.b[3]: what": the way down to where packing stopped.
local function refuse(path, what)
    local at = { 'value' }
    for i = 1, #path do
        local key = path[i]
        at[i + 1] = type(key) == 'string' and '.' .. key:sub(1, 40) or format('[%s]', key and tostring(key) or '?')
    end
    error({ refused = concat(at) .. ': ' .. what })
end

local function pack_number(n)
    if n == floor(n) and n > -1e14 and n < 1e14 then
        return n
    elseif n ~= n then
        return { 'n', 'nan' }
    end
    return { 'n', n == 1 / 0 and '1e999' or n == -1 / 0 and '-1e999' or format('%.17g', n) }
end

local pack

-- 'l', 's' (strings alone) or 'm': what its keys are.
local function shape(value, path)
    local count, strings = 0, true
    for key in next, value do
        local kind = type(key)
        if kind ~= 'string' and kind ~= 'number' and kind ~= 'boolean' then
            path[#path + 1] = false
            refuse(path, format('a %s cannot be a key of what is passed', kind))
        end
        count, strings = count + 1, strings and kind == 'string'
    end
    if strings then
        return 's'
    end
    for i = 1, count do
        if rawget(value, i) == nil then
            return 'm'
        end
    end
    return 'l', count
end

local function pack_table(value, state)
    local path = state.path
    if state.open[value] then
        refuse(path, 'a table that contains itself cannot be passed')
    elseif #path == DEPTH_MAX then
        refuse(path, format('tables nested deeper than %d cannot be passed', DEPTH_MAX))
    end
    state.open[value] = true
    local kind, count = shape(value, path)
    local packed, depth = {}, #path + 1
    if kind == 'l' then
        packed[1] = 'l'
        for i = 1, count do
            path[depth] = i
            packed[i + 1] = pack(rawget(value, i), state)
        end
    else
        packed[1] = kind == 'm' and 'm' or nil
        for key, inner in next, value do
            path[depth] = key
            inner = pack(inner, state)
            if kind == 'm' then
                packed[#packed + 1] = pack(key, state)
                packed[#packed + 1] = inner
            else
                packed[key] = inner
            end
        end
    end
    path[depth] = nil
    state.open[value] = nil
    return packed
end

function pack(value, state)
    local kind = type(value)
    state.size = state.size + (kind == 'string' and #value or 1)
    if state.size > M.MAX then
        error({ refused = format('more than %d MiB cannot be passed', M.MAX / 1024 / 1024) })
    elseif kind == 'string' or kind == 'boolean' then
        return value
    elseif kind == 'number' then
        return pack_number(value)
    elseif kind == 'table' then
        return pack_table(value, state)
    elseif value == nil then
        return null
    elseif state.loose then
        return { kind == 'function' and 'f' or 'u' }
    end
    return refuse(state.path, format('a %s cannot be passed', kind))
end

--- Packs all arguments, nils included. With `loose`, functions and userdata cross as stand-ins.
-- @return a table for encode(), or nil, message
function M.pack(loose, ...)
    local list = { 'l' }
    local state = { loose = loose, size = 0, open = {}, path = {} }
    for i = 1, select('#', ...) do
        local ok, result = pcall(pack, (select(i, ...)), state)
        if not ok then
            return nil, type(result) == 'table' and result.refused or tostring(result)
        end
        list[i + 1] = result
    end
    return list
end

local function stand_in()
    error('a function of the script lives in the process of the script', 2)
end

local unpack_value

local function unpack_list(packed)
    local list = {}
    for i = 2, #packed do
        list[i - 1] = unpack_value(packed[i])
    end
    return list, #packed - 1
end

local tagged = {
    l = function(packed)
        return (unpack_list(packed))
    end,
    m = function(packed)
        local map = {}
        for i = 2, #packed - 1, 2 do
            local key = unpack_value(packed[i])
            if key ~= nil and key == key then
                map[key] = unpack_value(packed[i + 1])
            end
        end
        return map
    end,
    n = function(packed)
        return packed[2] == 'nan' and 0 / 0 or tonumber(packed[2])
    end,
    f = function()
        return stand_in
    end,
    u = function()
        return newproxy()
    end,
}

function unpack_value(packed)
    if packed == null then
        return nil
    elseif type(packed) ~= 'table' then
        return packed
    elseif packed[1] ~= nil then
        local read = tagged[packed[1]]
        return read and read(packed)
    end
    local map = {}
    for key, value in pairs(packed) do
        map[key] = unpack_value(value)
    end
    return map
end

-- As a list, with how many they are in n.
local function list_of(packed)
    if type(packed) ~= 'table' or packed[1] ~= 'l' then
        return { n = 0 }
    end
    local list, count = unpack_list(packed)
    list.n = min(count, VALUES_MAX)
    return list
end

--- What pack() was given, from what decode() gave.
function M.unpack(packed)
    local list = list_of(packed)
    return unpack(list, 1, list.n)
end

--- A message (string keys; values plain, or from pack) as one line without its end.
-- @return the line, or nil, why
function M.encode(message)
    local line, why = json.encode(message)
    if line and #line > 2 * M.MAX then -- escapes double it at most, but for control bytes
        return nil, format('more than %d MiB cannot be passed', M.MAX / 1024 / 1024)
    end
    return line, why
end

--- Whether two plain values are the same, tables by what is in them.
local function equal(a, b)
    if type(a) ~= 'table' or type(b) ~= 'table' then
        return a == b
    end
    for key, value in next, a do
        if not equal(value, b[key]) then
            return false
        end
    end
    for key in next, b do
        if a[key] == nil then
            return false
        end
    end
    return true
end

M.equal = equal

--- Whether a line that encode() made has these results, which pack() made: the order of keys is never the same.
function M.has_results(line, packed)
    local message = json.decode(line)
    return message ~= nil and equal(message.results, packed)
end

--- @return the message, its `results` as pack() was given them, with how many these are in n; or nil
function M.decode(line)
    local message = json.decode(line)
    if type(message) ~= 'table' then
        return nil
    elseif next(message) ~= nil then
        message.results = list_of(message.results)
    end
    return message
end

return M
