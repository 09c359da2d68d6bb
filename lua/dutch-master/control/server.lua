--- The control socket, the master's side: JSON lines in, JSON lines out.
--   -> {"v":1,"id":1,"verb":"status"}
--   <- {"v":1,"id":1,"event":"progress",...}   none, one or many
--   <- {"v":1,"id":1,"ok":true,...}            exactly one: or {"ok":false,"error":{"message":...,"code":...}}
--
-- Who may connect, how long a line or an unread answer may be and how many clients there are is the platform's
-- business (serve); here the work is bounded that one turn of the loop does for all clients together, so that a
-- flood of requests waits and the workers do not. A client that goes away takes back nothing that it asked for.
--
-- Use: claim = control.claim{...} before anything is bound or forked (two masters of one script); then
-- control.new{...}:open(); at the end :close() and claim:release().
-- Longer than 400 lines: one server with its verbs.

local bit = require 'bit'
local cjson = require 'cjson.safe'

local utf8 = require('dutch-master.log.text').utf8

local M = { VERSION = 1 }

local UNESCAPE = { ['/'] = '/' }
local json = cjson.new()
json.decode_max_depth(16)
json.encode_sparse_array(true)

--- Requests handled in one turn of the loop, all clients together. A status of 100 workers takes about a millisecond.
local PER_TURN = 4
--- Requests of one client that wait for their turn, or for their answer.
local MAX_WAITING = 256
--- How often the master looks whether its files are there still.
local LOOK_MS = 3000
--- Sockets kept open for the clients they have: two that have names, and some whose names were removed.
local MAX_SERVERS = 6
--- sun_path has 108 bytes, one for the NUL.
local MAX_PATH = 107
--- Records kept by the log for `events`.
local MAX_EVENTS = 1000
--- Of the workers' output, sent for one request: a client that reads slowly asks slowly.
local OUTPUT_BYTES = 64 * 1024

--- An empty list in JSON; cjson would write an empty table as an object.
local EMPTY_LIST = '\0[]'
M.EMPTY_LIST = EMPTY_LIST

local function encode(message)
    local ok, text, reason = pcall(json.encode, message) -- it throws at some values, and returns nil at others
    if not ok or not text then
        return nil, ok and reason or text
    end
    -- cjson also writes "/" as "\/": correct, but nobody wants to read paths so.
    return (text:gsub('"\\u0000%[%]"', '[]'):gsub('\\(.)', UNESCAPE))
end

local function list(items)
    if not items or #items == 0 then
        return EMPTY_LIST
    end
    return items
end

M.encode = encode

--- FNV-1a, 64 bits: which script, in 16 digits.
local function hash(text)
    local value = 0xcbf29ce484222325ULL
    for i = 1, #text do
        value = bit.bxor(value, text:byte(i)) * 0x100000001b3ULL
    end
    return bit.tohex(value)
end

--- What the files of a script's master are called: its name for people, its path for uniqueness.
function M.name_for(script)
    local base = script:match '([^/]+)$':gsub('%.lua$', ''):gsub('[^%w._-]', '_'):sub(1, 40)
    return base .. '-' .. hash(script)
end

