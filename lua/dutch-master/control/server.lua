--- server.lua: the control socket, the master's side: clients, and their requests in turn. What goes over it: wire.lua;
-- what may be asked: verbs.lua; who may open it: claim.lua.
--
-- Who may connect, how long a line or an unread answer may be and how many clients there are is the platform's
-- business (serve); here the work is bounded that one turn of the loop does for all clients together, so that a
-- flood of requests waits and the workers do not. A client that goes away takes back nothing that it asked for.

local null = require('cjson.safe').null

local verbs = require 'dutch-master.control.verbs'
local wire = require 'dutch-master.control.wire'

local M = {}

--- Requests handled in one turn of the loop, all clients together. A status of 100 workers takes about a millisecond.
local PER_TURN = 4
--- What asks whether the master is there is hardly work, and counts as so much of a request: all clients that there can
-- be have their answer in one turn, however much else a turn has to do.
local LIGHT = { ping = 1 / 16 }
--- Requests of one client that wait for their turn, or for their answer.
local MAX_WAITING = 256
--- How often the master looks whether its files are there still.
local LOOK_MS = 3000
--- Sockets kept open for the clients they have: two that have names, and some whose names were removed.
local MAX_SERVERS = 6
--- Answers that are remembered for clients that may ask once more.
local MAX_ANSWERS = 32

local Control = {}
Control.__index = Control

--- @param options {platform, cluster, log, output, claim, is_kept = another master goes on if this one dies, commit =
--   see keeper/commit.lua, upgrade, also = what else is looked after, or nil}
function M.new(options)
    local self = setmetatable(options, Control)
    self.servers, self.opened = {}, 0
    self.answers = {} -- {key, said}
    self.outliving = 0 -- connections: see Answer:outlive
    self.kept = {} -- server -> {name, path}
    self.waiting, self.handled = {}, 0
    return self
end

--- One request, and its one answer.
local Answer = {}
Answer.__index = Answer

-- What follows a promise to a client waits behind it.
-- @return whether it is said later, when the state is kept
local function put_off(control, answer, text)
    local client = answer.client
    if not control.is_kept or not (answer.is_promise or client.promised > 0) then
        return false
    end
    client.promised = client.promised + 1
    control.commit:add(function()
        client.promised = client.promised - 1
        if not client.gone then
            client.conn:write(text)
        end
    end)
    return true
end

function Answer:send(message)
    if self.client.gone then
        return
    end
    message.v, message.id = wire.VERSION, self.id
    local text, reason = wire.encode(message)
    if not text then
        text = wire.encode { v = wire.VERSION, id = self.id, ok = false,
            error = { message = tostring(reason), code = 'EJSON' } }
    end
    if not put_off(self.control, self, text .. '\n') then
        self.client.conn:write(text .. '\n')
    end
end

--- What it says from now on stays true whatever becomes of this master: it is said when another one would know it.
function Answer:promise()
    self.is_promise = true
end

--- Whoever waits for what a restart or a stop comes to is not sent away for a newcomer's sake.
function Answer:hold()
    if not self.held then
        self.held = true
        self.client.conn:hold(1)
    end
end

function Answer:event(name, fields)
    if not self.over then
        fields.event = name
        self:send(fields)
    end
end

function Answer:done(fields)
    if self.over then
        return
    end
    self.over = true
    self.client.open = self.client.open - 1
    if self.held and not self.client.gone then
        self.client.conn:hold(-1)
    end
    fields = fields or {}
    fields.ok = fields.ok ~= false
    self:send(fields)
end

--- The connection ends with the keeper, where there is one, and not before: then all is gone.
function Answer:outlive()
    local control = self.control
    if control.is_kept and not self.client.gone then
        control.outliving = control.outliving + 1
        control.platform.keep_fd('client/' .. control.outliving, self.client.conn:fd())
    end
end

function Answer:fail(message, code)
    self:done { ok = false, error = { message = tostring(message), code = code or 'EFAILED' } }
end

function Answer:who()
    return self.platform.who(self.client.conn:pid(), self.client.conn:uid())
end

