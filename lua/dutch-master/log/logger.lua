--- Log records: in bunyan's format, or as lines for a person where the output is a terminal.
--
-- Record text comes from workers, scripts and the system: whatever it holds, one record stays one
-- line of valid JSON, and on a terminal no control byte of it gets through. A record that cannot be
-- delivered is lost and counted, never an error to the caller.

local cjson = require 'cjson'

local M = {}

M.levels = { trace = 10, debug = 20, info = 30, warn = 40, error = 50, fatal = 60 }

-- Bytes of one record. Pipes are atomic up to 4 KiB, log collectors usually take lines of 64 KiB.
local RECORD_MAX = 64 * 1024
-- What a string and the message may keep in a record that is too long, bytes.
local SHORT_FIELD, SHORT_MESSAGE = 1024, 8 * 1024
local TRUNCATED = '...[truncated]'
-- Tables nested deeper than this are cut, so that a cycle ends.
local DEPTH_MAX = 8
-- Records remembered for `recent`, and bytes of one of them: what is longer is cut field by field.
local RECENT, RECENT_MAX = 1000, 4096
-- How long close() waits for a slow reader, in ms.
local CLOSE_MS = 1000
-- While records are lost without an end, word of it comes so often, in seconds.
local LOSS_REPORT_S = 1

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

local LEVEL_TEXT = {
    trace = 'TRACE', debug = 'DEBUG', info = 'INFO ', warn = 'WARN ', error = 'ERROR', fatal = 'FATAL',
}
local LEVEL_COLOR = {
    trace = '\27[90m', debug = '\27[36m', info = '\27[32m', warn = '\27[33m', error = '\27[31m',
    fatal = '\27[1;31m',
}
local DIM, RESET = '\27[2m', '\27[0m'

--
-- Text
--

local REPLACEMENT = '\239\191\189' -- U+FFFD

-- Length of the valid UTF-8 sequence at i, or nil (overlong, surrogate, out of range, cut short).
local function sequence_length(s, i)
    local a, b, c, d = s:byte(i, i + 3)
    local function tail(x)
        return x and x >= 0x80 and x <= 0xBF
    end
    if a < 0x80 then return 1 end
    if a >= 0xC2 and a <= 0xDF and tail(b) then return 2 end
    if a >= 0xE0 and a <= 0xEF and tail(b) and tail(c)
        and not (a == 0xE0 and b < 0xA0) and not (a == 0xED and b > 0x9F) then
        return 3
    end
    if a >= 0xF0 and a <= 0xF4 and tail(b) and tail(c) and tail(d)
        and not (a == 0xF0 and b < 0x90) and not (a == 0xF4 and b > 0x8F) then
        return 4
    end
end

