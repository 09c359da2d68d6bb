--- fake_network.lua: listeners and lanes made of tables, for the specs of sockets.lua. Adds `listen`, `address` and
-- `close_fd` to a fake platform. A lane's waiting connections are descriptors in `lane.waiting`.

local M = {}

local function position(list, member)
    for i, other in ipairs(list) do
        if other == member then
            return i
        end
    end
end

-- As the kernel does.
local function take_out(list, member)
    list[position(list, member)] = list[#list]
    list[#list] = nil
end

local function new_lane(network, listener)
    network.next_fd = network.next_fd + 1
    local lane = { waiting = {}, number = network.next_fd, repairs = {} }
    function lane.fd()
        return lane.number
    end
    function lane.index()
        return position(listener.group, lane) - 1
    end
    function lane.queue()
        return #lane.waiting, 511
    end
    function lane.accept(_, name)
        if #lane.waiting == 0 then
            return nil, 'try again', 'EAGAIN'
        end
        if name then
            local fd = table.remove(lane.waiting, 1)
            return fd, network.platform.keep_fd(name, fd)
        end
        return table.remove(lane.waiting, 1)
    end
    function lane.shut_out()
        lane.is_shut = true
        return true
    end
    function lane.defer(_, seconds)
        local before = lane.deferred or network.deferred or 0
        lane.deferred = seconds or before
        return before
    end
    function lane.repair()
        local done = lane.repairs
        lane.repairs = {}
        return done
    end
    function lane.close()
        for _, entry in ipairs(listener.steered) do
            assert(entry.lane ~= lane, 'closed in rotation')
        end
        if network.migrates then -- the kernel's choice: the first one that is another
            local other = listener.all[1] ~= lane and listener.all[1] or listener.all[2]
            for _, fd in ipairs(lane.waiting) do
                table.insert(other.waiting, fd)
            end
            lane.waiting = {}
        end
        assert(#lane.waiting == 0 or network.resets, 'closed with connections in it')
        assert(not (network.watched[lane.number] or network.guarded[lane.number]), 'closed while it is watched')
        take_out(listener.all, lane)
        take_out(listener.group, lane)
        return true
    end
    listener.all[#listener.all + 1] = lane
    listener.group[#listener.group + 1] = lane
    return lane
end

local function new_listener(network, address, options)
    local reuseport = options.kept or options.reuseport and not options.fd and address.type ~= 'dgram' and not address.path
    local listener = { all = {}, others = {}, group = {}, steered = {}, options = options, real = address }
    for _, fd in ipairs(options.kept and options.kept.lanes or {}) do
        local lane = new_lane(network, listener)
        lane.number, lane.waiting = fd, network.queues[fd] or {}
    end
    function listener.keep()
        return {}
    end
    function listener.address()
        return listener.real
    end
    function listener.shared()
        return not reuseport
    end
    function listener.lane()
        if not reuseport then
            return listener.all[1] or new_lane(network, listener)
        end
        return new_lane(network, listener)
    end
    function listener.lanes()
        return listener.all
    end
    function listener.queued()
        local queued
        for _, lane in ipairs(listener.all) do
            if #lane.waiting > 0 then
                queued = queued or {}
                queued[lane] = #lane.waiting
            end
        end
        return queued
    end
    function listener.await_path(_, fn)
        listener.settled = listener.mending and fn or nil
        return listener.mending or false
    end
    function listener.strangers()
        assert(not options.kept or #listener.steered > 0, 'a former master\'s program is in force')
        return listener.others, #listener.others
    end
    function listener.steer(_, list, steering)
        listener.steered, listener.sticky = list, steering and steering.sticky
        listener.probes = steering and steering.probes or {}
        if network.steering_fails then
            return 'hash', 'not permitted', 'EPERM'
        end
        return steering and steering.sticky and 'sticky' or #list > 0 and 'steered' or 'hash'
    end
    function listener.close()
        for _, lane in ipairs(listener.all) do
            assert(not (network.watched[lane.number] or network.guarded[lane.number]), 'closed while it is watched')
        end
        network.open[address.text] = nil
        network.closed[#network.closed + 1] = address.text
    end
    -- Spec's side: somebody else opens a socket in the group, or closes it.
    function listener.stranger(inode)
        table.insert(listener.others, inode)
        table.insert(listener.group, inode)
    end
    function listener.stranger_closes(inode)
        take_out(listener.others, inode)
        take_out(listener.group, inode)
    end
    -- A client comes; the first lane in rotation gets it (sticky: by bucket).
    function listener.client(bucket)
        network.next_fd = network.next_fd + 1
        local entry = listener.steered[1]
        if type(listener.sticky) == 'table' then
            entry = listener.steered[listener.sticky[bucket or 1]]
        end
        local lane = entry and entry.lane or listener.all[1]
        table.insert(lane.waiting, network.next_fd)
        network.live_fds[network.next_fd] = true
        local fd = network.next_fd
        network.wake(lane)
        return lane, fd
    end
    return listener
end

--- @return the network: touched (descriptors of connections that somebody has begun to serve),
--  open (text -> listener), closed (texts, in order), taken (text -> true: EADDRINUSE),
--  steering_fails, watching_fails, wake(lane), live_fds, quiet_ms (how long every client has been silent),
--  helpers (a list, if set: what is bound with others' rights waits there, to be called),
--  groups (a stranger's inode -> its process group), queues (a lane's descriptor -> what waits in it when a listener
--  goes on with it: options.kept); of a listener, others (inodes of strangers)
function M.add(platform)
    local network = { platform = platform, open = {}, closed = {}, taken = {}, live_fds = {}, next_fd = 100,
        next_port = 40000, watched = {}, guarded = {}, groups = {}, queues = {}, touched = {}, inodes = {},
        quiet_ms = 5000 }
    function platform.address(text)
        local host, port = text:match '^([^:]*):(%d+)$'
        if text:match '^unix:/' then
            return { family = 'unix', type = 'stream', path = text:sub(6), text = text }
        elseif text:match '^udp:' then
            return { family = 'inet', type = 'dgram', port = tonumber(text:match '%d+$'), host = '::', text = text }
        elseif not host then
            return nil, text .. ': expected host:port', 'EINVAL'
        end
        return { family = 'inet', type = 'stream', host = host == '' and '::' or host, port = tonumber(port),
            dual = host == '', text = text }
    end
    local function listen(address, options)
        if network.taken[address.text] or network.open[address.text] then
            return nil, 'EADDRINUSE: address already in use: ' .. address.text, 'EADDRINUSE'
        end
        if address.port == 0 then
            network.next_port = network.next_port + 1
            local text = (address.text:gsub(':0$', ':' .. network.next_port))
            address = { family = address.family, type = address.type, host = address.host, text = text,
                port = network.next_port }
        end
        local listener = new_listener(network, address, options)
        network.open[address.text] = listener
        return listener
    end
    function platform.listen(address, options, done)
        if done and network.helpers and options.as and address.path then
            network.helpers[#network.helpers + 1] = function()
                done(listen(address, options))
            end
            return true
        end
        return listen(address, options)
    end
    function platform.watch(fn)
        local watch, name = {}, 'watched'
        function watch.start(_, fds, ends)
            name = ends and 'guarded' or 'watched'
            watch.stop()
            if network.watching_fails then
                return nil, 'no space left on device', 'ENOSPC'
            end
            for _, fd in ipairs(fds) do
                network[name][fd] = function()
                    watch.stop()
                    fn()
                end
            end
            return true
        end
        function watch.stop()
            network[name] = {}
        end
        watch.close = watch.stop
        return watch
    end
    -- Something happened to a lane.
    function network.wake(lane)
        local ready = network.watched[lane.number]
        if ready then
            ready()
        end
    end
    function platform.migrates()
        return network.migrates or false
    end
    function platform.holders(inodes)
        local list = {}
        for i, inode in ipairs(inodes) do
            list[i] = { pid = 7000 + inode, group = network.groups[inode] or 0, name = 'nginx' }
        end
        return list
    end
    -- Of a descriptor: another one may be of the same socket.
    function platform.stat(path)
        local fd = tonumber(path:match '^/proc/self/fd/(%d+)$')
        return { ino = network.inodes[fd] or fd }
    end
    function platform.untouched(fd)
        assert(network.live_fds[fd], 'closed: ' .. tostring(fd))
        return not network.touched[fd]
    end
    function platform.quiet_ms()
        return network.quiet_ms
    end
    function platform.close_fd(fd)
        assert(network.live_fds[fd], 'closed twice: ' .. tostring(fd))
        network.live_fds[fd] = nil
        return true
    end
    return network
end

return M
