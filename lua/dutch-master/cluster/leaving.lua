--- leaving.lua: the leaving of one worker: why, whether it was told to, and by when it has to be gone. Its worker alone
-- writes it; the report of its end (exit_report.lua) reads it.

local Leaving = {}
Leaving.__index = Leaving

function Leaving.new(platform)
    return setmetatable({
        platform = platform,
        why = nil, -- the first reason that its owner gave, or it itself
        told = false, -- it was told to
        lost = false, -- it was not, and its owner has heard that it goes
        late = nil, -- in words, when it was not ready in time
        killed = false, -- by us
        daemon = nil, -- in words, when it put itself into the background
        until_ms = nil, -- the moment at which it is killed, once it has begun
    }, Leaving)
end

--- It is told to leave. The first reason counts.
function Leaving:order(why)
    self.told = true
    self.why = self.why or why
end

--- It goes, and nobody told it to.
-- @return whether its owner has to hear it: once
function Leaving:lose()
    local first = not self.told and not self.lost
    self.lost = self.lost or first
    return first
end

--- It has so long from now on.
function Leaving:allow(ms)
    self.until_ms = self.platform.now() + ms
end

--- The same, unless that was said already.
function Leaving:begin(ms)
    if not self.until_ms then
        self:allow(ms)
    end
end

function Leaving:remaining()
    return math.max(self.until_ms - self.platform.now(), 0)
end

function Leaving:kill()
    self:begin(0)
    self.killed = true
end

return Leaving
