--- logger.lua: log records: who writes them where, and who remembers them. A record that cannot be delivered is lost
-- and counted, never an error to the caller. How a record looks is said in format.lua.

local cjson = require 'cjson'
local format = require 'dutch-master.log.format'
local Ledger = require 'dutch-master.log.ledger'
local Recent = require 'dutch-master.log.recent'
local text = require 'dutch-master.log.text'

local M = { levels = format.levels }

-- Bytes of a record that is remembered: what is longer is cut field by field.
local RECENT_MAX = 4096
-- How long close() waits for a slow reader, in ms.
local CLOSE_MS = 1000
-- While records are lost without an end, word of it comes so often, in seconds.
local LOSS_REPORT_S = 1

local NONE = {}

local Logger = {}
Logger.__index = Logger

-- A flood of lesser records must not cost these their place.
local GRAVE = { error = true, fatal = true }

-- Writes to the sink; a count of lost records that is itself lost is kept for the next time.
-- record: {level, fields, msg, at, text = as a line of JSON, or nil: it is none yet}
-- number: see ledger.lua, nil: it has none
-- @return whether it was written
local function write_sink(core, record, number)
    local line = core.format == format.json and record.text or core.format(core, record)
    return core.sink:write(line, GRAVE[record.level], number)
end

local function new_record(core, level, fields, msg)
    return { level = level, fields = fields, msg = msg, at = core.wall() }
end

local function report_lost(core)
    local lost = core.unreported + core.sink:lost()
    core.unreported = 0
    core.lost_total = (core.lost_total or 0) + lost
    if lost > 0 and not write_sink(core, new_record(core, 'warn', { lost = lost }, 'Log records lost')) then
        -- The failed report was counted as a lost record; it is not one.
        core.unreported = lost - 1
        core.lost_total = core.lost_total - lost
    end
end

-- A reader that never catches up never lets the sink drain either; it must hear of the loss all the same.
local function write_record(core, record, number)
    if core.losing_since and math.abs(core.wall() - core.losing_since) >= LOSS_REPORT_S then
        core.losing_since = nil
        report_lost(core)
    end
    if not write_sink(core, record, number) then
        core.losing_since = core.losing_since or core.wall()
    end
end

-- Whether a descriptor of ours is what systemd connected to its journal: JOURNAL_STREAM is inherited by programs whose
-- output goes elsewhere by now.
local function is_journal(core, target)
    local stream = core.platform.environ().JOURNAL_STREAM
    local found = stream and type(target) == 'number' and core.platform.stat('/proc/self/fd/' .. target)
    return found and stream == ('%.0f:%.0f'):format(found.dev, found.ino)
end

local function layout(core, sink, target)
    if core.layout then
        return core.layout
    end
    return sink:is_tty() and 'readable' or is_journal(core, target) and 'journal' or 'json'
end

local function open_sink(core, target)
    local sink, message, code = core.platform.sink(target)
    if not sink then return nil, message, code end
    core.sink = sink
    core.unreported = 0
    core.format = format[layout(core, sink, target)]
    core.color = core.format == format.readable and core.may_color and sink:is_tty()
    sink:on_drain(function()
        report_lost(core)
    end)
    return sink
end

-- What the user's own logger could not take goes to the default target, with word of it (once).
local function write_beside(core, failure, record)
    if core.closed then return end
    if not core.sink and not open_sink(core, core.default_target) then return end
    if failure and not core.custom_reported then
        core.custom_reported = true
        write_record(core, new_record(core, 'error', { error = failure },
            'The logger of the script failed, writing here instead'))
    end
    write_record(core, record)
end

-- It runs elsewhere: whether it took the record is known later.
local function write_custom(core, record)
    core.custom(record.level, record.fields, record.msg, function(failure)
        write_beside(core, failure, record)
    end)
end

local function tell_subscribers(core, line)
    local record = cjson.decode(line)
    for _, subscriber in pairs(core.subscribers) do
        -- A subscriber that fails has its own ways to say so; the log goes on.
        pcall(subscriber, record)
    end
end

local function add(all, fields)
    for key, value in pairs(fields) do
        all[key] = value
    end
    return all
end

local function merged(a, b, c)
    return add(add(add({}, a), b), c)
end

