-- A server of a Lua worker: one listening socket, which the master owns and has lent.
-- Closing it here never closes the port: the master's own descriptor stays open.

local uv = require 'luv'

local wire = require 'dutch-master.descriptors'

local Server = {}
Server.__index = Server

-- What Node uses as well. The master may say otherwise in its answer.
local BACKLOG = 511
-- Of what accept() says: nobody waits, or not any more. Else there is no room for a connection: the
-- others may have it meanwhile.
local FLEETING = { EAGAIN = true, ECONNABORTED = true, EINTR = true, EPROTO = true }
local PAUSE_MS = 100

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

local function rest(self)
    self.poll:stop()
    self.pause:start(PAUSE_MS, 0, self.watch)
end

-- Takes one connection, if others have left one.
local function take(self)
    self.check:stop()
    local fd, _, code = wire.accept(self.fd)
    local connection = fd and self:new_handle()
    if fd and connection:open(fd) then
        self.link.track(connection)
        self.on_connection(connection)
    elseif fd then
        wire.close(fd)
        connection:close()
    elseif not FLEETING[code] then
        rest(self)
    end
end

--- Accepts connections: fn(connection) gets each as a luv handle, also those which the master
--- hands over from a worker that could not serve them. The worker does not leave before they are
--- closed.
-- One in each turn of the loop, and not before the rest of the turn is done: what is accepted waits
-- for this worker alone, however long a request takes; what is not, the master can give to others.
-- So libuv does not accept here: it would have the next one before it reads the requests.
function Server:accept(fn)
    self.on_connection = fn
    self.check, self.pause, self.poll = uv.new_check(), uv.new_timer(), uv.new_poll(self.fd)
    for _, handle in ipairs { self.check, self.pause, self.poll } do
        self.handles[#self.handles + 1] = handle
    end
    local function due()
        take(self)
    end
    function self.watch()
        self.poll:start('r', function(err)
            if err then -- libuv watches no more
                return rest(self)
            end
            self.check:start(due)
        end)
    end
    self.watch()
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
