--- tls.lua: as much of TLS as it takes to see that somebody speaks it: a greeting, and what kind of answer came. Pure.
-- No key is agreed on: a page cannot be asked for so.

local M = {}

local function u16(number)
    return string.char(math.floor(number / 256), number % 256)
end

local function sized(text)
    return u16(#text) .. text
end

local function extension(number, body)
    return u16(number) .. sized(body)
end

-- TLS 1.3 and 1.2, the usual suites and curves. Without a key share: a server of 1.3 asks for one, which is an answer.
local function hello()
    local suites = '\x13\x01\x13\x02\x13\x03\xc0\x2b\xc0\x2f\xc0\x2c\xc0\x30\xc0\x13\xc0\x14\x00\x9c'
    local signatures = '\x04\x03\x08\x04\x04\x01\x05\x03\x08\x05\x05\x01\x08\x06\x06\x01\x08\x07'
    local extensions = extension(10, sized '\0\x1d\0\x17') .. extension(11, '\1\0')
        .. extension(13, sized(signatures)) .. extension(43, '\4\3\4\3\3') .. extension(51, '\0\0')
    local body = '\3\3' .. ('\x44'):rep(32) .. '\0' .. sized(suites) .. '\1\0' .. sized(extensions)
    local handshake = '\1\0' .. u16(#body) .. body
    return '\x16\3\1' .. sized(handshake)
end

--- The greeting.
M.HELLO = hello()

--- What an answer to it shows.
-- @return 'answered', 'refused' (an alert), or nil if it is no TLS
function M.answer(text)
    local kind = text:match '^([\x15\x16])\3'
    return kind and (kind == '\x16' and 'answered' or 'refused')
end

return M
