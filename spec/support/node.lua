-- A Node worker under a primary that is nothing but core.spawn and a conversation.

local cjson = require('cjson').new()
local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local conversation = require 'dutch-master.channel.conversation'
local p = require 'spec.support.process'

local M = {}

local Worker = {}
Worker.__index = Worker

local started = {}
local next_id = 0

local function environment(id, more)
    local env = core.environ()
    env.NODE_CHANNEL_FD, env.NODE_UNIQUE_ID, env.NODE_CHANNEL_SERIALIZATION_MODE = '3', tostring(id), 'json'
    for name, value in pairs(more or {}) do
        env[name] = value
    end
    local list = {}
    for name, value in pairs(env) do
        list[#list + 1] = name .. '=' .. value
    end
    return list
end

--- Starts `node argv...`. options: binary, argv (after node), env, tickets, listeners (name -> listener, shared by
--- workers that are given the same table), refuse (name -> code), spare_fd. The result records what it heard: .heard
--- (list of {what, value}), .queries, .listening, .messages, .returned (list of {fd, again, inode}), .channel_closed,
--- .status. A line in .loses is not sent to it.
function M.start(options)
    next_id = next_id + 1
    local self = setmetatable({
        id = next_id, heard = {}, listening = {}, messages = {}, queries = {}, listeners = options.listeners or {},
        own = {}, returned = {}, loses = {},
    }, Worker)
    local function hear(name)
        return function(value)
            self.heard[#self.heard + 1] = { name, value }
        end
    end
    self.conv = conversation.new {
        worker_id = self.id,
        tickets = options.tickets,
        spare_fd = options.spare_fd,
        channel = { send = function(_, line, fd)
            return self.loses[line] or self.child:send(line, fd)
        end, take_fd = function()
            return self.child:take_fd()
        end },
        query = function(socket, reply)
            self.queries[#self.queries + 1] = socket
            self:answer(socket, reply, options.refuse or {})
        end,
        on_online = hear 'online',
        on_ready = hear 'ready',
        on_message = function(value)
            self.messages[#self.messages + 1] = value
        end,
        on_listening = function(info)
            self.listening[#self.listening + 1] = info
        end,
        on_returned = function(fd, _, again)
            self.returned[#self.returned + 1] = { fd = fd, again = again,
                inode = core.stat('/proc/self/fd/' .. fd).ino }
        end,
        on_close_server = hear 'close_server',
        on_leaving = function(let_go)
            hear 'leaving' ()
            let_go()
        end,
        on_bad = hear 'bad',
    }
    local argv = { 'node', unpack(options.argv) }
    local env = environment(self.id, options.env)
    self.child = assert(core.spawn {
        file = options.binary, argv = argv, env = env, channel = true, capture_stderr = true, stderr = 2,
        on_line = function(_, line, had_fd)
            self.conv:line(line, had_fd)
        end,
        on_channel_closed = function(_, reason)
            self.channel_closed, self.reason = true, reason
            if self.conv.state == 'disconnecting' and table.concat(options.argv, ' '):find('--require', 1, true) then
                self.child:signal 'SIGTERM' -- as the master does
            end
            self.conv:closed()
        end,
        on_exit = function(_, status)
            self.status = status
        end,
    })
    started[#started + 1] = self
    return self
end

function Worker:answer(socket, reply, refuse)
    if refuse[socket.name] then
        return reply(nil, refuse[socket.name])
    elseif socket.fd then
        return reply(socket.fd)
    end
    local listener = self.listeners[socket.name]
    if not listener then
        local message, code
        listener, message, code = core.listen(assert(core.address(socket.text)), { backlog = socket.backlog })
        if not listener then
            return reply(nil, code, message)
        end
        self.listeners[socket.name] = listener
    end
    reply(listener:lane():fd())
end

--- Waits until predicate() is true.
function Worker:await(predicate, what, ms)
    local ok, message = pcall(p.await, function()
        return predicate() or self.status
    end, ms or 10000, what)
    if not ok or not predicate() then
        error(('%s\n%s'):format(message or ('ended before ' .. what), self.child:tail() or ''), 2)
    end
end

--- The next message of the app.
function Worker:message(ms)
    self:await(function()
        return #self.messages > 0
    end, 'a message', ms)
    return table.remove(self.messages, 1)
end

--- Waits for its exit; answers the status.
function Worker:exit(ms)
    p.await(function()
        return self.status
    end, ms or 10000, 'the exit of the worker')
    return self.status
end

--- A client program in Node, forked as Node forks: what it says is a message, what it is told too.
function M.client(binary, argv)
    local self = setmetatable({ messages = {} }, Worker)
    local env = environment(0)
    for i = #env, 1, -1 do
        if env[i]:find '^NODE_UNIQUE_ID=' then
            table.remove(env, i)
        end
    end
    self.child = assert(core.spawn {
        file = binary, argv = { 'node', unpack(argv) }, env = env, channel = true, capture_stderr = true, stderr = 2,
        on_line = function(_, line)
            self.messages[#self.messages + 1] = cjson.decode(line)
        end,
        on_exit = function(_, status)
            self.status = status
        end,
    })
    self.listeners = {}
    started[#started + 1] = self
    return self
end

--- Tells a client something.
function Worker:tell(value)
    assert(self.child:send(cjson.encode(value)))
end

--- For after_each: nothing of a worker is left.
function M.cleanup()
    for _, worker in ipairs(started) do
        if not worker.status then
            worker.child:signal_group 'SIGKILL'
        end
        for _, connection in ipairs(worker.returned or {}) do
            core.close_fd(connection.fd)
        end
        for name, listener in pairs(worker.listeners) do
            listener:close()
            worker.listeners[name] = nil
        end
    end
    started = {}
    p.await(function()
        return loop.children() == 0
    end, 10000, 'the children to be gone')
end

return M
