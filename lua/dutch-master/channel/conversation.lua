-- One worker's side of the talk over its channel: which of its sockets are open under which key, what it was asked and
-- what it owes. The rules a Node worker dies of when they are broken are kept here, so that policy cannot break them:
-- keys unique while open, one answer to a query, one disconnect, no ack that was not waited for.
--
-- Policy gives callbacks and gets a few verbs; the conversation never touches a descriptor beyond passing on the number
-- it was given, and holds no timers.
-- Longer than 400 lines: one talk, whose rules hold together.
local protocol = require 'dutch-master.channel.protocol'

local encode = protocol.encode

local M = {}
M.__index = M

-- More open or unanswered sockets than any app has; a worker that asks on for ever is stopped here.
local MAX_SOCKETS = 1024
-- Listens of a worker that wait for the fate of an earlier one: an app that closes and opens one port has one of them.
local MAX_HELD = 16
-- Connections that were given to a worker in the last moments of a master.
local UNANSWERED_MAX = 1000
local MAX_TICKET_NAMES = 256 -- addresses whose session keys are remembered
local MAX_TICKET_BYTES = 4096 -- 96 are usual

-------------------------------------------------------------------------------------------------------------------
-- TLS session ticket keys, shared by the workers of a cluster and kept over rolls: a client's session resumes
-- whichever worker it meets.

local Tickets = {}
Tickets.__index = Tickets

--- The memory that all conversations of one cluster share.
function M.tickets()
    return setmetatable({ by_name = {}, count = 0 }, Tickets)
end

