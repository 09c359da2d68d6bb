--- sockets.lua: the workers at the listeners of the cluster: who is given which socket, who gets connections, who has
-- left. Which listeners there are is directory.lua's matter, what happens inside one rotation.lua's, when they are
-- looked at pace.lua's.
-- Longer than 400 lines: one interface for all that workers and their masters ask of sockets.

local Asking = require 'dutch-master.listen.asking'
local Directory = require 'dutch-master.listen.directory'
local Doubts = require 'dutch-master.listen.doubts'
local Hand = require 'dutch-master.listen.hand'
local Pace = require 'dutch-master.listen.pace'

local Sockets = {}
Sockets.__index = Sockets

-- How long connections that are being accepted need to be parsed: Node 26 resets those it accepted but did not parse.
local SETTLE_MS = 150
-- The same for servers that were given their sockets. Puma and daphne close what they accepted and heard nothing of,
-- and a client whose first packet is lost sends it again after 200 ms. Of 15,000 clients that sent up to 60 ms after
-- they had connected, in 20 rolls of puma, 7 failed with 150 ms, none with this.
local SERVER_SETTLE_MS = 300
-- How often a leaving worker's queue is looked at, and how long, at least, one that does not move.
local LEAVE_POLL_MS, LEAVE_LIMIT_MS = 20, 2000
-- How long a server needs at most, once it is asked to go, until it accepts nothing more.
local HEARD_MS = 2000
-- What nobody reports is still looked for: a unix path that was removed, and what a worker did to a socket's options.
local REST_PATH_MS, REST_MS = 1000, 5000
-- While connections wait somewhere. A queue that moves is hardly ever seen not to, this often.
local BUSY_TICK_MS = 50

--- @param options {platform, log, balance, backlog, stall_timeout_ms, want, inherited = platform.inherited()'s list,
--   borrowed = listening sockets of a former master's workers, who serve on: see platform.copy_listener,
--   takes = function(worker_id, request) -> whether that worker can be given connections (nil: who made a request can),
--   rescue = function(fd, done, worker_id, request) -> true if the worker was given the connection,
--   fate = function(worker_id, descriptor) -> what has become of a connection that the worker was given: see
--   Cluster:fate,
--   lost_after_ms = when what waits where nobody serves is reset,
--   idle = function(worker_id) -> whether that worker sleeps in its event loop, nil if that cannot be seen,
--   worker_of = function(process group) -> the worker that has it, or nil,
--   holds = function(worker_id, fd) -> whether the worker has this socket of ours, nil if that cannot be seen,
--   deserted = function(worker_id): it has let go of a socket, and gets nothing there any more,
--   spoilt = function(worker_id): it has made its socket one that cannot be repaired,
--   stalled = function(worker_id, port): somebody has waited for it there for stallTimeout,
--   awaits_workers = function() -> whether another worker is to come}
-- rescue's descriptor stays ours; done(accepted) is called later, once, if it returned true. request is what that
-- worker gave to `query` for the listener in question, nil after `take`.
function Sockets.new(options)
    local self = setmetatable({
        platform = options.platform, log = options.log,
        inherited = { unpack(options.inherited) }, worker_of_group = options.worker_of,
        workers = {}, -- id -> {state, leaving = timer, target = the rotation where it is asked}
    }, Sockets)
    self.hand = Hand.new { platform = options.platform }
    self.doubts = Doubts.new { platform = options.platform, log = options.log, hand = self.hand, fate = options.fate,
        keep_ms = options.lost_after_ms }
    self.directory = Directory.new {
        platform = options.platform, want = options.want, balance = options.balance, inherited = options.inherited,
        borrowed = options.borrowed,
        fields = {
            platform = options.platform, log = options.log, balance = options.balance, backlog = options.backlog,
            stall_timeout_ms = options.stall_timeout_ms, lost_after_ms = options.lost_after_ms,
            hand = self.hand, doubts = self.doubts, give = options.rescue, takes = options.takes, idle = options.idle,
            serves = function(id)
                return self.workers[id] ~= nil and self.workers[id].state == 'live'
            end,
            worker_of = options.worker_of, holds = options.holds, deserted = options.deserted,
            stalled = options.stalled, spoilt = options.spoilt, awaits_workers = options.awaits_workers,
        },
    }
    self.asking = Asking.new(function(...)
        return self.directory:open(...)
    end)
    self.pace = Pace.new {
        platform = options.platform, busy_ms = math.min(options.stall_timeout_ms / 5, BUSY_TICK_MS), lanes = self,
    }
    return self