-- For people who try names.
local NAMES = {}
for name in pairs(verbs) do
    NAMES[#NAMES + 1] = name
end
table.sort(NAMES)

local function forget(client)
    client.gone = true
    for _, unsubscribe in pairs(client.unsubscribe) do
        unsubscribe()
    end
    client.unsubscribe, client.lines = {}, {}
end

--- A connection that we close does not tell us that it is closed.
local function hang_up(client)
    client.conn:close()
    forget(client)
end

-- What JSON can write back as it came. An id that it cannot is no id: no answer could name it.
local function is_id(id)
    if type(id) == 'number' then
        return id == id and math.abs(id) <= 2 ^ 53
    end
    return type(id) == 'string' and #id <= 64
end

-- The same for every number that a request brings, however deep: nan and the infinities are nobody's.
local function has_odd_number(value)
    if type(value) == 'table' then
        for key, item in pairs(value) do
            if has_odd_number(key) or has_odd_number(item) then
                return true
            end
        end
    end
    return type(value) == 'number' and (value ~= value or math.abs(value) == math.huge)
end

local function perform(control, client, answer, request)
    if type(request) ~= 'table' then
        answer:fail('not a JSON object', 'EJSON')
        return hang_up(client)
    end
    if request.id ~= nil and request.id ~= null and not is_id(request.id) then
        return answer:fail('id: expected a string of at most 64 bytes, or a number that JSON can write back', 'EINVAL')
    end
    answer.id = is_id(request.id) and request.id or nil
    if has_odd_number(request) then
        return answer:fail('a number in the request is none that JSON can write back', 'EINVAL')
    end
    if request.v ~= wire.VERSION then
        return answer:fail(('this master speaks version %d'):format(wire.VERSION), 'EVERSION')
    end
    local verb = type(request.verb) == 'string' and verbs[request.verb]
    if not verb then
        return answer:fail('unknown verb, there are: ' .. table.concat(NAMES, ', '), 'ENOVERB')
    end
    verb(control, request, answer)
end

-- Whatever a request makes of its verb, the next one is handled, and this one is answered.
local function handle(control, client, line)
    local request = wire.decode(line)
    control.handled = control.handled + (type(request) == 'table' and LIGHT[request.verb] or 1)
    local answer = setmetatable({ client = client, platform = control.platform, over = false,
        control = control }, Answer)
    client.open = client.open + 1
    local ok, message = pcall(perform, control, client, answer, request)
    if not ok then
        local verb = type(request) == 'table' and tostring(request.verb) or nil
        control.log:error({ verb = verb, err = tostring(message) }, 'Control request failed')
        answer:fail(message, 'EINTERNAL')
    end
end

--- Handles what waits, a few requests a turn, the clients one after the other.
local function take_turn(control)
    control.timer:start(0) -- first: nothing that a request does may keep the next turn from coming
    control.handled = 0
    while control.handled < PER_TURN and control.waiting[1] do
        local client = table.remove(control.waiting, 1)
        if not client.gone then
            handle(control, client, table.remove(client.lines, 1))
            if client.lines[1] and not client.gone then
                control.waiting[#control.waiting + 1] = client
            else
                client.queued = false
            end
        end
    end
    if control.timer and not control.waiting[1] and control.handled == 0 then
        control.timer:stop()
    end
end

local function on_line(control, client, line)
    if line == '' or client.gone then
        return
    elseif #client.lines + client.open >= MAX_WAITING then
        local answer = setmetatable({ client = client, control = control }, Answer)
        client.open = client.open + 1
        answer:fail('too many requests at once', 'EBUSY')
        return hang_up(client)
    elseif not client.queued and control.handled < PER_TURN then
        if control.handled == 0 then
            control.timer:start(0)
        end
        return handle(control, client, line)
    end
    client.lines[#client.lines + 1] = line
    if not client.queued then
        client.queued = true
        control.waiting[#control.waiting + 1] = client
    end
end

local function on_client(control, conn)
    local client = { conn = conn, lines = {}, open = 0, gone = false, queued = false, unsubscribe = {}, promised = 0 }
    conn:on_line(function(line)
        on_line(control, client, line)
    end)
    conn:on_close(function()
        forget(client)
    end)
end

-- @param fd of a former master's socket, or nil
local function serve(control, path, fd)
    local server, message, code = control.platform.serve(path, {
        fd = fd,
        on_client = function(conn)
            on_client(control, conn)
        end,
    })
    if not server then
        return nil, message, code
    end
    control.opened = control.opened + 1
    control.servers[#control.servers + 1] = server
    control.kept[server] = { name = ('control/%d'):format(control.opened), path = path }
    if control.is_kept then
        control.platform.touch()
    end
    return true
end

--- Whether the sockets are where verbs look for them. One that is made again takes new clients; those of the one that
-- has lost its name stay with it, for they may wait for a verdict.
local function look(control)
    control.looking:start(LOOK_MS)
    if control.also then
        control.also()
    end
    for _, path in ipairs(control.claim:look(control.platform)) do
        local ok, message = serve(control, path)
        if ok then
            control.log:warn({ path = path }, 'Control socket had been removed, made again')
        elseif control.complaint ~= message then
            control.log:error({ path = path, reason = message },
                'Control socket has been removed and cannot be made again')
        end
        control.complaint = message
    end
    while #control.servers > MAX_SERVERS do
        local oldest = table.remove(control.servers, 1)
        control.kept[oldest] = nil
        oldest:close()
    end
end

--- What was answered to the request of that key, or nil.
function Control:said(key)
    for _, entry in ipairs(key and self.answers or {}) do
        if entry.key == key then
            return entry.said
        end
    end
end

--- Done, and answered so: the client may ask the next master, if this one dies before it has heard it.
function Control:note_said(key, said)
    if key and self.is_kept then
        table.insert(self.answers, { key = key, said = said })
        if #self.answers > MAX_ANSWERS then
            table.remove(self.answers, 1)
        end
        self.platform.touch()
    end
end

--- Nobody would go on from it any more.
function Control:alone()
    self.is_kept = false
end

--- For another master: see keeper/estate.lua.
function Control:keep(book)
    local kept = {}
    for i, server in ipairs(self.servers) do
        local entry = self.kept[server]
        kept[i] = { fd = book:fd(entry.name, server:fd()), path = entry.path }
    end
    return { servers = kept, opened = self.opened, answers = self.answers }
end

--- @param kept, former of a former master, whose clients wait, or nil
--- -> true | nil, message, code
function Control:open(kept, former)
    self.timer = self.platform.timer(function()
        take_turn(self)
    end)
    self.looking = self.platform.timer(function()
        look(self)
    end)
    local fds = {}
    for _, entry in ipairs(kept and kept.servers or {}) do -- the newest of a path is the one that clients find
        fds[entry.path] = entry.fd
    end
    self.opened, self.answers = kept and kept.opened or 0, kept and kept.answers or {}
    for _, path in ipairs(self.claim.paths) do
        local ok, message, code = serve(self, path, fds[path] and former:take(fds[path]))
        if not ok then
            self:close()
            return nil, message, code
        end
    end
    self.looking:start(LOOK_MS)
    return true
end

function Control:close()
    for _, server in ipairs(self.servers) do
        server:close()
    end
    self.servers = {}
    if self.timer then
        self.timer:close()
        self.looking:close()
        self.timer, self.looking = nil, nil
    end
end

return M