--- For another master: see keeper/estate.lua.
function Tickets:keep()
    local list = {}
    for name, entry in pairs(self.by_name) do
        list[#list + 1] = { name = name, entry = entry }
    end
    return list
end

function Tickets:resume(kept)
    for _, item in ipairs(kept) do
        self.by_name[item.name], self.count = item.entry, self.count + 1
    end
end

-- What to answer a worker that brought `data` for the listener `name`. Keys are normally random and the first worker's
-- win; two workers in a row that bring the same ones were given them by their app, whose rotation must take effect.
-- `handed` is what this very worker was given before: a server that listens again brings those back.
function Tickets:answer(name, data, handed)
    local offered = data.ticketKeys
    if type(offered) ~= 'string' or #offered > MAX_TICKET_BYTES then
        return data
    end
    local entry = self.by_name[name]
    if not entry then
        if self.count >= MAX_TICKET_NAMES then
            return data
        end
        entry = { current = offered }
        self.by_name[name], self.count = entry, self.count + 1
    elseif offered ~= handed then
        if offered == entry.last then
            entry.current, entry.explicit = offered, true
        elseif entry.explicit then
            entry.current, entry.explicit = offered, false
        end
    end
    if offered ~= handed then
        entry.last = offered
    end
    local answer = {}
    for key, value in pairs(data) do
        answer[key] = value
    end
    answer.ticketKeys = entry.current
    return answer
end

-------------------------------------------------------------------------------------------------------------------

local function nothing() end

local CALLBACKS = { 'on_online', 'on_listening', 'on_ready', 'on_metrics', 'on_message', 'on_close_server',
    'on_leaving', 'on_bad', 'on_load', 'on_returned', 'on_refused' }

--- A new conversation. opts:
---   worker_id
---   channel                   :send(line, fd, now) -> true | nil, ...; a line, and with it a descriptor or nil; now:
---                             also where another master would not know of it;
---                             :take_fd() -> the descriptor that came with the line at hand, ours from now on, or nil
---   query(socket, reply)      the worker wants this socket (protocol.decode says what it has): reply(fd) or
---                             reply(nil, 'EADDRINUSE', message), at once or later, once; the descriptor stays the
---                             caller's
---   tickets                   M.tickets() of the cluster; an own one when absent
---   spare_fd()                -> a datagram socket to refuse a datagram query with (a Node worker dies of a refusal
---                             without one); absent or nil: such a query stays unanswered
---   on_online()               the runtime has booted; the app has not: not a sign of health
---   on_listening(info)        the app accepts on info {name, text, type, stream, address, port, path, fd}; port is the
---                             real one, also in text; datagram sockets come too (stream = false), and with own =
---                             true those that it made itself
---   on_ready()                the worker called itself ready
---   on_metrics(measured)      what it measured of its work: see measured.lua
---   on_message(value, text)   from the app: any JSON value; protocol.null for null; and as it was written
---   on_load(held, busy)       so many connections are open in it; its loop was busy so many thousandths of the time
---   on_returned(fd, socket, again)  a connection that it accepted and has no room for; the descriptor is the
---                             callee's. socket is what `query` was given; again: a former master may have had it
---   on_refused(info, code, message)  a listen() was answered with an error
---   on_close_server(info, socket)  the worker closed it; info {name, stream, open = sockets it still has}, socket is
---                             what `query` was given
---   on_leaving(let_go)        the worker is on its way out by its own wish, and ends when let_go() is called: a must
---   on_bad(reason)            it does not speak the protocol; no further line is looked at
function M.new(opts)
    local self = setmetatable({
        worker_id = opts.worker_id,
        channel = opts.channel,
        query = opts.query,
        spare_fd = opts.spare_fd or nothing,
        tickets = opts.tickets or M.tickets(),
        state = 'open', -- open, disconnecting (we asked), leaving (it asked), broken, closed
        sockets = {}, -- key -> socket the worker has open
        by_name = {}, -- name -> key, to find a second listen to the same address
        count = 0, -- open and unanswered sockets
        unanswered = {}, -- queries that were passed on, as a set
        held = {}, -- queries that wait for the fate of an earlier one, in their order: see is_undecided
        next_key = 0,
        next_newconn = 0,
        newconns = {}, -- seq -> done
        handed_tickets = {}, -- name -> keys this worker was given
        booted = false, -- the runtime has said so; of the app that says nothing
        asked = 0, -- how many sockets it has asked for so far
    }, M)
    for _, name in ipairs(CALLBACKS) do
        self[name] = opts[name] or nothing
    end
    return self
end

function M:new_key()
    self.next_key = self.next_key + 1
    return ('%s.%d'):format(self.worker_id, self.next_key)
end

local function describe(socket)
    return {
        name = socket.name,
        type = socket.type,
        stream = socket.stream,
        address = socket.address,
        port = socket.port,
        path = socket.path,
        fd = socket.fd,
    }
end

-------------------------------------------------------------------------------------------------------------------
-- From the worker. One handler for each kind of event.

local HANDLERS = {}

-- What is policy's business alone: its callback gets these parts of the event.
for kind, told in pairs {
    metrics = { 'on_metrics', 'measured' }, ready = { 'on_ready' }, message = { 'on_message', 'value', 'text' },
    own = { 'on_listening', 'socket' }, load = { 'on_load', 'held', 'busy' },
} do
    local callback, first, second = unpack(told)
    HANDLERS[kind] = function(self, event)
        self[callback](event[first], event[second])
    end
end

function HANDLERS.online(self)
    self.booted = true
    self.on_online()
end

-- Its Node sets modes as older ones do: what its sockets ask for comes on top of what the umask leaves.
function HANDLERS.adds_modes(self)
    self.adds_modes = true
end

-- We never wait for the two acks: lines with descriptors are sent without regard to earlier ones.
HANDLERS.unknown, HANDLERS.handle_ack, HANDLERS.handle_nack = nothing, nothing, nothing

-- A worker that sent a descriptor holds back everything else until this ack, even though we threw it away. One that is
-- asked to begin again does not.
local function ack_handle(self, now)
    if not self.asked_by then
        self.channel:send(encode.HANDLE_ACK, nil, now)
    end
end

function HANDLERS.handle(self, event)
    ack_handle(self)
    if event.has_value then
        self.on_message(event.value, event.text)
    end
end

-- The worker has its own until the ack. That is sent at once: whoever is given the connection may say at any time after
-- this that it has it, and then nobody else knows of it.
function HANDLERS.returned(self, event)
    local fd, socket = nil, self.sockets[event.key]
    if not self.asked_by then -- else it comes again
        fd = self.channel:take_fd()
    end
    if fd then
        local is_repeated = event.again and self.may_repeat -- once for each time that it is asked
        self.may_repeat = self.may_repeat and not is_repeated
        self.on_returned(fd, socket, is_repeated)
    end
    ack_handle(self, true)
end

-- The first one says that it knows what it is asked by.
function HANDLERS.here(self, event)
    self.begins_again = true
    if event.by == self.asked_by then
        self.asked_by = nil
    end
end

function HANDLERS.notify_close(self, event)
    self.channel:send(encode.all_closed(event.key))
end

function HANDLERS.get_count(self, event)
    self.channel:send(encode.count(event.key, 0))
end

-- The worker waits for the ack before it goes, for ever. After worker.kill() it goes with all that it has accepted.
function HANDLERS.leaving(self, event)
    local function let_go()
        if self.state == 'leaving' then
            self.leaving_seq = nil
            self.channel:send(encode.ack(event.seq))
        end
    end
    if self.state == 'leaving' then
        return let_go()
    end
    self.state, self.leaving_seq = 'leaving', event.seq
    self.on_leaving(let_go)
end

function HANDLERS.ack(self, event)
    local done = self.newconns[event.ack]
    if done then
        self.newconns[event.ack] = nil
        done(event.accepted)
    end
end

local ask_held

function HANDLERS.close(self, event)
    local socket = self.sockets[event.key]
    if not socket then
        return
    end
    self.sockets[event.key] = nil
    self.count = self.count - 1
    if self.by_name[socket.name] == event.key then
        self.by_name[socket.name] = nil
    end
    local info = describe(socket)
    info.open = self:open_sockets()
    self.on_close_server(info, socket)
    ask_held(self)
end

-- listening repeats the query with the real port, and does not say the key: the oldest socket of this description that
-- has not been announced is the one.
local function find_unannounced(self, heard)
    local best
    for _, socket in pairs(self.sockets) do
        if not socket.announced and socket.type == heard.type and socket.address == heard.address
            and socket.path == heard.path and socket.fd == heard.fd and socket.index == heard.index
            and (socket.port == heard.port or socket.port == 0) and (not best or socket.order < best.order) then
            best = socket
        end
    end
    return best
end

function HANDLERS.listening(self, event)
    local socket = find_unannounced(self, event.socket)
    if not socket then
        return -- never asked for: it says nothing about a socket of ours
    end
    socket.announced, socket.takes_connections = true, event.takes_connections
    local info = describe(socket)
    info.port, info.text = event.socket.port, event.socket.text
    socket.info = info
    self.on_listening(info)
    ask_held(self)
end

-- What libuv makes of the errors of a path, and the kernel of one that is a file of another sort: apps ask for these.
local OF_A_PATH = { ENOENT = 'EACCES', EEXIST = 'EADDRINUSE' }

-- Closed with an error the app sees as one of bind().
local function refuse(self, event, code, message)
    local key, data = self:new_key(), event.data
    self.on_refused(describe(event.socket), code, message)
    code = event.socket.type == 'unix' and OF_A_PATH[code] or code
    if event.socket.stream then
        self.channel:send(encode.refusal(event.seq, key, code, data))
        return
    end
    local fd = self.spare_fd()
    if fd then
        self.channel:send(encode.refusal_with_fd(event.seq, key, code, data), fd)
    end
end

local function grant(self, event, fd)
    local socket, data = event.socket, event.data
    if data then
        data = self.tickets:answer(socket.name, data, self.handed_tickets[socket.name])
        self.handed_tickets[socket.name] = data.ticketKeys
    end
    local key = self:new_key()
    socket.order = self.next_key
    self.sockets[key] = socket
    self.by_name[socket.name] = key
    self.channel:send(encode.reply(event.seq, key, data), fd)
end

-- Its name, where a second listen of the worker to the same address cannot be had.
local function exclusive_name(socket)
    return not (socket.fd or socket.port == 0 or socket.reuse_address) and socket.name or nil
end

-- Stock Node finds out by binding again. Here the second listen would be given the same socket, and both would succeed.
local function is_taken(self, name)
    return name ~= nil and self.by_name[name] ~= nil
end

-- The server that has the name may be closed already: an app that closes it, and listens anew, before our answer is
-- there says so only when it has that. Whether it is comes with the next word of it: listening, or close.
local function is_undecided(self, name)
    local first = self.sockets[self.by_name[name]]
    return not (first and first.announced)
end

local function ask(self, event)
    local socket = event.socket
    local name = exclusive_name(socket)
    self.count = self.count + 1
    if name then
        self.by_name[name] = 'asked' -- taken from now on; replaced by its key
    end
    local answered = false
    self.unanswered[event] = true
    self.query(socket, function(fd, code, message)
        if answered then
            return
        end
        answered = true
        self.unanswered[event] = nil
        if self.state ~= 'open' then
            return
        elseif fd then
            grant(self, event, fd)
            return
        end
        self.count = self.count - 1
        if name and self.by_name[name] == 'asked' then
            self.by_name[name] = nil
        end
        refuse(self, event, code or 'EINVAL', message)
        ask_held(self)
    end)
end

-- Those whose address is free by now, or is not to be had.
function ask_held(self)
    local list = self.held
    if self.state ~= 'open' or not list[1] then
        return
    end
    self.held = {}
    for _, event in ipairs(list) do
        local name = event.socket.name
        if not is_taken(self, name) then
            ask(self, event)
        elseif is_undecided(self, name) then
            self.held[#self.held + 1] = event
        else
            refuse(self, event, 'EADDRINUSE')
        end
    end
end

function HANDLERS.query(self, event)
    if self.state ~= 'open' then
        return -- on its way out; Node's primary does not answer either
    end
    if self.count >= MAX_SOCKETS then
        self:bad(('more than %d sockets'):format(MAX_SOCKETS))
        return
    end
    self.asked = self.asked + 1
    event.socket.adds_modes = self.adds_modes
    local name = exclusive_name(event.socket)
    if not is_taken(self, name) then
        ask(self, event)
    elseif is_undecided(self, name) and #self.held < MAX_HELD then
        self.held[#self.held + 1] = event
    else
        refuse(self, event, 'EADDRINUSE')
    end
end

function M:bad(reason)
    self.state = 'broken'
    self.on_bad(reason)
end

--- One line that came from the worker. Never throws, whatever it is.
-- @return the kind of event that it was, if it was one
function M:line(text, _had_fd)
    if self.state == 'closed' or self.state == 'broken' then
        return
    end
    local event, reason = protocol.decode(text)
    if not event then
        self:bad(reason)
        return
    end
    HANDLERS[event.kind](self, event)
    return event.kind
end

-------------------------------------------------------------------------------------------------------------------
-- To the worker.

--- Asks the worker to close its servers and leave. Only the first call sends, and none once the worker is leaving of
--- its own: a second one would make it crash in the middle of its work. Answers whether it was sent now.
function M:disconnect()
    if self.state ~= 'open' then
        return false
    end
    self.state = 'disconnecting'
    self.channel:send(encode.DISCONNECT)
    return true
end

--- The same, where a former master died before that was sent.
function M:disconnect_after_all()
    if self.state == 'disconnecting' then
        self.state = 'open'
        self:disconnect()
    end
end

--- Tells connections to begin to leave, before disconnect; for workers that know the command (drain.cjs), others
--- ignore it.
function M:drain()
    if self.state ~= 'open' or self.draining then
        return false
    end
    self.draining = true
    self.channel:send(encode.DRAIN)
    return true
end

--- A message for the app, in JSON: it arrives as it is written. -> true | nil, reason
function M:message(json)
    if self.state == 'closed' or self.state == 'broken' then
        return nil, 'the worker is gone'
    end
    local text, reason = encode.message(json)
    if not text then
        return nil, reason
    end
    return self.channel:send(text)
end

--- A line from the worker was too long, and is lost. With a descriptor the worker waits for an ack.
function M:skipped(had_fd)
    if had_fd and self.state ~= 'closed' and self.state ~= 'broken' then
        ack_handle(self)
    end
end

--- The former master may have lost what the worker said, and a descriptor that came with it.
-- @param by a number that no other master takes
function M:ask_again(by)
    if self.begins_again and self.state ~= 'closed' and self.state ~= 'broken' then
        self.may_repeat = true
        self.asked_by = self.channel:send(encode.again(by)) and by or nil
    end
end

--- What it listens on, as on_listening has heard it, in order.
function M:announced()
    local list = {}
    for _, socket in pairs(self.sockets) do
        list[#list + 1] = socket.info and socket
    end
    table.sort(list, function(a, b)
        return a.order < b.order
    end)
    for i, socket in ipairs(list) do
        list[i] = socket.info
    end
    return list
end

--- Whether it listens anywhere for connections.
function M:listens()
    for _, socket in pairs(self.sockets) do
        if socket.stream and socket.announced ~= nil then
            return true
        end
    end
    return false
end

--- Whether it has asked for a socket for connections, and does not listen there yet.
function M:is_asking()
    for event in pairs(self.unanswered) do
        if event.socket.stream then
            return true
        end
    end
    for _, socket in pairs(self.sockets) do
        if socket.stream and socket.announced == nil then
            return true
        end
    end
    return self.held[1] ~= nil
end

--- Open sockets, those that were answered and not closed since.
function M:open_sockets()
    local count = 0
    for _ in pairs(self.sockets) do
        count = count + 1
    end
    return count
end

local function key_for(self, name)
    local best, best_order
    for key, socket in pairs(self.sockets) do
        if socket.stream and socket.announced and socket.takes_connections and (name == nil or socket.name == name)
            and (not best or socket.order < best_order) then
            best, best_order = key, socket.order
        end
    end
    return best
end

--- Whether newconn() has somebody to give a connection to.
function M:takes(name)
    return self.state == 'open' and key_for(self, name) ~= nil
end

--- Gives the worker one accepted connection for its server on `name` (its oldest one when nil). done(accepted, ended)
--- comes later, once; accepted = false: the caller still has the connection and may try another worker; ended: this one
--- has not refused it but is gone.
--- -> true | nil, reason (then done never comes)
function M:newconn(fd, done, name)
    if self.state ~= 'open' then
        return nil, 'the worker is leaving'
    end
    local key = key_for(self, name)
    if not key then
        return nil, 'no such server'
    end
    self.next_newconn = self.next_newconn + 1
    local seq = self.next_newconn
    self.newconns[seq] = done
    -- Now: with a master that dies a connection is lost that only it has.
    local ok, message, code = self.channel:send(encode.newconn(seq, key), fd, true)
    if not ok then
        self.newconns[seq] = nil
        return nil, message, code
    end
    return true
end

local function keep_queries(self)
    local list = {}
    for event in pairs(self.unanswered) do
        list[#list + 1] = event
    end
    table.sort(list, function(a, b)
        return (a.seq or 0) < (b.seq or 0)
    end)
    for _, event in ipairs(self.held) do
        list[#list + 1] = event
    end
    return list
end

local KEPT = { 'state', 'next_key', 'next_newconn', 'handed_tickets', 'booted', 'asked', 'draining', 'leaving_seq',
    'adds_modes', 'begins_again', 'asked_by', 'may_repeat' }

--- For another master: see keeper/estate.lua.
function M:keep()
    local sockets = {}
    for key, socket in pairs(self.sockets) do
        sockets[#sockets + 1] = { key = key, socket = socket }
    end
    local kept = { sockets = sockets, queries = keep_queries(self) }
    for _, field in ipairs(KEPT) do
        kept[field] = self[field]
    end
    return kept
end

--- The talk goes on where a former master died. What a worker was asked and has not answered is nobody's question now.
function M:resume(kept)
    for _, field in ipairs(KEPT) do
        self[field] = kept[field]
    end
    -- What it was given last may still be on its way: its answer is for no later one.
    self.next_newconn = self.next_newconn + UNANSWERED_MAX
    for _, entry in ipairs(kept.sockets) do
        self.sockets[entry.key] = entry.socket
        self.by_name[entry.socket.name] = entry.key
        self.count = self.count + 1
    end
    self.owed = kept.queries
end

--- What it has asked for, and the former master did not answer, is looked after now.
function M:answer_owed()
    local owed = self.owed or {}
    self.owed = nil
    if self.leaving_seq then
        self.channel:send(encode.ack(self.leaving_seq))
        self.leaving_seq = nil
    end
    for _, event in ipairs(owed) do
        self.asked = self.asked - 1 -- it was counted
        HANDLERS.query(self, event)
    end
end

--- The channel is closed. Connections that were not confirmed come back by done(false, true).
function M:closed()
    if self.state == 'closed' then
        return
    end
    self.state = 'closed'
    local waiting = self.newconns
    self.newconns, self.sockets, self.by_name, self.held, self.count = {}, {}, {}, {}, 0
    for _, done in pairs(waiting) do
        done(false, true)
    end
end

return M
