--- sockets.lua: the book of all listeners of the cluster, those of the plan and those that workers asked for. What
-- happens inside one listener is rotation.lua's matter; here is who has which, when one is opened, when closed.

local Rotation = require 'dutch-master.listen.rotation'

local Sockets = {}
Sockets.__index = Sockets

-- How long connections that are being accepted need to be parsed: Node 26 resets those it accepted but did not parse.
local SETTLE_MS = 150
-- How often a leaving worker's queue is looked at, and how long at most.
local LEAVE_POLL_MS, LEAVE_LIMIT_MS = 20, 2000
-- While workers serve, come or go. A stall must be known half a second after stallTimeout: what is first seen to wait
-- at a tick may have come just after the one before, and the master may be late.
local TICK_MS = 350
-- The same while nothing happens, where lanes cannot be watched: twice a second is what the master may wake then.
local IDLE_TICK_MS = 500
-- After so many ticks at which nothing waited anywhere, lanes are not looked at any more but watched: the kernel wakes
-- the master at the next connection (from then on ticks count again), or when a worker shuts a lane down.
local QUIET_TICKS = 4
-- What nobody reports is still looked for: a unix path that was removed, and what a worker did to a socket's options.
local REST_PATH_MS, REST_MS = 1000, 5000
-- While connections wait somewhere. A queue that moves is hardly ever seen not to, this often.
local BUSY_TICK_MS = 50

-- Of an address that cannot be had, whoever asks: while the cluster boots there is no point in asking again.
local UNBINDABLE = { EADDRINUSE = true, EACCES = true, EADDRNOTAVAIL = true, EEXIST = true, ENOENT = true,
    ENOTDIR = true, EROFS = true, E2BIG = true }

local BALANCES = { steered = true, sticky = true, shared = true }

--- @param options {platform, log, balance, backlog, stall_timeout_ms, want, inherited = platform.inherited()'s list,
--   takes = function(worker_id, request) -> whether that worker can be given connections (nil: who made a request can),
--   rescue = function(fd, done, worker_id, request) -> true if the worker was given the connection,
--   on_fatal = function(message): an address that a worker asked for cannot be bound}
-- rescue's descriptor stays ours; done(accepted) is called later, once, if it returned true. request is what that
-- worker gave to `query` for the listener in question, nil after `take`.
function Sockets.new(options)
    local balance = options.balance or 'steered'
    assert(BALANCES[balance], 'balance: expected "steered", "sticky" or "shared", found ' .. tostring(balance))
    local self = setmetatable({
        platform = options.platform, log = options.log, balance = balance, backlog = options.backlog or 511,
        stall_timeout_ms = options.stall_timeout_ms or 1000, wanted = options.want or 1, rescue = options.rescue,
        takes = options.takes,
        inherited = options.inherited or {}, on_fatal = options.on_fatal,
        plan = {}, -- listeners of the plan, in its order
        by_key = {}, -- those that workers asked for
        retired = {}, -- no longer in the plan, still used
        workers = {}, -- id -> {state, leaving = timer, target = the rotation where it is asked}
        quiet_ticks = 0,
        opened = 0, -- listeners, ever
    }, Sockets)
    self.timer = self.platform.timer(function()
        self:tick()
    end)
    return self
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Listeners

