-- A load generator in luv's loop. Every request ends in exactly one of these:
--   ok       a complete answer with status 200 (and the wanted body)
--   bad      a complete answer that is not that, or one that was cut off
--   reset    the connection was reset
--   refused  it was not even made
--   empty    it was closed before a byte of the answer
--   timeout  nothing came in time
-- A kept connection that ends while it waits for its next answer says nothing about that request: as
-- every HTTP client does, it is sent once more on a new connection, and counted as `stale` besides.
-- A request that failed without a byte on a new connection, and was sent so late after it was made that a server which
-- leaves may have closed it as idle, is counted as `late` besides: this process was held up, on a busy machine.
-- Those that failed, and those slower than `slow_ms`, are also kept one by one, with the client's port,
-- so that a spec can look up where that very connection was: see connections.lua.

local uv = require 'luv'
local http = require 'spec.support.http'
local sys = require 'spec.support.sys'
local wait = require 'spec.support.wait'

sys.ignore(13) -- SIGPIPE: a client that was sent away may write still

local M = {}
M.__index = M

local OUTCOMES = { 'ok', 'bad', 'reset', 'refused', 'empty', 'timeout' }
local MAX_BODIES, MAX_KEPT = 1000, 10000
-- What is accepted has 150 ms to be read before a worker is asked to leave.
local LATE_MS = 100
local running = {} -- every load that was not stopped

