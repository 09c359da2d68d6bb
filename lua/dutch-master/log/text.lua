--- text.lua: other people's text, made harmless: valid UTF-8, of a bounded length, with nothing in it that a terminal
-- would act on. Pure; whatever comes in is written by workers, scripts, clients and the system.

local cjson = require 'cjson'

local M = {}

--- Behind what was cut short.
M.TRUNCATED = '...[truncated]'

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

--- The lines KEY=VALUE of a text, by their keys: the first of each, as sd_notify(3) has them. Others count for nothing.
function M.fields(s)
    local found = {}
    for key, value in ('\n' .. s):gmatch '\n([A-Z0-9_]+)=([^\n]*)' do
        if not found[key] and M.utf8(value) == value then
            found[key] = value
        end
    end
    return found
end

--- At most max bytes, without cutting a character in two, and with a mark.
function M.shorten(s, max)
    if #s <= max then return s end
    local last = max
    while last > 0 and last > max - 3 and (s:byte(last + 1) or 0) >= 0x80 and s:byte(last + 1) < 0xC0 do
        last = last - 1
    end
    return s:sub(1, last) .. M.TRUNCATED
end

-- U+0080 to U+009F, which some terminals take for control sequences, and marks that change the direction of writing,
-- spelled out: `c1` is how the former are. In a string, or in JSON, where it changes nothing of what it says.
local function spell(s, c1)
    if not s:find('[\194\216\226]') then return s end
    s = s:gsub('\194([\128-\159])', function(c)
        return c1:format(c:byte())
    end):gsub('\216\156', '\\u061c')
    return (s:gsub('\226(\128[\142\143\168-\174])', function(c)
        return ('\\u%04x'):format(0x2000 + c:byte(2) - 0x80)
    end):gsub('\226(\129[\166-\169])', function(c)
        return ('\\u%04x'):format(0x2040 + c:byte(2) - 0x80)
    end))
end

-- cjson writes "/" as "\/"; correct, but nobody wants to read paths so.
local UNESCAPE = { ['/'] = '/' }

--- JSON as cjson writes it, in valid UTF-8, with nothing in it that a terminal would act on.
function M.json(encoded)
    return spell(M.utf8(encoded:gsub('\\(.)', UNESCAPE)), '\\u%04x')
end

--- The string as JSON.
function M.quote(s)
    return M.json(cjson.encode(s))
end

local ESCAPES = { ['\n'] = '\\n', ['\r'] = '\\r', ['\t'] = '\\t', ['\27'] = '\\e' }

local function escape_byte(c)
    return ESCAPES[c] or ('\\x%02x'):format(c:byte())
end

--- The string with nothing in it that a terminal would act on: control bytes, C1 controls and marks that change the
-- direction of writing are spelled out.
-- @param with_tabs whether tabs stay, for a line that somebody wrote to be read
function M.printable(s, with_tabs)
    return spell(M.utf8(s):gsub(with_tabs and '[^%C\t]' or '%c', escape_byte), '\\x%02x')
end

return M
