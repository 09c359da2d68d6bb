-- A server of a Lua worker: one listening socket, which the master owns and has lent.
-- Closing it here never closes the port: the master's own descriptor stays open.

local uv = require 'luv'

local wire = require 'dutch-master.descriptors'

local Server = {}
Server.__index = Server

-- What Node uses as well. The master may say otherwise in its answer.
local BACKLOG = 511

--- Used by worker.listen. `fields`: address, fd or handle, key, backlog; `link`: announce(server),
--- closed(server), track(handle).
function Server.new(fields, link)
    fields.link = link
    fields.backlog = fields.backlog or BACKLOG
    fields.on_close_callbacks = {}
    fields.handles = {}
    local self = setmetatable(fields, Server)
    self:find_name()
    return self
end

-- The name the socket really has: port 0 becomes a number.
function Server:find_name()
    if self.address.path then
        self.path = self.address.path
        return
    end
    local name = self.own and self.own:getsockname()
    if name then
        self.host, self.port = name.ip, name.port
    else
        local host, port = wire.name(self.fd)
        self.host, self.port = host, port
    end
end

function Server:new_handle()
    return self.path and uv.new_pipe(false) or uv.new_tcp()
end

--- Says that the worker accepts connections here; the master counts it as ready. accept() and
--- tcp() do it by themselves; a program that uses `server.fd` in its own way calls it.
function Server:listening()
    if self.closed or self.announced then
        return self
    end
    self.announced = true
    if not wire.is_listening(self.fd) then
        assert(wire.listen(self.fd, self.backlog))
    end
    self.link.announce(self)
    return self
end

--- A luv handle (uv_tcp_t, or uv_pipe_t for a unix path) on the socket, for handle:listen(backlog,
--- callback). It is closed with the server. Its connections are the program's own business: the
--- worker leaves when the last handle is closed, or at worker.leave().
function Server:tcp()
    self.unmanaged = true
    local handle = self:raw_handle()
    self:listening()
    return handle
end

function Server:raw_handle()
    local handle = self.own
    if not handle then
        handle = self:new_handle()
        assert(handle:open(assert(wire.duplicate(self.fd))))
    end
    self.handles[#self.handles + 1] = handle
    return handle
end

-- Takes the connection that the loop has brought.
local function take(self)
    local connection = self:new_handle()
    self.brought = false
    self.check:stop()
    if self.handle:accept(connection) then
        self.link.track(connection)
        self.on_connection(connection)
    else
        connection:close()
    end
end

--- Accepts connections: fn(connection) gets each as a luv handle, also those which the master
--- hands over from a worker that could not serve them. The worker does not leave before they are
--- closed.
-- One in each turn of the loop, and not before the rest of the turn is done (the loop brings no
-- other until then): what is accepted waits for this worker alone, however long a request takes;
-- what is not, the master can give to others.
function Server:accept(fn)
    self.on_connection = fn
    self.handle, self.check = self:raw_handle(), uv.new_check()
    self.handles[#self.handles + 1] = self.check
    assert(self.handle:listen(self.backlog, function(err)
        if not err and not self.closed then
            self.brought = true
            self.check:start(function()
                take(self)
            end)
        end
    end))
    return self:listening()
end

--- For a program with its own way of accepting: fn(fd) gets the connections that the master hands
--- over, non-blocking, to be closed by fn. To be said before listening() or tcp(): the master does
--- not hand over anything to a server that has not.
function Server:on_handed_over(fn)
    self.on_fd = fn
    return self
end

--- Whether there is somebody to hand a connection over to.
function Server:takes_connections()
    return self.on_fd ~= nil or self.on_connection ~= nil
end

-- A connection that the master has accepted. False if nobody here takes it: the master then gives
-- it to another worker.
function Server:hand_over(fd)
    if self.closed or not self:takes_connections() then
        return false
    elseif self.on_fd then
        return true, function()
            self.on_fd(fd)
        end
    end
    local connection = self:new_handle()
    if not connection:open(fd) then
        connection:close()
        return false
    end
    return true, function()
        self.link.track(connection)
        self.on_connection(connection)
    end
end

--- Calls fn(server) when the server closes, by close() or because the worker is to leave.
function Server:on_close(fn)
    table.insert(self.on_close_callbacks, fn)
    return self
end

--- Stops accepting. Connections that are open stay open.
function Server:close()
    if self.closed then
        return
    end
    if self.brought then
        take(self)
    end
    self.closed = true
    for _, handle in ipairs(self.handles) do
        if not handle:is_closing() then
            handle:close()
        end
    end
    if self.own then
        if not self.own:is_closing() then
            self.own:close()
        end
    else
        wire.close(self.fd)
    end
    self.fd = nil
    self.link.closed(self)
    for _, fn in ipairs(self.on_close_callbacks) do
        fn(self)
    end
end

return Server
