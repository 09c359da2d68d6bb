--- format.lua: one log record as text, in bunyan's format or as lines for a person. Pure: whatever a field holds, one
-- record is one line of valid JSON, or lines that none of their text can pass for.
-- core, of the logger: {pid, name_json, hostname_json, color}. record: {level (its name), fields, msg, at = seconds
-- since 1970}.

local cjson = require 'cjson'
local clean = require 'dutch-master.log.text'
local printable, quote, shorten = clean.printable, clean.quote, clean.shorten

local M = {}

M.levels = { trace = 10, debug = 20, info = 30, warn = 40, error = 50, fatal = 60 }

-- Bytes of one record. Pipes are atomic up to 4 KiB, log collectors usually take lines of 64 KiB.
local RECORD_MAX = 64 * 1024
-- What a string and the message may keep in a record that is too long, bytes.
local SHORT_FIELD, SHORT_MESSAGE = 1024, 8 * 1024
-- Tables nested deeper than this are cut, so that a cycle ends.
local DEPTH_MAX = 8

-- bunyan's own fields. A field of the caller with such a name gets an underscore behind it.
local RESERVED = { name = true, hostname = true, pid = true, level = true, msg = true, time = true, v = true }

-- Fields that come first, in this order; the others follow by name. Second column: on a terminal.
local FIRST = {
    { 'workerId', 'worker' },
    { 'workerPid', 'pid' },
    { 'generation' },
    { 'code' },
    { 'signal' },
}
local RANK, SHORT = {}, {}
for i, entry in ipairs(FIRST) do
    RANK[entry[1]] = i
    SHORT[entry[1]] = entry[2]
end

local LEVEL_COLOR = {
    trace = '\27[90m', debug = '\27[36m', info = '\27[32m', warn = '\27[33m', error = '\27[31m',
    fatal = '\27[1;31m',
}
local DIM, RESET = '\27[2m', '\27[0m'

local function by_text(a, b)
    return tostring(a) < tostring(b)
end

