--- health.lua: what shows that a worker is ready, and later that it lives. Its worker owns it, reports what it sees of
-- the process by methods, and hears of events of its own by tell(event, ...):
--   ready, facts   its rule (see kinds.lua) is met; facts.address where that is known
--   alive          a sign of life
--   hung, why      it says itself that it must be replaced
--   closed_servers it listens nowhere any more
--   extend, ms     it asks for more time, from now
--   request_restart, why   it says that it is going
--
-- Where the rule is a page (`ready = { http = ... }`) the worker is asked for it again and again: see asking.lua. Any
-- answer in HTTP is a sign of life: 503 is no hang. Otherwise a sign of life is WATCHDOG=1. The watchdog starts with
-- the first one.
--
-- Where sockets were given to it (kind exec), a worker is ready when it accepts connections at all of them, and with
-- `ready = 'notify'` when it has said READY=1 as well: see acceptance.lua.

local Acceptance = require 'dutch-master.cluster.acceptance'
local Asking = require 'dutch-master.cluster.asking'

local listening = require 'dutch-master.cluster.listening'

local Health = {}
Health.__index = Health

-- A worker that listens on a path or for datagrams may still open a TCP port: how long it is waited for.
local ELSEWHERE_MS = 1000

local NOBODY_ACCEPTS = 'The worker was given this address as an open socket. Check that it uses it (by LISTEN_FDS, by'
    .. ' {fd} in its arguments, or by a preset), and that a shell before it starts it by exec. If it is not meant to'
    .. ' accept there, say what makes it ready: ready = { port = n }, or ready = { alive = 1 }'

--- @param options {platform, sockets, id (the worker's), log, rule (what shows that it is ready), fallback (the rule
--   where it cannot be asked alone), watchdog_ms or nil, tell = function(event, ...),
--   listens_at() -> where it listens, must_listen_at() -> where it has to, as one that replaces others: see
--   listening.lua}
function Health.new(options)
    local self = setmetatable(options, Health)
    -- starting: nothing shows yet that it is ready, and it is not asked
    -- asking:   the same, and it is asked
    -- watching: it serves, and is asked on for the watchdog
    -- quiet:    it serves, or has ended, and is not asked
    self.state = 'starting'
    self.asking = nil -- while it is asked
    self.lacks = nil -- why it is not ready, in words
    self.said = {} -- by its notifications: {status, reloading, stopping, main_pid}
    self.said_ready = nil -- whether it has notified so
    self.alive_at = nil -- its last sign of life
    return self
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Asking for a page: asking.lua

local function note_alive(self)
    self.alive_at = self.platform.now()
    self.tell 'alive'
end

local function start_asking(self)
    self.asking = Asking.new {
        platform = self.platform, sockets = self.sockets, id = self.id, log = self.log, rule = self.rule,
        on_answer = function(status, address)
            note_alive(self)
            if status >= 200 and status < 400 then
                self.tell('ready', { address = address })
            end
        end,
    }
end

-- Where others have the same socket, one of them might answer: there the other rule must do.
local function can_be_asked(self)
    if self.rule.type ~= 'http' then
        return false
    end
    local target, why, code = self.sockets:probe_target(self.id, self.rule.port)
    if code == 'ENOTSUP' then
        self.log:warn({ reason = why }, 'HTTP readiness check impossible, using the default rule')
        self.rule = self.fallback
    elseif not target then
        self.lacks = why
    end
    return target ~= nil
end

-- ---------------------------------------------------------------------------------------------------------------------
-- What its worker reports

local function is_awaited(self)
    return self.state == 'starting' or self.state == 'asking'
end

-- Which of the sockets that it was given must be seen to be accepted from.
local function doors(self)
    local rule = self.rule.type
    if not self.was_given or rule ~= 'auto' and rule ~= 'notify' and rule ~= 'port' then
        return {}
    end
    return self.sockets:doors(self.id, self.rule.port)
end

local function ready_if_all_came(self)
    if not self.acceptance:words() and (self.rule.type ~= 'notify' or self.said_ready) then
        self.tell('ready', { address = self.acceptance.doors[1].address.text })
    end
end

local function await_acceptance(self)
    local list = doors(self)
    if #list > 0 then
        self.acceptance = Acceptance.new {
            platform = self.platform, id = self.id, doors = list,
            on_done = function()
                ready_if_all_came(self)
            end,
        }
    end
end

--- It was forked with the sockets of the plan.
function Health:given()
    self.was_given = true
    self:ask()
    if self.state == 'starting' then
        await_acceptance(self)
    end
end

--- Asks for the page from now on, if that is the rule and a socket is there at which it can be asked alone.
function Health:ask()
    if not is_awaited(self) or not can_be_asked(self) or self.state == 'asking' then
        return
    end
    self.state = 'asking'
    start_asking(self)
end

local function listens_in_time(self, info)
    self.elsewhere = self.elsewhere or self.platform.timer(function()
        self.tell('ready', { address = info.text or info.name })
    end)
    self.elsewhere:start(ELSEWHERE_MS)
end

-- Where those that it replaces listen, or anywhere where it replaces nobody.
local function listens_where_it_must(self, info)
    local wanted, has = self.must_listen_at(), self.listens_at()
    local missing = listening.missing(wanted, has)
    if #missing > 0 then
        self.lacks = ('it does not listen on %s, where the workers before it do. If that is meant, say which address'
            .. ' counts: ready = { port = %s }'):format(listening.text(missing), has[1] and has[1].port or 'n')
    elseif #wanted > 0 or info.stream and not info.path and not info.own then
        self.lacks = nil
        self.tell('ready', { address = info.text or info.name })
    elseif not self.elsewhere then
        listens_in_time(self, info)
    end