end

-- Something happens. Without a listener, or a worker, there is nothing to look after.
local function stir(self)
    if self.directory.rotations[1] and next(self.workers) then
        self.pace:stir()
        self.pace:start()
    end
end

-- Whether everybody who might still ask for a listener has asked.
local function is_settled(self)
    local live = false
    for _, worker in pairs(self.workers) do
        if worker.state == 'starting' then
            return false
        end
        live = live or worker.state == 'live'
    end
    return live
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Listeners

--- Whether so many workers can be wanted.
-- @return true, or nil, message, code
function Sockets:has_room(count)
    return self.directory:has_room(count)
end

--- Opens the listeners of the plan: all, or none.
-- @return true, or nil, message, code
function Sockets:open(list)
    local ok, message, code = self:update(list)
    for _, id in ipairs(ok and self.directory:lenders() or {}) do
        self.workers[id] = { id = id, state = 'live' }
        stir(self)
    end
    self.directory:close_borrowed()
    return ok, message, code
end

--- The workers of a former master, whose sockets were borrowed, get nothing new: done() once nothing waits for them.
function Sockets:await_lenders(done, limit_ms)
    local list = self.directory:lenders()
    local left = #list + 1
    local function empty()
        left = left - 1
        if left == 0 then
            done()
        end
    end
    for _, id in ipairs(list) do
        self:leave(id, empty, limit_ms)
    end
    empty()
end

--- They are gone.
function Sockets:own()
    local list = self.directory:lenders()
    for _, rotation in ipairs(self.directory.rotations) do
        rotation:own()
    end
    for _, id in ipairs(list) do
        self:drop(id)
    end
end

--- Takes over another list: see directory.lua.
-- @param count the number of workers that will be wanted, nil: as many as now
-- @return true, or nil, message, code
function Sockets:update(list, count)
    stir(self)
    return self.directory:update(list, count, is_settled(self))
end

--- The number of workers wanted.
function Sockets:want(count)
    stir(self)
    self.directory:want(count)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Workers

local function worker_of(self, id)
    local worker = self.workers[id] or { id = id, state = 'starting' }
    self.workers[id] = worker
    stir(self)
    return worker
end

local function answer(self, id, request, reply, generation, rotation, message, code)
    local worker = self.workers[id]
    if worker.state == 'leaving' then
        return -- as Node's own primary: who is told to go gets no answer
    end
    local fd
    if rotation then
        fd, message, code = rotation:assign(id, request, generation)
    end
    if not fd then
        if request.as and (code == 'EACCES' or code == 'EPERM') then
            message = message .. " (bound with the rights of the workers' user: an address in `listen` is bound with "
                .. "the master's)"
        end
        self.log:warn({ workerId = id, address = request.text or request.name, reason = message }, 'Listening failed')
        return reply(nil, code or 'EINVAL', message)
    end
    if worker.state == 'live' then
        rotation:join(id)
    end
    return reply(fd)
end

--- A worker asks for a socket while it runs. It is bound once for all workers that ask for the same.
-- @param request a socket as protocol.decode describes it: name, text, type, stream, port, backlog, dual, ...
-- @param reply function(fd) or function(nil, code, message); the descriptor stays ours. Later, where it is bound with
-- the worker's own rights, and in the order of the requests
-- @param generation its
function Sockets:query(id, request, reply, generation)
    if worker_of(self, id).state ~= 'leaving' then
        self.asking:ask(id, request, function(...)
            stir(self)
            answer(self, id, request, reply, generation, ...)
        end)
    end
end

