--- `require 'dutch-master.worker'`: a Lua worker's connection to its master.
--
--     local worker = require 'dutch-master.worker'
--     local server = assert(worker.listen(8000))
--     server:accept(function(connection) ... end)
--
-- The master owns the listening sockets and lends them. It also says when the worker is to leave:
-- the worker then accepts no more, finishes what it has, and its process ends. A program that does
-- nothing about it gets that by itself. Without a master the same program binds its own sockets.
-- The words on the channel are those of Node's cluster module, see the protocol's description.
-- Longer than 400 lines: one connection to the master, with what a program may ask of it.

local uv = require 'luv'
local address = require 'dutch-master.app_address'
local descriptors = require 'dutch-master.descriptors'
local Server = require 'dutch-master.app_server'

local M = {}

-- When the master is gone nobody is left to end a worker that hangs on one connection.
local ALONE_MS = 30000
-- An answer of the master, or room in its channel, is not waited for any longer when leaving.
local FAREWELL_MS = 5000
-- Messages that came before the program asked for them.
local MAX_INBOX = 1000

local channel, null
local sequence = 0
local answers = {} -- seq -> fn(message, take_fd)
local servers = {} -- key -> server
local indexes = {} -- address -> how many times it is open
local handlers = { message = {}, disconnect = {}, drained = {} }
local inbox = {}
local tracked = {} -- handle -> true: connections accepted here
local holds = 0
local leaving

local function integer(name)
    return tonumber((os.getenv(name)))
end

--- The worker's number, 1 or more, never used twice by one master; nil without a master.
M.id = integer 'NODE_UNIQUE_ID' or integer 'DUTCH_MASTER_WORKER'
--- The place that it takes among the workers, and the roll that it belongs to.
M.slot = integer 'DUTCH_MASTER_SLOT'
M.generation = integer 'DUTCH_MASTER_GENERATION'
--- True from the moment the worker was asked to leave.
M.draining = false
--- True when all is done. The loop has been stopped; nothing of the program should start it again.
M.left = false

local function next_sequence()
    sequence = sequence + 1
    return sequence - 1
end

local function tell(act, fields)
    fields = fields or {}
    fields.cmd, fields.act, fields.seq = 'NODE_CLUSTER', act, next_sequence()
    channel:send(fields)
    return fields.seq
end

-- Draining

local prepare = uv.new_prepare()

local function forget_closed()
    for handle in pairs(tracked) do
        if handle:is_closing() then
            tracked[handle] = nil
        end
    end
end

-- How many connections it holds is told to the master when it has changed, this often at most, by which new ones are
-- spread evenly. Looked at before each wait of the loop: nothing wakes for it.
local REPORT_MS = 20
-- The same while more connections come than stay: what such a worker holds says little, and each word costs the master.
local BRIEF_REPORT_MS = 200
local watcher, last_look, reporter
local told = { held = 0, at = 0, work = 0 }
local came, pause_ms = 0, REPORT_MS -- since the last look

local function report_load()
    last_look = uv.now()
    forget_closed()
    local held = 0
    for _ in pairs(tracked) do
        held = held + 1
    end
    came, pause_ms = 0, came > held and BRIEF_REPORT_MS or REPORT_MS
    if held == told.held or M.draining or not channel or not channel:is_open() then
        return
    end
    local work, passed = os.clock(), math.max(last_look - told.at, 1)
    local busy = math.min(math.floor((work - told.work) * 1e6 / passed), 1000)
    told = { held = held, at = last_look, work = work }
    M.send { cmd = 'NODE_DUTCH_LOAD', held = held, busy = busy }
end

local function watch_load()
    if watcher then
        return
    end
    watcher, reporter, last_look = uv.new_prepare(), uv.new_timer(), -REPORT_MS
    watcher:start(function()
        if uv.now() - last_look >= pause_ms then
            report_load()
        elseif not reporter:is_active() and next(tracked) ~= nil then
            -- What changes right after a look is seen at the next one.
            reporter:start(pause_ms, 0, function() end)
            reporter:unref()
        end
    end)
    watcher:unref()
end

-- Before each wait of the loop: a connection that was closed since is gone.
local function watch_drained()
    if prepare:is_active() then
        return
    end
    prepare:start(function()
        forget_closed()
        if holds == 0 and next(tracked) == nil then
            prepare:stop()
            local callbacks = handlers.drained
            handlers.drained = {}
            for _, fn in ipairs(callbacks) do
                fn()
            end
        end
    end)
    -- It must not keep the loop alive. But the loop must turn once, even if nothing else happens.
    prepare:unref()
    local turn = uv.new_timer()
    turn:start(0, 0, function()
        turn:close()
    end)
end

--- Calls fn() once no connection of accept() is open and no hold() is left.
function M.on_drained(fn)
    table.insert(handlers.drained, fn)
    watch_drained()
end

--- Keeps the worker from being taken as drained until the returned function is called.
function M.hold()
    holds = holds + 1
    local released = false
    return function()
        if not released then
            released = true
            holds = holds - 1
            if #handlers.drained > 0 then
                watch_drained()
            end
        end
    end
