--- pace.lua: when lanes are looked at. A tick looks after everything; it comes often while something happens. A glance
-- looks at queues alone; it comes every few milliseconds while connections wait. Between them the kernel wakes the
-- master at the next connection; while nothing happens that is all. Owns the timer and the watch, knows no lanes.

local Pace = {}
Pace.__index = Pace

-- While workers serve, come or go. A stall must be known half a second after stallTimeout: what is first seen to wait
-- at a tick may have come just after the one before, and the master may be late.
local TICK_MS = 350
-- The same while nothing happens, where lanes cannot be watched: twice a second is what the master may wake then.
local IDLE_TICK_MS = 500
-- After so many ticks at which nothing waited anywhere, there are none any more: the kernel wakes the master at the
-- next connection (from then on ticks count again), or when a worker shuts a lane down.
local QUIET_TICKS = 4
-- Between two glances: what waits behind a busy worker waits once or twice as long. And so many find nothing before the
-- queues are watched instead, which costs two system calls for each lane.
local GLANCE_MS, EMPTY_GLANCES = 3, 5
-- Between two ticks lanes that were shut down are mended so often at once: a worker that does it for ever is left to
-- the ticks.
local MENDS = 10

--- @param options {platform, busy_ms = between two ticks while connections wait, lanes = who looks at them:
--   :tick() -> 'busy' (connections wait), 'unsettled' (there is something to come back to), 'quiet', or nil: there is
--              nobody to look after,
--   :glance() -> whether connections wait, when to glance again though none do (nil: it is of no use),
--   :near() -> descriptors to watch for connections,
--   :frail() -> descriptors that a worker may shut down,
--   :mend(): one was,
--   :watched() -> all descriptors to watch, how long at most in ms; or nil: it is no time for rest}
function Pace.new(options)
    local self = setmetatable({
        platform = options.platform, busy_ms = options.busy_ms, lanes = options.lanes,
        ticking = false, resting = false, quiet_ticks = 0,
        tick_at = 0, -- when the next tick is due
        glanced_at = -GLANCE_MS,
        due = nil, -- when to glance again though nothing waits
        glances = 0, -- to come before the queues are watched
        mends = 0, -- since the last tick
    }, Pace)
    self.timer = self.platform.timer(function()
        self:wake()
    end)
    return self
end

local function stop_watch(self)
    if self.watching then
        self.watching = false
        self.watch:stop()
    end
    if self.guarding then
        self.guarding = false
        self.guard:stop()
    end
end

-- @return whether they are watched
local function watch(self, fds)
    self.watch = self.watch or self.platform.watch(function()
        self.watching = false
        self.glances = EMPTY_GLANCES
        if self.resting then
            self.quiet_ticks = 0
            return self:tick() -- it may have been something else
        end
        self:wake()
    end)
    self.watching = self.watch ~= nil and #fds > 0 and self.watch:start(fds) ~= nil
    return self.watching
end

-- A server that shuts its socket down as it ends does that to all who have it. At once, for meanwhile everybody is
-- refused, or sent where nobody serves.
local function guard(self)
    local fds = self.lanes:frail()
    self.guard = self.guard or self.platform.watch(function()
        self.guarding, self.mends = false, self.mends + 1
        self.lanes:mend()
        if self.ticking and not self.resting then
            self.timer:start(math.min(GLANCE_MS, math.max(self.tick_at - self.platform.now(), 0)))
        end
    end)
    self.guarding = self.guard ~= nil and #fds > 0 and self.guard:start(fds, true) ~= nil
end

-- The timer runs until the next glance, if there is one to come, else until the next tick.
local function go_on(self)
    local now = self.platform.now()
    local left = math.max(self.tick_at - now, 0)
    if not self.guarding and self.mends < MENDS then
        guard(self)
    end
    if self.glances == 0 and not self.watching then
        watch(self, self.lanes:near())
    end
    local glance_ms = self.glances > 0 and GLANCE_MS or self.due and math.max(self.due - now, GLANCE_MS) or left
    self.timer:start(math.min(glance_ms, left))
end

--- Something happens: back to ticks. Lanes may come or go now.
function Pace:stir()
    self.quiet_ticks = 0
    stop_watch(self)
    if self.resting then
        self.resting = false
        self.tick_at = self.platform.now() + TICK_MS
    end
    if self.ticking then
        self.glances = math.max(self.glances, 1)
        self.timer:start(math.min(GLANCE_MS, math.max(self.tick_at - self.platform.now(), 0)))
    end
end

--- There is something to look after from now on.
function Pace:start()
    if not self.ticking then
        self.ticking = true
        self.tick_at = self.platform.now() + TICK_MS
        go_on(self)
    end
end

-- Two looks are so far apart that something can have happened between them.
local function glance(self)
    local now = self.platform.now()
    if now - self.glanced_at >= GLANCE_MS - 1 then
        self.glanced_at = now
        local waits
        waits, self.due = self.lanes:glance()
        self.glances = waits and EMPTY_GLANCES or math.max(self.glances - 1, 0)
    end
end

--- The timer, or the kernel's word.
function Pace:wake()
    self.timer:start(TICK_MS) -- first: whatever becomes of this look
    if self.platform.now() >= self.tick_at then
        return self:tick()
    end
    glance(self)
    go_on(self)
end

-- All is quiet: no ticks until the kernel reports something. @return how long at most, or nil
local function rest(self)
    local fds, longest = self.lanes:watched()
    self.resting = fds ~= nil and (#fds == 0 or watch(self, fds)) -- without a lane nothing can happen
    return self.resting and longest or nil
end

function Pace:tick()
    self.timer:start(TICK_MS) -- first: whatever becomes of this tick
    stop_watch(self) -- lanes may close at a tick, which must not be watched then
    self.resting, self.mends = false, 0
    glance(self)
    local state = self.lanes:tick()
    self.ticking = state ~= nil
    self.quiet_ticks = state == 'quiet' and self.quiet_ticks + 1 or 0
    if not self.ticking then
        return self.timer:stop()
    end
    local quiet = self.quiet_ticks >= QUIET_TICKS
    local longest = quiet and rest(self)
    if longest then
        self.tick_at = self.platform.now() + longest
        return self.timer:start(longest)
    end
    self.tick_at = self.platform.now() + (state == 'busy' and self.busy_ms or quiet and IDLE_TICK_MS or TICK_MS)
    self.glances = state == 'busy' and EMPTY_GLANCES or self.glances
    go_on(self)
end

function Pace:close()
    stop_watch(self)
    for _, name in ipairs { 'watch', 'guard' } do
        if self[name] then
            self[name]:close()
            self[name] = nil
        end
    end
    self.timer:close()
end

return Pace