--- A datagram socket to refuse a Node worker's datagram query with: it dies of a refusal that brings none.
function Sockets:spare_datagram()
    if not self.spare then
        local listener = self.platform.listen(self.platform.address 'udp:127.0.0.1:0', {})
        self.spare = listener and { listener = listener, lane = listener:lane() }
    end
    return self.spare and self.spare.lane:fd()
end

--- The descriptors of a worker that is about to be forked, one for each listener of the plan, in its order.
-- @param generation its, non_blocking: it expects them so
-- @return list of descriptors, list of {name, address = text}; or nil, message, code
function Sockets:take(id, generation, non_blocking)
    worker_of(self, id).given = true
    local fds, names = {}, {}
    for i, rotation in ipairs(self.directory.plan) do
        local fd, message, code = rotation:assign(id, nil, generation, not non_blocking)
        if not fd then
            return nil, message, code
        end
        fds[i], names[i] = fd, { name = rotation.name, address = rotation.address.text }
    end
    return fds, names
end

--- The sockets that the master itself was started with, for a worker that looks for them by LISTEN_FDS.
-- @return list of descriptors, list of names
function Sockets:passed_on()
    local fds, names = {}, {}
    for i, socket in ipairs(self.inherited) do
        fds[i], names[i] = socket.fd, socket.name or ''
    end
    return fds, names
end

--- Ready: new connections may come.
function Sockets:join(id)
    local worker = worker_of(self, id)
    worker.state, worker.part = 'live', nil
    for _, rotation in ipairs(self.directory.rotations) do
        rotation:join(id)
    end
end

local function stop_leaving(worker)
    if worker.leaving then
        worker.leaving:close()
        worker.leaving = nil
    end
end

local function give_up(self, id)
    for _, rotation in ipairs(self.directory.rotations) do
        rotation:give_up(id)
    end
end

local function help(self, id, over)
    for _, rotation in ipairs(self.directory.rotations) do
        rotation:help(id, over)
    end
end

-- It may be asked to go by now, while others go on where it accepts.
local function await_hearing(self, worker)
    worker.leaving = self.platform.timer(function()
        stop_leaving(worker)
        help(self, worker.id, true)
    end)
    worker.leaving:start(HEARD_MS)
end

-- @return {count = connections that wait for a worker, own = whether any wait where it is alone, shared = whether
-- others serve with it somewhere, late_ms = how long somebody may still come where it is alone, in ms}; nil: nothing
-- detains it
local function look_around(self, id)
    local seen, detained = { count = 0, own = false, shared = false, late_ms = 0 }, false
    for _, rotation in ipairs(self.directory.rotations) do
        local waiting = rotation:waiting(id)
        detained = detained or rotation:detains(id)
        seen.count = seen.count + waiting
        if rotation:served_by_others(id) then
            seen.shared = true
        else
            seen.own, seen.late_ms = seen.own or waiting > 0, math.max(seen.late_ms, rotation:late_ms(id))
        end
    end
    return detained and seen or nil
end

-- Empty for the settling time; or it has not moved for so long that nobody takes anything. Who leaves a lane that
-- others go on serving helps them until it is empty once, since new connections come all the time.
local function await_empty(self, id, worker, done, limit_ms, patience_ms)
    local begun, settle_ms = self.platform.now(), worker.given and SERVER_SETTLE_MS or SETTLE_MS
    local before, moved_at, quiet_at = nil, begun, nil

    -- @return how long it is still to settle, in ms; or nil, while connections wait
    local function settling(now, seen)
        if not before or seen.own or seen.shared ~= before.shared then
            quiet_at = nil
        end
        quiet_at = quiet_at or not seen.own and now or nil
        if seen.count == 0 then
            return math.min(math.max(quiet_at + settle_ms - now, seen.late_ms), quiet_at + limit_ms - now)
        end
    end

    local function over(helps)
        stop_leaving(worker)
        if helps then
            await_hearing(self, worker)
        end
        return done()
    end

    local function look()
        worker.leaving:start(LEAVE_POLL_MS) -- first: whatever becomes of this look
        local now, seen = self.platform.now(), look_around(self, id)
        if not seen then
            return over(false)
        elseif seen.shared then
            help(self, id)
        end
        moved_at = (not before or seen.count < before.count) and now or moved_at
        local left_ms, stuck = settling(now, seen), now - moved_at >= patience_ms
        before = seen
        if left_ms and left_ms > 0 then
            worker.leaving:start(math.min(left_ms, LEAVE_POLL_MS))
        elseif left_ms or stuck or now - begun >= limit_ms then
            if stuck and not left_ms then
                give_up(self, id)
            end
            over(seen.shared)
        end
    end
    worker.leaving = self.platform.timer(look)
    worker.leaving:start(0) -- others of its lane may leave in this very turn: then nobody goes on