end

local function close_servers()
    local unmanaged = false
    local open = {}
    for _, server in pairs(servers) do
        open[#open + 1] = server
    end
    for _, server in ipairs(open) do
        unmanaged = unmanaged or server.unmanaged
        server:close()
    end
    return unmanaged
end

local function after(ms, fn)
    local timer = uv.new_timer()
    timer:start(ms, 0, function()
        timer:close()
        fn()
    end)
    timer:unref()
end

local function drain(reason)
    if M.draining then
        return
    end
    M.draining = reason
    local unmanaged = close_servers()
    if channel then
        channel:unref()
    end
    if #handlers.disconnect > 0 then
        for _, fn in ipairs(handlers.disconnect) do
            fn(reason)
        end
    elseif not unmanaged then
        M.on_drained(M.leave)
    end
    -- Otherwise at the end of the last handle, or when the program says worker.leave().
end

local function finish()
    if not M.left then
        M.left = true
        uv.stop()
    end
end

--- Ends the process, with code 0, as soon as what was sent is out. Open connections are cut off.
--- If the worker was not asked to leave, it says to the master that this is no crash.
function M.leave()
    if leaving then
        return
    end
    leaving = true
    if not channel or not channel:is_open() then
        return finish()
    end
    after(FAREWELL_MS, finish)
    if M.draining == 'disconnect' then
        return channel:flush(finish)
    end
    close_servers()
    answers[tell 'exitedAfterDisconnect'] = function()
        channel:flush(finish)
    end
end

--- Leaves by the worker's own wish, but gracefully: as if the master had asked. To be replaced
--- first, send { event = 'request-restart' } instead.
function M.disconnect()
    drain 'own wish'
end

--- Calls fn(reason) when the worker is to leave: 'disconnect' if asked to, 'master gone' if the
--- master has died, 'own wish' after disconnect(). The servers are closed by then. With such a
--- function the program decides: the process ends at worker.leave(), or when luv's loop has nothing
--- left. worker.on_drained(worker.leave) is what happens without one.
function M.on_disconnect(fn)
    table.insert(handlers.disconnect, fn)
end

-- Messages

--- Sends any value that JSON can express; the script's onMessage gets it. nil, message, code if
--- it is too long or the master is gone. { event = 'request-restart' } asks to be replaced.
function M.send(message)
    if not channel then
        return nil, 'there is no master', 'ENOTCONN'
    end
    return channel:send(message)
end

--- Calls fn(message) for each message of the script's worker:send(). JSON's null arrives as
--- cjson.null. What has come before the first such call is kept for it.
function M.on_message(fn)
    table.insert(handlers.message, fn)
    local waiting = inbox
    inbox = {}
    for _, message in ipairs(waiting) do
        fn(message)
    end
end

--- Says that the worker is ready, for one that does not listen, or when `ready = 'message'`.
function M.ready()
    return M.send { cmd = 'NODE_DUTCH_READY' }
end

local function deliver(message)
    if #handlers.message == 0 and #inbox < MAX_INBOX then
        inbox[#inbox + 1] = message
    end
    for _, fn in ipairs(handlers.message) do
        fn(message)
    end
end

local function hand_over(message, fd)
    local server = servers[message.key]
    local accepted, go = false, nil
    if fd and server then
        accepted, go = server:hand_over(fd)
    end
    if fd and not accepted then
        descriptors.close(fd)
    end
    channel:send { cmd = 'NODE_CLUSTER', ack = message.seq, accepted = accepted, seq = next_sequence() }
    if go then
        go()
    end
end

-- Internal messages, as Node tells them apart.
local function is_internal(message)
    return type(message) == 'table' and type(message.cmd) == 'string' and #message.cmd > 5
        and message.cmd:sub(1, 5) == 'NODE_'
end

local function receive_cluster(message, fd)
    local answer = message.ack ~= nil and answers[message.ack]
    if answer then
        answers[message.ack] = nil
        answer(message, fd)
    elseif message.act == 'newconn' then
        hand_over(message, fd)
    else
        if fd then
            descriptors.close(fd)
        end
        if message.act == 'disconnect' then
            drain 'disconnect'
        end
    end
end

local function receive(message, take_fd)
    local fd
    if is_internal(message) and message.cmd == 'NODE_HANDLE' then
        fd = take_fd()
        channel:send { cmd = fd and 'NODE_HANDLE_ACK' or 'NODE_HANDLE_NACK' }
        message = message.msg
    end
    if is_internal(message) and message.cmd == 'NODE_CLUSTER' then
        return receive_cluster(message, fd)
    end
    if fd then
        descriptors.close(fd)
    end
    if not is_internal(message) then
        deliver(message)
    end
end

-- Listening

local link = {
    announce = function(server)
        if channel and channel:is_open() then
            local fields = address.query(server.address, null)
            fields.port = server.path and -1 or server.port
            fields.index, fields.backlog, fields.data = server.index, server.backlog, null
            fields.handOver = server:takes_connections()
            tell('listening', fields)
        end
    end,
    closed = function(server)
        if server.key then
            servers[server.key] = nil
            indexes[server.address.text] = indexes[server.address.text] - 1
            if channel and channel:is_open() then
                tell('close', { key = server.key })
            end
        end
    end,
    track = function(handle)
        tracked[handle] = true
        came = came + 1
        watch_load()
    end,
}

local function failure(code, where)
    local text = uv.translate_sys_error(code) or ('error ' .. code)
    return nil, ('%s: %s'):format(text, where.text), text:match('^(%u+):') or 'EIO'
end

local function ask(where, options, callback)
    if not channel:is_open() or M.draining then
        return callback('the worker is to leave', nil, 'ECANCELED')
    end
    local index = indexes[where.text] or 0
    indexes[where.text] = index + 1
    local query = address.query(where, null)
    query.index, query.backlog, query.data = index, options.backlog or 0, null
    answers[tell('queryServer', query)] = function(message, fd)
        local code = type(message.errno) == 'number' and message.errno or 0
        if code < 0 or not fd then
            indexes[where.text] = indexes[where.text] - 1
            local _, text, name = failure(code < 0 and code or -22, where)
            return callback(text, nil, name)
        elseif M.draining then
            descriptors.close(fd)
            return callback('the worker is to leave', nil, 'ECANCELED')
        end
        local server = Server.new({
            address = where,
            fd = fd,
            key = message.key,
            index = index,
            backlog = options.backlog or (type(message.backlog) == 'number' and message.backlog) or nil,
        }, link)
        servers[server.key] = server
        callback(nil, server)
    end
end

-- Without a master: a socket of the worker's own.
local function bind(where, options)
    local handle = where.path and uv.new_pipe(false) or uv.new_tcp()
    local ok, message, code
    if where.path then
        ok, message, code = handle:bind(where.path)
    else
        ok, message, code = handle:bind(where.host or '::', where.port)
        if not ok and not where.host then
            ok, message, code = handle:bind('0.0.0.0', where.port)
        end
    end
    if not ok then
        handle:close()
        return nil, ('%s: %s'):format(message, where.text), code
    end
    return Server.new({
        address = where,
        fd = handle:fileno(),
        own = handle,
        backlog = options.backlog,
    }, link)
end

--- Asks for a listening socket: worker.listen(8000), worker.listen('127.0.0.1:8000'),
--- worker.listen('unix:/run/app.sock', { backlog = 100 }). With a function as the last argument it
--- is called as fn(err, server, code), later; without one the call waits and returns the server, or
--- nil, message, code. It cannot wait inside a callback of the loop. See server.lua for a server.
function M.listen(where, options, callback)
    if type(options) == 'function' then
        options, callback = nil, options
    end
    where, options = address.parse(where), options or {}
    if not channel then
        local server, message, code = bind(where, options)
        if callback then
            return callback(message, server, code)
        end
        return server, message, code
    elseif callback then
        return ask(where, options, callback)
    elseif uv.loop_mode() then
        error('worker.listen: inside a callback it needs a callback itself', 2)
    end
    local done, message, server, code = false, nil, nil, nil
    ask(where, options, function(...)
        done, message, server, code = true, ...
    end)
    while not done do
        uv.run 'once'
        if M.left then
            os.exit(0)
        end
    end
    return server, message, code
end

--- Runs a cqueues controller in luv's loop, for libraries that are built on cqueues, lua-http among
--- them. wake() of the returned object is to be called after something was added to the controller
--- from outside of it; close() takes it out of the loop.
function M.attach(controller)
    local poll, timer = uv.new_poll(controller:pollfd()), uv.new_timer()
    local attached = {}
    local step

    -- An idle controller, without a thread left, does not keep the loop alive.
    local function arm()
        local timeout = controller:timeout()
        if timeout then
            timer:start(math.ceil(timeout * 1000), 0, step)
        else
            timer:stop()
        end
        if controller:empty() then
            poll:unref()
        else
            poll:ref()
        end
    end

    function step()
        local ok, message = controller:step(0)
        if not ok then
            error(message, 0)
        end
        if not poll:is_closing() then
            arm()
        end
    end

    function attached.wake()
        timer:start(0, 0, step)
    end

    function attached.close()
        if not poll:is_closing() then
            poll:stop()
            poll:close()
            timer:close()
        end
    end

    poll:start('r', function()
        step()
    end)
    attached.wake()
    return attached
end

local function open_channel()
    local fd = integer 'NODE_CHANNEL_FD'
    if not fd or descriptors.alone then
        return
    end
    -- What the worker starts must not take itself for a worker.
    for _, name in ipairs { 'NODE_CHANNEL_FD', 'NODE_CHANNEL_SERIALIZATION_MODE', 'NODE_UNIQUE_ID' } do
        uv.os_unsetenv(name)
    end
    local Channel = require 'dutch-master.app_channel'
    null = Channel.null
    channel = Channel.open(fd, receive, function()
        after(ALONE_MS, M.leave)
        drain 'master gone'
    end)
    tell 'online'
    require('dutch-master.metrics').start(M.send)
end

open_channel()
M.has_master = channel ~= nil

return M