end

local function close_timer(self, name)
    if self[name] then
        self[name]:close()
        self[name] = nil
    end
end

--- It listens nowhere any more. Unless it does again within so many ms that is told.
function Health:listens_nowhere(ms)
    close_timer(self, 'elsewhere')
    if ms == 0 then
        return self.tell 'closed_servers'
    end
    self.nowhere = self.nowhere or self.platform.timer(function()
        self.tell 'closed_servers'
    end)
    self.nowhere:start(ms)
end

--- It listens somewhere: {stream, port, path, name, text}, see conversation.lua.
function Health:listens(info)
    close_timer(self, 'nowhere')
    self:ask()
    if not is_awaited(self) then
        return
    end
    local rule = self.rule
    if rule.type == 'listening' then
        listens_where_it_must(self, info)
    elseif rule.type == 'port' and info.stream and info.port == rule.port
        or rule.type == 'path' and info.path == rule.path then
        self.tell('ready', { address = info.text or info.name })
    elseif rule.type == 'port' or rule.type == 'path' then
        self.lacks = ('it listens on %s, not on %s'):format(info.text or info.name, tostring(rule.port or rule.path))
    end
end

--- It says over its channel that it is ready.
function Health:says_ready()
    if self.rule.type ~= 'http' then
        self.tell('ready', {})
    end
end

--- A message of its app.
function Health:message(message)
    local rule = self.rule
    if rule.type == 'message' and (rule.message == nil or rule.message == message
        or type(message) == 'table' and message.event == rule.message) then
        self.tell('ready', {})
    end
end

-- What it says of itself, for those who look at it. Whatever it forks may say it too: nothing is decided by it.
local function note_words(said, fields)
    said.status = fields.STATUS and fields.STATUS:sub(1, 200) or said.status
    said.main_pid = tonumber((fields.MAINPID or ''):match '^[1-9]%d*$') or said.main_pid
    if fields.RELOADING == '1' then
        said.reloading = true
    elseif fields.READY == '1' then
        said.reloading = nil
    end
    said.stopping = said.stopping or fields.STOPPING == '1' or nil
end

--- A notification: what it wrote to NOTIFY_SOCKET.
function Health:notified(fields)
    local rule = self.rule.type
    if fields.READY == '1' and (rule == 'notify' or rule == 'auto') then
        self.said_ready = true
        if self.acceptance then
            ready_if_all_came(self)
        else
            self.tell('ready', {})
        end
    end
    if fields.WATCHDOG == '1' and rule ~= 'http' then
        note_alive(self)
    elseif fields.WATCHDOG == 'trigger' and self.watchdog_ms then
        self.tell('hung', 'it says that it must be replaced')
    end
    note_words(self.said, fields)
    if fields.STOPPING == '1' then
        self.tell('request_restart', 'says that it is stopping')
    end
    local more_us = tonumber((fields.EXTEND_TIMEOUT_USEC or ''):match '^%d+$')
    if more_us then
        self.tell('extend', more_us / 1000)
    end
end

--- How long it must have lived to count as ready, in ms; nil where its rule is another one.
function Health:alive_ms()
    local rule = self.rule
    return not self.acceptance and (rule.type == 'alive' or rule.type == 'auto') and rule.alive_ms or nil
end

--- What was seen of it last that speaks against it, in words or nil.
function Health:words()
    return self.asking and self.asking.words or self.lacks
end

--- Why it is not ready yet, in words or nil, and what to do about it, or nil.
function Health:missing()
    local acceptance = self.acceptance
    local words = acceptance and acceptance:words()
    if words then
        return words, NOBODY_ACCEPTS
    elseif self.rule.type == 'notify' and not self.said_ready then
        return acceptance and 'it accepts connections, but has not said READY=1' or 'it has not said READY=1'
    end
    return self:words()
end

--- It serves: it is asked on only if there is a watchdog, and so often that one question may get lost.
function Health:serves()
    if self.state ~= 'asking' or not self.watchdog_ms then
        return self:close()
    end
    self.state = 'watching'
    self.asking:pace(self.watchdog_ms / 3)
end

--- How long it may still be silent, in ms; nil: for ever.
function Health:patience()
    local limit = self.watchdog_ms
    return limit and self.alive_at and math.max(self.alive_at + limit - self.platform.now(), 0) or nil
end

--- It was reported as hanging: the watchdog waits anew.
function Health:forgive()
    self.alive_at = self.platform.now()
end

--- For another master: see keeper/estate.lua. What was seen of it is seen again.
function Health:keep()
    return { alive_at = self.alive_at, said = self.said, said_ready = self.said_ready }
end

function Health:resume(kept)
    self.alive_at, self.said, self.said_ready = kept.alive_at, kept.said, kept.said_ready
end

--- It serves already: a former master has seen that.
function Health:serves_on()
    if self.watchdog_ms then
        self:ask()
    end
    self:serves()
end

--- Nothing is asked any more. May be called by what it calls.
function Health:close()
    self.state = 'quiet'
    if self.asking then
        self.asking:close()
    end
    if self.acceptance then
        self.acceptance:close()
    end
    close_timer(self, 'elsewhere')
    close_timer(self, 'nowhere')
end

return Health