local function each(self)
    local list = {}
    for _, rotation in ipairs(self.plan) do
        list[#list + 1] = rotation
    end
    for _, rotation in pairs(self.by_key) do
        list[#list + 1] = rotation
    end
    for _, rotation in ipairs(self.retired) do
        list[#list + 1] = rotation
    end
    return list
end

-- Something happens: back to ticks.
local function stir(self)
    self.quiet_ticks = 0
    if self.resting then
        self.resting = false
        self.watch:stop()
        self.timer:start(TICK_MS)
    end
end

-- A socket of that address (and number, if one is said) that came from outside. @return its number, its place
local function inherited_fd(self, address, fd)
    for i, socket in ipairs(self.inherited) do
        if socket.address and socket.address.text == address.text and (fd == nil or socket.fd == fd) then
            return socket.fd, i
        end
    end
end

-- The same, once.
local function take_inherited(self, address, fd)
    local found, place = inherited_fd(self, address, fd)
    if found then
        table.remove(self.inherited, place)
    end
    return found
end

-- Whether `count` workers can have a lane each at an address. What the kernel lets us do there is not asked: the same
-- script is refused, or not, on every machine.
-- @param fd of the socket, if it came from outside: such a one is shared
-- @return true, or nil, message, code
local function has_room(self, count, address, fd)
    local lanes = self.balance ~= 'shared' and not fd and not address.path and address.type == 'stream'
        and address.family ~= 'unix'
    if not lanes or count <= Rotation.MAX_WORKERS then
        return true
    end
    return nil, ("E2BIG: %s: %d workers, and at most %d can have a lane each: fewer workers, or balance = 'shared'")
        :format(address.text, count, Rotation.MAX_WORKERS), 'E2BIG'
end

local function asked_for_have_room(self, count)
    for _, rotation in pairs(self.by_key) do
        local ok, message, code = has_room(self, count, rotation.address, rotation.fd)
        if not ok then
            return nil, message, code
        end
    end
    return true
end

--- Whether so many workers can be wanted.
-- @return true, or nil, message, code
function Sockets:has_room(count)
    for _, rotation in ipairs(self.plan) do
        local ok, message, code = has_room(self, count, rotation.address, rotation.fd)
        if not ok then
            return nil, message, code
        end
    end
    return asked_for_have_room(self, count)
end

local function open_rotation(self, fields)
    fields.platform, fields.log, fields.balance = self.platform, self.log, self.balance
    fields.stall_timeout_ms, fields.want, fields.rescue = self.stall_timeout_ms, self.wanted, self.rescue
    fields.takes = self.takes
    fields.backlog = math.max(self.backlog, fields.backlog or 0)
    fields.fd = take_inherited(self, fields.address, fields.fd)
    self.opened = self.opened + 1
    fields.number = self.opened
    local rotation = Rotation.new(fields)
    local ok, message, code = rotation:open()
    if not ok then
        rotation:close()
        return nil, message, code
    end
    return rotation
end

-- An entry of the plan's list: text, or {address = text or table, name =, mode =}, or an address table with a name.
local function plan_entry(self, item)
    local text = type(item) == 'string' and item or item.text or item.address
    local fields = type(item) == 'table' and { name = item.name, mode = item.mode } or {}
    if type(text) == 'table' then
        text = text.text
    end
    local address, message, code = self.platform.address(text)
    if not address then
        return nil, message, code
    end
    fields.address, fields.key = address, address.text
    return fields
end

--- Opens the listeners of the plan: all, or none.
-- @return true, or nil, message, code
function Sockets:open(list)
    return self:update(list)
end

-- What can be seen to be wrong without binding: nothing is bound for a list that cannot be had as a whole.
-- @return the entries of `list`, or nil, message, code
local function plan_entries(self, list, count)
    local entries, seen = {}, {}
    for i, item in ipairs(list) do
        local fields, message, code = plan_entry(self, item)
        if not fields then
            return nil, message, code
        end
        if seen[fields.key] and fields.address.port ~= 0 then
            return nil, ('EADDRINUSE: %s is listed twice'):format(fields.key), 'EADDRINUSE'
        end
        seen[fields.key] = true
        local ok
        ok, message, code = has_room(self, count, fields.address, inherited_fd(self, fields.address))
        if not ok then
            return nil, message, code
        end
        entries[i] = fields
    end
    return entries
end

-- Those of `entries` in their order, old ones where they exist; `fresh` are the new ones among them.
local function assemble(self, entries, fresh)
    local before, plan = {}, {}
    for _, rotation in ipairs(self.plan) do
        before[rotation.key] = rotation
    end
    for i, fields in ipairs(entries) do
        local message, code
        local rotation = before[fields.key]
        before[fields.key] = nil
        if not rotation then
            fields.may_block = true -- a server that was given its sockets knows how it accepts
            rotation, message, code = open_rotation(self, fields)
            if not rotation then
                return nil, message, code
            end
            fresh[#fresh + 1] = rotation
        end
        plan[i] = rotation
    end
    return plan, before
end

--- Takes over another list: new listeners are bound before old ones are closed, and if one cannot be bound nothing has
-- changed. A listener that is not wanted any more closes when its last worker is gone.
-- @param count the number of workers that will be wanted, nil: as many as now
-- @return true, or nil, message, code
function Sockets:update(list, count)
    count = count or self.wanted
    local ok, message, code = asked_for_have_room(self, count)
    local entries
    if ok then
        entries, message, code = plan_entries(self, list, count)
    end
    if not entries then
        return nil, message, code
    end
    local fresh = {}
    local plan, rest
    plan, rest, code = assemble(self, entries, fresh)
    if not plan then
        for _, rotation in ipairs(fresh) do
            rotation:close()
        end
        return nil, rest, code
    end
    for i, rotation in ipairs(plan) do
        local item = list[i]
        rotation.name = type(item) == 'table' and item.name or nil
    end
    stir(self)
    self.plan = plan
    for _, rotation in pairs(rest) do
        self.retired[#self.retired + 1] = rotation
    end
    self:close_unused()
    return true
end

--- The number of workers wanted: so many lanes are kept.
function Sockets:want(count)
    stir(self)
    self.wanted = count
    for _, rotation in ipairs(each(self)) do
        rotation.want = count
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Workers

local function worker_of(self, id)
    stir(self)
    local worker = self.workers[id]
    if not worker then
        worker = { state = 'starting' }
        self.workers[id] = worker
        if not self.ticking then
            self.ticking = true
            self.timer:start(TICK_MS)
        end
    end
    return worker
end

local function mode_of(request)
    if not (request.readable_all or request.writable_all) then
        return nil
    end
    return tonumber('700', 8) + (request.readable_all and tonumber('044', 8) or 0)
        + (request.writable_all and tonumber('022', 8) or 0)
end

-- The n-th listen(0) of every worker is one port; but datagram sockets without a port are each worker's own.
local function key_of(id, request)
    local key = request.name or request.text
    if not request.stream and request.port == 0 and request.type ~= 'unix' then
        key = key .. '@' .. id
    end
    return key
end

-- A listener for a request that exists already: asked for before, of the plan, or one that came from outside, whether
-- it was asked for by its number or by its address.
local function find(self, key, request, address)
    if self.by_key[key] then
        return self.by_key[key]
    end
    for _, rotation in ipairs(self.plan) do
        if address and address.port ~= 0 and rotation.address.text == address.text then
            return rotation
        end
    end
    for _, rotation in ipairs(each(self)) do
        if rotation.fd and (rotation.fd == request.fd or address and rotation.address.text == address.text) then
            return rotation
        end
    end
end

-- The address of a request: of listen({fd}) it is that of the socket with this number among those from outside.
local function address_of(self, request)
    if request.text then
        return self.platform.address(request.text)
    end
    for _, socket in ipairs(self.inherited) do
        if socket.fd == request.fd and socket.address and (socket.address.type ~= 'dgram') == request.stream then
            return socket.address
        end
    end
    local message = request.fd and ('no socket was passed to the master as descriptor %d'):format(request.fd)
    return nil, message or 'no such socket', 'EINVAL'
end

local function open_request(self, key, request)
    local address, message, code = address_of(self, request)
    local rotation = find(self, key, request, address)
    if rotation or not address then
        return rotation, message, code
    end
    if request.dual ~= nil and address.host == '::' then
        address.dual = request.dual
    end
    local ok
    ok, message, code = has_room(self, self.wanted, address, inherited_fd(self, address, request.fd))
    if not ok then
        return nil, message, code
    end
    rotation, message, code = open_rotation(self, {
        key = key, address = address, backlog = request.backlog, mode = mode_of(request), fd = request.fd,
    })
    if rotation then
        self.by_key[key] = rotation
    end
    return rotation, message, code
end

--- A worker asks for a socket while it runs. It is bound once for all workers that ask for the same.
-- @param request a socket as protocol.decode describes it: name, text, type, stream, port, backlog, dual, ...
-- @param reply function(fd) or function(nil, code); the descriptor stays ours
function Sockets:query(id, request, reply)
    local worker = worker_of(self, id)
    if worker.state == 'leaving' then
        return -- as Node's own primary: who is told to go gets no answer
    end
    local rotation, message, code = open_request(self, key_of(id, request), request)
    local fd
    if rotation then
        fd, message, code = rotation:assign(id, request)
    end
    if not fd then
        self.log:warn({ workerId = id, address = request.text or request.name, reason = message }, 'Listening failed')
        if UNBINDABLE[code] and self.on_fatal then
            self.on_fatal(message)
        end
        return reply(nil, code or 'EINVAL')
    end
    if worker.state == 'live' then
        rotation:join(id)
    end
    return reply(fd)
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
-- @return list of descriptors, list of {name, address = text}; or nil, message, code
function Sockets:take(id)
    worker_of(self, id)
    local fds, names = {}, {}
    for i, rotation in ipairs(self.plan) do
        local fd, message, code = rotation:assign(id)
        if not fd then
            return nil, message, code
        end
        fds[i], names[i] = fd, { name = rotation.name, address = rotation.address.text }
    end
    return fds, names
end

--- Ready: new connections may come.
function Sockets:join(id)
    local worker = worker_of(self, id)
    worker.state = 'live'
    for _, rotation in ipairs(each(self)) do
        rotation:join(id)
    end
end

local function waiting(self, id)
    local count = 0
    for _, rotation in ipairs(each(self)) do
        count = count + rotation:waiting(id)
    end
    return count
end

local function stop_leaving(worker)
    if worker.leaving then
        worker.leaving:close()
        worker.leaving = nil
    end
end

-- Empty, and empty still after the settling time.
local function await_empty(self, id, worker, done)
    local limit = self.platform.now() + LEAVE_LIMIT_MS
    local settling = false
    local function look()
        local empty = waiting(self, id) == 0
        if empty and settling or self.platform.now() >= limit then
            stop_leaving(worker)
            return done()
        end
        settling = empty
        worker.leaving:start(empty and SETTLE_MS or LEAVE_POLL_MS)
    end
    worker.leaving = self.platform.timer(look)
    look()
end

--- Out of rotation. done() once nothing waits for the worker and what it accepted last has settled: at once if it has
-- no lane of its own, at the latest after two seconds; not at all if it is dropped before.
function Sockets:leave(id, done)
    local worker = self.workers[id]
    local has_lane = false
    if not worker then
        return done()
    end
    stir(self)
    stop_leaving(worker)
    worker.state = 'leaving'
    for _, rotation in ipairs(each(self)) do
        has_lane = rotation:leave(id) or has_lane
    end
    if not has_lane then
        return done()
    end
    await_empty(self, id, worker, done)
end

-- The listener a worker was given for a request.
local function rotation_for(self, id, request)
    local address = request.text and self.platform.address(request.text) or nil
    return find(self, key_of(id, request), request, address)
end

--- The worker closed its server on this socket and lives on: nobody may wait there any more.
-- @param request what it gave to `query`
function Sockets:forsake(id, request)
    local worker = self.workers[id]
    local rotation = worker and worker.state ~= 'leaving' and rotation_for(self, id, request)
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
    for _, rotation in ipairs(each(self)) do
        rotation:drop(id)
    end
    self:close_unused()
end

-- Of a socket that the worker has: whether it can be asked there, and whether it alone has it.
local function is_target(rotation, id, port)
    local address = rotation.address
    local has, alone = rotation:has(id)
    return has and address.type == 'stream' and address.port and (port == nil or address.port == port), alone
end

-- The one where the worker was asked before, the sockets of the plan in its order, those asked for in theirs.
local function in_order(self, worker)
    local list, asked_for = { worker.target }, {}
    for _, rotation in ipairs(self.plan) do
        list[#list + 1] = rotation
    end
    for _, rotation in pairs(self.by_key) do
        asked_for[#asked_for + 1] = rotation
    end
    table.sort(asked_for, function(a, b)
        return a.number < b.number
    end)
    for _, rotation in ipairs(asked_for) do
        list[#list + 1] = rotation
    end
    return list
end

--- Where a worker can be asked something (see probe.lua): the TCP socket with this port, or its first. It stays the
-- same as long as the worker has it: a later plan says nothing about a worker that was forked before.
-- @return the rotation, or nil, why, code: ENOENT if it has no such socket (yet), ENOTSUP if others have the same
function Sockets:probe_target(id, port)
    local worker = self.workers[id] or {}
    for _, rotation in ipairs(in_order(self, worker)) do
        local is, alone = is_target(rotation, id, port)
        if is and alone then
            worker.target = rotation
            return rotation
        elseif is then
            return nil, ('all workers have one socket at %s'):format(rotation.address.text), 'ENOTSUP'
        end
    end
    return nil, port and ('it does not listen on port %d'):format(port) or 'it does not listen on a TCP port', 'ENOENT'
end

--- A worker's share of new connections, as a ratio to the others' 1: for canaries and ramps.
function Sockets:weigh(id, weight)
    assert(type(weight) == 'number' and weight >= 0 and weight < math.huge, 'weight: expected a number from 0')
    stir(self)
    for _, rotation in ipairs(each(self)) do
        rotation:weigh(id, weight)
    end
end

-- ---------------------------------------------------------------------------------------------------------------------

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

--- Closes listeners that nobody has any more: those that left the plan, and those of a former release's workers once
-- all present workers are ready and none asked for them. What came from outside stays: it could not be had again.
function Sockets:close_unused()
    for i = #self.retired, 1, -1 do
        if not self.retired[i]:is_used() then
            table.remove(self.retired, i):close()
        end
    end
    local settled = is_settled(self)
    for key, rotation in pairs(self.by_key) do
        local private = key:find('@', 1, true) and not rotation.address.path
        if not rotation:is_used() and not rotation.fd and (settled or private) then
            self.by_key[key] = nil
            rotation:close()
        end
    end
end

-- All workers serve and nothing waits: sleeps until the kernel reports something. @return how long at most, or nil
local function rest(self)
    for _, worker in pairs(self.workers) do
        if worker.state ~= 'live' then
            return nil
        end
    end
    local longest, fds = REST_MS, {}
    for _, rotation in ipairs(each(self)) do
        rotation:watched(fds)
        longest = rotation.address.path and REST_PATH_MS or longest
    end
    self.watch = self.watch or self.platform.watch(function()
        stir(self)
        self:tick()
    end)
    self.resting = self.watch ~= nil and self.watch:start(fds) ~= nil
    return self.resting and longest or nil
end

--- Looks after all lanes: stalled workers, repairs, connections that nobody serves, lanes too many.
function Sockets:tick()
    local busy, unsettled = false, false
    if self.resting then -- lanes may close below, which must not be watched then
        self.resting = false
        self.watch:stop()
    end
    local now = self.platform.now()
    for _, rotation in ipairs(each(self)) do
        local state = rotation:tick(now)
        busy = busy or state == 'busy'
        unsettled = unsettled or state ~= nil
    end
    self:close_unused()
    local served = next(self.workers) ~= nil
    self.ticking = served or busy
    self.quiet_ticks = unsettled and 0 or self.quiet_ticks + 1
    if not self.ticking then
        return
    end
    local quiet = self.quiet_ticks >= QUIET_TICKS
    self.timer:start(quiet and rest(self) or busy and math.min(TICK_MS, self.stall_timeout_ms / 5, BUSY_TICK_MS)
        or quiet and IDLE_TICK_MS or TICK_MS)
end

--- For status: by worker id {queue = connections that wait for it, steered = it gets new ones}; `balance` in force at
-- the first listener; `listeners`, each with its lanes.
function Sockets:snapshot()
    local snapshot = { listeners = {} }
    for i, rotation in ipairs(each(self)) do
        local listener = rotation:snapshot()
        snapshot.listeners[i] = listener
        snapshot.balance = snapshot.balance or listener.balance
        for _, lane in ipairs(listener.lanes) do
            if lane.worker then
                local entry = snapshot[lane.worker] or { queue = 0, steered = true }
                snapshot[lane.worker] = entry
                entry.queue = entry.queue + (lane.waiting or 0)
                entry.steered = entry.steered and lane.steered
            end
        end
    end
    return snapshot
end

--- Closes everything; for the end.
function Sockets:close()
    for _, worker in pairs(self.workers) do
        stop_leaving(worker)
    end
    if self.watch then
        self.watch:close()
        self.watch = nil
    end
    for _, rotation in ipairs(each(self)) do
        rotation:close()
    end
    self.plan, self.by_key, self.retired, self.workers = {}, {}, {}, {}
    if self.spare then
        self.spare.listener:close()
        self.spare = nil
    end
    self.timer:close()
end

return Sockets