local function deliver(core, record, number)
    if core.custom then
        write_custom(core, record)
    else
        write_record(core, record, number)
    end
    local line = #record.text <= RECENT_MAX and record.text or format.json(core, record, RECENT_MAX)
    core.recent:push(line, GRAVE[record.level])
    if next(core.subscribers) then
        tell_subscribers(core, line)
    end
end

-- @param how 'enter': it speaks of the state, 'follow': it does not; see ledger.lua
local function write(self, how, level, fields, msg)
    local core = self.core
    if M.levels[level] < core.level or core.closed then return end
    if msg == nil and type(fields) ~= 'table' then
        fields, msg = {}, fields
    end
    if type(fields) ~= 'table' then fields = { value = fields } end
    local record = new_record(core, level, merged(core.fields, self.fields, fields), tostring(msg == nil and '' or msg))
    record.text = format.json(core, record)
    if core.ledger then
        core.ledger[how](core.ledger, record)
    else
        deliver(core, record)
    end
end

for level in pairs(M.levels) do
    Logger[level] = function(self, fields, msg)
        return write(self, 'enter', level, fields, msg)
    end
end

--- Writes a record of the script at the level given by name (an unknown one is taken as info). The script waits for it.
function Logger:log(level, fields, msg)
    write(self, 'follow', M.levels[level] and level or 'info', fields, msg)
end

--- Writes a record of the script's own logger itself: not to it again, but to the default target.
function Logger:log_beside(level, fields, msg)
    write_beside(self.core, nil, new_record(self.core, M.levels[level] and level or 'info',
        type(fields) == 'table' and fields or {}, tostring(msg == nil and '' or msg)))
end

--- A logger that adds these fields to each of its records.
function Logger:child(fields)
    return setmetatable({ core = self.core, fields = merged(NONE, self.fields, fields) }, Logger)
end

--- The last n records (of those remembered: see recent.lua), the oldest first, in bunyan's form; long ones are cut.
function Logger:recent(n)
    local records = self.core.recent:list(n)
    for i, line in ipairs(records) do
        records[i] = cjson.decode(line)
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

--- Writes what waits for the state that it speaks of.
function Logger:flush()
    if self.core.ledger then
        self.core.ledger:flush()
    end
end

--- For another master: see keeper/estate.lua.
function Logger:keep()
    return self.core.ledger and self.core.ledger:keep()
end

--- Goes on with the records that a former master has not written.
function Logger:resume(kept)
    self.core.ledger:resume(kept, function(decoded, at, text_of_it)
        local fields, level = format.read(decoded)
        return { level = level, fields = fields, msg = decoded.msg, at = at, text = text_of_it }
    end)
end

--- Waits a moment for what is still to be written, and closes. Later records are dropped.
function Logger:close()
    local core = self.core
    if core.closed then return end
    self:flush()
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
        name_json = text.quote(options.name or 'dutch-master'),
        hostname_json = text.quote(platform.hostname() or ''),
        level = assert(M.levels[options.level or 'info'], 'no such level'),
        layout = options.format,
        may_color = not no_color,
        default_target = options.default_target or 1,
        fields = options.fields or {},
        recent = Recent.new(),
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

-- What a logger remembers of its records, what waits, and who listens to them, outlives a change of its options.
local KEPT = { recent = true, subscribers = true, ledger = true }

--- Takes other options, for this logger and all that share its target. nil, message, code if the new target cannot be
--- opened; the old one then stays.
function Logger:reconfigure(options)
    local core = self.core
    local fresh, message, code = new_core(options)
    if not fresh then return nil, message, code end
    self:flush()
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
-- level (name, default info), target (descriptor, absolute path, or function(level_name, fields, msg, failed), which
-- calls failed(why), then or later, for a record that it could not take; default 1),
-- format ('json' | 'readable' | 'journal', default by what the target is), commit = records wait until the state is
-- kept of which they speak (keeper/commit.lua), nil: they do not.
-- nil, message, code if the target cannot be opened.
function M.new(options)
    local core, message, code = new_core(options)
    if not core then return nil, message, code end
    core.ledger = options.commit and Ledger.new { platform = options.platform, commit = options.commit,
        deliver = function(record, number)
            deliver(core, record, number)
        end }
    return setmetatable({ core = core, fields = {} }, Logger)
end

return M
