--- census.lua: who really has the sockets of a listener. Others may have opened sockets of their own in its group:
-- nginx with `listen ... reuseport` does. They are found, named and counted, and the core steers round them. A worker
-- without a channel may have closed the socket that it was given: puma does at a restart of its own. It is found and
-- reported. One for each listener with lanes. Knows lanes by their methods, and changes none.

local Census = {}
Census.__index = Census

-- Between two looks. The one for strangers reads a table of the kernel's, the one for one worker all of /proc.
local STRANGERS_MS, STRANGERS_SOON_MS = 1000, 45
local HOLDS_MS, HOLDS_SOON_MS = 4500, 1000

local HINT = 'They get no connections. A server accepts from the socket that it was given, and opens none of its own.'
    .. ' For nginx: no "reuseport" in a "listen" line. For haproxy: bind fd@${DUTCH_FD_1}, not an address'

--- @param options {platform, log, listener, address = text, lanes = the rotation's list,
--   worker_of(group) -> id of the worker with this process group, or nil,
--   holds(worker id, fd) -> whether some process of the worker has the socket, nil where that cannot be seen}
function Census.new(options)
    return setmetatable({
        platform = options.platform, log = options.log, listener = options.listener, address = options.address,
        lanes = options.lanes, worker_of = options.worker_of, holds = options.holds,
        strangers = {}, -- inode -> true
        count = 0,
        had = {}, -- worker id -> true: it was seen to have its socket
        turn = 0,
    }, Census)
end

-- "nginx (pid 12)", each once; the first worker among them.
local function names(self, inodes)
    local list, worker = {}, nil
    for i, holder in ipairs(self.platform.holders(inodes)) do
        list[i] = ('%s (pid %d)'):format(holder.name, holder.pid)
        worker = worker or self.worker_of and self.worker_of(holder.group)
    end
    return list, worker
end

local function note_strangers(self, inodes, count)
    local before, fresh = self.strangers, {}
    self.strangers, self.count = {}, count
    for _, inode in ipairs(inodes) do
        self.strangers[inode] = true
        fresh[#fresh + 1] = not before[inode] and inode or nil
    end
    if #fresh > 0 then
        local processes, worker = names(self, fresh)
        self.log:warn({ address = self.address, sockets = count, processes = processes, workerId = worker,
            hint = HINT }, 'Others have opened sockets at this address')
    elseif count == 0 and next(before) then
        self.log:info({ address = self.address }, 'Nobody else has sockets at this address any more')
    end
end

local function look_for_strangers(self, now, pause)
    if now - (self.strangers_at or -STRANGERS_MS) < pause then
        return
    end
    self.strangers_at, self.due = now, false
    local inodes, count = self.listener:strangers()
    if inodes then
        note_strangers(self, inodes, count)
    end
end

-- Workers that serve and have no channel, each with its lane, in order.
local function silent_workers(lanes)
    local list = {}
    for _, lane in ipairs(lanes) do
        for _, id in ipairs(lane:silent_users()) do
            list[#list + 1] = { id = id, lane = lane }
        end
    end
    table.sort(list, function(a, b)
        return a.id < b.id
    end)
    return list
end

local function forget_gone(self, list)
    local had = {}
    for _, entry in ipairs(list) do
        had[entry.id] = self.had[entry.id]
    end
    self.had = had
end

-- Whether connections wait somewhere, and have waited so long that their worker may have let go of its socket.
local function is_stuck(self, now)
    for _, lane in ipairs(self.lanes) do
        if lane:is_stuck(now) then
            return true
        end
    end
    return false
end

-- Who was never seen yet comes first, then one after the other.
local function next_one(self, list)
    for _, entry in ipairs(list) do
        if self.had[entry.id] == nil then
            return entry
        end
    end
    self.turn = self.turn % math.max(#list, 1) + 1
    return list[self.turn]
end

-- One worker at a time. @return its id, if it has let go of its socket
local function look_at_one(self, now)
    local list = self.holds and silent_workers(self.lanes) or {}
    forget_gone(self, list)
    local entry = next_one(self, list)
    if not entry then
        return nil
    end
    local first = self.had[entry.id] == nil
    if now - (self.held_at or -HOLDS_MS) < (is_stuck(self, now) and HOLDS_SOON_MS or first and 0 or HOLDS_MS) then
        return nil
    end
    self.held_at = now
    local has = self.holds(entry.id, entry.lane.fd)
    if first then
        self.had[entry.id] = has == true -- one that hides it from us is not judged
    end
    return has == false and self.had[entry.id] and entry.id or nil
end

--- A worker begins to serve from this lane. Whether it has the socket now is known before it can let go of it.
function Census:meet(worker_id, lane)
    for _, id in ipairs(self.holds and lane:silent_users() or {}) do
        if id == worker_id then
            self.had[id] = self.holds(id, lane.fd) == true -- one that hides it from us is not judged
        end
    end
end

--- A lane comes into use, a worker is ready, or its process is gone: sockets that it opened are there, or closed.
-- @param exactly whether it must be known now; else a look of just before will do, where there were none
function Census:count_now(now, exactly)
    self.due = true
    look_for_strangers(self, now, (exactly or self.count > 0) and 0 or STRANGERS_SOON_MS)
end

--- Looks, if it is time. @return the id of a worker that has let go of its socket, or nil
function Census:look(now)
    look_for_strangers(self, now, self.due and STRANGERS_SOON_MS or STRANGERS_MS)
    return look_at_one(self, now)
end

return Census
