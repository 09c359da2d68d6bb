--- pulse.lua: what shows that a worker (worker.lua) is ready, and later that it lives: its answers to a question
-- (probe.lua), or what it says by sd_notify.
--
-- The watchdog starts with the first sign of life. Where a worker is asked, any answer in HTTP is one: 503 is no hang.
-- Otherwise it says WATCHDOG=1, and WATCHDOG=trigger if it knows itself that it must be replaced.

local Probe = require 'dutch-master.cluster.probe'

local M = {}

local function is_asked(self)
    return self.ready_rule.type == 'http'
end

-- What came of asking it for a page.
local function on_result(self, result)
    if self.probed ~= result.words then
        self.probed = result.words
        self.log:debug({ address = result.address }, 'Worker was asked: ' .. result.words)
    end
    if result.good then
        self.agenda:post(self, 'ready', { address = result.address })
    end
    if result.status then
        self.agenda:post(self, 'alive')
    end
end

--- Where others have the same socket, one of them might answer: there the rule of its kind must do.
-- @return whether there is a socket at which it can be asked alone
function M.can_be_asked(self)
    if not is_asked(self) then
        return false
    end
    local target, why, code = self.sockets:probe_target(self.id, self.ready_rule.port)
    if code == 'ENOTSUP' then
        self.log:warn({ reason = why, watchdog = self.plan.watchdog_ms and false or nil },
            'Worker cannot be asked alone, it is ready by the rule of its kind')
        self.ready_rule = self.kind.default_ready
    elseif not target then
        self.probed = why
    end
    return target ~= nil
end

--- Asks it from now on.
function M.ask(self)
    if not self.probe then
        self.probe = Probe.new {
            platform = self.platform, sockets = self.sockets, id = self.id, rule = self.ready_rule,
            on_result = function(result)
                on_result(self, result)
            end,
        }
        self.probe:start(0)
    end
end

function M.stop_asking(self)
    if self.probe then
        self.probe:close()
        self.probe = nil
    end
end

--- It serves: it is asked on only if there is a watchdog.
function M.serves(self)
    if self.probe and self.plan.watchdog_ms then
        self.probe:pace(self.plan.watchdog_ms / 3) -- one may get lost
    else
        M.stop_asking(self)
    end
end

--- A notification of a worker of kind exec.
function M.notified(self, fields)
    local ready = self.ready_rule.type
    if fields.READY == '1' and (ready == 'notify' or ready == 'auto') then
        self.agenda:post(self, 'ready', {})
    end
    if fields.WATCHDOG == '1' and not is_asked(self) then
        self.agenda:post(self, 'alive')
    elseif fields.WATCHDOG == 'trigger' and self.plan.watchdog_ms then
        self.agenda:post(self, 'hung', 'it says that it must be replaced')
    end
    if fields.STATUS then
        self.status = fields.STATUS:sub(1, 200)
    end
end

--- How long it may still be silent, in ms; nil: for ever.
function M.patience(self)
    local limit = self.plan.watchdog_ms
    return limit and self.alive_at and math.max(self.alive_at + limit - self.platform.now(), 0) or nil
end

return M
