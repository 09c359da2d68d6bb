--- pace.lua: when lanes are looked at. Often while something happens; while nothing does, not at all: the kernel wakes
-- the master at the next connection. Owns the timer and the watch, knows nothing of lanes.

local Pace = {}
Pace.__index = Pace

-- While workers serve, come or go. A stall must be known half a second after stallTimeout: what is first seen to wait
-- at a tick may have come just after the one before, and the master may be late.
local TICK_MS = 350
-- The same while nothing happens, where lanes cannot be watched: twice a second is what the master may wake then.
local IDLE_TICK_MS = 500
-- After so many ticks at which nothing waited anywhere, lanes are not looked at any more but watched: the kernel wakes
-- the master at the next connection (from then on ticks count again), or when a worker shuts a lane down.
local QUIET_TICKS = 4

--- @param options {platform, busy_ms = between two ticks while connections wait,
--   tick = function() -> 'busy' (connections wait), 'unsettled' (there is something to come back to), 'quiet',
--          or nil: there is nobody to look after,
--   watched = function() -> descriptors to watch, how long at most in ms; or nil: it is no time for rest}
function Pace.new(options)
    local self = setmetatable({
        platform = options.platform, busy_ms = options.busy_ms, on_tick = options.tick, watched = options.watched,
        ticking = false, resting = false, quiet_ticks = 0,
    }, Pace)
    self.timer = self.platform.timer(function()
        self:tick()
    end)
    return self
end

--- Something happens: back to ticks.
function Pace:stir()
    self.quiet_ticks = 0
    if self.resting then
        self.resting = false
        self.watch:stop()
        self.timer:start(TICK_MS)
    end
end

--- There is something to look after from now on.
function Pace:start()
    if not self.ticking then
        self.ticking = true
        self.timer:start(TICK_MS)
    end
end

-- Sleeps until the kernel reports something. @return how long at most, or nil: that cannot be had
local function rest(self)
    local fds, longest = self.watched()
    if not fds then
        return nil
    end
    self.watch = self.watch or self.platform.watch(function()
        self:stir()
        self:tick()
    end)
    self.resting = self.watch ~= nil and self.watch:start(fds) ~= nil
    return self.resting and longest or nil
end

function Pace:tick()
    if self.resting then -- lanes may close at a tick, which must not be watched then
        self.resting = false
        self.watch:stop()
    end
    local state = self.on_tick()
    self.ticking = state ~= nil
    self.quiet_ticks = state == 'quiet' and self.quiet_ticks + 1 or 0
    if not self.ticking then
        return
    end
    local quiet = self.quiet_ticks >= QUIET_TICKS
    self.timer:start(quiet and rest(self) or state == 'busy' and self.busy_ms or quiet and IDLE_TICK_MS or TICK_MS)
end

function Pace:close()
    if self.watch then
        self.watch:close()
        self.watch = nil
    end
    self.timer:close()
end

return Pace
