--- leaving.lua: the leaving of one worker: why, whether it was told to, and by when it has to be gone. Its worker alone
-- writes it; the report of its end (exit_report.lua) reads it.

local Leaving = {}
Leaving.__index = Leaving

-- A worker may ask for more time, again and again (EXTEND_TIMEOUT_USEC), but not for more than so many times what the
-- plan gives it.
local EXTEND_MAX = 10

function Leaving.new(platform)
    return setmetatable({
        platform = platform,
        why = nil, -- the first reason that its owner gave, or it itself
        told = false, -- it was told to
        lost = false, -- it was not, and its owner has heard that it goes
        late = nil, -- in words, when it was not ready in time
        killed = false, -- by us
        daemon = nil, -- in words, when it put itself into the background
        since_ms = nil, -- when it began, and
        allowed_ms = nil, -- how long it might take then
        until_ms = nil, -- the moment at which it is killed, once it has begun
    }, Leaving)
end

--- It is told to leave. The first reason counts.
-- @param ms how long it has, nil: that is said later
function Leaving:order(why, ms)
    self.told = true
    self.why = self.why or why
    if ms then
        self:allow(ms)
    end
end

--- What it is replaced for: that comes before a reason given later.
function Leaving:blame(why)
    self.why = why
end

--- It was not ready in time, or has not proved itself: `words` say how.
function Leaving:fail(words)
    self.late = words
end

--- It has put itself into the background, in these words.
function Leaving:hide(words)
    self.daemon = words
end

--- It goes, and nobody told it to.
-- @return whether its owner has to hear it: once
function Leaving:lose()
    local first = not self.told and not self.lost
    self.lost = self.lost or first
    return first
end

--- It has this long from now on.
function Leaving:allow(ms)
    self.since_ms, self.allowed_ms = self.platform.now(), ms
    self.until_ms = self.since_ms + ms
end

--- The same, unless that was said already.
function Leaving:begin(ms)
    if not self.until_ms then
        self:allow(ms)
    end
end

--- The moment until which it may go on that has asked for `ms` from now: never sooner than without that, `until_ms`.
function Leaving.extended(now, ms, until_ms, since_ms, allowed_ms)
    return math.max(until_ms, math.min(now + ms, since_ms + EXTEND_MAX * allowed_ms))
end

--- It asks for more time.
function Leaving:extend(ms)
    self.until_ms = Leaving.extended(self.platform.now(), ms, self.until_ms, self.since_ms, self.allowed_ms)
end

--- It has at least until then, if it is under way.
function Leaving:go_on_until(ms)
    self.until_ms = self.until_ms and not self.killed and math.max(self.until_ms, ms) or self.until_ms
end

function Leaving:kill()
    self:begin(0)
    self.killed = true
end

local KEPT = { 'why', 'told', 'lost', 'late', 'killed', 'daemon', 'since_ms', 'allowed_ms',
    'until_ms' }

--- For another master: see keeper/estate.lua.
function Leaving:keep()
    local kept = {}
    for _, field in ipairs(KEPT) do
        kept[field] = self[field]
    end
    return kept
end

function Leaving:resume(kept)
    for _, field in ipairs(KEPT) do
        self[field] = kept[field]
    end
end

return Leaving
