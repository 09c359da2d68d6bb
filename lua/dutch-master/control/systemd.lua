--- What the master tells the service manager that started it (sd_notify(3)), as its cluster changes.
-- READY means that the workers serve, not that the master runs. Each RELOADING is closed by a READY, whatever
-- became of the roll: there is no message for "reload failed", so the verdict is in STATUS. STOPPING is final.
-- Without NOTIFY_SOCKET nothing is sent.

local Systemd = {}
Systemd.__index = Systemd

--- While the cluster boots, rolls or stops, the manager's time limit is pushed ahead of us, as long as the workers are
-- within their own deadlines: what makes no step for longer, the manager may end. How often, and how far, in ms. The
-- second is three times the first, so that one lost datagram does no harm.
local EXTEND_EVERY, EXTEND_BY = 5000, 15000
--- A manager that is busy has a full queue, of ten datagrams by the kernel's default: what it must know waits, in ms
--- until it is tried again, and at most so many.
local AGAIN_AFTER, UNSENT_MAX = 100, 100
--- Bytes. systemd ignores datagrams over 4096.
local STATUS_MAX = 1024

local BUSY = { booting = true, rolling = true, stopping = true }

--- WATCHDOG_USEC is meant for us unless WATCHDOG_PID names somebody else. Half of it is how often to ping.
local function watchdog_interval(environ, pid)
    local usec = tonumber(environ.WATCHDOG_USEC)
    if not usec or usec <= 0 or (environ.WATCHDOG_PID and tonumber(environ.WATCHDOG_PID) ~= pid) then
        return nil
    end
    return math.max(1, math.floor(usec / 2000))
end

--- { platform, log }
function Systemd.new(world)
    local platform = world.platform
    local self = setmetatable({
        platform = platform, log = world.log, active = platform.sd_notify_set(), unsent = {},
    }, Systemd)
    if not self.active then
        return self
    end
    self.extender = platform.timer(function()
        if platform.now() >= self.extend_until then
            self.gave_up = true
            return
        end
        self.extender:start(EXTEND_EVERY) -- first: whatever becomes of this message
        self:repeated('EXTEND_TIMEOUT_USEC=' .. EXTEND_BY * 1000)
    end)
    local interval = watchdog_interval(platform.environ(), platform.pid())
    if interval then
        self.watchdog = platform.timer(function()
            self.watchdog:start(interval)
            self:repeated 'WATCHDOG=1'
        end)
        self.watchdog:start(interval)
        self:repeated 'WATCHDOG=1' -- a former master may have pinged last a whole interval ago
    end
    self.again = platform.timer(function()
        self:send_rest()
    end)
    return self
end

--- Failures never matter to the workers; the first one is worth a record. -> whether to try it again later
function Systemd:try(text)
    local ok, message, code = self.platform.sd_notify(text)
    if not ok and code ~= 'EAGAIN' and not self.complained then
        self.complained = true
        if self.log then
            self.log:warn({ err = message }, 'The service manager could not be notified')
        end
    end
    return code == 'EAGAIN'
end

--- What comes again by itself needs no second try.
function Systemd:repeated(text)
    if not self.unsent[1] then
        self:try(text)
    end
end

--- What is reported of the cluster arrives, and in order: systemd would wait in vain for a READY that was lost.
function Systemd:send(lines)
    table.insert(self.unsent, table.concat(lines, '\n'))
    if self.unsent[2] == nil then
        self:send_rest()
    elseif self.unsent[UNSENT_MAX + 1] then
        table.remove(self.unsent, 1)
    end
end

function Systemd:send_rest()
    self.again:start(AGAIN_AFTER)
    while self.unsent[1] do
        if self:try(self.unsent[1]) then
            return
        end
        table.remove(self.unsent, 1)
    end
    self.again:stop()
end

local function verdict_text(verdict)
    if not verdict or verdict.result == 'done' then
        return ''
    end
    local result = verdict.result:gsub('_', ' ')
    return ('; the last restart was %s%s'):format(result, verdict.message and ': ' .. verdict.message or '')
end

--- One line for `systemctl status`.
function Systemd.status(state)
    local text
    local count = ('%d of %d workers'):format(state.serving, state.wanted)
    if state.failure then
        text = state.failure
    elseif state.state == 'booting' then
        text = 'starting, ' .. count .. ' ready'
    elseif state.state == 'stopping' then
        text = ('stopping, %d worker%s left'):format(state.processes, state.processes == 1 and '' or 's')
    else
        text = ('%s serving, generation %d'):format(count, state.generation)
        if state.roll then
            text = ('%s, %d of %d replaced, '):format(state.roll.back and 'rolling back' or 'restarting',
                state.roll.done, state.roll.total) .. text
        else
            text = text .. verdict_text(state.last_verdict)
        end
    end
    return (text:gsub('%c', ' '):sub(1, STATUS_MAX))
end

--- A last word before there is a cluster: `systemctl status` goes on showing it.
function Systemd.say(platform, message)
    if platform.sd_notify_set() then
        platform.sd_notify('STATUS=' .. message:gsub('%c', ' '):sub(1, STATUS_MAX))
    end
end

--- A restart has begun.
local function reloading(self)
    self.reloading = true
    -- Rounded up: a time before the manager's own request would not count.
    return { 'RELOADING=1', ('MONOTONIC_USEC=%.0f'):format((math.floor(self.platform.now()) + 1) * 1000) }
end

--- On every change of the cluster: { state, wanted, generation, serving, processes, roll = {done, total}, restarts = a
-- number that rises with each restart, last_verdict }. Sends what is new.
function Systemd:on_state(state)
    if not self.active then
        return
    end
    local lines = {}
    local began = state.state == 'rolling' or state.restarts ~= self.restarts
    if began and self.ready and not self.reloading and state.state ~= 'stopping' then
        lines = reloading(self)
        if state.state == 'steady' then -- it has ended since; a manager that asked for it waits for both all the same
            self:send(lines)
            lines = {}
        end
    end
    self.restarts = state.restarts
    if state.state == 'stopping' and not self.stopping then
        self.stopping = true
        lines[#lines + 1] = 'STOPPING=1'
    elseif not self.stopping then
        if state.state == 'steady' and (self.reloading or not self.ready) then
            self.ready, self.reloading = true, false
            lines[#lines + 1] = 'READY=1'
        end
    end
    local text = Systemd.status(state)
    if text ~= self.said then
        self.said = text
        lines[#lines + 1] = 'STATUS=' .. text
    end
    -- A step is a worker more or fewer, ready or replaced.
    local step = table.concat({ state.state, state.serving, state.roll and state.roll.done or '',
        state.state == 'stopping' and state.processes or '', state.restarts or '' }, ' ')
    if step ~= self.step then
        self.step, self.extend_until = step, self.platform.now() + (state.patience_ms or math.huge)
        self.extending = self.extending and not self.gave_up
        self.gave_up = false
    end
    self.extend_until = math.max(self.extend_until or 0, self.platform.now() + (state.asked_ms or 0))
    if BUSY[state.state] and not self.extending then
        self.extending = true
        lines[#lines + 1] = 'EXTEND_TIMEOUT_USEC=' .. EXTEND_BY * 1000
        self.extender:start(EXTEND_EVERY)
    elseif not BUSY[state.state] and self.extending then
        self.extending = false
        self.extender:stop()
    end
    if lines[1] then
        self:send(lines)
    end
end

function Systemd:close()
    for _, name in ipairs { 'extender', 'watchdog', 'again' } do
        if self[name] then
            self[name]:close()
            self[name] = nil
        end
    end
    self.active = false
end

return Systemd