--- The socket of the master of `script` -> path | nil, message, code
function M.path_for(script, plan, platform)
    local path = plan and plan.control_socket
    if not path then
        local dir, message, code = platform.runtime_dir()
        if not dir then
            return nil, message, code
        end
        path = dir .. '/' .. M.name_for(script) .. '.sock'
    end
    if #path > MAX_PATH then
        return nil, ('%s: too long for a socket, %d bytes of at most %d'):format(path, #path, MAX_PATH), 'ENAMETOOLONG'
    end
    return path
end

local Claim = {}
Claim.__index = Claim

function Claim:release()
    self.lock:close()
    if self.name then
        self.name:close()
    end
end

--- The files may have been removed, with their directory or without (a cleaner of /tmp, a logout): they are made again.
-- Nobody else can be the master meanwhile, for the name of the script's file is held as well.
-- @return the paths of sockets that are gone
function Claim:look(platform)
    if not platform.stat(self.lock_path) then
        platform.runtime_dir() -- made again, if it is that
        local lock = platform.lock(self.lock_path)
        if lock then
            self.lock:close()
            self.lock = lock
        end
    end
    local gone = {}
    for _, path in ipairs(self.paths) do
        if not platform.stat(path) then
            gone[#gone + 1] = path
        end
    end
    return gone
end

-- By the file and not by its path: whatever becomes of the directory in which the lock is. Its birth too: when the
-- script is replaced, as an edit does it, another file may get its inode while this master runs.
local function claim_name(platform, script)
    local file = platform.stat(script)
    if not file then
        return nil
    end
    return platform.claim(('script/%.0f-%.0f-%s'):format(file.dev, file.ino, file.born or hash(script)))
end

--- Takes the place of the one master of `script`. -> claim | nil, message, code; EAGAIN: another one has it.
-- The socket is also served where the script's path alone puts it: a client can find it without evaluating the script.
function M.claim(world)
    local platform, script, plan = world.platform, world.script, world.plan
    local chosen = plan and plan.control_socket
    local usual, message, code = M.path_for(script, nil, platform)
    if chosen then
        local ok, too_long, why = M.path_for(script, plan, platform)
        if not ok then
            return nil, too_long, why
        end
    elseif not usual then
        return nil, message, code
    end
    local lock, lock_path
    if usual then
        lock_path = usual:gsub('%.sock$', '.lock')
        lock, message, code = platform.lock(lock_path)
    end
    if not lock and code ~= 'EAGAIN' and chosen then
        usual = nil
        lock_path = chosen .. '.lock'
        lock, message, code = platform.lock(lock_path)
    end
    local name
    if lock then
        local why, kind
        name, why, kind = claim_name(platform, script)
        if kind == 'EAGAIN' then
            lock:close()
            lock, message, code = nil, why, kind
        end
    end
    if not lock then
        if code == 'EAGAIN' then
            message = ('a master of %s is running already: %s'):format(script, message)
        end
        return nil, message, code
    end
    local paths = {}
    if chosen then
        paths[#paths + 1] = chosen
    end
    if usual and usual ~= chosen then
        paths[#paths + 1] = usual
    end
    return setmetatable({ lock = lock, lock_path = lock_path, name = name, paths = paths, path = paths[1] }, Claim)
end

local Control = {}
Control.__index = Control

--- { platform, cluster, log, output, claim, also = what else is looked after, or nil }
function M.new(world)
    return setmetatable({
        platform = world.platform,
        cluster = world.cluster,
        log = world.log,
        output = world.output,
        claim = world.claim,
        also = world.also,
        servers = {},
        waiting = {},
        handled = 0,
        closed = false,
    }, Control)
end

--- One request, and its one answer.
local Answer = {}
Answer.__index = Answer

function Answer:send(message)
    if self.client.gone then
        return
    end
    message.v, message.id = M.VERSION, self.id
    local text, reason = encode(message)
    if not text then
        text = encode { v = M.VERSION, id = self.id, ok = false,
            error = { message = tostring(reason), code = 'EJSON' } }
    end
    self.client.conn:write(text .. '\n')
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

function Answer:fail(message, code)
    self:done { ok = false, error = { message = tostring(message), code = code or 'EFAILED' } }
end

function Answer:who()
    return self.platform.who(self.client.conn:pid(), self.client.conn:uid())
end

local verbs = {}

function verbs.ping(_, _, answer)
    answer:done {}
end

function verbs.status(control, _, answer)
    local snapshot = control.cluster:snapshot()
    local copy = {}
    for key, value in pairs(snapshot) do
        copy[key] = value
    end
    copy.workers, copy.slots = list(copy.workers), list(copy.slots)
    copy.log_lost = control.log.lost and control.log:lost()
    copy.output = control.output and { lines = control.output.lines, bytes = control.output.bytes,
        limit = control.output.limit }
    answer:done { status = copy }
end

function verbs.restart(control, request, answer)
    local wait = request.wait == true
    local who = answer:who() -- before the answer: then the client goes
    if wait then
        answer:hold()
        answer:event('accepted', {})
    else
        answer:done {}
    end
    control.cluster:restart {
        cause = 'control',
        who = who,
        on_progress = function(progress)
            answer:event('progress', { done = progress.done, total = progress.total, worker = progress.worker,
                back = progress.back })
        end,
        on_verdict = function(verdict)
            answer:done { verdict = verdict }
        end,
    }
end

local function answer_changes(answer)
    return function(changes, err)
        if not changes then
            return answer:fail(type(err) == 'table' and err.message or err, 'ESCRIPT')
        end
        answer:done { changes = list(changes.changes) }
    end
end

function verbs.reload(control, _, answer)
    answer:hold()
    control.cluster:reload(answer:who(), answer_changes(answer))
end

function verbs.plan(control, _, answer)
    answer:hold()
    control.cluster:preview(answer_changes(answer))
end

function verbs.stop(control, request, answer)
    local wait = request.wait == true
    local who = answer:who() -- before the answer: then the client goes
    if wait then
        answer:hold()
        answer:event('accepted', {})
    else
        answer:done {}
    end
    control.cluster:stop {
        cause = 'control',
        who = who,
        on_stopped = function(exit_code)
            answer:done { exit_code = exit_code }
        end,
    }
end

function verbs.scale(control, request, answer)
    local before = control.cluster.wanted
    local wanted, relative = request.workers, type(request.by) == 'number'
    if relative then
        wanted = before + request.by
    end
    if type(wanted) ~= 'number' or wanted ~= math.floor(wanted) or wanted < 1 or wanted > 4096 then
        local sum = relative and (': %d now, and %+g'):format(before, request.by) or ''
        return answer:fail(('expected an integer from 1 to 4096, found %s%s'):format(tostring(wanted), sum), 'EINVAL')
    end
    local ok, message, code = control.cluster:scale(wanted, { cause = 'control', who = answer:who() })
    if not ok then
        return answer:fail(message, code)
    end
    answer:done { from = before, to = wanted }
end

function verbs.events(control, request, answer)
    local number = request.last
    if type(number) ~= 'number' or number < 0 or number ~= math.floor(number) then
        number = 20
    end
    if request.follow == true then
        answer:event('accepted', {})
    end
    for _, record in ipairs(control.log:recent(math.min(number, MAX_EVENTS))) do
        answer:event('record', { record = record })
    end
    if request.follow ~= true then
        return answer:done {}
    end
    local unsubscribe = control.log:subscribe(function(record)
        answer:event('record', { record = record })
    end)
    answer.client.unsubscribe[answer] = unsubscribe
end

local function natural(value)
    return type(value) == 'number' and value >= 0 and value == math.floor(value) and value or nil
end

local function answer_lines(control, wish, answer)
    local lines, next_line, lost, more = control.output:read(wish)
    for _, line in ipairs(lines) do
        line.text = utf8(line.text)
        answer:event('line', { line = line })
    end
    -- What is in the file up to this size is not in the lines that follow.
    local file = control.output.file
    local there = file and control.platform.stat(file.path)
    answer:done { next = next_line, lost = lost, more = more, limit = control.output.limit,
        kept = control.output:kept(),
        file = file and { path = file.path, stamped = file.stamped, size = there and there.size or 0 } }
end

--- What the workers wrote. Nothing is pushed: the client asks on from `next`. With `wait` an answer comes when there is
-- something to say, so that nobody asks in vain.
function verbs.logs(control, request, answer)
    local wish = { after = natural(request.after), last = natural(request.last), worker = natural(request.worker),
        since = type(request.since) == 'number' and request.since or nil, bytes = OUTPUT_BYTES }
    if request.wait ~= true or not wish.after or wish.after < control.output.last then
        return answer_lines(control, wish, answer)
    end
    answer:event('accepted', {})
    local unsubscribe = answer.client.unsubscribe
    unsubscribe[answer] = control.output:wait(function()
        unsubscribe[answer] = nil
        answer_lines(control, wish, answer)
    end)
end

function verbs.why(control, request, answer)
    if request.worker ~= nil and type(request.worker) ~= 'number' then
        return answer:fail('worker: expected a number', 'EINVAL')
    end
    local why = control.cluster:why(request.worker)
    why.exits, why.slots = list(why.exits), list(why.slots)
    answer:done(why)
end

--- For people who try names.
local VERBS = { 'events', 'logs', 'ping', 'plan', 'reload', 'restart', 'scale', 'status', 'stop', 'why' }

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
    if request.id ~= nil and request.id ~= cjson.null and not is_id(request.id) then
        return answer:fail('id: expected a string of at most 64 bytes, or a number that JSON can write back', 'EINVAL')
    end
    answer.id = is_id(request.id) and request.id or nil
    if has_odd_number(request) then
        return answer:fail('a number in the request is none that JSON can write back', 'EINVAL')
    end
    if request.v ~= M.VERSION then
        return answer:fail(('this master speaks version %d'):format(M.VERSION), 'EVERSION')
    end
    local verb = type(request.verb) == 'string' and verbs[request.verb]
    if not verb then
        return answer:fail('unknown verb, there are: ' .. table.concat(VERBS, ', '), 'ENOVERB')
    end
    verb(control, request, answer)
end

-- Whatever a request makes of its verb, the next one is handled, and this one is answered.
local function handle(control, client, line)
    local request = json.decode(line)
    local answer = setmetatable({ client = client, platform = control.platform, over = false }, Answer)
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
            control.handled = control.handled + 1
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
        local answer = setmetatable({ client = client }, Answer)
        client.open = client.open + 1
        answer:fail('too many requests at once', 'EBUSY')
        return hang_up(client)
    elseif not client.queued and control.handled < PER_TURN then
        if control.handled == 0 then
            control.timer:start(0)
        end
        control.handled = control.handled + 1
        return handle(control, client, line)
    end
    client.lines[#client.lines + 1] = line
    if not client.queued then
        client.queued = true
        control.waiting[#control.waiting + 1] = client
    end
end

local function on_client(control, conn)
    local client = { conn = conn, lines = {}, open = 0, gone = false, queued = false, unsubscribe = {} }
    conn:on_line(function(line)
        on_line(control, client, line)
    end)
    conn:on_close(function()
        forget(client)
    end)
end

local function serve(control, path)
    local server, message, code = control.platform.serve(path, {
        on_client = function(conn)
            on_client(control, conn)
        end,
    })
    if not server then
        return nil, message, code
    end
    control.servers[#control.servers + 1] = server
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
        table.remove(control.servers, 1):close()
    end
end

--- -> true | nil, message, code
function Control:open()
    self.timer = self.platform.timer(function()
        take_turn(self)
    end)
    self.looking = self.platform.timer(function()
        look(self)
    end)
    for _, path in ipairs(self.claim.paths) do
        local ok, message, code = serve(self, path)
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
