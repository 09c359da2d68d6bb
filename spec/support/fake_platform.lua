--- fake_platform.lua: the outside world of policy, with a virtual clock and children made of tables.
--
-- Time moves only by :advance(ms) or :run_until(predicate). A fake child does what its behaviour says: see new_child.
-- Everything that was started is counted, so that a spec can say that nothing is left.

local Platform = {}
Platform.__index = Platform

--- @param options {seed = number, behaviour = function(fields, platform) -> table}
--   behaviour: {fork_fails = code} or {ready_ms, crash_ms, exit_ms (after it was asked), ignores_disconnect,
--   ignores_term, failed = {step, code, message}, code}
function Platform.new(options)
    options = options or {}
    local self = setmetatable({}, Platform)
    self.clock = 1000
    self.timers = {}
    self.children = {}
    self.next_pid = 100
    self.spawned, self.reaped, self.forks_refused = 0, 0, 0
    self.behaviour = options.behaviour or function()
        return {}
    end
    self.state = (options.seed or 1) % 2147483647
    self.sequence = 0
    -- What policy calls, as plain functions.
    self.now = function()
        return self.clock
    end
    self.wall = function()
        return 1e9 + self.clock / 1000
    end
    self.random = function()
        self.state = (self.state * 48271) % 2147483647
        return self.state / 2147483647
    end
    self.timer = function(fn)
        return self:new_timer(fn)
    end
    self.spawn = function(fields)
        return self:new_child(fields)
    end
    self.realpath = function(path)
        return path
    end
    self.pid = function()
        return 1
    end
    self.master_pid = self.pid
    self.touch = function() end -- nobody keeps it
    self.store = {} -- name -> descriptor: what a keeper would have
    self.keep_fd = function(name, fd)
        self.store[name] = fd
        return true
    end
    self.drop_fd = function(name)
        assert(self.store[name], 'dropped twice: ' .. name)
        self.store[name] = nil
    end
    self.proc_stat = function() end -- nobody knows
    self.oom = 0
    self.oom_kills = function()
        return self.oom
    end
    self.left_by = function()
        return {}
    end
    self.null_fd = function()
        return 0
    end
    -- Connections of the master, the newest last: {address, text, open, on_data, on_end, is_accepted}.
    self.dials = {}
    self.dial = function(address, callbacks)
        local dial = { address = address, open = true, on_data = callbacks.on_data, on_end = callbacks.on_end }
        function dial.port()
            return 40000
        end
        function dial.start(_, text)
            dial.text = text
            return true
        end
        function dial.accepted()
            return dial.is_accepted -- nil: the kernel does not say
        end
        function dial.close()
            assert(dial.open, 'closed twice')
            dial.open = false
        end
        self.dials[#self.dials + 1] = dial
        return dial
    end
    self.notify_socket = function(_, fn)
        local socket = { fn = fn }
        function socket.name()
            return '@fake'
        end
        function socket.close()
            self.notify_sockets = self.notify_sockets - 1
        end
        self.notify_sockets = (self.notify_sockets or 0) + 1
        return socket
    end
    return self
end

local Timer = {}
Timer.__index = Timer

function Platform:new_timer(fn)
    local timer = setmetatable({ platform = self, fn = fn }, Timer)
    self.timers[timer] = true
    return timer
end

function Timer:start(ms)
    assert(not self.closed, 'a closed timer was started')
    assert(ms >= 0 and ms == ms and ms < math.huge, 'a bad delay: ' .. tostring(ms))
    self.platform.sequence = self.platform.sequence + 1
    self.due, self.order = self.platform.clock + ms, self.platform.sequence
end

function Timer:stop()
    self.due = nil
end

function Timer:close()
    self.closed = true
    self.due = nil
    self.platform.timers[self] = nil
end

--- Runs fn once after ms.
function Platform:after(ms, fn)
    local timer
    timer = self:new_timer(function()
        timer:close()
        fn()
    end)
    timer:start(ms)
    return timer
end

local function next_timer(self, limit)
    local best
    for timer in pairs(self.timers) do
        if timer.due and timer.due <= limit
            and (not best or timer.due < best.due or timer.due == best.due and timer.order < best.order) then
            best = timer
        end
    end
    return best
end

--- Lets ms of virtual time pass.
function Platform:advance(ms)
    local limit = self.clock + ms
    while true do
        local timer = next_timer(self, limit)
        if not timer then
            break
        end
        self.clock = math.max(self.clock, timer.due)
        timer.due = nil
        timer.fn()
    end
    self.clock = limit
end

--- Lets time pass until the predicate holds. @return whether it did within limit_ms
function Platform:run_until(predicate, limit_ms)
    local limit = self.clock + limit_ms
    while not predicate() do
        local timer = next_timer(self, limit)
        if not timer then
            self.clock = limit
            return predicate() and true or false
        end
        self.clock = math.max(self.clock, timer.due)
        timer.due = nil
        timer.fn()
    end
    return true
end

local Child = {}
Child.__index = Child

function Platform:new_child(fields)
    local behaviour = self.behaviour(fields, self)
    if behaviour.fork_fails then
        self.forks_refused = self.forks_refused + 1
        return nil, 'resource temporarily unavailable', behaviour.fork_fails
    end
    self.next_pid = self.next_pid + 1
    self.spawned = self.spawned + 1
    local child = setmetatable({ platform = self, fields = fields, number = self.next_pid, is_alive = true, lines = {},
        behaviour = behaviour, pending = {} }, Child)
    self.children[child] = true
    if behaviour.failed then
        child:later(1, function()
            child:exit { failed = behaviour.failed }
        end)
        return child
    end
    child:later(1, function()
        fields.on_exec(child)
    end)
    if behaviour.ready_ms then
        child:later(behaviour.ready_ms, function()
            child:become_ready()
        end)
    end
    if behaviour.crash_ms then
        child:later(behaviour.crash_ms, function()
            child:exit { code = behaviour.code or 1 }
        end)
    end
    return child
end

function Child:later(ms, fn)
    self.platform:after(ms, function()
        if self.is_alive then
            fn()
        end
    end)
end

function Child:pid()
    return self.number
end

function Child:tail() -- luacheck: ignore self
    return ''
end

function Child:send(line)
    self.lines[#self.lines + 1] = line
    if line:find('"disconnect"', 1, true) and not self.behaviour.ignores_disconnect then
        self:later(self.behaviour.exit_ms or 5, function()
            self:exit { code = 0 }
        end)
    end
    return true
end

--- The app says that it listens, as Node's cluster would.
function Child:become_ready()
    self.ready = true
    self.fields.on_line(self, '{"cmd":"NODE_DUTCH_READY"}', false)
end

function Child:line(text)
    if self.is_alive and not self.headless then
        self.fields.on_line(self, text, false)
    end
end

function Child:close_channel()
    if not self.headless then
        self.fields.on_channel_closed(self)
    end
end

--- The first process ends, others of its group live until they are signalled.
function Child:end_leader(status)
    if self.is_alive and not self.headless then
        if self.fields.channel then
            self.fields.on_channel_closed(self)
        end
        self.headless = true
        self.leader_status = status
        self.fields.on_leader_exit(self, status)
    end
end

function Child:others()
    return self.headless and { self.number + 10000 } or {}
end

function Child:signal(name)
    assert(self.is_alive, 'a signal to a child that was reaped')
    if name == 'SIGTERM' and not self.behaviour.ignores_term then
        self:later(1, function()
            self:exit { signal = 'SIGTERM' }
        end)
    elseif name == 'SIGKILL' then
        self:exit_soon { signal = 'SIGKILL' }
    end
    return true
end

Child.signal_group = Child.signal

function Child:exit_soon(status)
    self:later(0, function()
        self:exit(status)
    end)
end

--- The process ends. With closes_first its channel is seen closed before its exit, as is usual.
function Child:exit(status)
    if not self.is_alive then
        return
    end
    status = self.leader_status or status
    if self.behaviour.closes_first and not self.headless and self.fields.channel then
        self.fields.on_channel_closed(self)
    end
    if not self.is_alive then
        return
    end
    self.is_alive = false
    self.platform.children[self] = nil
    self.platform.reaped = self.platform.reaped + 1
    self.fields.on_exit(self, status)
end

--- Its descriptors, of which only the numbers are there.
function Child:keep()
    return { pidfd = 10 * self.number, channel = self.fields.channel and 10 * self.number + 1, err = 10 * self.number + 2 }
end

function Platform:live_children()
    local list = {}
    for child in pairs(self.children) do
        list[#list + 1] = child
    end
    table.sort(list, function(a, b)
        return a.number < b.number
    end)
    return list
end

--- How many timers are armed.
function Platform:armed()
    local count = 0
    for timer in pairs(self.timers) do
        if timer.due then
            count = count + 1
        end
    end
    return count
end

return Platform
