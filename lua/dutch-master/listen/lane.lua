--- lane.lua: one listening socket of a listener: who has it, what waits in it, whether it moves, what was done to it.
-- Owned by its rotation (rotation.lua). A lane has users: the one worker whose it is, all workers of a generation, or,
-- of a shared socket, everybody. Longer than 400 lines: one socket, with what is known of it.
--
-- Its state follows from its users': live (one of them takes connections), else starting (one is not ready yet), else
-- leaving (all are asked to go), else free.
--
-- A live lane can be busy: connections wait and it did not move between two looks, some milliseconds apart. That is
-- everyday business: what waits is rescued, and it is steered around for a moment; for longer while its worker is seen
-- at work and another has nothing to do. It is stalled when it has not moved
-- for stallTimeout: its worker is sick. That a lane is empty because it was rescued is no movement: `since` stays until
-- its worker is seen to take one, or to sleep in its event loop.

local Lane = {}
Lane.__index = Lane

-- A client whose SYN was answered while the lane was in rotation may be shaking hands still: it retries for seconds.
-- (out_since: of the lane's last moment in it, which a free lane has again when nobody serves.)
local QUARANTINE_MS = 5000
-- A stalled lane that was emptied by rescue shows no movement: it is tried again after this, doubling.
local FIRST_PROBATION_MS, LAST_PROBATION_MS = 1000, 30000
-- A busy lane is steered around so long after it was seen not to move: a few looks. Longer, and few workers share what
-- comes while the others are free again. While its worker is at work still, whoever came would wait as the last one
-- did; but what is seen of a worker may be wrong.
local BUSY_MS, AT_WORK_MS = 10, 100
-- One that has not moved for this long is busy, whatever others do.
local SURE_MS = 12
-- A worker that was seen so often to sleep while somebody waited for it does not hear.
local DEAF = 2
-- At a time.
local MAX_TURNED_AWAY = 1000
-- Who is let in with his request alone is let in without one after this: then the kernel says SYN-ACK again.
local DEFER_S = 1
local DEFERRED_MS = 1200
-- How long a worker that has just had no room for a connection is given none.
local FULL_MS = 100

--- @param options {platform, log, socket = the core's lane, address = text, may_block (users choose how they accept),
--   group (of queue: the generation whose it is first), stall_timeout_ms}
function Lane.new(options)
    local self = setmetatable(options, Lane)
    self.users = {} -- worker id -> { state, weight, request = what it asked for }
    self.state, self.weight, self.depth = 'free', 1, 0
    self.accepted, self.accepted_before = 0, 0 -- connections that were taken out by us, ever and at the last tick
    self.spare = false -- it only keeps a place: see spares.lua
    self.clean = false -- nobody but the master can have connected to it since its users came
    self.seen = 0 -- connections that waited at the last glance, less those taken out since
    self.disturbed = 0 -- how often the kernel's order was not the one in force
    self.quiet = true -- the next repair is no news
    self.steered = false
    self.out_since = self.platform.now()
    -- To watch it: asked for later, it would be made non-blocking for a worker.
    self.fd = self.socket:fd(options.as_it_is and 'as it is' or nil)
    return self
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Users

local function update(self)
    local weights = {}
    for _, user in pairs(self.users) do
        weights[user.state] = (weights[user.state] or 0) + user.weight
    end
    self.state = weights.live and 'live' or weights.starting and 'starting' or weights.leaving and 'leaving' or 'free'
    self.weight, self.part = weights[self.state] or 1, nil
end

--- The worker whose lane it is, where it is one alone.
function Lane:worker()
    local id = next(self.users)
    return id ~= nil and next(self.users, id) == nil and id or nil
end

--- A worker gets it: it is starting.
-- @param request what the worker asked for over its channel, nil if it has none
function Lane:add(worker_id, request)
    if self.state == 'free' then
        self.stalled, self.since, self.probation, self.busy_at, self.deaf = nil, nil, nil, nil, nil
        self.given_up = nil
        self.clean = not self.steered and self:waiting() == 0
    end
    self.quiet = true -- its first listen() may change the backlog, as any server's
    self.spare = false
    self.users[worker_id] = { state = 'starting', weight = 1, request = request }
    update(self)
end

--- The worker has asked for it again.
function Lane:asked(worker_id, request)
    self.users[worker_id].request, self.part = request, nil
end

--- Its next user calls listen(), which may change the backlog: that is no news.
function Lane:expect_listen()
    self.quiet = true
end

--- Nobody may begin to connect any more; who waits is served.
function Lane:shut_out()
    self.socket:shut_out()
end

--- The descriptor, as it is handed to a worker.
-- @param alone whether nobody else uses it now, blocking how it is wanted then; of workers that choose how they accept
function Lane:hand_out(alone, blocking)
    return self.socket:fd(self.may_block and (not alone and 'as it is' or blocking and 'blocking') or nil)
end

--- It only keeps a place until a worker gets it.
function Lane:reserve()
    self.spare, self.part = true, nil
end

--- From now on it is the lane of another group.
function Lane:belong(group)
    self.group, self.part = group, nil
end

--- Ready. @return false if it was
function Lane:join(worker_id)
    local user = self.users[worker_id]
    if user.state == 'live' then
        return false
    end
    user.state, self.clean = 'live', false
    self.socket:repair(self.may_block) -- its own listen() set a backlog of its own
    self.quiet = user.request == nil -- of who has a channel it is known to have listened by now
    update(self)
    return true
end

--- Asked to go. @return false if it was
function Lane:leave(worker_id)
    local user = self.users[worker_id]
    if user.state == 'leaving' then
        return false
    end
    user.state = 'leaving'
    update(self)
    return true
end

--- Its users are asked to go although connections wait in it, for they take none of them.
function Lane:give_up()
    self.given_up = self.state == 'leaving'
end

--- Who leaves while others go on accepts until it has heard that it should not, and many servers (puma, daphne) close
-- then what they accepted and have heard nothing of. So meanwhile who connects is let in with his request, or a second
-- later.
-- @param on whether this is so
function Lane:defer(on)
    if on and not self.deferred then
        self.deferred, self.part = self.socket:defer(DEFER_S), nil -- what was in force
    elseif self.deferred and not on then
        self.socket:defer(self.deferred)
        self.deferred, self.part, self.deferred_until = nil, nil, self.platform.now() + DEFERRED_MS
    end
end

--- Of a socket of a former master, which may have kept them out when it died. One second is that master's, who may have
-- died before it said so: a server that has asked for exactly that (unicorn does) is not given it back.
-- @param deferred as that master has kept it
function Lane:let_in(deferred)
    self.deferred = deferred or self.socket:defer() == DEFER_S and 0 or nil
    self:defer(false)
end

--- How long who was not let in may still come, in ms.
function Lane:late_ms()
    return math.max(0, (self.deferred_until or 0) - self.platform.now())
end

--- Ends what waits in it. @return how many
function Lane:turn_away()
    local count = 0
    while count < MAX_TURNED_AWAY do
        local fd = self.socket:accept()
        if not fd then
            break
        end
        self.platform.close_fd(fd)
        count = count + 1
    end
    return count
end

--- Gone. What waits in the lane stays there.
function Lane:remove(worker_id)
    self.users[worker_id] = nil
    update(self)
    if self.state == 'free' then
        self.stalled = nil
        if self.clean then
            -- Of the master's own, by which it saw whether somebody accepts (see acceptance.lua), and nobody did.
            self:turn_away()
        end
    end
end

--- @return whether that changes anything
function Lane:weigh(worker_id, weight)
    local user = self.users[worker_id]
    local before = self.weight
    user.weight = weight
    update(self)
    return self.weight ~= before
end

--- The worker says how many connections it holds, and how much of its time it works (thousandths).
function Lane:load(worker_id, held, busy)
    local user = self.users[worker_id]
    user.held, user.busy = held, busy
end

--- What its users said: connections held by each, on average, and how busy they are. nil: nothing is known.
function Lane:held()
    local held, busy, count = 0, 0, 0
    for _, user in pairs(self.users) do
        if user.state == 'live' and user.held then
            held, busy, count = held + user.held, busy + (user.busy or 0), count + 1
        end
    end
    if count > 0 then
        return held / count, busy / count
    end
end

--- A worker had no room for a connection.
function Lane:full(worker_id)
    self.users[worker_id].full_until = self.platform.now() + FULL_MS
end

--- Those of its users that serve and can be given a connection over a channel: { worker, request }, appended to a list.
function Lane:takers(list)
    local now = self.platform.now()
    for id, user in pairs(self.users) do
        if user.state == 'live' and user.request and now >= (user.full_until or 0) then
            list[#list + 1] = { worker = id, request = user.request }
        end
    end
end

--- Whether users that serve could be given connections: now, or once they listen again or have room.
function Lane:may_be_given()
    for _, user in pairs(self.users) do
        if user.state == 'live' and user.request then
            return true
        end
    end
    return false
end

--- Users that serve and have no channel to say anything by. @return list of worker ids
function Lane:silent_users()
    local list = {}
    for id, user in pairs(self.users) do
        if user.state == 'live' and not user.request then
            list[#list + 1] = id
        end
    end
    return list
end

-- ---------------------------------------------------------------------------------------------------------------------
-- What waits

--- Connections that wait in it now.
function Lane:waiting()
    return (self.socket:queue()) or 0
end

--- The same, noted for the next look.
function Lane:measure()
    self.depth = self:waiting()
    return self.depth
end

--- Whether somebody has shut it down.
function Lane:is_down()
    return select(3, self.socket:queue()) == 'EINVAL'
end

--- Whether connections wait that nobody has taken for stallTimeout.
function Lane:is_stuck(now)
    return self.state == 'live' and self.depth > 0 and self.since ~= nil and now - self.since >= self.stall_timeout_ms
end

--- How long it has not been seen to move although somebody waited, in ms; 0 where it moves, or is known to be stalled.
function Lane:doubtful(now)
    return self.since and not self.stalled and now - self.since or 0
end

--- Takes out a connection that waits.
-- @param name of its copy in the keeper's store, nil: none
-- @return the descriptor, whether there is such a copy; or nil
function Lane:accept(name)
    local fd, is_kept = self.socket:accept(name)
    if fd then
        self.accepted, self.seen = self.accepted + 1, math.max(self.seen - 1, 0)
    end
    return fd, is_kept
end

local function culprit(self)
    return { workerId = self:worker(), generation = self.group, address = self.address }
end

-- Whether it may have connections again.
local function is_over(self, now, idle, better)
    local age = now - self.busy_at
    return age >= AT_WORK_MS or age >= BUSY_MS and (idle() ~= false or not better())
end

--- When it must be looked at again, if it is out of rotation for a moment; nil: it is not.
function Lane:due()
    return self.busy_at and self.busy_at + AT_WORK_MS
end

--- Looks at it in passing, every few milliseconds while connections wait somewhere.
-- @param depth connections that wait in it
-- @param idle as for `watch`
-- @param better function() -> whether another worker may have nothing to do. While all are at work, one that has
-- not moved for a moment only waits for a processor as they do: to go round it would be of no use
-- @return whether it has become busy, or is not any more
function Lane:glance(now, depth, idle, better)
    local before, was_busy = self.seen, self.busy_at ~= nil
    self.seen = depth
    if depth > 0 and before > 0 and depth >= before then
        self.since = self.since or now
        if not was_busy and now - self.since < SURE_MS and not better() then
            return false
        elseif not was_busy then
            -- Asleep although it waited, and waits: more than once, for the worker may have taken it just before.
            self.deaf = idle() == true and self:waiting() >= depth and (self.deaf or 0) + 1 or self.deaf
        end
        self.busy_at = now
    else
        if depth < before then -- its worker took some
            self.since, self.deaf = nil, nil
        end
        if was_busy and is_over(self, now, idle, better) then
            self.busy_at = nil
        end
    end
    return was_busy ~= (self.busy_at ~= nil)
end

local function resume(self)
    self.stalled, self.since, self.emptied, self.deaf = nil, nil, nil, nil
    self.log:info(culprit(self), 'Worker takes connections again')
    return true
end

local function stall(self, now)
    self.stalled = true
    local first = math.min(FIRST_PROBATION_MS, self.stall_timeout_ms)
    self.probation = math.min((self.probation or first / 2) * 2, LAST_PROBATION_MS)
    self.retry_at = now + self.probation
    local fields = culprit(self)
    fields.waiting = self.depth
    self.log:warn(fields, 'Worker stalled')
end

local function watch_stalled(self, now, moves, rescue, asleep)
    local emptied = rescue:empty(self) > 0
    self:measure()
    if moves and not emptied and (asleep or not self.emptied) then
        self.probation = nil
        return resume(self)
    elseif self.depth == 0 and now >= self.retry_at then
        return resume(self)
    end
    self.emptied = self.emptied or emptied
    return false
end

-- Whether its worker is known to be well. An empty lane that nobody rescued says so, unless it is under suspicion: then
-- its worker must have been seen to sleep in its event loop, and never while connections waited; where that cannot be
-- seen (asleep is nil), it is enough that it is in rotation again.
local function is_well(self, taken, asleep)
    if self.depth > 0 or taken > 0 or (self.deaf or 0) >= DEAF then
        return false
    end
    return not self.since or asleep == true or asleep == nil and not self.busy_at
end

--- Looks at a live lane: does it move? Movement is a queue that got shorter, but not by us. One that grows may well be
-- nobody's.
-- @param others whether there are lanes that can take its share
-- @param idle function() -> whether its worker sleeps in its event loop, nil if that cannot be seen
-- @return whether the steering must change
function Lane:watch(now, others, rescue, idle)
    local before, taken = self.depth, self.accepted - self.accepted_before
    self:measure()
    local asleep
    if self.since or self.stalled then
        asleep = idle()
    end
    local moves = self.depth + taken < before or is_well(self, taken, asleep)
    if self.stalled then
        local changed = watch_stalled(self, now, moves, rescue, asleep)
        self.accepted_before = self.accepted
        return changed
    end
    self.accepted_before = self.accepted
    if moves then
        self.since = nil
        return false
    end
    self.since = self.since or now
    -- Ticks come late, never early: a little less than the whole is the whole.
    if now - self.since < self.stall_timeout_ms * 0.95 or not others or self.depth + taken == 0 then
        return false
    end
    local takers = rescue:possible(self)
    -- A queue can move and be as long as before. Where its head can be given away, that is asked how long it waited.
    local young = takers and self.depth > 0 and rescue:head_ms(self) < self.stall_timeout_ms / 2
    if young then
        self.since = nil
    else
        stall(self, now)
        self.emptied = takers
    end
    return not young
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Upkeep

-- A filter that its worker has locked: it stays, whatever it drops, and nothing else can be attached.
local function spoil(self, done, fields)
    if done[#done] ~= 'locked' then
        return
    end
    done[#done] = nil
    if not self.spoilt then
        self.spoilt = true
        fields.reason = 'its filter is locked (SO_LOCK_FILTER): the worker is replaced, no other one gets this socket'
        self.log:warn(fields, 'Listening socket spoilt')
        fields.reason = nil
    end
end

-- Whether somebody is about to listen there for the first time: that changes the backlog.
local function is_to_be_listened_at(self)
    for _, user in pairs(self.users) do
        if user.state == 'starting' then
            return true
        end
    end
    return self.quiet or self.may_block
end

--- Puts right what a worker did to it, and names the worker.
-- @param ended the worker that has just ended, if one has: to remove the path of its socket then is what servers do
function Lane:repair(ended)
    local done, message = self.socket:repair(self.may_block)
    local fields = culprit(self)
    fields.workerId = ended or fields.workerId
    if not done then
        if self.broken ~= message then
            fields.reason = message
            self.log:error(fields, 'Listening socket is broken and could not be repaired')
        end
        self.broken = message
        return
    end
    self.broken = nil
    spoil(self, done, fields)
    if #done == 0 then
        return
    end
    fields.repaired = table.concat(done, ', ')
    if fields.repaired:find 'shutdown' or fields.repaired:find 'reuseport' then
        self.disturbed = self.disturbed + 1
    end
    if fields.repaired == 'backlog' and is_to_be_listened_at(self) or ended and fields.repaired == 'path' then
        self.log:debug(fields, 'Listening socket repaired')
    else
        self.log:warn(fields, 'Listening socket repaired')
    end
    self.quiet = false
end

--- Connections wait in it and nobody has it, or nobody who takes any.
-- @return how long that has been so, in ms, if others could have served them
function Lane:orphaned(now, others)
    local abandoned = self.state == 'free' or self.given_up and self.state == 'leaving' and self:measure() > 0
    if not abandoned or self.steered or not others or self.depth == 0 then
        self.orphaned_at = nil
        return nil
    end
    if not self.orphaned_at then
        self.orphaned_at = now
        local fields = culprit(self)
        fields.waiting = self.depth
        self.log:warn(fields, 'Connections wait in a queue that nobody serves')
    end
    return now - self.orphaned_at
end

--- Closes it with what waits in it: the kernel moves that to other lanes, where it may, else resets it.
function Lane:abandon()
    return self.socket:close(true)
end

--- Whether it gets new connections from now on.
function Lane:steer(on)
    self.out_since = self.steered and self.platform.now() or self.out_since
    self.steered = on
    self.clean = self.clean and not on
end

--- Closes it, if nobody has it, nothing waits in it, and nothing can be on its way to it any more.
function Lane:close_unused(now)
    return self.state == 'free' and not self.steered and now - self.out_since >= QUARANTINE_MS and self:waiting() == 0
        and self.socket:close()
end

--- For another master: see keeper/estate.lua.
function Lane:keep(book)
    local users = {}
    for id, user in pairs(self.users) do
        -- More of a request its worker has.
        users[#users + 1] = { id = id, state = user.state, weight = user.weight,
            request = user.request and { name = user.request.name } }
    end
    return { fd = book:fd('lane/' .. self.name, self.fd), name = self.name, group = self.group, users = users,
        spare = self.spare or nil, deferred = self.deferred }
end

--- Its users as a former master had them. Whoever leaves is looked for again.
function Lane:resume(kept)
    for _, user in ipairs(kept.users) do
        self.users[user.id] = { state = user.state, weight = user.weight, request = user.request }
    end
    update(self)
    self:let_in(kept.deferred)
end

--- For status.
function Lane:snapshot(shared)
    local depth, limit = self.socket:queue()
    return {
        worker = not shared and self:worker() or nil, group = self.group,
        state = shared and 'shared' or self.state, waiting = depth, limit = limit,
        steered = shared or self.steered, stalled = self.stalled or false, weight = self.weight,
    }
end

return Lane