local function sorted_keys(t)
    local keys, others, odd = {}, {}, nil
    for _, entry in ipairs(FIRST) do
        if t[entry[1]] ~= nil then
            keys[#keys + 1] = entry[1]
        end
    end
    for key in pairs(t) do
        if not RANK[key] then
            others[#others + 1] = key
            odd = odd or type(key) ~= 'string'
        end
    end
    table.sort(others, odd and by_text or nil)
    for _, key in ipairs(others) do
        keys[#keys + 1] = key
    end
    return keys
end

local function is_array(t)
    local count = 0
    for _ in pairs(t) do
        count = count + 1
    end
    return count > 0 and count == #t
end

-- Anything as JSON, by its type.
local ENCODE

local function encode_table(t, depth)
    if depth >= DEPTH_MAX then return '"[too deep]"' end
    local parts = {}
    if is_array(t) then
        for i, value in ipairs(t) do
            parts[i] = ENCODE[type(value)](value, depth + 1)
        end
        return '[' .. table.concat(parts, ',') .. ']'
    end
    for i, key in ipairs(sorted_keys(t)) do
        parts[i] = ENCODE.string(tostring(key)) .. ':' .. ENCODE[type(t[key])](t[key], depth + 1)
    end
    return '{' .. table.concat(parts, ',') .. '}'
end

local function encode_number(n)
    if n ~= n or n == math.huge or n == -math.huge then return quote(tostring(n)) end
    if n == math.floor(n) and math.abs(n) < 2 ^ 53 then return ('%.0f'):format(n) end
    return ('%.14g'):format(n)
end

local function encode_string(s)
    if not s:find '[^%w _.,:;@=()/+-]' then -- nearly every field
        return '"' .. s .. '"'
    end
    return quote(s)
end

-- What JSON does not have becomes its text.
local function encode_odd(value)
    return value == cjson.null and 'null' or quote(tostring(value))
end

ENCODE = { string = encode_string, number = encode_number, boolean = tostring, table = encode_table,
    ['function'] = encode_odd, userdata = encode_odd, thread = encode_odd, cdata = encode_odd }

--- A time in seconds, with its milliseconds, as os.date writes it.
function M.time(seconds, layout)
    local whole = math.floor(seconds)
    return ('%s.%03d'):format(os.date(layout, whole), math.floor((seconds - whole) * 1000))
end

--- The same in UTC: "2026-11-22T14:30:00.123Z".
function M.utc(seconds)
    return M.time(seconds, '!%Y-%m-%dT%H:%M:%S') .. 'Z'
end

--- What the caller gave, of a line of bunyan's format that was decoded; and the name of its level.
function M.read(decoded)
    local fields, level = {}, 'info'
    for key, value in pairs(decoded) do
        if not RESERVED[key] then
            fields[key] = value
        end
    end
    for name, number in pairs(M.levels) do
        level = number == decoded.level and name or level
    end
    return fields, level
end

local function field_name(key)
    key = tostring(key)
    return RESERVED[key] and key .. '_' or key
end

local function encode_fields(fields)
    local parts = {}
    for i, key in ipairs(sorted_keys(fields)) do
        local is_plain = type(key) == 'string' and not RESERVED[key] and not key:find '[^%w_]' -- nearly always
        local value = fields[key]
        parts[i] = (is_plain and '"' .. key .. '"' or quote(field_name(key))) .. ':' .. ENCODE[type(value)](value, 0)
    end
    return parts
end

-- The fields again, each cut short, as many as there is room for.
local function encode_short(fields, room)
    local parts = {}
    for _, key in ipairs(sorted_keys(fields)) do
        local value = fields[key]
        local text = type(value) == 'string' and quote(shorten(value, SHORT_FIELD)) or ENCODE[type(value)](value, 0)
        if #text > 6 * (SHORT_FIELD + #clean.TRUNCATED) + 2 then text = quote(clean.TRUNCATED) end
        local part = quote(shorten(field_name(key), SHORT_FIELD)) .. ':' .. text
        if #part + 1 > room then break end
        room = room - #part - 1
        parts[#parts + 1] = part
    end
    parts[#parts + 1] = '"truncated":true'
    return parts
end

local LINE = '%s%s%s,"msg":%s,"time":"%s","v":0}\n'

--- One record as a line of bunyan's format, of at most `max` bytes.
function M.json(core, record, max)
    max = max or RECORD_MAX
    local fields, msg = record.fields, record.msg
    local parts, time = encode_fields(fields), M.utc(record.at)
    local head = ('{"name":%s,"hostname":%s,"pid":%d,"level":%d'):format(
        core.name_json, core.hostname_json, core.pid, M.levels[record.level])
    local between = #parts > 0 and ',' or ''
    local line = LINE:format(head, between, table.concat(parts, ','), encode_string(msg), time)
    if #line <= max then return line end
    local said = quote(shorten(msg, math.min(SHORT_MESSAGE, max / 4)))
    parts = encode_short(fields, max - #LINE:format(head, ',', '', said, time) - 64)
    return LINE:format(head, ',', table.concat(parts, ','), said, time)
end

-- A value behind `name=`; text with blanks or quotes is put in quotes.
local function readable_value(value)
    if type(value) ~= 'string' then
        return type(value) == 'table' and printable(encode_table(value, 0)) or printable(tostring(value))
    end
    local text = printable(value)
    if text == '' or text:find('[%s"=]') then
        return '"' .. text:gsub('"', '\\"') .. '"'
    end
    return text
end

-- A value of several lines, each of them indented, so that none can pass for a record.
local function readable_block(name, text)
    local out = { '    ' .. name .. ':' }
    for line in (text:gsub('\n+$', '') .. '\n'):gmatch('(.-)\n') do
        out[#out + 1] = '    | ' .. printable(line)
    end
    return table.concat(out, '\n')
end

-- What a record says, for a person: the words behind the message, and the blocks below it.
local function facts_of(fields)
    local words, blocks = {}, {}
    for _, key in ipairs(sorted_keys(fields)) do
        local value = fields[key]
        local name = printable(SHORT[key] or tostring(key))
        if type(value) == 'string' and value:find('\n', 1, true) then
            blocks[#blocks + 1] = '\n' .. readable_block(name, shorten(value, RECORD_MAX / 4))
        else
            local text = type(value) == 'string' and shorten(value, SHORT_MESSAGE) or value
            words[#words + 1] = name .. '=' .. shorten(readable_value(text), SHORT_MESSAGE)
        end
    end
    return #words > 0 and '  ' .. table.concat(words, ' ') or '', table.concat(blocks)
end

local function bounded(line)
    return #line <= RECORD_MAX and line or shorten(line:sub(1, -2), RECORD_MAX - #clean.TRUNCATED - 1) .. '\n'
end

--- One record as a line for a person; values of several lines follow it, indented.
function M.readable(core, record)
    local facts, blocks = facts_of(record.fields)
    local time = M.time(record.at, '%H:%M:%S')
    local name, text = ('%-5s'):format(record.level:upper()), printable(shorten(record.msg, SHORT_MESSAGE))
    if core.color then
        time, name = DIM .. time .. RESET, LEVEL_COLOR[record.level] .. name .. RESET
        facts = facts ~= '' and DIM .. facts .. RESET or ''
    end
    return bounded(('%s %s %s%s%s\n'):format(time, name, text, facts, blocks))
end

-- sd-daemon(3): the priority of a line in front of it. The journal has the time, and a line of its own is a record.
local PRIORITY = { trace = '<7>', debug = '<7>', info = '<6>', warn = '<4>', error = '<3>', fatal = '<2>' }

--- The same for systemd's journal, where `journalctl -p err` chooses by priority.
function M.journal(_, record)
    local facts, blocks = facts_of(record.fields)
    local priority = PRIORITY[record.level]
    local text = printable(shorten(record.msg, SHORT_MESSAGE))
    local line = priority .. text .. facts .. blocks:gsub('\n', '\n' .. priority)
    return bounded(line .. '\n')
end

return M
