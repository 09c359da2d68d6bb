--- `require 'dutch-master.http'`: an HTTP/1.1 server on lua-http (Debian's lua-http), which does the
--- protocol. What is added here is the behaviour of a worker: the socket comes from the master, and
--- leaving loses no request.
--
--     http.serve(8000, function(request, response)
--         response:send('Hello ' .. request.path .. '\n')
--     end)

-- What is not in the binary: its absence is no reason for a list of twenty paths.
local function installed(name)
    local ok, module = pcall(require, name)
    if not ok and tostring(module):find(("module '%s' not found"):format(name), 1, true) then
        error(("dutch-master.http needs lua-http (on Debian: apt-get install lua-http): there is no module '%s'")
            :format(name), 0)
    end
    return ok and module or error(module, 0)
end

local cqueues = installed 'cqueues'
local errno = installed 'cqueues.errno'
local socket = installed 'cqueues.socket'
local http_server = installed 'http.server'
local new_headers = installed('http.headers').new

local descriptors = require 'dutch-master.descriptors'
local mend = require 'dutch-master.http_stream'
local metrics = require 'dutch-master.metrics'
local worker = require 'dutch-master.worker'

local M = {}

-- A connection that has just answered, or has just come, is likely to send a request at any
-- moment: to close it then would lose that request. One that is quiet for this long is closed.
local LINGER_S = 1
-- For a request's header fields, from their first byte on.
local HEADER_S = 10

-- Request

local Request = {}
Request.__index = Request

--- The value of a header, by its name in lower case; nil if there is none.
function Request:header(name)
    return self.headers:get(name)
end

--- The whole body as a string; nil, message if the client does not send it.
function Request:body(timeout_s)
    if (self.headers:get 'expect' or ''):lower() == '100-continue' then
        self.stream:write_continue()
    end
    return self.stream:get_body_as_string(timeout_s)
end

local function new_request(stream, headers)
    return setmetatable({
        stream = stream,
        headers = headers,
        method = headers:get ':method',
        path = headers:get ':path' or '',
    }, Request)
end

-- Response

local Response = {}
Response.__index = Response

--- Sets a header.
function Response:header(name, value)
    self.headers:upsert(name:lower(), tostring(value))
    return self
end

function Response:start(length)
    self.started = true
    self.headers:upsert(':status', tostring(self.status))
    if length then
        self.headers:upsert('content-length', tostring(length))
    end
    if not self.headers:has 'content-type' then
        self.headers:append('content-type', 'text/plain; charset=utf-8')
    end
    if worker.draining then
        self.headers:upsert('connection', 'close')
    end
    self.empty = self.method == 'HEAD' or self.status == 204 or self.status == 304
    return self.stream:write_headers(self.headers, self.empty)
end

--- Sends the whole answer, with `response.status` (200) and the headers set before.
function Response:send(body)
    body = body or ''
    local length = self.status ~= 204 and self.status ~= 304 and #body or nil
    local ok, message = self:start(length)
    if ok and not self.empty then
        ok, message = self.stream:write_chunk(body, true)
    end
    self.finished, self.whole = true, ok
    return ok, message
end

--- Sends a piece of an answer whose length is not known before; finish() ends it.
function Response:write(piece)
    if not self.started then
        local ok, message = self:start()
        if not ok then
            return nil, message
        end
    end
    if self.empty or piece == '' then
        return true
    end
    return self.stream:write_chunk(piece, false)
end

--- Ends an answer begun with write().
function Response:finish()
    if self.finished then
        return true
    elseif not self.started then
        return self:send ''
    end
    self.finished = true
    self.whole = self.empty or self.stream:write_chunk('', true)
    return self.whole
end

local function new_response(stream, method)
    return setmetatable({ stream = stream, method = method, headers = new_headers(), status = 200 }, Response)
end

-- Server

local function warn(...)
    io.stderr:write('dutch-master: worker: http: ', ...)
    io.stderr:write '\n'
end

local function answer(stream, handler)
    mend(stream)
    local headers = stream:get_headers(HEADER_S)
    if not headers then
        return -- the client has gone, or is no client of HTTP
    end
    local measured = metrics.begin()
    local request = new_request(stream, headers)
    local response = new_response(stream, request.method)
    local ok, message = xpcall(function()
        handler(request, response)
        response:finish()
    end, function(err)
        return debug.traceback(tostring(err))
    end)
    if not ok then
        warn(message)
        if not response.started then
            response = new_response(stream, request.method)
            response.status = 500
            response:send 'Internal Server Error\n'
        end
    end
    measured(response.whole and response.status or nil)
end

-- What is open: cqueues socket -> { busy = requests being answered, since = when it became idle }.
local function follow_connections(server)
    local connections = setmetatable({}, { __mode = 'k' })
    local add_socket = server.add_socket
    function server:add_socket(connection)
        connections[connection] = { busy = 0, since = cqueues.monotime() }
        return add_socket(self, connection)
    end
    return connections
end

-- Shuts the reading side of those that are idle; what they have already sent is still answered.
local function close_idle(connections)
    local now = cqueues.monotime()
    for connection, state in pairs(connections) do
        if state.busy == 0 and not state.shut and now - state.since >= LINGER_S then
            state.shut = true
            -- It throws if the socket has been closed already, and nothing tells beforehand.
            pcall(connection.shutdown, connection, 'r')
        end
    end
end

local function drain(server, connections, release)
    while server.n_connections > 0 do
        close_idle(connections)
        cqueues.poll(server.connection_done, LINGER_S / 10)
    end
    release()
end

local function new_server(listening, handler)
    local connections
    local server = http_server.new {
        socket = listening,
        tls = false,
        version = 1.1,
        onstream = function(_, stream)
            local state = connections[stream.connection.socket] or { busy = 0 }
            state.busy = state.busy + 1
            answer(stream, handler)
            state.busy = state.busy - 1
            state.since = cqueues.monotime()
        end,
        onerror = function(_, _, op, err, code)
            warn(op, code == errno.EILSEQ and ': a request that cannot be read' or err and ': ' .. tostring(err) or '')
        end,
    }
    connections = follow_connections(server)
    return server, connections
end

--- Serves HTTP at `where` (as in worker.listen): handler(request, response) runs for each request in
--- a coroutine of cqueues, so it may wait without stopping the others. Returns the worker's server. An
--- address that cannot be had is an error: an app that did not look would live on and serve nobody.
--- When the worker is to leave, answers say "Connection: close", idle connections are closed, and what
--- is being answered is finished.
function M.serve(where, handler)
    local listener, message = worker.listen(where)
    if not listener then
        error('http.serve: ' .. message, 2)
    end
    -- cqueues would clear SO_REUSEPORT, which takes the socket out of its group.
    local listening = assert(socket.fdopen { fd = assert(descriptors.duplicate(listener.fd)), reuseport = true })
    local server, connections = new_server(listening, handler)
    -- Here, not at the first accept: it sets the socket's backlog, and the master puts that right when it hears of the
    -- worker, but takes it for damage later.
    assert(server:listen(0))
    local loop = worker.attach(server)

    listener:on_handed_over(function(fd)
        server:add_socket(assert(socket.fdopen { fd = fd, nodelay = true }))
        loop.wake()
    end)
    listener:on_close(function()
        local release = worker.hold()
        server.socket = nil
        server:pause()
        listening:close()
        server.cq:wrap(drain, server, connections, release)
        loop.wake()
    end)
    return listener:listening()
end

return M
