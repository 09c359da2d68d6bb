--- asking.lua: one worker is asked for a page, or greeted in TLS, again and again, by connections that reach nobody
-- else. Its health (health.lua) owns it, says when it begins, how often it asks, and when it ends, and hears what was
-- answered. There is one question at a time. It waits in the worker's queue until it is accepted: a slow starter finds
-- one there, not one for each attempt.

local Knock = require 'dutch-master.cluster.knock'
local addresses = require 'dutch-master.addresses'
local tls = require 'dutch-master.cluster.tls'

local Asking = {}
Asking.__index = Asking

-- The first line of an answer is read, with the interim answers before it: nothing longer than this.
local READ_MAX = 65536

local CLOSED = 'GET %s: the connection was closed without an answer'
local LOOKS_LIKE_TLS = CLOSED .. '. It looks like a server of HTTPS: write ready = { tls = true }'

local ask_once, overdue

--- Asks at once.
-- @param options {platform, sockets, id (the worker's), log, rule = {path, port, host, tls, interval_ms, timeout_ms},
--   on_answer = function(status, address): it answered, in HTTP or as TLS; may close this}
function Asking.new(options)
    local self = setmetatable(options, Asking)
    self.words = nil -- what came of it last
    self.interval_ms = self.rule.interval_ms
    self.greets = self.rule.tls == true -- it is asked by a greeting in TLS
    self.looks_like_tls = nil -- not known yet
    self.timer = self.platform.timer(function()
        self.timer:start(self.rule.timeout_ms) -- first: whatever becomes of this question
        if self.knock then
            overdue(self)
        else
            ask_once(self)
        end
    end)
    self.timer:start(0)
    return self
end

local ANY = { any = true, ipv4 = true, ipv6 = true }
local ALL = { [''] = true, ['0.0.0.0'] = true, ['::'] = true }

-- That of all interfaces is no name of a host, and an empty name ("Host: :8000") is refused by many servers.
local function host_of(address)
    local all = addresses.read(address, ANY)
    return all and ALL[all.host] and 'localhost:' .. all.port or address
end

local function request(self, address)
    return ('GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: dutch-master\r\nConnection: close\r\n\r\n'):format(
        self.rule.path, self.rule.host or host_of(address))
end

-- In words, what is asked.
local function question(self)
    return self.rule.tls and 'TLS' or 'GET ' .. self.rule.path
end

local function note_result(self, words, address)
    if self.words ~= words then
        self.words = words
        self.log:debug({ address = address }, 'Worker was asked: ' .. words)
    end
end

-- The end of one question, whatever came of it; the next one follows.
local function conclude(self, words, status)
    local knock = self.knock
    self.knock = nil
    if status and not knock:answered() then
        words, status = question(self) .. ' may have been answered by another worker', nil
    elseif knock and not status then
        knock:close()
    end
    self.timer:start(status and self.interval_ms or math.min(self.interval_ms, self.rule.interval_ms))
    local address = knock and knock.rotation.address.text
    note_result(self, words, address)
    if status then
        self.on_answer(status, address)
    end
end

-- A greeting is answered in TLS, by whatever: a server that refuses it is one of TLS too.
local function read_tls(self)
    local kind = tls.answer(self.seen)
    if not self.rule.tls then
        self.greets, self.looks_like_tls = false, kind ~= nil
        conclude(self, kind and LOOKS_LIKE_TLS:format(self.rule.path) or CLOSED:format(self.rule.path))
    elseif kind then
        conclude(self, 'TLS: ' .. kind, kind == 'answered' and 200 or 500)
    else
        conclude(self, 'TLS: the greeting was not answered in TLS')
    end
end

-- The status of the answer; false: it has none; nil: more has to come. An interim answer (100 Continue, 103 Early
-- Hints) is none, the one behind it is. 101 is the last one of a connection.
local function status_of(seen)
    local from = 1
    while from do
        local line, behind = seen:match('^([^\r\n]*)\r?\n()', from)
        local status = line and tonumber(line:match '^HTTP/%d%.?%d* (%d%d%d)%f[^%d]')
        if line and (not status or status < 100 or status == 101 or status >= 200) then
            return status or false
        end
        from = line and seen:match('\n\r?\n()', behind - 1)
    end
    if #seen > READ_MAX then
        return false
    end
end

local function read(self, data)
    self.seen = self.seen .. data
    if self.greets then
        return read_tls(self)
    end
    local status = status_of(self.seen)
    if status then
        conclude(self, ('GET %s answered %d'):format(self.rule.path, status), status)
    elseif status == false then
        conclude(self, ('GET %s was not answered in HTTP'):format(self.rule.path))
    end
end

-- Who closes without a word in HTTP may speak TLS: it is greeted so, once.
local function ended(self, reason)
    local words = ('%s: %s'):format(question(self), reason or 'the connection was closed without an answer')
    if self.looks_like_tls then
        words = LOOKS_LIKE_TLS:format(self.rule.path)
    elseif not self.rule.tls then
        self.greets = not self.greets and not reason and self.seen == '' and self.looks_like_tls == nil
        if not self.greets then
            self.looks_like_tls = false
        end
    end
    conclude(self, words)
end

function ask_once(self)
    local rotation, why = self.sockets:probe_target(self.id, self.rule.port)
    if not rotation then
        return conclude(self, why)
    end
    local code
    self.seen = ''
    self.knock, why, code = Knock.new {
        platform = self.platform, rotation = rotation, id = self.id,
        text = self.greets and tls.HELLO or request(self, rotation.address.text),
        on_data = function(data)
            read(self, data)
        end,
        on_end = function(reason)
            ended(self, reason)
        end,
    }
    if self.knock then
        self.timer:start(self.rule.timeout_ms)
    elseif code == 'EAGAIN' then
        self.timer:start(Knock.BUSY_MS)
    else
        conclude(self, why)
    end
end

-- No answer in time. What nobody has accepted waits on.
function overdue(self)
    local seconds = self.rule.timeout_ms / 1000
    if self.knock:is_taken() then
        return conclude(self, ('%s: no answer in %g s'):format(question(self), seconds))
    end
    self.timer:start(self.rule.timeout_ms)
    note_result(self, ('%s: nobody accepted in %g s'):format(question(self), seconds))
end

--- From now on it is asked this often. A question that is to come keeps its time, unless that is too late now.
function Asking:pace(interval_ms)
    if interval_ms < self.interval_ms and not self.knock then
        self.timer:start(interval_ms)
    end
    self.interval_ms = interval_ms
end

--- May be called by what it calls.
function Asking:close()
    if self.knock then
        self.knock:close()
        self.knock = nil
    end
    if self.timer then
        self.timer:close()
        self.timer = nil
    end
end

return Asking