--- load.start { port= | socket=, clients=8, mode='close'|'keepalive', rate= (requests a second, all
--- clients together), source= (the clients' address), path=, timeout= (ms), expect= (pattern of the body),
--- lag_ms= (it is sent up to so long after the client has connected), slow_ms=,
--- protocol= (http.lua, or fastcgi.lua) } starts at once.
function M.start(options)
    local self = setmetatable({ options = options, running = true, active = 0, waiting = {}, clients = {} }, M)
    self.counts = { total = 0, stale = 0, late = 0, max_ms = 0 }
    for _, outcome in ipairs(OUTCOMES) do
        self.counts[outcome] = 0
    end
    --- Body -> how often, and when it came last (uv.hrtime()); the first few distinct ones.
    self.bodies, self.last, self.distinct = {}, {}, 0
    self.errors = {}
    --- Of { outcome, port, ms, started, ended (uv.hrtime()) }.
    self.failures, self.slow = {}, {}
    self.target = { port = options.port, socket = options.socket, host = options.host, path = options.path,
        source = options.source }
    self.keep_alive = options.mode == 'keepalive'
    self.protocol = options.protocol or http
    self.text = self.protocol.request_text(self.target, self.keep_alive)
    self.timeout_ms = math.ceil((options.timeout or 10000) * wait.scale)
    running[self] = true
    local clients = options.clients or 8
    uv.update_time()
    self.pause_ms = options.rate and math.ceil(clients * 1000 / options.rate) or 0
    for _ = 1, clients do
        self:new_client()
    end
    return self
end

function M:new_client()
    local client = { timer = uv.new_timer() }
    self.clients[#self.clients + 1] = client
    self.waiting[client] = true
    client.timer:start(self.pause_ms > 0 and math.random(0, self.pause_ms) or 0, 0, function()
        self:request(client)
    end)
end

local function drop(client)
    if client.handle then
        if not client.handle:is_closing() then
            client.handle:close()
        end
        client.handle = nil
    end
end

-- The request of a client that has just connected.
function M:send(client)
    local handle, lag = client.handle, self.options.lag_ms
    if not lag then
        return handle:write(self.text)
    end
    local timer = uv.new_timer()
    timer:start(math.random(0, lag), 0, function()
        timer:close()
        if client.handle == handle then
            handle:write(self.text)
        end
    end)
end

function M:request(client, again)
    self.waiting[client] = nil
    if not again then
        self.active = self.active + 1
        client.started = uv.hrtime()
    end
    client.parser = self.protocol.parser()
    client.timer:start(self.timeout_ms, 0, function()
        self:ended(client, 'timeout')
    end)
    if client.handle then
        client.reused = true
        client.handle:write(self.text)
        return
    end
    client.reused, client.port, client.late = false, nil, nil
    local connecting = uv.hrtime()
    local handle
    handle = http.connect(self.target, function(err, connection)
        if client.abandoned or client.handle and client.handle ~= connection then
            return
        end
        client.handle = connection
        if err then
            self:failed(client, err)
            return
        end
        client.port = not self.target.socket and connection:getsockname().port or nil
        self:send(client)
        client.late = uv.hrtime() - connecting >= LATE_MS * 1e6
        connection:read_start(function(read_error, data)
            if client.handle == connection then
                self:received(client, read_error, data)
            end
        end)
    end)
    client.handle = client.handle or handle
end

function M:failed(client, err)
    local name = tostring(err):match '^%u+' or tostring(err)
    self.errors[name] = (self.errors[name] or 0) + 1
    self:ended(client, (name == 'ECONNRESET' or name == 'EPIPE') and 'reset' or
        (name == 'ECONNREFUSED' or name == 'ENOENT') and 'refused' or 'bad')
end

function M:received(client, err, data)
    if not client.parser then
        drop(client) -- closed while it was idle
    elseif data then
        local outcome = client.parser:feed(data)
        if outcome then
            self:ended(client, outcome)
        end
    elseif client.reused and client.parser.data == '' and not client.parser.headers then
        self.counts.stale = self.counts.stale + 1
        drop(client)
        self:request(client, true)
    elseif err then
        self:failed(client, err)
    else
        self:ended(client, client.parser:finish())
    end
end

function M:judge(parser, outcome)
    if outcome ~= 'done' then
        return outcome
    end
    if self.bodies[parser.body] or self.distinct < MAX_BODIES then
        self.distinct = self.distinct + (self.bodies[parser.body] and 0 or 1)
        self.bodies[parser.body] = (self.bodies[parser.body] or 0) + 1
        self.last[parser.body] = uv.hrtime()
    end
    local expect = self.options.expect
    return parser.status == 200 and (not expect or parser.body:find(expect)) and 'ok' or 'bad'
end

function M:ended(client, outcome)
    local parser = client.parser
    client.parser = nil
    client.timer:stop()
    outcome = self:judge(parser, outcome)
    local counts = self.counts
    if client.late and not client.reused and (outcome == 'empty' or outcome == 'reset') then
        counts.late = counts.late + 1
    end
    counts[outcome] = counts[outcome] + 1
    counts.total = counts.total + 1
    local ended = uv.hrtime()
    local ms = (ended - client.started) / 1e6
    counts.max_ms = math.max(counts.max_ms, ms)
    for _, list in ipairs { outcome ~= 'ok' and self.failures or {}, ms > (self.options.slow_ms or ms) and self.slow or {} } do
        if #list < MAX_KEPT then
            list[#list + 1] = { outcome = outcome, port = client.port, ms = ms, started = client.started,
                ended = ended }
        end
    end
    self.active = self.active - 1
    if outcome ~= 'ok' or not self.keep_alive or parser:closes() then
        drop(client)
    end
    if not self.running then
        drop(client)
        client.timer:close()
        return
    end
    self.waiting[client] = true
    -- Refused connections would otherwise be tried without a pause.
    client.timer:start(math.max(0, self.pause_ms - math.floor(ms), outcome == 'refused' and 10 or 0), 0, function()
        self:request(client)
    end)
end

--- Waits until so many requests have ended.
function M:await(total, options)
    return wait.wait_until(function()
        return self.counts.total >= total
    end, { what = ('%d requests'):format(total), timeout = options and options.timeout or 30000 })
end

--- Starts no more requests.
function M:no_more()
    self.running = false
    for client in pairs(self.waiting) do
        drop(client)
        client.timer:close()
    end
    self.waiting = {}
end

--- Starts no more requests, waits for those that run, and returns the counts: a table with the
--- outcomes above, total, stale, max_ms, failed (all that are not ok) and text (all of it, to print).
function M:stop()
    self:no_more()
    wait.wait_until(function()
        return self.active == 0
    end, { what = 'the last requests', timeout = self.timeout_ms + 1000 })
    wait.turn()
    running[self] = nil
    local counts, parts = self.counts, {}
    counts.failed = counts.total - counts.ok
    for _, name in ipairs { 'total', 'failed', 'ok', 'bad', 'reset', 'refused', 'empty', 'timeout', 'stale', 'late' } do
        parts[#parts + 1] = ('%s %d'):format(name, counts[name])
    end
    for name, count in pairs(self.errors) do
        parts[#parts + 1] = ('%s %d'):format(name, count)
    end
    for i = 1, math.min(#self.failures, 5) do
        local failure = self.failures[i]
        local ago = (uv.hrtime() - failure.ended) / 1e9
        parts[#parts + 1] = ('%s after %d ms at %s'):format(failure.outcome, failure.ms,
            os.date('!%H:%M:%S', math.floor(os.time() - ago)))
    end
    counts.text = table.concat(parts, ', ') .. (', slowest %d ms'):format(counts.max_ms)
    return counts
end

--- Ends the loads that a failed spec has left behind. A connect that is under way when the interpreter ends is called
-- back after its timer is gone, of which luv dies.
function M.cleanup()
    for self in pairs(running) do
        for _, client in ipairs(self.clients) do
            client.abandoned = true
            drop(client)
            if not client.timer:is_closing() then
                client.timer:close()
            end
        end
    end
    running = {}
    wait.turn()
end

return M
