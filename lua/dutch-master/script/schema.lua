-- schema.lua: types that check a value of the user's and turn it into what the program uses inside.
--
-- A type is a table { expects = 'an integer from 1 to 4096', check = function(value, at) return inside end }.
-- `at` is the place in the user's table; at:fail() notes an error and the check goes on, so that all errors of a
-- table are reported at once. What a check returned is worth something only if no error was noted.
-- Pure: no time, no I/O, nothing kept between calls.

local sorted_keys = require 'dutch-master.sorted_keys'
local suggest = require 'dutch-master.suggest'

local M = {}

local MAX_SHOWN = 60 -- bytes of a refused string that are shown

--- How a refused value is named in an error: short, on one line, unmistakable.
function M.describe(value)
    local kind = type(value)
    if kind == 'nil' then
        return 'nothing'
    elseif kind == 'string' then
        local text = #value > MAX_SHOWN and value:sub(1, MAX_SHOWN) .. '...' or value
        text = text:gsub('[%c"\\]', function(char)
            return (char == '"' or char == '\\') and '\\' .. char or ('\\%03d'):format(char:byte())
        end)
        return '"' .. text .. '"'
    elseif kind == 'number' then
        if value ~= value then
            return 'NaN'
        elseif value == math.huge then
            return 'infinity'
        elseif value == -math.huge then
            return 'minus infinity'
        end
        return ('%.14g'):format(value)
    elseif kind == 'boolean' then
        return tostring(value)
    elseif kind == 'table' then
        return next(value) == nil and 'an empty table' or 'a table'
    elseif kind == 'function' then
        return 'a function'
    end
    return kind
end

local Place = {}
Place.__index = Place

--- The place where checking starts; errors are collected in place.errors as { path =, text = }.
function M.place(path)
    return setmetatable({ path = path or '', errors = {} }, Place)
end

function Place:key(key)
    local path
    if type(key) == 'string' and key:match('^[%a_][%w_]*$') then
        path = self.path == '' and key or self.path .. '.' .. key
    else
        path = self.path .. '[' .. M.describe(key) .. ']'
    end
    return setmetatable({ path = path, errors = self.errors }, Place)
end

