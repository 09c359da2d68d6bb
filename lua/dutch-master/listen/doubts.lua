--- doubts.lua: the connections that a former master had in hand when it died (hand.lua), until it is known of each
-- whose it is. A worker may have it, may find it in its channel, or has never been given it; and two workers must never
-- read of one connection. So it is looked at until the worker has read all that it was sent. Then the connection is
--   - the worker's, when something was read of it or written to it: our copies are closed
--   - free, when nothing was, and the worker has not got it: another worker is given it
--   - in doubt, when nothing was, and the worker has it: it may end before it reads
-- Owns the connections in doubt, and a timer.

local Doubts = {}
Doubts.__index = Doubts

-- Between the first looks; each pause is twice as long as the one before, up to the second number.
local FIRST_MS, LONGEST_MS = 20, 1000
-- So many looks in a row have to find it free: the kernel takes a message out of a channel some microseconds before its
-- descriptor is the worker's.
local FREE_LOOKS = 2
-- At once: a look at one may read all of /proc, and others want to be served too.
local MAX_AT_ONCE = 16

local look

--- @param options {platform, log, hand, fate = function(worker id, descriptor) -> see Cluster:fate,
--   keep_ms = so long it is kept for another worker, while one may have it}
function Doubts.new(options)
    return setmetatable({
        platform = options.platform, log = options.log, hand = options.hand, fate = options.fate,
        keep_ms = options.keep_ms,
        list = {}, -- of {connection, free = function(connection), since, look_at, pause_ms, looks = it was free at}
        counts = nil, -- what became of them
    }, Doubts)
end

local function plan(self)
    local soonest
    for _, doubt in ipairs(self.list) do
        soonest = math.min(soonest or doubt.look_at, doubt.look_at)
    end
    if soonest then
        self.timer = self.timer or self.platform.timer(function()
            look(self)
        end)
        self.timer:start(math.max(soonest - self.platform.now(), 0))
    elseif self.timer then
        self.timer:close()
        self.timer = nil
    end
end

-- @return whether nobody has it, and nobody will find it
local function is_free(self, connection)
    for worker in pairs(connection.names) do
        if self.fate(worker, connection.fd) ~= 'free' then
            return false
        end
    end
    return true
end

local function settle(self, doubt, what)
    self.counts[what] = (self.counts[what] or 0) + 1
    if what == 'rescued' then
        doubt.free(doubt.connection)
    else
        self.hand:close(doubt.connection)
    end
end

-- @return what became of it; nil: it stays in doubt
local function consider(self, doubt, now)
    if not self.hand:is_untouched(doubt.connection) then
        return 'taken'
    end
    doubt.looks = is_free(self, doubt.connection) and doubt.looks + 1 or 0
    if doubt.looks >= FREE_LOOKS then
        return 'rescued'
    elseif now - doubt.since >= self.keep_ms and doubt.looks == 0 then
        return 'closed'
    end
    doubt.pause_ms = doubt.looks > 0 and FIRST_MS or math.min(doubt.pause_ms * 2, LONGEST_MS)
    doubt.look_at = now + doubt.pause_ms
end

function look(self)
    local list, now, left = self.list, self.platform.now(), MAX_AT_ONCE
    self.list = {}
    for _, doubt in ipairs(list) do
        local what
        if now >= doubt.look_at and left > 0 then
            left = left - 1
            what = consider(self, doubt, now)
        elseif now >= doubt.look_at then
            doubt.look_at = now + FIRST_MS
        end
        if what then
            settle(self, doubt, what)
        else
            table.insert(self.list, doubt)
        end
    end
    if not self.list[1] and self.counts then
        self.log:info(self.counts, 'Connections that the former master had in hand are settled')
        self.counts = nil
    end
    plan(self)
end

--- @param free function(connection): nobody has it. It is the callee's then
function Doubts:add(connection, free)
    local now = self.platform.now()
    self.counts = self.counts or {}
    table.insert(self.list, { connection = connection, free = free, since = now, looks = 0, pause_ms = FIRST_MS,
        look_at = now + FIRST_MS })
    plan(self)
end

--- Those of one listener, which closes.
function Doubts:drop(listener)
    for i = #self.list, 1, -1 do
        if self.list[i].connection.listener == listener then
            self.hand:close(table.remove(self.list, i).connection)
        end
    end
    plan(self)
end

--- How many there are of a listener.
function Doubts:count(listener)
    local count = 0
    for _, doubt in ipairs(self.list) do
        count = count + (doubt.connection.listener == listener and 1 or 0)
    end
    return count
end

function Doubts:close()
    for _, doubt in ipairs(self.list) do
        self.hand:close(doubt.connection)
    end
    self.list = {}
    plan(self)
end

return Doubts
