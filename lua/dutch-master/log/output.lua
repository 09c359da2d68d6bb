--- output.lua: what the workers wrote, the last of it, by lines. Owned by the master; `logs` reads it.
--
-- Bounded in bytes: the oldest line goes first. Nobody is ever waited for and nobody is ever sent more than it asked
-- for: a reader names the last line it has (`after`) and gets what follows, or is remembered until something comes.
-- Lines are whole up to LINE_MAX; a longer one is kept in pieces.
-- With `stampOutput` it also writes the file of `workerOutput`: each line with its time and worker. What that file does
-- not take is lost, by lines, and counted.

local utc = require('dutch-master.log.format').utc

local Output = {}
Output.__index = Output

-- Bytes of one line. With every byte escaped in JSON it still fits into a line of the control socket (64 KiB).
local LINE_MAX = 8 * 1024
-- What is kept if the script does not say: it comes through the master in any case.
local KEEP_STDERR = 256 * 1024
-- For the last lines, at the end.
local CLOSE_MS = 100
-- What an entry costs beside its text: a table with four values, and the string's head.
local ENTRY_COST = 128

--- { platform, limit = bytes, 0 or nil for nothing }
function Output.new(options)
    return setmetatable({
        platform = options.platform, limit = options.limit or 0,
        entries = {}, first = 1, last = 0, bytes = 0, -- entries[first..last]
        partial = {}, -- worker .. stream -> the beginning of a line
        waiting = {}, -- functions, called once at the next line
        lines = 0, -- ever kept
        file = nil, -- { path, stamped } of the plan
        sink = nil, -- of a stamped file
        batch = {}, -- lines for it
    }, Output)
end

local function shrink(self)
    while self.bytes > self.limit and self.first <= self.last do
        local old = self.entries[self.first]
        self.entries[self.first] = nil
        self.first = self.first + 1
        self.bytes = self.bytes - #old[4] - ENTRY_COST
    end
end

--- A line of a stamped file: "2026-11-22T14:30:00.123Z worker 3 E text", O for stdout. logs_file.lua reads it.
local function stamp(self, worker, stream, text)
    if self.now ~= self.stamped_at then
        self.stamped_at = self.now
        self.stamp = utc(self.now)
    end
    return ('%s worker %d %s %s\n'):format(self.stamp, worker, stream == 'stderr' and 'E' or 'O', text)
end

local function write_batch(self)
    if self.batch[1] then
        self.sink:write(table.concat(self.batch))
        self.batch = {}
    end
end

local function add(self, worker, stream, text)
    if self.sink then
        self.batch[#self.batch + 1] = stamp(self, worker, stream, text)
    end
    self.last = self.last + 1
    self.entries[self.last] = { self.now, worker, stream, text }
    self.bytes = self.bytes + #text + ENTRY_COST
    self.lines = self.lines + 1
    shrink(self)
end

local function tell(self)
    local waiting = self.waiting
    if waiting[1] and self.last >= self.first then
        self.waiting = {}
        for _, fn in ipairs(waiting) do
            fn()
        end
    end
end

--- Bytes that a worker wrote to 'stdout' or 'stderr'.
function Output:write(worker, stream, data)
    if self.limit == 0 and not self.sink then
        return
    end
    self.now = self.platform.wall()
    local key = worker .. stream
    local text = (self.partial[key] or '') .. data
    -- Of a flood only the end would stay: the rest is not even cut into lines.
    if #text > self.limit + LINE_MAX and not self.sink then
        text = text:sub(-self.limit):match '\n(.*)$' or text:sub(-LINE_MAX)
        self.entries, self.first, self.bytes = {}, self.last + 1, 0 -- older than what is left out
    end
    local from = 1
    local newline = text:find('\n', from, true)
    while newline or #text - from + 1 > LINE_MAX do
        if newline and newline - from <= LINE_MAX then
            add(self, worker, stream, text:sub(from, newline - 1))
            from = newline + 1
        else
            add(self, worker, stream, text:sub(from, from + LINE_MAX - 1))
            from = from + LINE_MAX
        end
        newline = text:find('\n', from, true)
    end
    self.partial[key] = from <= #text and text:sub(from) or nil
    write_batch(self)
    tell(self)
end

--- The worker has exited: the last it wrote may lack its newline.
function Output:ended(worker)
    self.now = self.platform.wall()
    for _, stream in ipairs { 'stdout', 'stderr' } do
        local key = worker .. stream
        if self.partial[key] then
            add(self, worker, stream, self.partial[key])
            self.partial[key] = nil
        end
    end
    write_batch(self)
    tell(self)
end

--- Takes over what the plan says: how much is kept (0 forgets everything), where the workers' output goes, and whether
-- lines are stamped, which is done here.
-- @return true, or nil, message: the file that was before stays
function Output:adopt(plan)
    local path, sink = plan.worker_output, nil
    self.limit = plan.keep_output or KEEP_STDERR
    if self.limit == 0 and not self.sink then
        self.partial = {}
    end
    shrink(self)
    if path:sub(1, 1) ~= '/' then
        path = nil
    elseif plan.stamp_output then
        if self.sink and self.file.path == path then
            return true
        end
        local message
        sink, message = self.platform.sink(path)
        if not sink then
            return nil, message
        end
    end
    self:close()
    self.file, self.sink = path and { path = path, stamped = plan.stamp_output or false }, sink
    return true
end

--- After a rotation. -> true, or nil, message: the old file stays
function Output:reopen()
    if self.sink then
        return self.sink:reopen()
    end
    return true
end

function Output:close()
    if self.sink then
        self.sink:flush(CLOSE_MS)
        self.sink:close()
        self.sink = nil
    end
end

local function fits(entry, wish)
    return (not wish.worker or entry[2] == wish.worker) and (not wish.since or entry[1] >= wish.since)
end

--- Lines in the order in which they came.
-- wish = { after = number of a line that is known already, last = at most so many of the past (without `after`),
--   worker = id, since = unix time, bytes = about so many at most }
-- -> list of { number, time, worker, stream, text }, number to ask on from, lines lost between `after` and the first,
--    whether there is more
function Output:read(wish)
    local from, lost = self.first, 0
    if wish.after then
        from = math.max(wish.after + 1, self.first)
        lost = from - wish.after - 1
    elseif wish.last then
        local found = 0
        from = self.last + 1
        while from > self.first and found < wish.last do
            from = from - 1
            found = found + (fits(self.entries[from], wish) and 1 or 0)
        end
    end
    local list, room, next_from = {}, wish.bytes or math.huge, self.last
    for number = from, self.last do
        local entry = self.entries[number]
        if fits(entry, wish) then
            room = room - #entry[4] - ENTRY_COST
            if room < 0 and list[1] then
                next_from = number - 1
                break
            end
            list[#list + 1] = { number = number, time = entry[1], worker = entry[2], stream = entry[3],
                text = entry[4] }
        end
    end
    return list, next_from, lost, next_from < self.last
end

--- How many lines are remembered.
function Output:kept()
    return self.last - self.first + 1
end

--- Calls fn once, when there is another line. -> a function that takes that back
function Output:wait(fn)
    table.insert(self.waiting, fn)
    return function()
        for i, other in ipairs(self.waiting) do
            if other == fn then
                return table.remove(self.waiting, i)
            end
        end
    end
end

return Output
