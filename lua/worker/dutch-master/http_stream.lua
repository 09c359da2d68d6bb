-- Mends a stream of lua-http 0.4, on the server's side. There a length below zero is thrown where nobody catches it,
-- and one that is none is answered with 503. A request whose client leaves in the middle of its body passes for a whole
-- one, and the end of a stream whose body nobody has read looks for the rest for ever, in a loop that never waits.
-- Here all of that is an error of the connection: the former are answered with 400, and so is a request that has no end
-- or two.

local errno = require 'cqueues.errno'

local h1 = require('http.h1_stream').methods

local function failed(code)
    return nil, errno.strerror(code), code
end

-- Two ways to say where a body ends, one that another server may read in another way, or none (RFC 9112, 6.1, 6.3).
local function is_ambiguous(headers)
    local length, again = headers:get 'content-length'
    local coding = headers:get_comma_separated 'transfer-encoding'
    if coding then
        return length ~= nil or not (',' .. coding):lower():find '[,%s]chunked%s*$'
    end
    return again ~= nil or length ~= nil and not (length:find '^%d+$' and #length <= 15)
end

local mended = {}

function mended:read_headers(timeout)
    local ok, headers, message, code = pcall(h1.read_headers, self, timeout)
    local is_bad = headers and headers:has ':method' and is_ambiguous(headers)
        or not headers and message and not code -- no error of the socket: it cannot be read
    if ok and not is_bad then
        return headers, message, code
    end
    self.is_bad = true
    self.connection.socket:seterror('r', errno.EILSEQ)
    return failed(errno.EILSEQ)
end

function mended:read_next_chunk(timeout)
    if self.is_bad then
        return failed(errno.EILSEQ)
    end
    local chunk, message, code = h1.read_next_chunk(self, timeout)
    if chunk == nil and message == nil and self.body_read_type == 'length' and self.body_read_left > 0 then
        return failed(errno.EPIPE)
    end
    return chunk, message, code
end

return function(stream)
    for name, method in pairs(mended) do
        stream[name] = method
    end
end
