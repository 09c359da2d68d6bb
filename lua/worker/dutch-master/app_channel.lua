-- The worker's end of the channel: lines of JSON to and from the master, some with a descriptor.
-- Owns the channel's descriptor and those that arrived and were not yet given away.

local uv = require 'luv'
local cjson = require('cjson').new()
local wire = require 'dutch-master.wire'

cjson.encode_max_depth(64)
cjson.decode_max_depth(64)

-- The master closes the channel of a worker that sends a longer line.
local MAX_LINE = 8 * 1024 * 1024
-- Reads for one wake-up, 64 KiB each: the worker's clients get their turn too.
local READS_A_TURN = 16

local Channel = {}
Channel.__index = Channel

Channel.null = cjson.null

--- Opens the channel on descriptor `fd`. `on_message(message, take_fd)` gets each message;
--- take_fd() gives the descriptor that came along, which is then the caller's. `on_close()` is
--- called once, when the master has gone.
function Channel.open(fd, on_message, on_close)
    assert(wire.open(fd))
    local self = setmetatable({
        fd = fd,
        on_message = on_message,
        on_close = on_close,
        rest = {},
        fds = {},
        out = {},
        poll = uv.new_poll(fd),
    }, Channel)
    self:watch()
    return self
end

--- True as long as the master can be reached.
function Channel:is_open()
    return self.fd ~= nil
end

function Channel:watch()
    self.poll:start(#self.out > 0 and 'rw' or 'r', function(err, events)
        if err then
            return self:close()
        end
        if events:find('w', 1, true) then
            self:write()
        end
        if self.fd and events:find('r', 1, true) then
            self:read()
        end
    end)
    -- What is queued must get out before the loop may end.
    if self.unreferenced and #self.out == 0 then
        self.poll:unref()
    else
        self.poll:ref()
    end
end

--- Lets the loop end although the channel is open.
function Channel:unref()
    self.unreferenced = true
    if self.fd then
        self:watch()
    end
end

function Channel:read()
    for _ = 1, READS_A_TURN do
        local data, fds, code = wire.receive(self.fd)
        if data == nil and code == 'EAGAIN' then
            return
        elseif not data then
            return self:close()
        end
        for _, fd in ipairs(fds or {}) do
            self.fds[#self.fds + 1] = fd
        end
        self:split(data)
        if not self.fd then
            return
        end
    end
end

function Channel:split(data)
    local first = 1
    while true do
        local newline = data:find('\n', first, true)
        if not newline then
            break
        end
        local line = data:sub(first, newline - 1)
        if #self.rest > 0 then
            self.rest[#self.rest + 1] = line
            line, self.rest = table.concat(self.rest), {}
        end
        self:receive(line)
        first = newline + 1
    end
    if first <= #data then
        self.rest[#self.rest + 1] = data:sub(first)
    end
end

function Channel:receive(line)
    local ok, message = pcall(cjson.decode, line)
    if not ok then
        io.stderr:write('dutch-master: worker: unreadable message from the master: ', message, '\n')
        return
    end
    self.on_message(message, function()
        return table.remove(self.fds, 1)
    end)
end

--- Queues a message. Throws if it cannot be written as JSON.
function Channel:send(message)
    local line = cjson.encode(message) .. '\n'
    if not self.fd then
        return nil, 'the master is gone', 'EPIPE'
    elseif #line > MAX_LINE then
        return nil, ('a message may have %d bytes, this one has %d'):format(MAX_LINE, #line), 'EMSGSIZE'
    end
    self.out[#self.out + 1] = line
    if #self.out == 1 then
        self:write()
    end
    return true
end

function Channel:write()
    while #self.out > 0 do
        local line = self.out[1]
        local sent, _, code = wire.send(self.fd, line)
        if not sent then
            if code ~= 'EAGAIN' then
                -- What the master has sent before it went is still to be read: its end is seen there.
                self.out = {}
            end
            break
        elseif sent < #line then
            self.out[1] = line:sub(sent + 1)
        else
            table.remove(self.out, 1)
        end
    end
    self:watch()
    if #self.out == 0 then
        self:flushed()
    end
end

function Channel:flushed()
    local on_flushed = self.on_flushed
    self.on_flushed = nil
    if on_flushed then
        on_flushed()
    end
end

--- Calls fn() when everything queued is in the kernel's hands, or can never be.
function Channel:flush(fn)
    if not self.fd or #self.out == 0 then
        return fn()
    end
    self.on_flushed = fn
end

--- Closes it; a later send fails.
function Channel:close()
    if not self.fd then
        return
    end
    local fd = self.fd
    self.fd = nil
    self.out = {}
    for _, other in ipairs(self.fds) do
        wire.close(other)
    end
    self.fds = {}
    self.poll:stop()
    -- Closed only when libuv no longer watches it.
    self.poll:close(function()
        wire.close(fd)
    end)
    self:flushed()
    self.on_close()
end

return Channel
