-- The peer that a Node app is measured against: the same app under Node's own cluster.
local uv = require 'luv'

local M = {}
local Stock = {}
Stock.__index = Stock

local PRIMARY = uv.cwd() .. '/spec/support/nodejs/stock_primary.cjs'

--- Starts it. options: binary (of node), dir (where app.js is), workers (2), env {NAME = value}, again (a worker that
--- ends is replaced), on_line(text) (what its workers print).
function M.start(options)
    local self = setmetatable({ lines = {} }, Stock)
    local env = uv.os_environ()
    for name, value in pairs(options.env or {}) do
        env[name] = value
    end
    for _, name in ipairs { 'NODE_CHANNEL_FD', 'NODE_UNIQUE_ID', 'NODE_CHANNEL_SERIALIZATION_MODE' } do
        env[name] = nil
    end
    local list = {}
    for name, value in pairs(env) do
        list[#list + 1] = name .. '=' .. value
    end
    local out = uv.new_pipe(false)
    local err
    self.process, err = uv.spawn(options.binary, {
        args = { PRIMARY, options.dir .. '/app.js', tostring(options.workers or 2),
            options.again and 'again' or '' },
        env = list, cwd = options.dir, stdio = { nil, out, 2 }, detached = true, -- a group of its own, for stop()
    }, function()
        self.ended = true
    end)
    assert(self.process, err)
    local rest = ''
    out:read_start(function(_, data)
        rest = rest .. (data or '')
        for line in rest:gmatch '([^\n]*)\n' do
            self.lines[#self.lines + 1] = line
        end
        rest = rest:match '([^\n]*)$'
        if not data then
            out:close()
            self.closed = true
        end
    end)
    return self
end

--- What its workers have printed, sorted, once there are so many lines; then it ends.
function Stock:says(wait, count)
    wait.wait_until(function() return #self.lines >= count end, { what = 'the stock cluster' })
    self:stop(wait)
    table.sort(self.lines)
    return self.lines
end

--- Ends it, primary and workers.
function Stock:stop(wait)
    uv.kill(-self.process:get_pid(), 'sigkill')
    wait.wait_until(function()
        return self.ended and self.closed
    end, { what = 'the stock cluster to end' })
    self.process:close()
end

return M
