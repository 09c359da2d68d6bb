--- rotation.lua: one listener of the cluster: its lanes, and which worker has which. A worker has one of them from fork
-- to exit (balance = 'queue': all workers of its generation the same); it is in rotation while a worker can take
-- connections. Where there are no lanes (unix, UDP, balance = 'shared', steering refused) the one socket is
-- everybody's, and rotation means nothing.
-- Longer than 400 lines: one listener; what has a life of its own (lane, rescue, steering, census) is beside it.

local Census = require 'dutch-master.listen.census'
local Lane = require 'dutch-master.listen.lane'
local Rescue = require 'dutch-master.listen.rescue'
local Spares = require 'dutch-master.listen.spares'
local Steering = require 'dutch-master.listen.steering'

local Rotation = {}
Rotation.__index = Rotation

-- How often lanes are looked over for damage, while ticks are more frequent.
local REPAIR_MS = 300
-- So many workers are asked whether they sleep before one is taken to: each costs some microseconds.
local MAX_ASKED = 8
-- The kernel program's limit is 1024 lanes, and there are two for each worker during a roll.
Rotation.MAX_WORKERS = 512

--- @param options {platform, log, key, name, number, address (platform.address's table), balance, backlog, mode,
--   as (whose rights it is bound with, see platform.listen), owner (whom a unix path belongs to),
--   fd (inherited), borrowed (sockets of a former master, which died, from copy_listener),
--   may_block (workers choose how they accept), stall_timeout_ms, want,
--   lost_after_ms (what waits where nobody serves is reset then),
--   hand, doubts,
--   serves = function(worker_id) -> whether it takes connections,
--   give = sockets.lua's rescue, takes, idle, worker_of, holds, or nil, deserted, stalled, spoilt, awaits_workers}
function Rotation.new(options)
    local self = setmetatable(options, Rotation)
    self.glances, self.times_busy, self.lost = 0, 0, 0
    self.lanes = {}
    self.users = {} -- worker id -> its lane
    self.guests = {} -- the same for those that use a lane of others: of a shared socket, or where lanes ran out
    self.helpers = {} -- worker id -> true: it leaves a lane that others serve, and may not have heard of it yet
    return self
end

-- @param kept what a former master had, nil: it is bound now
local function try_listen(self, reuseport, kept, done)
    return self.platform.listen(self.address, {
        backlog = self.backlog, reuseport = reuseport, reuse = self.reuse, mode = self.mode, fd = self.fd,
        as = self.as, owner = self.owner, kept = kept,
    }, done)
end

-- @param name that it had in a former master, whose state its socket has
local function add_lane(self, socket, group, name, as_it_is)
    if not name then
        self.lane_count = (self.lane_count or 0) + 1
    end
    local lane = Lane.new {
        platform = self.platform, log = self.log, socket = socket, address = self.address.text,
        may_block = self.may_block, group = group, stall_timeout_ms = self.stall_timeout_ms,
        name = name or ('%d.%d'):format(self.number or 0, self.lane_count), as_it_is = as_it_is or name ~= nil,
    }
    self.lanes[#self.lanes + 1] = lane
    return lane
end

local function new_lane(self, group)
    local socket, message, code = self.listener:lane()
    if not socket then
        return nil, message, code
    end
    return add_lane(self, socket, group)
end

-- Whether lanes are possible here is found out by trying, with one lane, before anybody serves.
local function steering_works(self)
    local lane, message = new_lane(self)
    if not lane then
        return false, message
    end
    local force, why = self.listener:steer({ { lane = lane.socket, weight = 1 } }, {})
    return force == 'steered', why
end

-- Plain hashing would send connections to lanes that nobody serves.
local function share(self, why)
    self.log:warn({ address = self.address.text, reason = why }, 'Steering refused, one socket is shared')
    self.lanes = {}
    self.listener:close()
    local listener, message, code = try_listen(self, false)
    self.listener = listener
    return listener, message, code
end

-- Those that can be given what waits in a lane: serving users of others that move, who take what they are given.
local function takers(self, except)
    local list, able = {}, {}
    for _, lane in ipairs(self.lanes) do
        if lane.state == 'live' and not lane.stalled and lane ~= except then
            lane:takers(list)
        end
    end
    for _, heir in ipairs(list) do
        if not self.takes or self.takes(heir.worker, heir.request) then
            able[#able + 1] = heir
        end
    end
    return able
end

-- What goes with an open listener.
local function furnish(self)
    local listener = self.listener
    self.shared = listener:shared()
    self.rescue = Rescue.new {
        platform = self.platform, log = self.log, address = self.address.text,
        hand = self.hand, doubts = self.doubts, listener = self.number or 0,
        give = not self.shared and self.give or nil, keep_ms = self.lost_after_ms,
        takers = function(except)
            return takers(self, except)
        end,
    }
    if not self.shared then
        self.steering = Steering.new {
            platform = self.platform, log = self.log, listener = listener, address = self.address.text,
            lanes = self.lanes,
            balance = self.balance, want = self.want,
        }
        self.census = Census.new {
            platform = self.platform, log = self.log, listener = listener, address = self.address.text,
            lanes = self.lanes, worker_of = self.worker_of, holds = self.may_block and self.holds or nil,
        }
    end
end

local function set_up(self, listener)
    self.listener = listener
    self.address = listener:address()
    if not listener:shared() then
        local works, why = steering_works(self)
        if not works then
            local message, code
            listener, message, code = share(self, why)
            if not listener then
                return nil, message, code
            end
        end
    end
    furnish(self)
    if self.shared then
        assert(new_lane(self))
    end
    self.log:debug({ address = self.address.text, balance = self:balance_in_force() }, 'Balancing')
    return true
end

-- Of lanes that were a former master's. First who gets connections: until that is said its program is in force, and
-- indexes of which it did not know are not learnt.
local function begin_steering(self)
    self.steering:apply()
    self.census:count_now(self.platform.now(), true)
end

-- Sockets at which workers of a former master serve on. To the kernel and to us these are users as others: they are
-- called -1, -2, ...
local function borrow(self)
    local first, path, fds = self.borrowed[1], self.address.path, {}
    for i, socket in ipairs(self.borrowed) do
        fds[i] = socket.fd
    end
    local file = path and self.platform.stat(path)
    local listener, message, code = try_listen(self, false, { borrowed = true, lanes = fds, device = file and file.dev,
        inode = file and file.ino, shared = path ~= nil or not first.reuseport or self.balance == 'shared' })
    if not listener then
        return nil, message, code
    end
    self.listener = listener
    furnish(self)
    for i, socket in ipairs(listener:lanes()) do
        local lane = add_lane(self, socket, -i, nil, true)
        lane:let_in()
        if not self.shared then
            lane:add(-i)
            self.users[-i] = lane
            lane:join(-i)
        end
    end
    if self.steering then
        begin_steering(self)
    end
    return true
end

--- Whom the sockets were borrowed from, as far as they have lanes of their own. @return list of ids
function Rotation:lenders()
    local ids = {}
    for id in pairs(self.users) do
        ids[#ids + 1] = id < 0 and id or nil
    end
    return ids
end

--- They are gone.
function Rotation:own()
    self.borrowed = nil
    self.listener:own()
end

--- Binds.
-- @param later function(as is returned): called if that takes its time
-- @return true; or nil, message, code; or false: later(one of these) follows
function Rotation:open(later)
    if self.borrowed then
        return borrow(self)
    end
    local listener, message, code = try_listen(self, self.balance ~= 'shared', nil, later and function(...)
        if ... then
            return later(set_up(self, ...))
        end
        return later(...)
    end)
    if listener == true then
        return false
    elseif not listener then
        return nil, message, code
    end
    return set_up(self, listener)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Over the death of a master

-- Beside its lanes and what its directory gives to all.
local KEPT = { 'key', 'found', 'name', 'number', 'address', 'mode', 'as', 'owner', 'reuse', 'fd', 'may_block', 'served',
    'released', 'times_busy', 'lost', 'lane_count', 'backlog', 'shut' }

--- For another master: see keeper/estate.lua. The lanes in the order of the kernel's group.
function Rotation:keep(book)
    local kept, lanes = { listener = self.listener:keep(), guests = {} }, {}
    for _, field in ipairs(KEPT) do
        kept[field] = self[field]
    end
    local by_socket = {}
    for _, lane in ipairs(self.lanes) do
        by_socket[lane.socket] = lane
    end
    for i, socket in ipairs(self.listener:lanes()) do
        lanes[i] = by_socket[socket]
    end
    for id, lane in pairs(self.guests) do
        kept.guests[#kept.guests + 1] = { id = id, lane = lane.name }
    end
    kept.lanes = book:each(lanes)
    return book:object(kept)
end

-- Users live on from fork to exit: one whose worker is not there any more is dropped by sockets.lua.
local function resume_lane(self, socket, kept)
    local lane = add_lane(self, socket, kept.group, kept.name)
    lane:resume(kept)
    if kept.spare then
        lane:reserve()
    end
    for _, user in ipairs(kept.users) do
        self.users[user.id] = lane
    end
    return lane
end

--- The listener of a former master.
-- @param options as of Rotation.new, what is kept is not among them
-- @param former see keeper/estate.lua
-- @return the rotation, or nil, message: then nothing of it is open
function Rotation.resume(options, kept, former)
    for _, field in ipairs(KEPT) do
        options[field] = kept[field]
    end
    local self = Rotation.new(options)
    self.times_busy, self.lost = kept.times_busy, kept.lost
    local fds, by_fd = {}, {}
    local function take(lane)
        local fd = former:take(lane.fd)
        fds[#fds + 1], by_fd[fd or 0] = fd, lane
        return fd
    end
    for _, lane in ipairs(kept.lanes) do
        if not take(lane) then
            return nil, ('%s: lane %s was not kept'):format(kept.address.text, lane.name)
        end
    end
    -- Lanes that are younger than the state have no worker, but may have connections; their place in the group is not
    -- known.
    local prefix = ('lane/%d.'):format(self.number or 0)
    for _, name in ipairs(former:unknown(prefix)) do
        take { fd = name, name = name:sub(#'lane/' + 1), users = {} }
        self.lane_count = math.max(self.lane_count or 0, tonumber(name:sub(#prefix + 1)) or 0)
        kept.listener.uncertain = true
    end
    kept.listener.lanes = fds
    local message
    self.listener, message = try_listen(self, false, kept.listener)
    if not self.listener then
        return nil, message
    end
    furnish(self)
    self.rescue:resume(former)
    local by_name = {}
    for _, socket in ipairs(self.listener:lanes()) do
        local lane = by_fd[socket:fd 'as it is']
        by_name[lane.name] = resume_lane(self, socket, lane)
    end
    for _, guest in ipairs(kept.guests) do
        self.guests[guest.id] = by_name[guest.lane]
    end
    if self.steering then
        for id, lane in pairs(self.users) do
            if lane.state == 'live' then
                self.steering:join(id, self.want)
            end
        end
        begin_steering(self)
    end
    return self
end

--- What the kernel does: 'shared', 'steered', 'sticky'; 'hash': what it does if it refuses a program.
function Rotation:balance_in_force()
    return self.steering and self.steering.force or 'shared'
end

-- ---------------------------------------------------------------------------------------------------------------------
-- A worker's way through

-- Its group's; of those that nobody has the one where most connections wait: they are served soonest. Of equal ones the
-- first in the group: the last is closed more easily, and see spares.lua.
local function lane_for(self, group)
    local best, depth
    for _, lane in ipairs(self.lanes) do
        if group and lane.group == group and lane.state ~= 'free' and not lane.spoilt then
            return lane
        elseif lane.state == 'free' and not lane.spoilt then
            local its = lane:measure()
            if not best or its > depth or its == depth and lane.socket:index() < best.socket:index() then
                best, depth = lane, its
            end
        end
    end
    return best
end

-- Where others have sockets in the group.
local function add_spares(self)
    while self.census and self.census.count > 0 and #self.lanes < Spares.needed(self.lanes) do
        local spare = new_lane(self)
        if not spare then
            return -- there are no more
        end
        spare:reserve()
    end
end

-- A lane comes into use, a worker is ready or gone: what it opened is there, or closed.
-- @param exactly at once: nobody is steered yet to the lane that comes into use
local function count_strangers(self, exactly)
    if self.census then
        self.census:count_now(self.platform.now(), exactly)
        add_spares(self)
    end
end

-- Of a lane that others have. If lanes have run out, workers that were told to leave, and do not, have them.
local function invite(self, worker_id, blocking)
    local lane = self.lanes[worker_id % #self.lanes + 1]
    local alone = self.shared and next(self.guests) == nil
    if self.shared then
        lane:expect_listen()
    end
    self.guests[worker_id] = lane
    return lane:hand_out(alone, blocking)
end

--- A worker gets its lane: its generation's (queue), one that a former worker left, else a new one. Asked again, the
-- same one.
-- @param request what the worker asked for, given back to `give`
-- @param blocking whether a worker that chooses how it accepts finds it blocking
-- @return the descriptor, or nil, message, code
function Rotation:assign(worker_id, request, generation, blocking)
    self.released = false
    if self.address.path then
        self.lanes[1]:repair(worker_id) -- apps unlink a path before they listen there
    end
    local lane = self.users[worker_id] or self.guests[worker_id]
    if lane then
        if self.users[worker_id] then
            lane:asked(worker_id, request)
        end
        return lane:hand_out()
    elseif self.shared then
        return invite(self, worker_id, blocking)
    end
    local group = self.balance == 'queue' and generation or nil
    local message, code
    lane = lane_for(self, group)
    if not lane then
        lane, message, code = new_lane(self, group)
    end
    if code == 'E2BIG' then
        return invite(self, worker_id)
    elseif not lane then
        return nil, message, code
    end
    lane:belong(group)
    local fresh = lane.state == 'free'
    lane:add(worker_id, request)
    self.users[worker_id] = lane
    count_strangers(self, fresh)
    self.steering:apply()
    return lane:hand_out(lane:worker() == worker_id, blocking)
end

--- Whether its path is being put back, with the rights of the workers' user; then fn() follows.
function Rotation:mends(worker_id, fn)
    if not self.address.path or not self.as then
        return false
    elseif self.mending then
        table.insert(self.mending, fn)
        return true
    end
    local waiting = { fn }
    self.lanes[1]:repair(worker_id)
    if not self.listener:await_path(function()
        self.mending = nil
        for _, waits in ipairs(waiting) do
            waits()
        end
    end) then
        return false
    end
    self.mending = waiting
    return true
end

-- Gives away what waits where nobody serves.
local function empty_free(self)
    self.rescue:retry()
    for _, lane in ipairs(self.lanes) do
        if lane.state == 'free' then
            self.rescue:empty(lane)
        end
    end
end

--- Ready: into rotation.
function Rotation:join(worker_id)
    local lane = self.users[worker_id]
    self.served = self.served or lane ~= nil or self.guests[worker_id] ~= nil
    if lane and lane:join(worker_id) then
        if self.census then
            self.census:meet(worker_id, lane)
            count_strangers(self)
        end
        self.steering:join(worker_id, self.want)
        empty_free(self)
    end
end

-- Where what waits for the worker is; nil: nowhere, or others go on with it.
local function queue_of(self, worker_id)
    return self.users[worker_id] or self.shut and self.guests[worker_id] or nil
end

local function lane_of(self, worker_id)
    return self.users[worker_id] or self.guests[worker_id]
end

local function is_tcp(self)
    return self.address.type ~= 'dgram' and self.address.family ~= 'unix'
end

--- Whether others serve the worker's lane as well.
function Rotation:served_by_others(worker_id)
    local lane = lane_of(self, worker_id)
    if lane and self.shared then
        for other in pairs(self.guests) do
            if other ~= worker_id and is_tcp(self) and self.serves(other) then
                return true
            end
        end
        return false
    end
    return lane ~= nil and lane.state == 'live'
end

-- Whether somebody helps in a lane.
local function defer(self, lane)
    local on = false
    for id in pairs(self.helpers) do
        on = on or lane_of(self, id) == lane and self:served_by_others(id)
    end
    lane:defer(on)
end

--- Out of rotation, before it is asked to go.
-- @return as `detains`
function Rotation:leave(worker_id)
    local lane = self.users[worker_id]
    if lane and lane:leave(worker_id) then
        self.steering:leave(worker_id, self.want)
    end
    lane = lane_of(self, worker_id)
    if lane then
        defer(self, lane)
    end
    return self:detains(worker_id)
end

--- Whether a worker that leaves is not asked to go at once: there is a queue to wait for, or others have it as well.
function Rotation:detains(worker_id)
    return queue_of(self, worker_id) ~= nil or self:served_by_others(worker_id)
end

--- The worker leaves a lane that others serve; `over`: it has heard so by now, and accepts nothing more.
function Rotation:help(worker_id, over)
    local lane = lane_of(self, worker_id)
    self.helpers[worker_id] = lane and not over or nil
    if lane then
        defer(self, lane)
    end
end

--- How long somebody may still come who connected while others helped in the worker's lane, in ms.
function Rotation:late_ms(worker_id)
    local lane = lane_of(self, worker_id)
    return lane and lane:late_ms() or 0
end

--- It is asked to go although connections wait for it, for it takes none of them.
function Rotation:give_up(worker_id)
    local lane = self.users[worker_id]
    if lane then
        lane:give_up()
    end
end

--- The process is gone. Its lane stays, with what waits in it.
function Rotation:drop(worker_id)
    local lane = self.users[worker_id] or self.guests[worker_id]
    if not lane then
        return
    end
    if self.address.path then
        lane:repair(worker_id)
    end
    local is_user = self.users[worker_id] ~= nil
    self.users[worker_id], self.guests[worker_id], self.helpers[worker_id] = nil, nil, nil
    if is_user then
        lane:remove(worker_id)
    end
    defer(self, lane)
    if not is_user then
        return
    end
    self.steering:unprobe(worker_id)
    self.steering:leave(worker_id, self.want)
    count_strangers(self)
    if lane.state == 'free' then
        self.rescue:empty(lane)
    end
end

--- A worker has no room for this connection: others are asked. The descriptor is ours now.
function Rotation:returned(worker_id, fd)
    local lane = self.users[worker_id]
    if lane then
        lane:full(worker_id)
    end
    self.rescue:adopt(fd, lane)
end

--- The worker says how many connections it holds, and how much of its time it works.
function Rotation:load(worker_id, held, busy)
    local lane = self.users[worker_id]
    if lane then
        lane:load(worker_id, held, busy)
        self.steering:rebalance()
    end
end

--- Nobody may begin to connect any more. What waits in a socket that all have is waited for by all, where that can be
-- seen. Sockets of others are left as they are: theirs to serve, or to keep for who comes after us.
function Rotation:shut_out()
    if self.borrowed or self.fd then
        return
    end
    self.shut = is_tcp(self)
    for _, lane in ipairs(self.lanes) do
        lane:shut_out()
    end
end

--- Connections that wait for the worker.
function Rotation:waiting(worker_id)
    local lane = queue_of(self, worker_id)
    return lane and lane:waiting() or 0
end

--- Its share of new connections, as a ratio to the others' 1. 0: none, unless there is nobody else.
function Rotation:weigh(worker_id, weight)
    local lane = self.users[worker_id]
    if lane and lane:weigh(worker_id, weight) then
        self.steering:apply()
    end
end

--- The number of workers wanted: so many lanes are kept.
function Rotation:wants(count)
    self.want = count
end

--- Whether the worker's lane is stalled, or has not moved for half of the time after which it is.
function Rotation:is_slow(worker_id, now)
    local lane = self.users[worker_id]
    return lane ~= nil and (lane.stalled == true or lane:doubtful(now) >= self.stall_timeout_ms / 2)
end

--- How long the worker's lane has not been seen to move although somebody waited there, in ms.
function Rotation:doubtful(worker_id, now)
    local lane = self.users[worker_id]
    return lane and lane:doubtful(now) or 0
end

--- Whether its path has this mode and owner.
function Rotation:has_rights(mode, owner)
    local ours = self.owner or {}
    owner = owner or {}
    return self.mode == mode and ours.uid == owner.uid and ours.gid == owner.gid
end

--- Whoever asks for its address calls it so. Before, only the address was known: see keeper/salvage.lua.
function Rotation:belong(key)
    self.key, self.found = key, nil
end

--- Its name in a later plan.
function Rotation:rename(name)
    self.name = name
end

--- A restart has completed. If none of its users stays, nobody will come for it.
function Rotation:release(stays)
    for _, users in ipairs { self.users, self.guests } do
        for id in pairs(users) do
            if stays(id) then
                return
            end
        end
    end
    self.released = true
end

-- Connections that wait, and those of them that wait where nobody serves.
local function count_waiting(self)
    local waiting, unserved = self.rescue:waiting(), 0
    for _, lane in ipairs(self.lanes) do
        local depth = lane:waiting()
        waiting = waiting + depth
        unserved = unserved + (lane.state == 'free' and not self.shared and depth or 0)
    end
    return waiting, unserved
end

--- Whether somebody may come: it was served and not given up, or connections wait.
function Rotation:is_awaited()
    return self.served == true and not self.released or count_waiting(self) > 0
end

--- Of one that a worker asked for: nobody has it, and none is to come. Who waits there for as long as what waits is
-- kept is turned away, so that its client knows; who comes later, at once.
function Rotation:turn_away(now)
    if self:is_used() or self.awaits_workers() then
        self.unused_at = nil
        return
    end
    self.unused_at = self.unused_at or now
    if now - self.unused_at < self.lost_after_ms or self.address.type ~= 'stream' then
        return
    end
    local count = self.rescue:turn_away()
    for _, lane in ipairs(self.lanes) do
        count = count + lane:turn_away()
    end
    if count > 0 then
        self.lost = self.lost + count
        self.log:warn({ address = self.address.text, connections = count },
            'Waiting connections lost, no worker listens there any more')
    end
end

function Rotation:is_used()
    return next(self.users) ~= nil or next(self.guests) ~= nil
end

--- Whether the worker has this socket, whether it can be asked there, in a lane that is its own or its generation's,
-- and whether nobody else has that.
function Rotation:has(worker_id)
    local lane = self.users[worker_id]
    return lane ~= nil or self.guests[worker_id] ~= nil, lane ~= nil, lane ~= nil and lane:worker() == worker_id
end

--- Connections of the master's own from this port go to the worker's lane; see steering.lua.
function Rotation:probe(worker_id, port)
    if not self.users[worker_id] then
        return nil, 'it has no lane', 'ENOTSUP'
    end
    return self.steering:probe(worker_id, self.users[worker_id], port)
end

function Rotation:probed(worker_id)
    return self.users[worker_id] ~= nil and self.steering:probed(worker_id)
end

function Rotation:unprobe(worker_id)
    if self.steering then
        self.steering:unprobe(worker_id)
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Now and then

local function repair_lane(self, lane)
    local was_spoilt = lane.spoilt
    lane:repair()
    if lane.spoilt and not was_spoilt and not self.shared then
        self.steering:apply()
        for id in pairs(lane.users) do
            self.spoilt(id)
        end
    end
end

local function repair(self, now)
    if now - (self.repaired_at or 0) < REPAIR_MS then
        return
    end
    self.repaired_at = now
    for _, lane in ipairs(self.lanes) do
        repair_lane(self, lane)
    end
end

--- Puts right what a worker has shut down.
function Rotation:mend()
    for _, lane in ipairs(self.lanes) do
        if lane:is_down() then
            repair_lane(self, lane)
        end
    end
end

-- Whether a lane's worker sleeps in its event loop; nil if that cannot be seen, or it is not one worker.
local function is_asleep(self, lane)
    local worker = lane:worker()
    if worker and self.idle then
        return self.idle(worker)
    end
end

-- The same, as it was when it was first asked in this look.
local function was_asleep(self, lane)
    if self.asleep[lane] == nil then
        local asleep = is_asleep(self, lane)
        self.asleep[lane] = asleep == nil and 'unknown' or asleep
    end
    return self.asleep[lane]
end

-- Whether its worker may have nothing to do, as far as queues say: nothing waits for it, it has taken all it was given.
local function may_be_idle(self, lane)
    local worker = lane:worker()
    return worker and lane.state == 'live' and not lane.stalled and not lane.busy_at and lane.seen == 0
        and not self.rescue:awaits(worker)
end

-- Whether there may be one whose worker has nothing to do. Not all of many are asked.
local function someone_idle(self, except)
    local asked = 0
    for i = 1, #self.lanes do
        local lane = self.lanes[(i + self.glances) % #self.lanes + 1]
        if lane ~= except and may_be_idle(self, lane) then
            asked = asked + 1
            if asked > MAX_ASKED or was_asleep(self, lane) then
                return true
            end
        end
    end
    return false
end

-- Workers that have nothing to do, as far as is known: those that are not seen to be at work. Those of whom that is
-- known for certain first.
local function idle_takers(self)
    local certain, perhaps = {}, {}
    for _, lane in ipairs(self.lanes) do
        local asleep = may_be_idle(self, lane) and was_asleep(self, lane)
        if asleep then
            lane:takers(asleep == true and certain or perhaps)
        end
    end
    for _, heir in ipairs(perhaps) do
        certain[#certain + 1] = heir
    end
    local list = {}
    for i = 1, #certain do -- not always the same ones first
        local heir = certain[(i + self.glances) % #certain + 1]
        if not self.takes or self.takes(heir.worker, heir.request) then
            list[#list + 1] = heir
        end
    end
    return list
end

local function is_served(lane)
    return lane.state == 'live' or lane.state == 'leaving'
end

-- @return whether it has become busy, or is not any more, and that matters to the steering
local function glance_at(self, lane, now, depth)
    local was_busy = lane.busy_at ~= nil
    local changed = lane:glance(now, depth, function()
        local asleep = was_asleep(self, lane)
        if asleep ~= 'unknown' then
            return asleep
        end
    end, function()
        return someone_idle(self, lane)
    end)
    if lane.busy_at and not was_busy then
        self.times_busy = self.times_busy + 1
    end
    return changed and lane.state == 'live'
end

-- What waits in busy lanes goes to workers that are idle.
local function relieve(self)
    local idle
    for _, lane in ipairs(self.give and self.lanes or {}) do
        if is_served(lane) and lane.busy_at and lane.seen > 0 and not self.steering:is_probed(lane) then
            idle = idle or idle_takers(self)
            self.rescue:relieve(lane, idle)
        end
    end
end

--- Looks at what waits, in passing: every few milliseconds while something does. Busy lanes are steered around, and
-- what waits there goes to workers that are idle.
-- @return whether connections wait; when to look again though none do, nil: whenever some come
function Rotation:glance(now)
    if not self:is_quick() then
        return false
    end
    local queued, changed, due = self.listener:queued(), false, math.huge
    self.glances, self.asleep = self.glances + 1, {}
    for _, lane in ipairs(self.lanes) do
        if is_served(lane) then
            changed = glance_at(self, lane, now, queued and queued[lane.socket] or 0) or changed
            due = math.min(due, lane:due() or due)
        end
    end
    relieve(self)
    if changed then
        self.steering:apply()
    else
        self.steering:settle()
    end
    return queued ~= nil, due < math.huge and due or nil
end

--- Whether its lanes are looked at in passing: where each worker has one, and any may take what another's has.
function Rotation:is_quick()
    return self.steering ~= nil and self.steering.force == 'steered'
end

local function can_take(self, except)
    for _, lane in ipairs(self.lanes) do
        if lane.state == 'live' and not lane.stalled and lane ~= except then
            return true
        end
    end
    return false
end

-- @return 'busy', 'unsettled' or nil, as tick
local function look(self, lane, now)
    if lane.state == 'live' then
        local function asleep()
            return is_asleep(self, lane)
        end
        if lane:watch(now, can_take(self, lane), self.rescue, asleep) then
            self.steering:apply()
            if lane.stalled then
                self.rescue:empty(lane)
                for id in pairs(lane.users) do
                    self.stalled(id, self.address.port)
                end
            end
            lane:measure()
        end
    elseif lane.state == 'free' then
        self.rescue:empty(lane)
        lane:measure()
    end
    return lane.depth > 0 and 'busy' or lane.stalled and 'unsettled' or nil
end

-- Whether there may be somebody in a moment who takes what waits in this lane: a worker that is to come gets the lane,
-- one that has a channel is given its connections. That one may be without its server just now, or without room.
local function is_hopeful(self, lane)
    if self.awaits_workers() then
        return true
    end
    for _, other in ipairs(self.lanes) do
        if other ~= lane and not other.stalled and other:may_be_given() then
            return true
        end
    end
    return false
end

-- What waits where nobody serves and nobody can be given it: the kernel moves it, if it may; else the next worker takes
-- the lane. Where there is no hope, or nobody came in time, it is reset, so that its clients know.
local function look_after_orphan(self, i, now)
    local lane = self.lanes[i]
    local age = lane:orphaned(now, can_take(self, lane))
    local moves = age and self.platform.migrates()
    if not age or not moves and age < self.lost_after_ms and is_hopeful(self, lane) then
        return
    end
    local waiting = lane:waiting()
    if not lane:abandon() then
        return -- the steering in force cannot do without it, at this moment
    end
    table.remove(self.lanes, i)
    for id in pairs(lane.users) do
        self.users[id] = nil
    end
    local fields = { address = self.address.text, connections = waiting }
    if moves then
        self.log:info(fields, 'Waiting connections moved to other workers by the kernel')
    else
        self.lost = self.lost + waiting
        self.log:warn(fields, 'Waiting connections lost, nobody served them in time')
    end
end

-- So many lanes are kept.
local function wanted(self)
    local needed = self.census and self.census.count > 0 and Spares.needed(self.lanes) or 1
    return math.max(self.balance == 'queue' and 1 or self.want, needed)
end

-- Closes free lanes beyond what is wanted, and those that are spoilt. From the end of the group: then no other member
-- changes its place.
local function trim(self, now)
    local used, counted = 0, false
    for i = #self.lanes, 1, -1 do
        if self.lanes[i].spoilt and self.lanes[i]:close_unused(now) then
            table.remove(self.lanes, i)
        end
    end
    for _, lane in ipairs(self.lanes) do
        used = used + (lane.state ~= 'free' and 1 or 0)
    end
    for i = #self.lanes, 1, -1 do
        if not counted and #self.lanes > math.max(wanted(self), used) then
            counted = true
            count_strangers(self, true) -- who may need that lane where it is
        end
        if #self.lanes <= math.max(wanted(self), used) then
            return
        end
        local lane = self.lanes[i]
        local last = lane.socket:index() == #self.lanes - 1
        if (last or not self.steering.buckets) and lane:close_unused(now) then
            table.remove(self.lanes, i)
        end
    end
end

-- A worker without a channel that has let go of its socket: who waits there waits for others.
local function let_go(self, worker_id)
    self.log:warn({ workerId = worker_id, address = self.address.text },
        'Worker has closed the socket that it was given, it is replaced')
    self:drop(worker_id)
    self.deserted(worker_id)
end

--- @return 'busy' if connections wait somewhere: look again soon; 'unsettled' if there is something to come back to
function Rotation:tick(now)
    repair(self, now)
    local deserter = self.census and self.census:look(now)
    if deserter then
        let_go(self, deserter)
    end
    local busy, unsettled = false, false
    if not self.shared then
        for _, lane in ipairs(self.lanes) do
            local state = look(self, lane, now)
            busy, unsettled = busy or state == 'busy', unsettled or state ~= nil
        end
        if self.steering.force == 'hash' then
            self.steering:apply()
            unsettled = true
        end
        self.steering:settle()
        self.rescue:retry()
        for i = #self.lanes, 1, -1 do
            look_after_orphan(self, i, now)
        end
        trim(self, now)
        add_spares(self)
        unsettled = unsettled or #self.lanes > wanted(self) or self.rescue:is_at_work()
    end
    for _, lane in ipairs(self.lanes) do
        unsettled = unsettled or lane.broken ~= nil
    end
    return (busy or self.rescue:waiting() > 0) and 'busy' or unsettled and 'unsettled' or nil
end

--- Adds the sockets to watch while nothing happens. One of datagrams has no queue to look after.
function Rotation:watched(fds)
    for _, lane in ipairs(self.address.type == 'dgram' and {} or self.lanes) do
        fds[#fds + 1] = lane.fd
    end
end

--- Adds the sockets that somebody may shut down, and that can be repaired then.
function Rotation:frail(fds)
    for _, lane in ipairs(is_tcp(self) and self.lanes or {}) do
        fds[#fds + 1] = not lane.broken and lane.fd or nil
    end
end

--- Calls fn(worker id, its lane) for each worker that has one.
function Rotation:each_user(fn)
    for id, lane in pairs(self.users) do
        fn(id, lane)
    end
end

--- Connections that were rescued, times that a lane was busy, connections that were lost, ever.
function Rotation:count()
    return self.rescue.total, self.times_busy, self.lost
end

--- For status.
function Rotation:snapshot()
    local lanes = {}
    for i, lane in ipairs(self.lanes) do
        lanes[i] = lane:snapshot(self.shared)
    end
    return { address = self.address.text, name = self.name, balance = self:balance_in_force(), lanes = lanes,
        unserved = select(2, count_waiting(self)), strangers = self.census and self.census.count or 0 }
end

--- @return how many connections waited, and are reset by this
function Rotation:close()
    local waiting = self.rescue and count_waiting(self) or 0
    if self.rescue then
        self.rescue:close()
    end
    self.lanes, self.users, self.guests = {}, {}, {}
    if self.listener then
        self.listener:close()
        self.listener = nil
    end
    return waiting
end

return Rotation
