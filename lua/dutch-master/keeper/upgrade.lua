--- upgrade.lua: the master becomes another program and its keeper with it, and the workers notice nothing. Who
-- asked gets the verdict from whichever master runs in the end: this state goes with the snapshot. The keeper tells how
-- it went (src/keeper/keeper.h); a program that takes over and lives on for a moment has succeeded.

local State = require 'dutch-master.keeper.estate'

local M = {}

local Upgrade = {}
Upgrade.__index = Upgrade

-- One that dies within this time is not kept.
local PROVING_MS = 2000

local REASONS = {
    ['not run'] = 'it could not be run: %s',
    refused = 'it does not understand what the keeper hands over',
    died = 'its master died of %s',
    exited = 'its master exited with code %s: see stderr',
    late = 'its master did not take over within %g s',
}

--- @param options {platform, version, image = path of this program, log = function() -> the log, write = writes a
--- snapshot: true or nil, message; commit: see commit.lua; on_verdict = function(verdict)}
function M.new(options)
    options.waiting = {}
    return setmetatable(options, Upgrade)
end

--- For another master.
function Upgrade:keep()
    return { running = self.running, last = self.last }
end

local function decide(self, failure)
    local running = self.running
    local verdict = { result = failure and 'failed' or 'done', from = running.from, to = running.to,
        image = failure and self.image or running.image, message = failure, key = running.key, who = running.who,
        duration_ms = math.max(0, math.floor(self.platform.wall() * 1000 - running.began_ms)) }
    self.running, self.last = nil, verdict
    local fields = { from = verdict.from, to = verdict.to, image = running.image, reason = failure,
        duration = verdict.duration_ms / 1000, by = running.who }
    if failure then
        self.log():error(fields, 'Upgrade failed, the former program goes on')
    else
        self.log():info(fields, 'Upgraded')
    end
    local waiting = self.waiting
    self.waiting = {}
    self.commit:add(function() -- until then the keeper has a way back, and the next master would take it
        self.platform.settled()
        for _, told in ipairs(waiting) do
            told(verdict)
        end
    end)
    self.on_verdict(verdict)
end

local function is_readable(versions)
    for _, version in ipairs(type(versions) == 'table' and versions or {}) do
        if version == State.VERSION then
            return true
        end
    end
    return false
end

--- Becomes the program that is asked for.
-- @param wish {binary = its path, version, reads = versions of the state, key = the request's own name, who}
-- @param told function(verdict), where whoever asks waits
-- @return true; or nil, message
function Upgrade:request(wish, told)
    if self.running then
        return nil, ('an upgrade to %s is under way'):format(self.running.to)
    elseif type(wish.binary) ~= 'string' or wish.binary:sub(1, 1) ~= '/' then
        return nil, 'expected the absolute path of a program'
    elseif not is_readable(wish.reads) then
        return nil, ('%s cannot read the state of this version: restart the service instead'):format(wish.binary)
    end
    self.running = { key = wish.key, who = wish.who, from = self.version, to = tostring(wish.version),
        image = wish.binary, began_ms = self.platform.wall() * 1000 }
    self.log():info({ from = self.version, to = wish.version, image = wish.binary, by = wish.who },
        'Upgrade requested')
    local ok, message = self.write()
    if ok then
        ok, message = self.platform.become(wish.binary)
    end
    if not ok then
        self.running = nil
        self.platform.touch()
        self.log():error({ image = wish.binary, reason = message }, 'Upgrade failed, the former program goes on')
        return nil, message
    end
    self.waiting[#self.waiting + 1] = told
    return true
end

--- Whoever lost the connection to a master that gave place asks again.
-- @return false if nothing is known of that request
function Upgrade:hear(key, told)
    if key ~= nil and self.running and self.running.key == key then
        self.waiting[#self.waiting + 1] = told
        return true
    elseif key ~= nil and self.last and self.last.key == key then
        local last = self.last
        self.commit:follow(function()
            told(last)
        end)
        return true
    end
    return false
end

--- Goes on from what a former master has kept.
-- @param how what the keeper says of the program's change, nil if there was none
function Upgrade:resume(kept, how)
    self.running, self.last = kept.running, kept.last
    if not self.running then
        if how then
            self.platform.settled()
        end
    elseif not how then
        decide(self, 'the master or its keeper died before it could give place')
    elseif how.failed then
        local detail = how.reason == 'late' and how.detail / 1000 or how.detail
        local text = REASONS[how.reason]
        decide(self, text and text:format(detail) or tostring(how.reason))
    else
        self.timer = self.platform.timer(function()
            decide(self, nil)
        end)
        self.timer:start(PROVING_MS)
    end
end

--- The keeper has died: it will call nothing back.
function Upgrade:keeper_lost()
    if self.timer and self.running then
        self.timer:close()
        self.timer = nil
        decide(self, nil)
    end
end

function Upgrade:close()
    if self.timer then
        self.timer:close()
    end
end

return M