end

--- Whether others serve a socket of the worker's: then it may have connections from there before it is ready.
function Sockets:is_helped(id)
    for _, rotation in ipairs(self.directory.rotations) do
        if rotation:served_by_others(id) then
            return true
        end
    end
    return false
end

--- Out of rotation. done() once nothing waits for the worker and what it accepted last has settled: at once if it has
-- no lane, at the latest after limit_ms (two seconds); not at all if it is dropped before.
-- @param sick whether it is known to take nothing: then it is not waited for half of the limit before it is given up
function Sockets:leave(id, done, limit_ms, sick)
    local worker = self.workers[id]
    local has_lane = false
    if not worker then
        return done()
    end
    stir(self)
    stop_leaving(worker)
    worker.state, worker.part = 'leaving', nil
    for _, rotation in ipairs(self.directory.rotations) do
        has_lane = rotation:leave(id) or has_lane
    end
    if not has_lane then
        return done()
    end
    limit_ms = limit_ms or LEAVE_LIMIT_MS
    await_empty(self, id, worker, done, limit_ms, sick and LEAVE_LIMIT_MS or math.max(limit_ms / 2, LEAVE_LIMIT_MS))
end

--- The cluster stops: who waits is served, nobody new may come.
function Sockets:shut_out()
    for _, rotation in ipairs(self.directory.rotations) do
        rotation:shut_out()
    end
end

--- A worker reports how many connections it holds, and how busy it is (thousandths of the time).
function Sockets:load(id, held, busy)
    local worker = self.workers[id]
    if worker then
        worker.held = held
        for _, rotation in ipairs(self.directory.rotations) do
            rotation:load(id, held, busy)
        end
    end
end

-- Whether a former master has given a connection to somebody else before it died, or was about to.
local function is_placed(self, id, fd)
    local in_hand, inode = self.hand:has(fd)
    if in_hand or self.platform.untouched(fd) == false then -- nil: not TCP
        return true
    end
    for _, holder in ipairs(self.platform.holders { inode }) do
        local other = self.worker_of_group(holder.group)
        if other and other ~= id then
            return true
        end
    end
    return false
end

--- A worker accepted a connection for which it has no room. Another one gets it; `fd` is ours now.
-- @param request what it gave to `query`, again = a former master may have had it
function Sockets:returned(id, request, fd, again)
    local rotation = request and self.directory:find(id, request)
    if rotation and not (again and is_placed(self, id, fd)) then
        stir(self)
        rotation:returned(id, fd)
    else
        self.platform.close_fd(fd)
    end
end

--- The worker closed its server on this socket and lives on: nobody may wait there any more.
-- @param request what it gave to `query`
function Sockets:forsake(id, request)
    local worker = self.workers[id]
    local rotation = worker and worker.state ~= 'leaving' and self.directory:find(id, request)
    if rotation then
        stir(self)
        rotation:drop(id)
    end
end

--- The process is gone, or lost: out of rotation at once, its lanes are free. May be said twice.
function Sockets:drop(id)
    local worker = self.workers[id]
    if not worker then
        return
    end
    stir(self)
    stop_leaving(worker)
    self.workers[id] = nil
    local settled = is_settled(self)
    self.asking:drop(id)
    self.directory:drop(id, settled)
end

