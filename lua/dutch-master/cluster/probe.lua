--- probe.lua: asks one worker for a page over HTTP, again and again, by a connection that reaches nobody else. What
-- comes of it is its owner's matter: whether the worker is ready, or still alive.
--
-- One question at a time. It waits in the worker's queue for as long as nobody accepts it: a worker that starts slowly
-- finds one there, not one for each attempt.

local Probe = {}
Probe.__index = Probe

-- The first line is read, and nothing longer than this.
local READ_MAX = 65536
-- When too many other workers are being asked.
local BUSY_MS = 20

--- @param options {platform, sockets, id (the worker's), rule = {path, port, host, interval_ms, timeout_ms},
--   on_result = function(result)}: result {words, status (if it answered HTTP), good = it was 2xx or 3xx, address}
function Probe.new(options)
    local self = setmetatable(options, Probe)
    self.interval_ms = self.rule.interval_ms
    self.timer = self.platform.timer(function()
        if self.dial then
            self:overdue()
        else
            self:ask()
        end
    end)
    return self
end

-- That of all interfaces is no name of a host, and an empty name ("Host: :8000") is refused by many servers.
local function host_of(address)
    local port = address:match '^:(%d+)$' or address:match '^0%.0%.0%.0:(%d+)$' or address:match '^%[::%]:(%d+)$'
    return port and 'localhost:' .. port or address
end

local function request(self, address)
    return ('GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: dutch-master\r\nConnection: close\r\n\r\n'):format(
        self.rule.path, self.rule.host or host_of(address))
end

local function hang_up(self)
    if self.dial then
        self.dial:close()
        self.dial = nil
    end
end

-- The end of one question, whatever came of it; the next one follows.
local function conclude(self, words, status)
    local rotation = self.rotation
    hang_up(self) -- before its rule is gone: nothing of it may reach another worker
    if status and not rotation:probed(self.id) then
        words, status = ('GET %s may have been answered by another worker'):format(self.rule.path), nil
    elseif rotation then
        rotation:unprobe(self.id)
    end
    self.rotation = nil
    self.timer:start(status and self.interval_ms or math.min(self.interval_ms, self.rule.interval_ms))
    self.on_result { words = words, status = status, good = status ~= nil and status >= 200 and status < 400,
        address = rotation and rotation.address.text }
end

local function read(self, data)
    self.seen = self.seen .. data
    local line = self.seen:match '^([^\r\n]*)\r?\n'
    if not line and #self.seen <= READ_MAX then
        return
    end
    local status = line and tonumber(line:match '^HTTP/%d%.?%d* (%d%d%d)%f[^%d]')
    if status then
        conclude(self, ('GET %s answered %d'):format(self.rule.path, status), status)
    else
        conclude(self, ('GET %s was not answered in HTTP'):format(self.rule.path))
    end
end

local function ended(self, message)
    conclude(self, ('GET %s: %s'):format(self.rule.path, message or 'the connection was closed without an answer'))
end

--- Asks, now.
function Probe:ask()
    local rotation, why = self.sockets:probe_target(self.id, self.rule.port)
    if not rotation then
        return conclude(self, why)
    end
    local dial, message = self.platform.dial(rotation.address.text, {
        on_data = function(data)
            read(self, data)
        end,
        on_end = function(reason)
            ended(self, reason)
        end,
    })
    if not dial then
        return conclude(self, message)
    end
    self.dial, self.seen = dial, ''
    local ok, no, code = rotation:probe(self.id, dial:port())
    if code == 'EAGAIN' then
        hang_up(self)
        return self.timer:start(BUSY_MS)
    elseif ok then
        self.rotation = rotation
        ok, no = dial:start(request(self, rotation.address.text))
    end
    if not ok then
        return conclude(self, no)
    end
    self.timer:start(self.rule.timeout_ms)
end

--- No answer in time. What nobody has accepted waits on.
function Probe:overdue()
    local seconds = self.rule.timeout_ms / 1000
    if self.rotation:waiting(self.id) == 0 then
        return conclude(self, ('GET %s: no answer in %g s'):format(self.rule.path, seconds))
    end
    self.timer:start(self.rule.timeout_ms)
    self.on_result { words = ('GET %s: nobody accepted in %g s'):format(self.rule.path, seconds), good = false }
end

--- Asks from now on, at first after `ms`.
function Probe:start(ms)
    self.timer:start(ms)
end

--- Asks so often from now on, after an answer. A question that is to come keeps its time, unless that is too late now.
function Probe:pace(interval_ms)
    if interval_ms < self.interval_ms and not self.dial then
        self.timer:start(interval_ms)
    end
    self.interval_ms = interval_ms
end

--- For good. May be called by what it calls.
function Probe:close()
    hang_up(self)
    if self.rotation then
        self.rotation:unprobe(self.id)
        self.rotation = nil
    end
    self.timer:close()
end

return Probe
