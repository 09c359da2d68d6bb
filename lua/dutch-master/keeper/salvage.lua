--- salvage.lua: a state for a master whose predecessor has left none that it can use: of a version that it does not
-- know, spoilt, or one that has ended several masters. It is made of what the keeper holds and of what the kernel says,
-- so that the workers serve on, and are replaced one after the other by such as this master has forked itself. What
-- nobody else knows is lost: the past, and what a former master was about to do.

local M = {}

-- Its keys for sockets, and its connections in hand, have other numbers than a former master's.
local FIRST_KEY = 1000000000
-- As if forked so long ago: no pause is left over from it.
local AGE_MS = 60000

local function socket_inode(platform, path)
    return (platform.readlink(path) or ''):match '^socket:%[(%d+)%]$'
end

-- Numbers of the sockets that a process has, as a set.
local function sockets_of(platform, pid)
    local set, path = {}, ('/proc/%d/fd'):format(pid)
    for _, name in ipairs(platform.list(path) or {}) do
        local inode = socket_inode(platform, path .. '/' .. name)
        if inode then
            set[inode] = true
        end
    end
    return set
end

-- Workers that the keeper has, those first that hold most of our lanes: they serve.
local function find_workers(kept, platform, lanes)
    local list = {}
    for name in pairs(kept.store) do
        local id = name:match '^pid/(%d+)$'
        if id and kept.pids[name] then
            local sockets, count = sockets_of(platform, kept.pids[name]), 0
            for _, lane in ipairs(lanes) do
                count = count + (sockets[lane.inode] and 1 or 0)
            end
            list[#list + 1] = { id = tonumber(id), pid = kept.pids[name], sockets = sockets, count = count }
        end
    end
    table.sort(list, function(a, b)
        return a.count > b.count or a.count == b.count and a.id < b.id
    end)
    return list
end

-- Listening sockets that the keeper has, but those that came from outside: these are here by their own numbers.
local function find_lanes(kept, platform, inherited)
    local foreign, list = {}, {}
    for _, socket in ipairs(inherited) do
        foreign[socket_inode(platform, '/proc/self/fd/' .. socket.fd) or ''] = true
    end
    for name, fd in pairs(kept.store) do
        local number, count = name:match '^lane/(%d+)%.(%d+)$'
        local address, together = platform.bound(fd)
        local inode = number and address and socket_inode(platform, '/proc/self/fd/' .. fd)
        if inode and not foreign[inode] then
            list[#list + 1] = { store = name, name = name:sub(6), number = tonumber(number), count = tonumber(count),
                address = address, together = together, inode = inode }
        end
    end
    table.sort(list, function(a, b)
        return a.number < b.number or a.number == b.number and a.count < b.count
    end)
    return list
end

local function users_of(lane, workers)
    local users = {}
    for _, worker in ipairs(workers) do
        if worker.sockets[lane.inode] then
            users[#users + 1] = { id = worker.id, state = 'live', weight = 1, request = {} }
        end
    end
    return users
end

-- A shared socket has guests and no users.
local function guests_of(lane, workers)
    local guests = users_of(lane, workers)
    for i, guest in ipairs(guests) do
        guests[i] = { id = guest.id, lane = lane.name }
    end
    return guests
end

-- Lanes of one address are one listener.
local function find_listeners(lanes, workers, platform)
    local list, by_address = {}, {}
    for _, lane in ipairs(lanes) do
        local key = lane.address.type .. ' ' .. lane.address.text
        local listener = by_address[key]
        if not listener then
            local path = lane.address.family == 'unix' and lane.address.path:sub(1, 1) == '/' and lane.address.path
            local file = path and platform.stat(path) or {}
            listener = { key = lane.address.text, address = lane.address, found = true, served = true, lanes = {},
                guests = not lane.together and guests_of(lane, workers) or {}, times_busy = 0, lost = 0, lane_count = 0,
                listener = { shared = not lane.together, uncertain = true, device = file.dev, inode = file.ino } }
            by_address[key] = listener
            list[#list + 1] = listener
        end
        if lane.together or not listener.lanes[1] then
            listener.number, listener.lane_count = lane.number, math.max(listener.lane_count, lane.count)
            table.insert(listener.lanes, { fd = lane.store, name = lane.name, group = 1,
                users = lane.together and users_of(lane, workers) or {} })
        end
    end
    return list
end

-- Those of the plan are known by their addresses. The others somebody has asked for, and will again.
local function of_directory(listeners, plan, platform, count)
    local state = { wanted = count, opened = 0, past = { 0, 0, 0 }, plan = {}, asked = {}, retired = {} }
    local planned = {}
    for _, item in ipairs(plan.listen or {}) do
        local entry = type(item) == 'table' and item or { address = item }
        local text = entry.text or entry.address
        local address = platform.address(type(text) == 'table' and text.text or text)
        for _, listener in ipairs(listeners) do
            if address and listener.address.text == address.text and listener.address.type == address.type then
                listener.name, listener.mode, listener.owner = entry.name, entry.mode, entry.owner
                listener.may_block, listener.found, planned[listener] = true, nil, true
                table.insert(state.plan, listener)
            end
        end
    end
    for _, listener in ipairs(listeners) do
        state.opened = math.max(state.opened, listener.number)
        if not planned[listener] then
            table.insert(state.asked, listener)
        end
    end
    return state
end

-- Where it was told to say that it is ready.
local function notify_name(platform, pid)
    local text = platform.read_file(('/proc/%d/environ'):format(pid), 1048576) or ''
    return ('\0' .. text .. '\0'):match '%zNOTIFY_SOCKET=([^%z]*)%z' or ''
end

-- Its name says the channel's mark too: see Worker:keep.
local function channel_of(kept, id)
    for name in pairs(kept.store) do
        if name:match '^channel/(%d+)%.' == tostring(id) then
            return name
        end
    end
end

-- As of a worker that serves: see Worker:keep.
local function of_worker(found, slot, kept, platform, plan, kind)
    local now, id = platform.now(), found.id
    local function stored(what)
        local name = what .. '/' .. id
        return kept.store[name] and name
    end
    local channel = channel_of(kept, id)
    local has_channel = channel ~= nil
    return {
        id = id, slot = slot, generation = 1, state = 'running', pid = found.pid, plan = 1,
        asks = has_channel and kind.asks or 'signal', stop_signal = plan.stop_signal,
        channel_open = has_channel, forked_at = now - AGE_MS, exec_at = now - AGE_MS, ready_at = now - AGE_MS,
        listening = true, leaving = {}, health = { alive_at = now, said = {} },
        process = { pidfd = stored 'pid', channel = channel, out = stored 'out', err = stored 'err', reports = 1,
            mark = tonumber((channel or ''):match '%.(%-?%d+)$') },
        notify = stored 'notify' and { fd = stored 'notify', name = notify_name(platform, found.pid) } or nil,
        conversation = has_channel and { state = 'open', sockets = {}, next_key = FIRST_KEY, next_newconn = FIRST_KEY,
            handed_tickets = {}, booted = true, asked = 0 } or nil,
    }
end

local function of_cluster(workers, kept, options)
    local platform, loaded, now = options.platform, options.loaded, options.platform.now()
    local slots, states = {}, {}
    local cluster = { state = 'steady', started_at = now, generation = 1, newest = 1, configured = 0, ready = true,
        served = true, has_forked = true, wanted = math.max(#workers, loaded.num_workers), slots = slots,
        workers = states, reports = {}, totals = {},
        restart = { request = { cause = 'master', reason = options.reason } } }
    for i = 1, cluster.wanted do
        local worker = workers[i]
        slots[i] = { number = i, generation = 1, failures = 0, forks = worker and 1 or 0, wait_ms = 0,
            state = worker and 'serving' or 'filling', current = worker and worker.id,
            forked_at = now - AGE_MS }
        states[i] = worker and of_worker(worker, i, kept, platform, loaded.plan, options.kind)
    end
    return cluster
end

-- Its sockets, the newest of each path last.
local function of_control(kept, platform)
    local state = { servers = {}, opened = 0 }
    for name, fd in pairs(kept.store) do
        local number = tonumber(name:match '^control/(%d+)$')
        local address = number and platform.bound(fd)
        if address then
            state.opened = math.max(state.opened, number)
            table.insert(state.servers, { fd = name, path = address.path, number = number })
        end
    end
    table.sort(state.servers, function(a, b)
        return a.number < b.number
    end)
    return state
end

--- The first number that no worker can have had.
function M.next_id(kept)
    local highest = 0
    for name in pairs(kept.store) do
        highest = math.max(highest, tonumber(name:match '^pid/(%d+)$') or 0)
    end
    return highest + 1
end

--- Where the lock is that the keeper has.
function M.lock_path(kept, platform)
    local path = kept.store.lock and platform.readlink('/proc/self/fd/' .. kept.store.lock)
    return path and (path:gsub(' %(deleted%)$', ''))
end

--- A state as a former master would have left it.
-- @param kept see platform.kept
-- @param options {platform, loaded = {plan, num_workers} of the script as it is now, kind = of its workers (kinds.lua),
--   paths = of the control sockets, inherited = the list of platform.inherited, reason = in words, why it is needed}
function M.state(kept, options)
    local platform, loaded = options.platform, options.loaded
    local lanes = find_lanes(kept, platform, options.inherited)
    local workers = find_workers(kept, platform, lanes)
    local of_sockets = {}
    for i, worker in ipairs(workers) do
        of_sockets[i] = { id = worker.id, state = 'live' }
    end
    return {
        restart_signal = loaded.plan.restart_signal, store = {}, shared = { loaded.plan }, upgrade = {},
        launcher = { next_id = M.next_id(kept) },
        claim = { lock = 'lock', name = kept.store.claim and 'claim', lock_path = M.lock_path(kept, platform),
            paths = options.paths },
        control = of_control(kept, platform),
        sockets = { workers = of_sockets, directory = of_directory(find_listeners(lanes, workers, platform),
            loaded.plan, platform, math.max(#workers, loaded.num_workers)) },
        cluster = of_cluster(workers, kept, options),
    }
end

return M