--- Whether the worker has a socket from which it may accept.
function Sockets:holds(id)
    for _, rotation in ipairs(self.directory.rotations) do
        if rotation:has(id) then
            return true
        end
    end
    return false
end

-- Of a socket that the worker has: whether it is meant, whether it can be asked there, whether it alone has its lane.
local function is_target(rotation, id, port)
    local address = rotation.address
    local has, can, alone = rotation:has(id)
    return has and address.type == 'stream' and address.port and (port == nil or address.port == port), can, alone
end

--- Where a worker can be asked something (see health.lua): the TCP socket with this port, or its first. It stays the
-- same as long as the worker has it: a later plan says nothing about a worker that was forked before.
-- @return the rotation, whether it alone has its lane (else all of its generation); or nil, why, code: ENOENT if it has
-- no such socket (yet), ENOTSUP if all workers have the same
function Sockets:probe_target(id, port)
    local worker = self.workers[id] or {}
    local list = self.directory.rotations
    if worker.target then
        list = { worker.target, unpack(list) }
    end
    for _, rotation in ipairs(list) do
        local is, can, alone = is_target(rotation, id, port)
        if is and can then
            worker.target = rotation
            return rotation, alone
        elseif is then
            return nil, ('all workers have one socket at %s'):format(rotation.address.text), 'ENOTSUP'
        end
    end
    return nil, port and ('it does not listen on port %d'):format(port) or 'it does not listen on a TCP port', 'ENOENT'
end

