-- Load by other people's clients: wrk and autocannon, as child processes, counted by what they themselves say.
--
-- Both send the next request the moment an answer has come. wrk keeps to HTTP: after an answer with `Connection: close`
-- it connects anew, and whatever ends a connection otherwise is a socket error to it. autocannon writes on until the
-- connection has ended, and what it then asks again it does not count: it is the client that does not listen.

local cjson = require 'cjson'
local uv = require 'luv'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local M = {}

local Tool = {}
Tool.__index = Tool

local function start(name, file, args, signal, read)
    local self = setmetatable({ name = name, text = '', signal = signal, read = read }, Tool)
    local out = uv.new_pipe(false)
    self.process = assert(uv.spawn(file, { args = args, stdio = { nil, out, 2 } }, function()
        self.ended = true
        self.process:close()
    end))
    out:read_start(function(_, data)
        self.text = self.text .. (data or '')
        if not data then
            out:close()
            self.read_all = true
        end
    end)
    return self
end

--- Ends it. -> { ok, failed, text }; fails if it ended before, or said nothing that can be counted.
function Tool:stop()
    assert(not self.ended, ('%s ended by itself: %s'):format(self.name, self.text))
    self.process:kill(self.signal)
    wait.wait_until(function() return self.ended and self.read_all end, { what = self.name .. ' to end', timeout = 15000 })
    local counts = assert(self.read(self.text), ('%s said: %s'):format(self.name, self.text))
    counts.text = ('%s: %d ok, %d failed (%s)'):format(self.name, counts.ok, counts.failed, self.text:gsub('%s+', ' '))
    return counts
end

local function read_wrk(text)
    local total = tonumber(text:match '(%d+) requests in')
    if not total then
        return nil
    end
    local connect, read, write, timeout = text:match 'Socket errors: connect (%d+), read (%d+), write (%d+), timeout (%d+)'
    local failed = tonumber(text:match 'Non%-2xx or 3xx responses: (%d+)' or 0)
    for _, count in ipairs { connect or 0, read or 0, write or 0, timeout or 0 } do
        failed = failed + tonumber(count)
    end
    return { ok = total, failed = failed }
end

--- wrk with so many connections. mode 'close': a connection for each request.
function M.wrk(port, mode, connections)
    local args = { '-t1', '-c' .. connections, '-d3600s', '--timeout', '10s', ('http://127.0.0.1:%d/'):format(port) }
    if mode == 'close' then
        table.insert(args, 1, '-H')
        table.insert(args, 2, 'Connection: close')
    end
    return start('wrk ' .. mode, 'wrk', args, 'sigint', read_wrk)
end

--- autocannon, run by the given Node. Its modules must be there (versions.modules 'autocannon').
function M.autocannon(port, binary, connections)
    local args = {
        uv.cwd() .. '/spec/support/nodejs/autocannon.cjs', versions.modules 'autocannon',
        ('http://127.0.0.1:%d/'):format(port), tostring(connections),
    }
    return start('autocannon', binary, args, 'sigterm', function(text)
        local ok, counts = pcall(cjson.decode, text)
        return ok and counts or nil
    end)
end

return M