--- The string as valid UTF-8: each wrong byte becomes U+FFFD.
function M.utf8(s)
    if not s:find('[\128-\255]') then return s end
    local out, from, i = {}, 1, 1
    while i <= #s do
        local n = sequence_length(s, i)
        if n then
            i = i + n
        else
            out[#out + 1] = s:sub(from, i - 1)
            out[#out + 1] = REPLACEMENT
            i = i + 1
            from = i
        end
    end
    out[#out + 1] = s:sub(from)
    return table.concat(out)
end

-- At most max bytes, without cutting a character in two, and with a mark.
local function shorten(s, max)
    if #s <= max then return s end
    local last = max
    while last > 0 and last > max - 3 and (s:byte(last + 1) or 0) >= 0x80 and s:byte(last + 1) < 0xC0 do
        last = last - 1
    end
    return s:sub(1, last) .. TRUNCATED
end

-- cjson writes "/" as "\/"; correct, but nobody wants to read paths so.
local UNESCAPE = { ['/'] = '/' }

local function quote(s)
    return (cjson.encode(M.utf8(s)):gsub('\\(.)', UNESCAPE))
end

local function sorted_keys(t)
    local keys = {}
    for key in pairs(t) do
        keys[#keys + 1] = key
    end
    table.sort(keys, function(a, b)
        local x, y = RANK[a] or math.huge, RANK[b] or math.huge
        if x ~= y then return x < y end
        return tostring(a) < tostring(b)
    end)
    return keys
end

local function is_array(t)
    local count = 0
    for _ in pairs(t) do
        count = count + 1
    end
    return count > 0 and count == #t
end

local encode

local function encode_table(t, depth)
    if depth >= DEPTH_MAX then return '"[too deep]"' end
    local parts = {}
    if is_array(t) then
        for i, value in ipairs(t) do
            parts[i] = encode(value, depth + 1)
        end
        return '[' .. table.concat(parts, ',') .. ']'
    end
    for i, key in ipairs(sorted_keys(t)) do
        parts[i] = quote(tostring(key)) .. ':' .. encode(t[key], depth + 1)
    end
    return '{' .. table.concat(parts, ',') .. '}'
end

local function encode_number(n)
    if n ~= n or n == math.huge or n == -math.huge then return quote(tostring(n)) end
    if n == math.floor(n) and math.abs(n) < 2 ^ 53 then return ('%.0f'):format(n) end
    return ('%.14g'):format(n)
end

-- Anything as JSON; what JSON does not have becomes its text.
function encode(value, depth)
    local kind = type(value)
    if kind == 'string' then return quote(value) end
    if kind == 'number' then return encode_number(value) end
    if kind == 'boolean' then return tostring(value) end
    if kind == 'table' then return encode_table(value, depth or 0) end
    if value == nil or value == cjson.null then return 'null' end
    return quote(tostring(value))
end

--
-- The two formats
--

local function iso_time(now)
    local seconds = math.floor(now)
    return ('%s.%03dZ'):format(os.date('!%Y-%m-%dT%H:%M:%S', seconds), math.floor((now - seconds) * 1000))
end

local function field_name(key)
    key = tostring(key)
    return RESERVED[key] and key .. '_' or key
end

local function encode_fields(fields)
    local parts = {}
    for i, key in ipairs(sorted_keys(fields)) do
        parts[i] = quote(field_name(key)) .. ':' .. encode(fields[key])
    end
    return parts
end

-- The fields again, each cut short, as many as there is room for.
local function encode_short(fields, room)
    local parts = {}
    for _, key in ipairs(sorted_keys(fields)) do
        local value = fields[key]
        local text = type(value) == 'string' and quote(shorten(value, SHORT_FIELD)) or encode(value)
        if #text > 6 * (SHORT_FIELD + #TRUNCATED) + 2 then text = quote(TRUNCATED) end
        local part = quote(shorten(field_name(key), SHORT_FIELD)) .. ':' .. text
        if #part + 1 > room then break end
        room = room - #part - 1
        parts[#parts + 1] = part
    end
    parts[#parts + 1] = '"truncated":true'
    return parts
end

local function join(head, parts, tail)
    if #parts == 0 then return head .. tail end
    return head .. ',' .. table.concat(parts, ',') .. tail
end

--- One record as a line of bunyan's format, of at most `max` bytes.
function M.format_json(core, level, fields, msg, max)
    max = max or RECORD_MAX
    local head = ('{"name":%s,"hostname":%s,"pid":%d,"level":%d'):format(
        core.name_json, core.hostname_json, core.pid, M.levels[level])
    local function tail(text)
        return (',"msg":%s,"time":"%s","v":0}\n'):format(quote(text), iso_time(core.wall()))
    end
    local line = join(head, encode_fields(fields), tail(msg))
    if #line <= max then return line end
    local last = tail(shorten(msg, math.min(SHORT_MESSAGE, max / 4)))
    return join(head, encode_short(fields, max - #head - #last - 64), last)
end

local ESCAPES = { ['\n'] = '\\n', ['\r'] = '\\r', ['\t'] = '\\t', ['\27'] = '\\e' }

local function escape_byte(c)
    return ESCAPES[c] or ('\\x%02x'):format(c:byte())
end

-- U+0080 to U+009F: some terminals take them for control sequences.
local function escape_c1(c)
    return ('\\x%02x'):format(c:byte())
end

--- The string with nothing in it that a terminal would act on: control bytes, C1 controls and marks that
-- change the direction of writing are spelled out.
function M.printable(s)
    s = M.utf8(s):gsub('%c', escape_byte)
    if not s:find('[\194\226]') then return s end
    s = s:gsub('\194([\128-\159])', escape_c1)
    return (s:gsub('\226(\128[\142\143\168-\174])', function(c)
        return ('\\u%04x'):format(0x2000 + c:byte(2) - 0x80)
    end):gsub('\226(\129[\166-\169])', function(c)
        return ('\\u%04x'):format(0x2040 + c:byte(2) - 0x80)
    end))
end

-- A value behind `name=`; text with blanks or quotes is put in quotes.
local function readable_value(value)
    if type(value) ~= 'string' then
        return type(value) == 'table' and M.printable(encode(value)) or M.printable(tostring(value))
    end
    local text = M.printable(value)
    if text == '' or text:find('[%s"=]') then
        return '"' .. text:gsub('"', '\\"') .. '"'
    end
    return text
end

-- A value of several lines, each of them indented, so that none can pass for a record.
local function readable_block(name, text)
    local out = { '    ' .. name .. ':' }
    for line in (text:gsub('\n+$', '') .. '\n'):gmatch('(.-)\n') do
        out[#out + 1] = '    | ' .. M.printable(line)
    end
    return table.concat(out, '\n')
end

--- One record as a line for a person; values of several lines follow it, indented.
function M.format_readable(core, level, fields, msg)
    local now = core.wall()
    local words, blocks = {}, {}
    for _, key in ipairs(sorted_keys(fields)) do
        local value = fields[key]
        local name = M.printable(SHORT[key] or tostring(key))
        if type(value) == 'string' and value:find('\n', 1, true) then
            blocks[#blocks + 1] = '\n' .. readable_block(name, shorten(value, RECORD_MAX / 4))
        else
            local text = type(value) == 'string' and shorten(value, SHORT_MESSAGE) or value
            words[#words + 1] = name .. '=' .. shorten(readable_value(text), SHORT_MESSAGE)
        end
    end
    local seconds = math.floor(now)
    local time = ('%s.%03d'):format(os.date('%H:%M:%S', seconds), math.floor((now - seconds) * 1000))
    local facts = #words > 0 and '  ' .. table.concat(words, ' ') or ''
    local name, text = LEVEL_TEXT[level], M.printable(shorten(msg, SHORT_MESSAGE))
    if core.color then
        time, name = DIM .. time .. RESET, LEVEL_COLOR[level] .. name .. RESET
        facts = facts ~= '' and DIM .. facts .. RESET or ''
    end
    local line = ('%s %s %s%s%s\n'):format(time, name, text, facts, table.concat(blocks))
    return #line <= RECORD_MAX and line or shorten(line:sub(1, -2), RECORD_MAX - #TRUNCATED - 1) .. '\n'
end

--
-- Loggers
--

local Logger = {}
Logger.__index = Logger

-- Writes to the sink; a count of lost records that is itself lost is kept for the next time.
local function write_sink(core, level, fields, msg)
    return core.sink:write(core.format(core, level, fields, msg))
end

local function report_lost(core)
    local lost = core.unreported + core.sink:lost()
    core.unreported = 0
    core.lost_total = (core.lost_total or 0) + lost
    if lost > 0 and not write_sink(core, 'warn', { lost = lost }, 'Log records lost') then
        -- The failed report was counted as a lost record; it is not one.
        core.unreported = lost - 1
        core.lost_total = core.lost_total - lost
    end
end

-- A reader that never catches up never lets the sink drain either; it must hear of the loss all the same.
local function write_record(core, level, fields, msg)
    if core.losing_since and math.abs(core.wall() - core.losing_since) >= LOSS_REPORT_S then
        core.losing_since = nil
        report_lost(core)
    end
    if not write_sink(core, level, fields, msg) then
        core.losing_since = core.losing_since or core.wall()
    end
end

local function open_sink(core, target)
    local sink, message, code = core.platform.sink(target)
    if not sink then return nil, message, code end
    core.sink = sink
    core.unreported = 0
    local readable = core.layout == 'readable' or (core.layout == nil and sink:is_tty())
    core.format = readable and M.format_readable or M.format_json
    core.color = readable and core.may_color and sink:is_tty()
    sink:on_drain(function()
        report_lost(core)
    end)
    return sink
end

-- The user's own logger may throw: then this record, and word of it (once), go to the default target.
local function write_custom(core, level, fields, msg)
    local failure
    if core.in_custom then
        failure = 'the logger wrote to itself'
    else
        core.in_custom = true
        local ok, result, problem = pcall(core.custom, level, fields, msg)
        core.in_custom = false
        if ok and problem == nil then return end
        failure = tostring(ok and problem or result)
    end
    if not core.sink and not open_sink(core, core.default_target) then return end
    if not core.custom_reported then
        core.custom_reported = true
        write_record(core, 'error', { error = failure }, 'The logger of the script failed, writing here instead')
    end
    write_record(core, level, fields, msg)
end

-- Kept as text: a thousand small tables would be four times as large.
local function remember(core, level, fields, msg)
    local line = M.format_json(core, level, fields, msg, RECENT_MAX)
    core.recent[core.written % RECENT + 1] = line
    core.written = core.written + 1
    if not next(core.subscribers) then return end
    local record = cjson.decode(line)
    for _, subscriber in pairs(core.subscribers) do
        -- A subscriber that fails has its own ways to say so; the log goes on.
        pcall(subscriber, record)
    end
end

local function merged(a, b)
    local all = {}
    for key, value in pairs(a) do
        all[key] = value
    end
    for key, value in pairs(b) do
        all[key] = value
    end
    return all
end

local function write(self, level, fields, msg)
    local core = self.core
    if M.levels[level] < core.level or core.closed then return end
    if msg == nil and type(fields) ~= 'table' then
        fields, msg = {}, fields
    end
    if type(fields) ~= 'table' then fields = { value = fields } end
    fields = merged(merged(core.fields, self.fields), fields)
    msg = tostring(msg == nil and '' or msg)
    remember(core, level, fields, msg)
    if core.custom then
        write_custom(core, level, fields, msg)
    else
        write_record(core, level, fields, msg)
    end
end

for level in pairs(M.levels) do
    Logger[level] = function(self, fields, msg)
        write(self, level, fields, msg)
    end
end

--- Writes a record at the level given by name (an unknown one is taken as info).
function Logger:log(level, fields, msg)
    write(self, M.levels[level] and level or 'info', fields, msg)
end

--- A logger that adds these fields to each of its records.
function Logger:child(fields)
    return setmetatable({ core = self.core, fields = merged(self.fields, fields) }, Logger)
end

--- Whether records of the level are written.
function Logger:enabled(level)
    return M.levels[level] >= self.core.level
end

--- Sets the level by name, for this logger and all that share its target.
function Logger:set_level(level)
    self.core.level = assert(M.levels[level], 'no such level')
end

--- The last n records (of at most 1000 remembered), the oldest first, in bunyan's form; long ones are cut short.
function Logger:recent(n)
    local core = self.core
    local records = {}
    for i = math.max(core.written - math.min(n, RECENT), 0), core.written - 1 do
        records[#records + 1] = cjson.decode(core.recent[i % RECENT + 1])
    end
    return records
end

--- How many records were lost since the start, as far as that was reported.
function Logger:lost()
    return self.core.lost_total or 0
end

--- Calls fn(record) for each record from now on. Returns a function that ends it.
function Logger:subscribe(fn)
    local subscribers, key = self.core.subscribers, {}
    subscribers[key] = fn
    return function()
        subscribers[key] = nil
    end
end

--- Opens the log file anew, for rotation. nil, message, code if that fails; the old one then stays.
function Logger:reopen()
    local sink = self.core.sink
    if not sink then return true end
    return sink:reopen()
end

--- Waits a moment for what is still to be written, and closes. Later records are dropped.
function Logger:close()
    local core = self.core
    if core.closed then return end
    core.closed = true
    if not core.sink then return end
    core.sink:flush(CLOSE_MS)
    report_lost(core)
    core.sink:flush(CLOSE_MS)
    core.sink:close()
end

-- A core for these options, with its target open. nil, message, code if it cannot be opened.
local function new_core(options)
    local platform = options.platform
    local environ = platform.environ()
    local no_color = (environ.NO_COLOR or '') ~= '' or environ.TERM == 'dumb'
    local core = {
        platform = platform,
        wall = platform.wall,
        pid = platform.pid(),
        name_json = quote(options.name or 'dutch-master'),
        hostname_json = quote(platform.hostname() or ''),
        level = assert(M.levels[options.level or 'info'], 'no such level'),
        layout = options.format,
        may_color = not no_color,
        default_target = options.default_target or 1,
        fields = options.fields or {},
        recent = {},
        written = 0,
        subscribers = {},
    }
    local target = options.target or options.path or core.default_target
    if type(target) == 'function' then
        core.custom = target
    else
        local sink, message, code = open_sink(core, target)
        if not sink then return nil, message, code end
    end
    return core
end

-- What a logger remembers of its records, and who listens to them, outlives a change of its options.
local KEPT = { recent = true, written = true, subscribers = true }

--- Takes other options, for this logger and all that share its target. nil, message, code if the new target cannot be
--- opened; the old one then stays.
function Logger:reconfigure(options)
    local core = self.core
    local fresh, message, code = new_core(options)
    if not fresh then return nil, message, code end
    if core.sink then
        core.sink:flush(CLOSE_MS)
        report_lost(core)
        core.sink:close()
    end
    for key in pairs(core) do
        if not KEPT[key] then core[key] = nil end
    end
    for key, value in pairs(fresh) do
        if not KEPT[key] then core[key] = value end
    end
    return true
end

--- A logger. options: platform (sink, wall, pid, hostname, environ), name, fields (in each record),
-- level (name, default info), target (descriptor, absolute path, or function(level_name, fields, msg);
-- default 1), format ('json' | 'readable', default by whether the target is a terminal).
-- nil, message, code if the target cannot be opened.
function M.new(options)
    local core, message, code = new_core(options)
    if not core then return nil, message, code end
    return setmetatable({ core = core, fields = {} }, Logger)
end

return M