--- Notes an error. @return nil, as a check does that ends with it
function Place:say(text)
    self.errors[#self.errors + 1] = { path = self.path, text = text }
    return nil
end

function Place:fail(expects, value)
    return self:say(('expected %s, found %s'):format(expects, M.describe(value)))
end

--- others: what a name of other programs is called here: a name of ours, or a table with a text.
function Place:unknown(names, what, others)
    local word = self.path:match('[^.]+$')
    local other = others and others[word]
    local meant = type(other) == 'string' and other or not other and suggest.nearest(word, names)
    local hint = type(other) == 'table' and other[1] or meant and ('did you mean "%s"?'):format(meant)
    return self:say('unknown ' .. (what or 'option') .. (hint and (' (%s)'):format(hint) or ''))
end

-- A type made of a predicate that returns whether the value is fine and, if it differs, the inside value.
local function simple(expects, test)
    return {
        expects = expects,
        check = function(value, at)
            local ok, inside = test(value)
            if not ok then
                return at:fail(expects, value)
            elseif inside == nil then
                return value
            end
            return inside
        end,
    }
end
M.simple = simple

M.boolean = simple('true or false', function(value)
    return type(value) == 'boolean'
end)

--- Whatever it is: somebody else looks at it.
function M.any(expects)
    return simple(expects, function()
        return true
    end)
end

--- A string that can be given to the system: not empty, no NUL.
M.text = simple('a string that is not empty', function(value)
    return type(value) == 'string' and value ~= '' and not value:find('\0', 1, true)
end)

--- A string or number, as a string: for arguments of programs, where both are usual.
M.argument = simple('a string', function(value)
    if type(value) == 'number' then
        return value == value and math.abs(value) ~= math.huge, ('%.14g'):format(value)
    end
    return type(value) == 'string' and not value:find('\0', 1, true)
end)

M.absolute_path = simple('an absolute path', function(value)
    return type(value) == 'string' and value:sub(1, 1) == '/' and not value:find('\0', 1, true)
end)

local function is_finite(value)
    return type(value) == 'number' and value == value and math.abs(value) ~= math.huge
end

function M.integer(min, max)
    local expects = ('an integer from %d to %d'):format(min, max)
    return simple(expects, function(value)
        return is_finite(value) and value == math.floor(value) and value >= min and value <= max
    end)
end

local LONGEST = 1e9 -- seconds, about 30 years: more is a mistake, and milliseconds stay exact integers

--- Seconds for the user (fractions are fine), whole milliseconds inside.
function M.seconds(min)
    local expects = min > 0 and ('a number of seconds, at least %g'):format(min) or 'a number of seconds'
    return simple(expects, function(value)
        local ok = is_finite(value) and value >= min and value <= LONGEST
        return ok, ok and math.floor(value * 1000 + 0.5) or nil
    end)
end

local UNITS = { [''] = 1, K = 1024, M = 1024 ^ 2, G = 1024 ^ 3, T = 1024 ^ 4 }

local function bytes(value)
    if type(value) == 'string' then
        local digits, unit = value:match('^(%d+%.?%d*)([KMGT]?)$')
        value = digits and math.floor(tonumber(digits) * UNITS[unit])
    end
    return is_finite(value) and value >= 0 and value == math.floor(value) and value <= 2 ^ 52 and value or nil
end

--- Bytes: an integer, or a string such as '512M'.
function M.size(min)
    local expects = ('a size in bytes, such as "512M" (at least %d)'):format(min)
    return simple(expects, function(value)
        local n = bytes(value)
        return n and n >= min, n
    end)
end

--- The names of a list -> { [name] = true }
function M.set(names)
    local set = {}
    for _, name in ipairs(names) do
        set[name] = true
    end
    return set
end

function M.one_of(names)
    local quoted = {}
    for i, name in ipairs(names) do
        quoted[i] = '"' .. name .. '"'
    end
    local last = table.remove(quoted)
    local expects = #quoted > 0 and table.concat(quoted, ', ') .. ' or ' .. last or last
    local known = M.set(names)
    return simple(expects, function(value)
        return known[value]
    end)
end

--- Is this a list: keys 1 to n without a hole and nothing else? Returns n.
function M.list_length(value)
    local count = 0
    for _ in pairs(value) do
        count = count + 1
    end
    for i = 1, count do
        if value[i] == nil then
            return nil
        end
    end
    return count
end

function M.list_of(item, expects, min)
    expects = expects or 'a list'
    return {
        expects = expects,
        check = function(value, at)
            local count = type(value) == 'table' and M.list_length(value)
            if not count or count < (min or 0) then
                return at:fail(expects, value)
            end
            local inside = {}
            for i = 1, count do
                inside[i] = item.check(value[i], at:key(i))
            end
            return inside
        end,
    }
end

local function copy(values)
    local result = {}
    for key, item in pairs(values) do
        result[key] = type(item) == 'table' and copy(item) or item
    end
    return result
end

--- The values of a table with named fields, by their inside names, with the defaults of those that are not given.
-- fields[name] = { type =, inside = name inside, default = inside value, required = }; names: all of them, in order;
-- others: as of Place:unknown.
function M.fields(value, fields, names, at, others)
    for key in pairs(value) do
        if not fields[key] then
            at:key(key):unknown(names, nil, others)
        end
    end
    local inside = {}
    for _, name in ipairs(names) do
        local field, given = fields[name], value[name]
        if given ~= nil then
            inside[field.inside or name] = field.type.check(given, at:key(name))
        elseif field.required then
            at:key(name):fail(field.type.expects, nil)
        else
            local default = field.default
            inside[field.inside or name] = type(default) == 'table' and copy(default) or default
        end
    end
    return inside
end

--- A table with named fields: see M.fields.
function M.record(expects, fields)
    local names = sorted_keys(fields)
    return {
        expects = expects,
        check = function(value, at)
            if type(value) ~= 'table' then
                return at:fail(expects, value)
            end
            return M.fields(value, fields, names, at)
        end,
    }
end

--- One of several shapes, told apart by the Lua type of the value: shapes = { string = type, table = type }, or instead
-- of a type its check alone.
function M.by_type(expects, shapes)
    return {
        expects = expects,
        check = function(value, at)
            local shape = shapes[type(value)]
            if not shape then
                return at:fail(expects, value)
            end
            local check = type(shape) == 'table' and shape.check or shape
            return check(value, at)
        end,
    }
end

-- Signals -----------------------------------------------------------------------------------------------------------

local SIGNALS = {}
for name in ([[HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN
    TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS]]):gmatch('%u+%d*') do
    SIGNALS[name] = true
end

--- A signal's name, 'SIGUSR2' or 'USR2'; refused = { KILL = 'why' }.
function M.signal(refused)
    local expects = 'the name of a signal'
    return {
        expects = expects,
        check = function(value, at)
            local name = type(value) == 'string' and value:upper():gsub('^SIG', '')
            if not name or not SIGNALS[name] then
                return at:fail(expects .. ' such as "SIGUSR2"', value)
            elseif refused[name] then
                return at:say(('SIG%s cannot be used: %s'):format(name, refused[name]))
            end
            return 'SIG' .. name
        end,
    }
end

M.bytes = bytes
M.is_finite = is_finite

return M
