--- hand.lua: the connections in the master's hand: it has accepted them, and no worker has them yet. The keeper has a
-- copy of each, so that they outlive the master. One for all listeners. Owns their descriptors and their names in the
-- keeper's store, 'conn/<listener>.<number>.<worker>': the worker that was given it last. The name is there before the
-- worker can have the connection, and goes when that has said that it has it.
-- A snapshot says nothing of them: they come and go faster. See doubts.lua for what another master does with them.

local Hand = {}
Hand.__index = Hand

-- The store has room for 32768 descriptors, and listeners and workers need theirs. More go without a copy, as does what
-- the keeper has no room for at the moment.
local MAX_KEPT = 4096

local NAME = 'conn/%d.%d.%d'

--- @param options {platform}
function Hand.new(options)
    return setmetatable({
        platform = options.platform,
        last = 0, -- number of the newest one
        held = {}, -- connection -> true
        kept = 0, -- names in the store
    }, Hand)
end

-- A connection: fd, listener and number make its names; names: those that the store has, worker -> name.
local function add(self, listener, fd)
    local connection = { fd = fd, listener = listener, number = self.last, names = {} }
    self.held[connection] = true
    return connection
end


local function note(self, connection, worker, name, is_kept)
    if is_kept then
        connection.names[worker] = name
        self.kept = self.kept + 1
    end
end

local function drop_all(self, connection, but)
    for worker, name in pairs(connection.names) do
        if worker ~= but then
            connection.names[worker] = nil
            self.kept = self.kept - 1
            self.platform.drop_fd(name)
        end
    end
end

--- Takes a connection out of a lane.
-- @param listener its number, worker = who is to get it
-- @return the connection; nil: none waits
function Hand:accept(lane, listener, worker)
    local number = self.last + 1
    local name = self.kept < MAX_KEPT and NAME:format(listener, number, worker) or nil
    local fd, is_kept = lane:accept(name)
    if fd then
        self.last = number
        local connection = add(self, listener, fd)
        note(self, connection, worker, name, is_kept)
        return connection
    end
end

--- One that was accepted elsewhere. The descriptor is ours now.
function Hand:adopt(fd, listener, worker)
    self.last = self.last + 1
    local connection = add(self, listener, fd)
    self:give(connection, worker)
    return connection
end

--- A worker is about to be given it. One that the store has under the name of another worker alone must not be: that
-- worker has not got it, and whoever takes over would take it for free.
-- @return whether it may be given
function Hand:give(connection, worker)
    local names = connection.names
    if not names[worker] and (self.kept < MAX_KEPT or next(names)) then
        local name = NAME:format(connection.listener, connection.number, worker)
        note(self, connection, worker, name, self.platform.keep_fd(name, connection.fd))
    end
    if names[worker] then
        drop_all(self, connection, worker)
    end
    return names[worker] ~= nil or next(names) == nil
end

--- Whether nobody has begun to serve it.
function Hand:is_untouched(connection)
    return self.platform.untouched(connection.fd) == true
end

-- @return the number of what is open there, by which the same socket is known again; nil: nothing is
local function inode_of(self, fd)
    local found = self.platform.stat(('/proc/self/fd/%d'):format(fd))
    return found and found.ino
end

--- Whether a connection that came from elsewhere is one of those. @return and its number
function Hand:has(fd)
    local inode = inode_of(self, fd)
    for connection in pairs(self.held) do
        if inode and inode_of(self, connection.fd) == inode then
            return true
        end
    end
    return false, inode
end

--- It is a worker's, or nobody's any more.
function Hand:close(connection)
    self.held[connection] = nil
    drop_all(self, connection)
    self.platform.close_fd(connection.fd)
end

--- There is another keeper, which has none of them.
function Hand:keep_again()
    self.kept = 0
    for connection in pairs(self.held) do
        for worker, name in pairs(connection.names) do
            connection.names[worker] = nil
            note(self, connection, worker, name, self.platform.keep_fd(name, connection.fd))
        end
    end
end

-- One that had two names was about to be given to another worker: it may be with either.
local function by_number(self, former, listener)
    local connections, list = {}, {}
    for _, name in ipairs(former:unknown(('conn/%d.'):format(listener))) do
        local number, worker = name:match '%.(%d+)%.(%d+)$'
        number, worker = tonumber(number), tonumber(worker)
        local fd = number and former:take(name)
        local connection = connections[number]
        if connection then
            self.platform.close_fd(fd) -- the same once more
        elseif fd then
            connection = { fd = fd, listener = listener, number = number, names = {} }
            connections[number], list[#list + 1] = connection, connection
        end
        if fd then
            connection.names[worker] = name
        end
    end
    return list
end

--- Those that a former master had in hand.
-- @param former see keeper/estate.lua, listener = their number
-- @return list of connections
function Hand:resume(former, listener)
    local list = by_number(self, former, listener)
    for _, connection in ipairs(list) do
        self.held[connection] = true
        self.last = math.max(self.last, connection.number)
        for _ in pairs(connection.names) do
            self.kept = self.kept + 1
        end
    end
    return list
end

return Hand