--- The TCP sockets of the plan that a worker has (those with this port, if one is said), as far as a connection can be
-- made that reaches its lane.
-- @return list of rotations
function Sockets:doors(id, port)
    local list = {}
    for _, rotation in ipairs(self.directory.plan) do
        if is_target(rotation, id, port) and select(2, rotation:has(id)) then
            list[#list + 1] = rotation
        end
    end
    return list
end

--- A worker's share of new connections, as a ratio to the others' 1: for canaries and ramps.
function Sockets:weigh(id, weight)
    assert(type(weight) == 'number' and weight >= 0 and weight < math.huge, 'weight: expected a number from 0')
    stir(self)
    for _, rotation in ipairs(self.directory.rotations) do
        rotation:weigh(id, weight)
    end
end

-- ---------------------------------------------------------------------------------------------------------------------

--- Whether a worker is stalled, or is about to be.
function Sockets:is_slow(id)
    for _, rotation in ipairs(self.directory.rotations) do
        if rotation:is_slow(id, self.platform.now()) then
            return true
        end
    end
    return false
end

--- How long a worker has not been seen to take what waits for it, in ms; 0 where it does, or where that is decided.
-- @param port the one that counts, or nil: all of them
function Sockets:doubtful(id, port)
    local longest, now = 0, self.platform.now()
    for _, rotation in ipairs(self.directory.rotations) do
        longest = math.max(longest, (port or rotation.address.port) == rotation.address.port
            and rotation:doubtful(id, now) or 0)
    end
    return longest
end

--- A restart has completed: what none of the workers that stay has asked for is not awaited any more.
function Sockets:restarted()
    self.directory:release(function(id)
        local worker = self.workers[id]
        return worker ~= nil and worker.state ~= 'leaving'
    end, is_settled(self))
end

--- Looks after all lanes: stalled workers, repairs, connections that nobody serves, lanes too many.
-- @return as Pace.new's tick
function Sockets:tick()
    local busy, unsettled = false, false
    local now = self.platform.now()
    for _, rotation in ipairs(self.directory.rotations) do
        local state = rotation:tick(now)
        busy = busy or state == 'busy'
        unsettled = unsettled or state ~= nil
    end
    self.directory:turn_away(now)
    self.directory:close_unused(is_settled(self))
    if not busy and (next(self.workers) == nil or not self.directory.rotations[1]) then
        return nil
    end
    return busy and 'busy' or unsettled and 'unsettled' or 'quiet'
end

--- Looks at the queues in passing. @return as Rotation:glance
function Sockets:glance()
    local now, waiting_somewhere, first = self.platform.now(), false, nil
    for _, rotation in ipairs(self.directory.rotations) do
        local waits, due = rotation:glance(now)
        waiting_somewhere = waits or waiting_somewhere
        first = due and math.min(due, first or due) or first
    end
    return waiting_somewhere, first
end

--- What to watch between two ticks: the queues that are looked at in passing. @return descriptors
function Sockets:near()
    local fds = {}
    for _, rotation in ipairs(self.directory.rotations) do
        if rotation:is_quick() then
            rotation:watched(fds)
        end
    end
    return fds
end

--- What a worker may shut down.
function Sockets:frail()
    local fds = {}
    for _, rotation in ipairs(self.directory.rotations) do
        rotation:frail(fds)
    end
    return fds
end

--- Some of it was.
function Sockets:mend()
    for _, rotation in ipairs(self.directory.rotations) do
        rotation:mend()
    end
end

--- What to watch while nothing happens. @return descriptors, how long at most; or nil unless all workers serve
function Sockets:watched()
    for _, worker in pairs(self.workers) do
        if worker.state ~= 'live' then
            return nil
        end
    end
    local longest, fds = REST_MS, {}
    for _, rotation in ipairs(self.directory.rotations) do
        rotation:watched(fds)
        longest = rotation.address.path and REST_PATH_MS or longest
    end
    return fds, longest
end

--- For status: by worker id {queue = connections that wait for it, steered = it gets new ones}; `balance` in force at
-- the first listener; `listeners`, each with its lanes; `unserved`: connections that wait where nobody serves;
-- `strangers`: sockets of others in groups of ours; `totals`: numbers that only grow: connections that were rescued,
-- that were lost, times that a lane was busy.
function Sockets:snapshot()
    local rescued, busy, lost = self.directory:count()
    local snapshot = { listeners = {}, totals = { rescued = rescued, lost = lost, busy = busy }, unserved = 0,
        strangers = 0 }
    for i, rotation in ipairs(self.directory.rotations) do
        local listener = rotation:snapshot()
        snapshot.listeners[i] = listener
        snapshot.unserved = snapshot.unserved + listener.unserved
        snapshot.strangers = snapshot.strangers + listener.strangers
        snapshot.balance = snapshot.balance or listener.balance
        rotation:each_user(function(id, lane)
            local entry = snapshot[id] or { queue = 0, steered = true }
            snapshot[id] = entry
            entry.queue = entry.queue + lane:waiting()
            entry.steered = entry.steered and lane.steered
        end)
    end
    return snapshot
end

local function keep_worker(worker)
    return { id = worker.id, state = worker.state, given = worker.given }
end

--- For another master: see keeper/estate.lua.
function Sockets:keep(book)
    return book:object { directory = self.directory:keep(book), workers = book:each(self.workers, keep_worker) }
end

--- Drops all workers but those in this set of ids.
function Sockets:keep_only(ids)
    local others = {}
    for id in pairs(self.workers) do
        others[#others + 1] = not ids[id] and id or nil
    end
    for _, id in ipairs(others) do
        self:drop(id)
    end
end

--- The listeners of a former master, with who has which lane.
-- @return true, or nil, message
function Sockets:resume(kept, former)
    local ok, message = self.directory:resume(kept.directory, former)
    if not ok then
        return nil, message
    end
    for _, worker in ipairs(kept.workers) do
        self.workers[worker.id] = { id = worker.id, state = worker.state, given = worker.given }
    end
    for id, worker in pairs(self.workers) do
        if worker.state == 'leaving' then
            help(self, id)
            await_hearing(self, worker)
        end
    end
    stir(self)
    return true
end

--- There is another keeper, which has no copies of connections yet.
function Sockets:keep_again()
    self.hand:keep_again()
end

--- Closes everything; for the end.
function Sockets:close()
    for _, worker in pairs(self.workers) do
        stop_leaving(worker)
    end
    self.pace:close()
    self.directory:close()
    self.doubts:close()
    self.workers = {}
    if self.spare then
        self.spare.listener:close()
        self.spare = nil
    end
end

return Sockets
