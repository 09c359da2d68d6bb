-- A small HTTP client in luv's loop, with a parser of answers that tells how each one ended.
-- Only what specs need; it takes nothing on trust from the server.

local uv = require 'luv'
local wait = require 'spec.support.wait'

local M = {}

-- Answers

local Parser = {}
Parser.__index = Parser

--- Collects one answer. feed(data) -> 'done' | 'bad' | nil while more is needed.
function M.parser(method)
    return setmetatable({ data = '', method = method or 'GET' }, Parser)
end

function Parser:read_head()
    local first, last = self.data:find('\r\n\r\n', 1, true)
    if not first then
        return nil
    end
    local head = self.data:sub(1, first + 1)
    self.data = self.data:sub(last + 1)
    self.status = tonumber(head:match '^HTTP/1%.[01] (%d%d%d)')
    self.headers = {}
    for name, value in head:gmatch '\n([^:\r\n]+):[ \t]*([^\r\n]*)' do
        self.headers[name:lower()] = value
    end
    self.body = ''
    return true
end

function Parser:read_chunks()
    while true do
        local size, rest = self.data:match '^(%x+)[^\r\n]*\r\n()'
        if not size then
            return nil
        end
        size = tonumber(size, 16)
        if #self.data < rest + size + 1 then
            return nil
        end
        self.body = self.body .. self.data:sub(rest, rest + size - 1)
        self.data = self.data:sub(rest + size + 2)
        if size == 0 then
            return 'done'
        end
    end
end

function Parser:feed(data)
    self.data = self.data .. data
    if not self.headers and not self:read_head() then
        return nil
    end
    if not self.status then
        return 'bad'
    elseif self.status < 200 then
        self.headers = nil
        return self:feed ''
    end
    local length = tonumber(self.headers['content-length'])
    if self.method == 'HEAD' or self.status == 204 or self.status == 304 then
        return 'done'
    elseif (self.headers['transfer-encoding'] or ''):lower() == 'chunked' then
        return self:read_chunks()
    elseif length then
        self.body = self.data:sub(1, length)
        return #self.data >= length and 'done' or nil
    end
    self.until_close = true
    self.body = self.data
    return nil
end

--- What the end of the stream means: 'done', 'empty' (not a byte came) or 'bad' (cut off).
function Parser:finish()
    if self.until_close then
        return 'done'
    end
    return not self.headers and self.data == '' and 'empty' or 'bad'
end

--- True if the connection is of no further use.
function Parser:closes()
    return self.until_close or (self.headers['connection'] or ''):lower():find('close', 1, true) ~= nil
end

-- One request

--- Connects to { port=, host= } (from the address `source`) or { socket = path }: fn(err, handle).
function M.connect(target, fn)
    local handle
    if target.socket then
        handle = uv.new_pipe(false)
        handle:connect(target.socket, function(err) fn(err, handle) end)
    else
        handle = uv.new_tcp()
        if target.source then
            assert(handle:bind(target.source, 0))
        end
        local ok, err = handle:connect(target.host or '127.0.0.1', target.port, function(e) fn(e, handle) end)
        if not ok then
            fn(err, handle)
        end
    end
    return handle
end

local function parse_url(url)
    if type(url) == 'table' then
        return url
    end
    local host, port, path = url:match '^http://([^:/]+):?(%d*)(.*)$'
    return { host = host == 'localhost' and '127.0.0.1' or host, port = tonumber(port) or 80, path = path }
end

--- The text of a request.
function M.request_text(target, keep_alive)
    local path = target.path and target.path ~= '' and target.path or '/'
    return ('%s %s HTTP/1.1\r\nHost: %s\r\n%s%s\r\n%s'):format(target.method or 'GET', path, target.name or 'spec',
        keep_alive and '' or 'Connection: close\r\n',
        target.body and ('Content-Length: %d\r\n'):format(#target.body) or '', target.body or '')
end

--- One request on a connection of its own: url or { port=, socket=, source=, path=, method=, body=, timeout= }
--- -> status, body, headers, or nil, what went wrong.
function M.get(url)
    local target = parse_url(url)
    local parser = M.parser(target.method)
    local outcome
    local handle = M.connect(target, function(err, connection)
        if err then
            outcome = err
            return
        end
        connection:write(M.request_text(target))
        connection:read_start(function(read_error, data)
            outcome = outcome or read_error or (data and parser:feed(data)) or (not data and parser:finish()) or nil
        end)
    end)
    wait.try(function() return outcome end, target)
    if not handle:is_closing() then
        handle:close()
    end
    wait.turn()
    if outcome ~= 'done' then
        return nil, outcome or 'timeout'
    end
    return parser.status, parser.body, parser.headers
end

local given = {} -- what free_port said, for masters that are started side by side

--- A TCP port that was free a moment ago, below the range of outgoing connections.
function M.free_port()
    for _ = 1, 1000 do
        local port = math.random(20000, 32000)
        local handle = uv.new_tcp()
        local ok = handle:bind('::', port) and handle:listen(1, function() end)
        handle:close()
        wait.turn()
        if ok and not given[port] then
            given[port] = true
            return port
        end
    end
    error 'no free port'
end

math.randomseed(tonumber(tostring(uv.hrtime()):sub(-9)) + uv.os_getpid())

--- Begins one request. @return function() -> 'done' or what went wrong, nil: neither yet; the body
function M.begin(options)
    local parser, outcome, handle = M.parser(), nil, nil
    handle = M.connect(options, function(err, connection)
        assert(not err, err)
        connection:write(M.request_text(options))
        connection:read_start(function(failed, data)
            outcome = outcome or failed or (data and parser:feed(data)) or (not data and parser:finish()) or nil
            if outcome and not handle:is_closing() then
                handle:close()
            end
        end)
    end)
    return function()
        return outcome, parser.body
    end
end

return M
