--- worker.lua: one worker, from the wish for it to its exit.
--
-- The table at the end says all of it. While the script is asked how to make it (launcher.lua) it is preparing, and has
-- no process. It serves until it is told to leave, and leaving is always the same walk:
-- out of rotation (settling), asked to stop (stopping), its channel closed (disconnected), SIGTERM (terminating),
-- SIGKILL (killing), gone (exited). It may end at any step.
-- `exit` and `closed` come in either order and `closed` may never come, so neither waits for the other.
--
-- A worker knows nothing of slots and restarts, and nobody else writes its fields. What its owner must hear comes by
-- the callbacks it was given:
--   forked(worker)         it has a process
--   ready(worker)          it serves
--   lost(worker, why, fault)  it was not told to leave, and no longer serves or never will; without a pid it never
--                          had a process. fault: 'script' or 'system', if it would be the same at the next try
--   replace(worker, why, sick)  it asked to be replaced, or shall be; sick: it serves nobody as it is
--   gone(worker)           its process is reaped; worker.report says how it ended
--   must_listen_at(worker) -> where it has to listen to be ready: see listening.lua
-- Longer than 400 lines: one object, its table, and the actions that the table names.

local conversation = require 'dutch-master.channel.conversation'
local exit_report = require 'dutch-master.cluster.exit_report'
local Health = require 'dutch-master.cluster.health'
local Leaving = require 'dutch-master.cluster.leaving'
local listening = require 'dutch-master.cluster.listening'
local machine = require 'dutch-master.machine'

local Worker = {}
Worker.__index = Worker

-- SIGKILL is repeated, since a process in an uninterruptible wait does not die at once.
local KILL_AGAIN_MS = 1000
-- A worker that was not told to leave and whose channel has closed ends by itself in this time, or is terminated: what
-- it ends with tells more than our SIGTERM would.
local DISCONNECTED_MS = 1000
-- One that was never ready is about to say why, which Node takes a while for on a busy machine.
local STARTED_IN_VAIN_MS = 5000
-- What a worker has at least when another master takes it over: what waits in its channel is read long before.
local HEARD_MS = 2000
-- Bytes of a line of the channel: see process/channel.c.
local MESSAGE_MAX = 8 * 1024 * 1024
-- How much of stopTimeout may pass before a worker is asked to leave, because connections wait for it: the rest is for
-- what it is doing then.
local EMPTYING_SHARE = 2 / 3

-- Servers that are closed so soon after they made their worker ready may have been a try: get-port, portfinder and
-- others look for a free port so. Such a worker, and one that asked for another socket before it closed the last one,
-- has as long to listen again.
local TRIED_MS = 1000

local IN_THE_FOREGROUND = 'Let it run in the foreground (no -D, --daemon, --daemonize; nginx: "daemon off;"), and let'
    .. ' dutch-master restart it, not its own upgrade'
local IN_THE_BACKGROUND = 'put itself into the background: ' .. IN_THE_FOREGROUND

local definition

--- A worker that is being prepared: answer with the event prepared or unprepared.
-- @param options {id, slot (its number), generation, platform, agenda, log, sockets, tickets,
--   output (see log/output.lua, or nil), on = {forked, ready, lost, replace, gone, message}}
function Worker.new(options)
    local self = setmetatable(options, Worker)
    self.log = options.log:child { workerId = self.id, generation = self.generation }
    self.leaving = Leaving.new(self.platform)
    self.agenda:start(self, definition)
    return self
end

--- What hooks of the script get to see of a worker.
function Worker:describe()
    -- onWorkerReady is called on the way from the one state to the other.
    local state = self.state == 'starting' and self.ready_at and 'running' or self.state
    local told = { id = self.id, slot = self.slot, generation = self.generation, pid = self.pid, state = state,
        release = self.release }
    for name, value in pairs(self.compared or {}) do
        told[name] = value
    end
    return told
end

--- The numbers by which the script's judge compares it with its counterpart: see comparison.lua.
function Worker:compare(numbers)
    self.compared = numbers
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Forking

-- What another master would go on from is different, where no event says so.
local function changed(self)
    self.part = nil
    self.platform.touch()
end

local function on_message(self, message, text)
    if type(message) == 'table' and message.event == 'request-restart' then
        return self.agenda:post(self, 'request_restart')
    end
    self.health:message(message)
    self.on.message(self, text)
end

-- What it may do, where that is not what the master may: nothing is bound for it with more than its own rights.
local function rights_of(plan, platform)
    if plan.uid or plan.gid then
        return { uid = plan.uid or platform.uid(), gid = plan.gid, groups = plan.groups }
    end
end

-- It listens nowhere now, and may listen again.
local function listens_nowhere(self)
    local now = self.platform.now()
    local may_again = self.ready_at and now - self.ready_at < TRIED_MS or self.conversation:is_asking()
    self.closed_at = now
    self.health:listens_nowhere(may_again and TRIED_MS or 0)
end

local function start_conversation(self)
    self.conversation = conversation.new {
        worker_id = self.id,
        tickets = self.tickets,
        channel = self.child,
        query = function(request, reply)
            request.as = rights_of(self.plan, self.platform)
            self.sockets:query(self.id, request, function(...)
                changed(self)
                reply(...)
            end, self.generation)
        end,
        spare_fd = function()
            return self.sockets:spare_datagram()
        end,
        on_listening = function(info)
            if info.own then
                self.log:info({ address = info.text }, 'Worker listens with a socket of its own: it is not steered')
            end
            if not listening.is_private(info, self.pid) then
                self.listening, self.closed_at = true, nil
                self.health:listens(info)
            end
        end,
        on_metrics = function(measured)
            self.measured = measured
        end,
        on_ready = function()
            self.health:says_ready()
        end,
        on_message = function(message, text)
            on_message(self, message, text)
        end,
        on_close_server = function(info, socket)
            self.sockets:forsake(self.id, socket)
            if info.stream and not self.conversation:listens() then
                listens_nowhere(self)
            end
        end,
        on_load = function(held, busy)
            self.sockets:load(self.id, held, busy)
        end,
        on_returned = function(fd, socket, again)
            self.sockets:returned(self.id, socket, fd, again)
        end,
        on_refused = function(info, code, message)
            self.refused = message or ('%s: %s'):format(code, info.text or info.name)
        end,
        on_leaving = function(let_go)
            if self.state ~= 'starting' and not self:serves() then
                let_go() -- it leaves already
            end
            self.agenda:post(self, 'leaving', let_go)
        end,
        on_bad = function(reason)
            self.log:warn({ reason = reason }, 'Worker sent a malformed message, its channel is closed')
            self.child:close_channel()
            self.agenda:post(self, 'closed')
        end,
    }
end

local function new_health(self)
    local rule = self.plan.ready
    return Health.new {
        platform = self.platform, sockets = self.sockets, id = self.id, log = self.log,
        rule = rule and rule.type ~= 'auto' and rule or self.kind.default_ready, fallback = self.kind.default_ready,
        watchdog_ms = self.plan.watchdog_ms,
        listens_at = function()
            return self:listens_at()
        end,
        must_listen_at = function()
            return self.on.must_listen_at and self.on.must_listen_at(self) or {}
        end,
        tell = function(event, ...)
            self.part = nil -- a sign of life, too, is what another master has to know
            self.agenda:post(self, event, ...)
        end,
    }
end

local function hear_notices(self)
    return function(fields)
        self.part = nil
        if not fields.WATCHDOG then -- that comes all the time
            self.platform.touch()
        end
        self.health:notified(fields)
    end
end

--- Opens the socket by which an exec worker with this uid says READY=1. Its name goes into the fork's environment.
-- @return the name, or nil, message
function Worker:open_notify(uid)
    local socket, message = self.platform.notify_socket({ uid = uid }, hear_notices(self))
    if not socket then
        return nil, message
    end
    self.notify = socket
    return socket:name()
end

-- Opens what its output goes to, if that is not ours. stderr is copied through the master, so that its end can be shown
-- when it dies.
-- @return true, or nil, message
local function open_output(self, fields)
    local wish, message = self.plan.worker_output, nil
    if self.plan.stamp_output then
        wish = 'null' -- output.lua writes the file
    end
    if wish and wish ~= 'inherit' then
        self.output_fd, message = self.platform.open_append(wish == 'null' and '/dev/null' or wish)
    end
    fields.stdout, fields.stderr = self.output_fd or 1, self.output_fd or 2
    return message == nil, message and 'workerOutput: ' .. message
end

--- Whether its output goes to a file: the master writes it then, for the worker, so that it can be opened anew.
function Worker:writes_file()
    local wish = self.plan.worker_output
    return wish ~= nil and wish ~= 'inherit' and wish ~= 'null'
end

--- After a rotation: what it writes from now on goes to the file that has the name now. Whole lines, and none is lost.
-- @return true, or nil, message: the old file stays
function Worker:reopen_output()
    if not (self.output_fd and self:writes_file()) or self.plan.stamp_output then
        return true
    end
    return self.platform.reopen_append(self.output_fd, self.plan.worker_output)
end

-- Lines that say nothing which another master would have to know.
local TRANSIENT = { load = true, metrics = true, message = true, ack = true, unknown = true }

-- What its process tells the master.
local function listen_to(self, fields)
    function fields.on_exec()
        self.exec_at, self.part = self.platform.now(), nil
    end
    function fields.on_line(_, line, had_fd)
        if not TRANSIENT[self.conversation:line(line, had_fd)] then
            changed(self)
        end
    end
    function fields.on_skipped(_, length, had_fd)
        if length > MESSAGE_MAX then -- else a former master had read the beginning of it
            self.log:warn({ bytes = length }, 'Message of the worker dropped: longer than 8 MiB')
        end
        self.conversation:skipped(had_fd)
    end
    function fields.on_channel_closed(_, reason)
        if reason then
            self.log:warn({ reason = reason }, 'Channel of the worker failed')
        end
        changed(self)
        self.agenda:post(self, 'closed')
    end
    fields.lingers = true -- the worker is its whole group
    function fields.on_leader_exit(_, status)
        self.agenda:post(self, 'headless', status)
    end
    function fields.on_exit(_, status)
        self.agenda:post(self, 'exit', status)
    end
    if self.output then
        function fields.on_output(_, stream, data)
            self.output:write(self.id, stream, data)
        end
    end
    return fields
end

-- What it is made from.
local function take_made(self, made)
    self.plan, self.kind, self.release = made.plan, made.kind, made.release
end

--- Forks.
-- @param made {plan, kind (a row of kinds.lua), release (where it runs)}
-- @param fields what platform.spawn takes, without the callbacks
-- @return true; or nil, message, and 'system' if it would be the same at the next try: the worker never lived
function Worker:spawn(made, fields)
    take_made(self, made)
    local ok, no_output = open_output(self, fields)
    if not ok then
        return nil, no_output, 'system'
    end
    fields.capture_stderr = true
    fields.capture_stdout = (self.plan.keep_output or 0) > 0 or self:writes_file()
    self.asks = self.kind.asks
    self.stop_signal = self.plan.stop_signal
    listen_to(self, fields)
    self.channel_open, self.search_path = fields.channel, fields.search_path
    self.forked_at = self.platform.now()
    self.ready_by = self.forked_at + self.plan.ready_timeout_ms
    self.oom_kills_before = self.platform.oom_kills(true)
    local child, message, code = self.platform.spawn(fields)
    if not child then
        return nil, ('%s: %s'):format(code or 'error', message)
    end
    self.child = child
    self.pid = child:pid()
    if fields.channel then
        start_conversation(self)
    end
    self.log = self.log:child { workerPid = self.pid }
    self.log:info('Creating new worker')
    self.health = new_health(self)
    if not self.channel_open then
        self.health:given() -- what is asked waits in its queue until it listens
    end
    return true
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Over the death of a master

local KEPT = { 'id', 'slot', 'generation', 'state', 'pid', 'release', 'asks', 'stop_signal', 'channel_open',
    'search_path', 'forked_at', 'exec_at', 'ready_at', 'ready_by', 'closed_at', 'oom_kills_before', 'listening',
    'refused', 'assumed' }

--- For another master: see keeper/estate.lua. Of one that has no process there is nothing to keep but its number.
function Worker:keep(book)
    local process = self.child and self.child:keep()
    if not process then
        return { id = self.id, slot = self.slot, generation = self.generation }
    end
    local kept = { plan = book:share(self.plan), leaving = self.leaving:keep(), process = {
        mark = process.mark, reports = self.output and 1 or nil,
        pidfd = book:fd('pid/' .. self.id, process.pidfd, self.pid),
        -- The mark as well: where there is no snapshot (salvage.lua) the name alone tells it.
        channel = book:fd(('channel/%d.%d'):format(self.id, process.mark or -1), process.channel),
        out = book:fd('out/' .. self.id, process.out), err = book:fd('err/' .. self.id, process.err),
    } }
    for _, field in ipairs(KEPT) do
        kept[field] = self[field]
    end
    kept.conversation = self.conversation and self.conversation:keep()
    kept.health = self.health and self.health:keep()
    kept.notify = self.notify and { fd = book:fd('notify/' .. self.id, self.notify:fd()), name = self.notify:name() }
    return kept
end

-- @return the child, whether its channel can go on; or nil, message
local function adopt_process(self, kept, former)
    local process, fields = kept.process, listen_to(self, { pid = self.pid, lingers = true })
    for _, name in ipairs { 'pidfd', 'channel', 'out', 'err' } do
        fields[name] = former:take(process[name])
    end
    fields.mark, fields.reports = process.mark, process.reports
    open_output(self, fields)
    if not fields.pidfd then
        return nil, 'its pidfd was not kept'
    end
    return self.platform.adopt(fields)
end

local function resume_notify(self, kept, former)
    local fd = kept.notify and former:take(kept.notify.fd)
    if fd then
        self.notify = self.platform.notify_socket({ uid = self.plan.uid, fd = fd, name = kept.notify.name },
            hear_notices(self))
    end
end

local function resume_health(self, kept)
    if kept.health then
        self.health:resume(kept.health)
    end
    if self.state == 'starting' and not self.channel_open then
        self.health:given()
    elseif self.state == 'starting' then
        for _, info in ipairs(self.conversation:announced()) do
            self.health:listens(info)
        end
    elseif self:serves() then
        self.health:serves_on()
        if self.closed_at then
            listens_nowhere(self)
        end
    end
end

-- Its master may have hung for longer than the worker had: what it has said meanwhile counts before it is late.
local function be_heard(self)
    local soonest = self.platform.now() + HEARD_MS
    self.ready_by = self.ready_by and math.max(self.ready_by, soonest)
    self.leaving:go_on_until(soonest)
end

-- Its process, which a former master has forked, at the point where that left it.
local function resume(self, kept, former)
    for _, field in ipairs(KEPT) do
        self[field] = kept[field]
    end
    self.leaving:resume(kept.leaving)
    be_heard(self)
    local child, clear, writable, unsent = adopt_process(self, kept, former)
    if not child then
        self.log:error({ workerPid = self.pid, reason = clear }, 'Worker could not be taken over')
        return nil
    end
    self.child, self.log = child, self.log:child { workerPid = self.pid }
    self.unsent = unsent == 'unsent' -- what it was last to be told
    if kept.conversation then
        start_conversation(self)
        self.conversation:resume(kept.conversation)
    end
    resume_notify(self, kept, former)
    local has_heard = self.state ~= 'stopping' or unsent ~= 'perhaps'
    if not (writable and has_heard) and self.asks ~= 'nothing' then
        self.asks = 'signal' -- a half of a line may be out, or nothing
    end
    return true, clear
end

--- A worker of a former master. Takes over what that has kept of it.
-- @param options as of Worker.new
-- @param made as of spawn
-- @return the worker, whether its channel can go on; or nil: it could not be taken over
function Worker.resume(options, made, kept, former)
    local self = setmetatable(options, Worker)
    self.id, self.slot, self.generation = kept.id, kept.slot, kept.generation
    self.log = options.log:child { workerId = self.id, generation = self.generation }
    self.taken_over = true
    self.leaving = Leaving.new(self.platform)
    take_made(self, { plan = made.plan, kind = made.kind, release = kept.release })
    local ok, clear = resume(self, kept, former)
    if not ok then
        return nil
    end
    return self, clear
end

--- From now on what comes of it is heard. Its owner knows it by then.
function Worker:go_on(kept)
    self.health = new_health(self)
    self.agenda:start(self, definition, kept.state)
    resume_health(self, kept)
    if self.conversation then
        self.conversation:answer_owed()
    end
    if self.state == 'settling' then
        self.sockets:leave(self.id, function()
            self.agenda:post(self, 'settled')
        end, self.plan.stop_timeout_ms * EMPTYING_SHARE)
    end
end

--- Lets go of what a worker holds that was never forked.
function Worker:discard()
    if self.notify then
        self.notify:close()
        self.notify = nil
    end
    if self.output_fd then
        self.platform.close_fd(self.output_fd)
        self.output_fd = nil
    end
end

--- Where it listens, as far as others may too: see listening.lua.
function Worker:listens_at()
    local list = {}
    for _, info in ipairs(self.conversation and self.conversation:announced() or {}) do
        list[#list + 1] = not listening.is_private(info, self.pid) and info or nil
    end
    return list
end

--- Whether it listens nowhere at this moment.
function Worker:is_closed()
    return self.closed_at ~= nil
end

--- Whether it takes connections.
function Worker:serves()
    return self.state == 'running' or self.state == 'retiring'
end

--- Sends a message of the script, in JSON, to the app of the worker.
-- @return true, or nil, message
function Worker:message(json)
    if self.finished or not self.channel_open then
        return nil, 'worker ' .. self.id .. ' has no channel'
    end
    return self.conversation:message(json)
end

--- Whether a waiting connection can be handed over to the app of the worker, to its server `name`.
function Worker:takes(name)
    return self:serves() and self.channel_open
        and self.conversation:takes(name)
end

--- Whether it has not read all that it was sent, by a former master too.
function Worker:is_unread()
    return self.child ~= nil and self.channel_open and self.child:is_unread()
end

--- Hands it over. done(accepted) comes later, once, if this returns true.
-- @return whether it was handed over
function Worker:rescue(fd, done, name)
    if not self:takes(name) then
        return false
    end
    self.part = nil
    return self.conversation:newconn(fd, done, name) == true
end

--- It is to be replaced: because it asked for it, hangs, or is too large or too old. Who has no place any more goes on.
-- @param sick whether it serves nobody as it is
function Worker:replace(why, sick)
    self.leaving:blame(why)
    changed(self)
    self.on.replace(self, why, sick)
end

--- The kernel has killed another process of ours for want of memory: that death says nothing about this one's.
function Worker:other_ran_out_of_memory()
    self.oom_kills_before, self.part = self.oom_kills_before and self.oom_kills_before + 1, nil
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Actions

-- A worker that goes without having been told to leave is lost, once.
local function lose(self, why, fault)
    if self.leaving:lose() then
        self.on.lost(self, why, fault)
    end
end

local function kill(self)
    self.leaving:kill()
    self.log:debug('Hard-killing worker as it did not die gracefully')
    self.child:signal_group('SIGKILL')
    return 'killing'
end

-- make(worker): forks; or says why not, and whose fault it is: the child that it may have by then is ended.
local function prepared(self, make)
    local forked, why, fault = make(self)
    if not forked and not self.child then
        self.agenda:finish(self)
        lose(self, why, fault)
        return 'exited'
    end
    self.on.forked(self)
    if not forked then
        lose(self, why)
        return kill(self)
    end
    return 'starting'
end

local function unprepared(self, why, fault)
    self.agenda:finish(self)
    self.leaving:lose()
    self.on.lost(self, why, fault)
    return 'exited'
end

-- There is no process; answers that still come are ignored.
local function stop_preparing(self)
    self.leaving:order()
    self.agenda:finish(self)
    return 'exited'
end

local function became_ready(self, facts)
    self.health:serves()
    self.ready_at = self.platform.now()
    self.sockets:join(self.id)
    self.assumed = facts.assumed ~= nil
    if not self.assumed then
        self.log:info({ address = facts.address }, 'Worker listening')
    end
    self.on.ready(self)
    if self.assumed then
        self:replace(facts.assumed)
    end
    return 'running'
end

local function request_restart(self, why)
    why = why or 'asked to be replaced'
    self.log:info({ reason = why }, 'Worker dying')
    self:replace(why)
end

-- Its deadline starts anew.
local function alive()
    return 'running'
end

-- It is replaced as one that asks for it, and asked to leave, terminated and killed as every other one then. Until its
-- replacement is on its way this is said again and again.
local function hung(self, why)
    self.log:warn({ reason = why }, 'Worker hangs')
    self.health:forgive()
    self:replace(why, true)
    return 'running'
end

local function silent(self)
    return hung(self, ('gave no sign of life for %g s'):format(self.plan.watchdog_ms / 1000))
end

local function ask(self)
    if self.asks == 'disconnect' and self.channel_open then
        self.conversation:disconnect()
    elseif self.asks == 'signal' then
        self.child:signal(self.stop_signal)
        self.child:signal('SIGCONT')
    end
    return 'stopping'
end

-- Out of rotation: told to, or `sick`: known to take no connection that waits for it.
local function walk_out(self, why, sick)
    self.health:close()
    if sick then
        self.leaving:fail(why)
        self.leaving:allow(self.plan.stop_timeout_ms)
    else
        self.leaving:order(why, self.plan.stop_timeout_ms)
    end
    self.sockets:leave(self.id, function()
        self.agenda:post(self, 'settled')
    end, self.plan.stop_timeout_ms * EMPTYING_SHARE, sick)
    if self.channel_open and self.plan.drain ~= false then
        self.conversation:drain()
    end
    return 'settling'
end

-- Nobody talks to a worker that is not ready, unless others serve its socket: it is asked at once. Of one that was
-- starting when its master died nobody knows: that may have let it serve, and its snapshot did not say so yet.
local function stop_starting(self, why)
    if self.taken_over or self.sockets:is_helped(self.id) then
        return walk_out(self, why)
    end
    self.health:close()
    self.leaving:order(why, self.plan.stop_timeout_ms)
    return ask(self)
end

--- Its channel cannot be trusted: it serves until another one does. One that is starting begins anew: it may serve
-- already, so it is asked to leave as any other.
-- @param is_alone whether nobody else serves in its slot. If it has a socket then, its master may have died before a
--   snapshot said that it is ready: it is taken for that, and replaced
function Worker:distrust(is_alone)
    local why = 'its master died while they talked'
    self.log:warn('Its channel was in use when the former master died: the worker is replaced')
    if self.conversation then
        self.conversation:ask_again(self.platform.master_pid())
    end
    if self.state == 'starting' and is_alone and self.sockets:holds(self.id) then
        self.agenda:post(self, 'ready', { assumed = why })
    elseif self.state == 'starting' then
        lose(self, why)
        self.agenda:post(self, 'stop', why)
    elseif self:serves() then
        self:replace(why)
    elseif self.state == 'stopping' and self.asks == 'signal' then -- it may not have heard that it was asked
        self.child:signal(self.stop_signal)
        self.child:signal 'SIGCONT'
    elseif self.state == 'stopping' and self.unsent then
        self.conversation:disconnect_after_all()
    end
end

local function terminate(self)
    self.leaving:begin(self.plan.stop_timeout_ms)
    self.child:signal('SIGTERM')
    self.child:signal('SIGCONT') -- a stopped process does not act on SIGTERM
    return 'terminating'
end

-- What may be behind a worker that never became ready, where it can be told from what it said.
local function suspicion(self)
    if self.refused then
        return ': a socket was refused to it: ' .. self.refused
    end
    local talk = self.conversation
    if talk and talk.booted and not self.listening then
        return ': it never asked for a socket that others may have. Does it listen? A launcher between master and app'
            .. ' (npm start, npx, nodemon, tsx) keeps the channel to itself: for tsx,'
            .. " interpreter = { 'node', '--import', 'tsx' }"
    end
    return ''
end

-- The deadline of `starting` is the moment of readiness for a worker whose rule is to have lived that long.
local function start_deadline(self)
    if self.health:alive_ms() then
        return became_ready(self, {})
    end
    local missing, hint = self.health:missing()
    local seconds, asked = (self.ready_by - self.forked_at) / 1000, missing and ': ' .. missing
    self.health:close()
    self.leaving:fail(('was not ready within %g s'):format(seconds) .. (asked or '') .. (hint and '. ' .. hint or ''))
    self.log:warn({ readyTimeout = seconds, listening = self.listening, hint = hint },
        'Worker was not ready in time' .. (asked or suspicion(self)))
    lose(self, 'was not ready in time' .. (asked or ''))
    self.leaving:allow(math.min(self.plan.kill_timeout_ms, self.plan.stop_timeout_ms))
    return terminate(self)
end

-- The channel closed. A worker that is drained closes it last: no connection is left, and what it still does is its own
-- clean-up, which begins with SIGTERM in many programs. The preload sees to it that others may end by themselves.
-- One that left by its own wish is at its end.
local function closed_while_leaving(self)
    self.channel_open = false
    self.log:info('Worker disconnected')
    return (self.asks == 'nothing' or self.plan.drain == false) and 'disconnected' or terminate(self)
end

local function closed_while_starting(self)
    self.health:close()
    self.channel_open = false
    if self.exec_at then -- else its program never ran, and why that is comes with its end
        self.log:warn('Worker disconnected unexpectedly while starting')
    end
    lose(self, 'disconnected while starting')
    self.leaving:allow(STARTED_IN_VAIN_MS + self.plan.kill_timeout_ms)
    return 'disconnected'
end

local function closed_while_serving(self)
    self.health:close()
    self.channel_open = false
    self.log:warn('Worker disconnection was unexpected')
    self.sockets:drop(self.id)
    lose(self, 'disconnected')
    return 'disconnected'
end

local function note_closed(self)
    self.channel_open = false
end

-- The app leaves by itself. After cluster.worker.disconnect() it accepts nothing any more, and finishes what it has;
-- after kill() it serves until it is let go.
local function leaving(self, let_go)
    self.health:close()
    self.log:info('Worker leaves by itself')
    self.asks = 'nothing'
    self.leaving:allow(self.plan.stop_timeout_ms)
    self.sockets:leave(self.id, function()
        changed(self)
        let_go()
    end)
    lose(self, 'left by itself')
    return 'stopping'
end

-- What a worker has left behind in a group of its own, when it ended as if all was well and nobody told it to: it has
-- put itself into the background. It is ended at once: see leftovers.lua.
local function find_daemon(self, status)
    local is_one = self.kind.name == 'exec' and status.code == 0 and not self.leaving.told
    local left = is_one and self.platform.left_by(self.id) or {}
    if not left[1] then
        return
    elseif not self.leaving.daemon then -- else it is said: it was in its group for a moment
        self.leaving:hide(IN_THE_BACKGROUND)
        self.log:warn({ code = status.code, processes = left, hint = IN_THE_FOREGROUND },
            'Worker has put itself into the background, what it left behind is asked to end')
    end
end

local function finish(self, status)
    find_daemon(self, status)
    self:discard()
    self.channel_open = false
    self.report = exit_report.new(self, status)
    if status.failed then
        local failed = status.failed
        self.log:error({ step = failed.step, code = failed.code, path = failed.path },
            'Worker could not be started: ' .. exit_report.start_failure(failed, self))
    else
        self.log:info({ code = status.code, signal = status.signal, reason = exit_report.cause(self) }, 'Worker exited')
    end
    if self.health then
        self.health:close() -- before its lane is another's
    end
    self.sockets:drop(self.id)
    if self.conversation then
        self.conversation:closed()
    end
    if self.output then
        self.output:ended(self.id)
    end
    self.agenda:finish(self)
    lose(self, self.report.message)
    self.on.gone(self)
    return 'exited'
end

-- The first process of a worker has ended, others of its group live: a shell without exec, a server that upgraded
-- itself or put itself into the background. They keep its lanes until they have ended. SIGTERM, whatever the worker's
-- own signal is: what a shell starts in the background ignores SIGQUIT and SIGINT.
local function headless(self, status)
    self.health:close()
    self.channel_open = false
    self.leaving:begin(self.plan.stop_timeout_ms)
    self.sockets:leave(self.id, function() end)
    local facts = { code = status.code, signal = status.signal, processes = self.child:others() }
    if status.code == 0 and not self.leaving.told and not self.leaving.lost then
        self.leaving:hide(IN_THE_BACKGROUND)
        facts.hint = IN_THE_FOREGROUND
        self.log:warn(facts, 'Worker has put itself into the background, what it left behind is asked to end')
    else
        self.log:info(facts, 'Worker ended, what is left of its process group is asked to end')
    end
    lose(self, self.leaving.daemon or 'its first process ended')
    self.child:signal_group 'SIGTERM'
    self.child:signal_group 'SIGCONT'
    return 'headless'
end

-- It serves, as a replacement that has to prove itself, and has failed in that. It may finish what it has.
local function failed(self, why)
    self.log:warn('Worker failed: ' .. why)
    lose(self, why)
    return walk_out(self, why, true)
end

local function exit_while_serving(self, status)
    self.log:warn({ code = status.code, signal = status.signal }, 'Worker disconnection was unexpected')
    return finish(self, status)
end

local function mark_retiring()
    return 'retiring'
end

-- All its servers are closed, but the process lives: it serves nobody, and finishes what it has.
local function closed_servers(self)
    self.log:info('Worker closed its servers')
    self:replace('closed its servers', true)
end

-- It asks for more time, from now.
local function extend_start(self, ms)
    if not self.health:alive_ms() then
        self.ready_by = Leaving.extended(self.platform.now(), ms, self.ready_by, self.forked_at,
            self.plan.ready_timeout_ms)
        self.agenda:note_news()
        return 'starting'
    end
end

local function extend_stop(self, ms)
    self.leaving:extend(ms)
    self.agenda:note_news()
    return self.state
end

local function kill_now(self, why)
    self.health:close()
    self.leaving:order(why)
    return kill(self)
end

local function kill_rest(self)
    self.child:signal_group 'SIGKILL'
    return 'killing'
end

local function kill_again(self)
    self.child:signal_group('SIGKILL')
    self.log:debug('Worker is still alive, killing it again')
    return 'killing'
end

-- ---------------------------------------------------------------------------------------------------------------------
-- The table. A worker alive stop_timeout after it was asked to stop is killed, whatever it was asked by; SIGTERM comes
-- kill_timeout before that, or as soon as the channel has closed.

local function remaining(self)
    return math.max(self.leaving.until_ms - self.platform.now(), 0)
end

--- The moment by which it has to be ready, or gone; nil while it serves, and when it has been killed.
function Worker:due()
    if self.state == 'starting' then
        return self.ready_by
    end
    return not self.leaving.killed and self.leaving.until_ms or nil
end

definition = machine.define {
    name = 'worker',
    keeps = true,
    initial = 'preparing',
    events = {
        'prepared', -- (make) all is known that the fork needs
        'unprepared', -- (why, fault) it cannot be made
        'ready', -- it listens, or said so
        'request_restart', -- it asked to be replaced
        'retire', -- a replacement is on its way
        'keep', -- the replacement was given up
        'stop', -- (why) leave
        'kill', -- (why) leave at once
        'settled', -- out of rotation, nothing on its way to it
        'leaving', -- (let_go) it disconnects by itself
        'closed_servers', -- it listens nowhere any more
        'alive', -- a sign of life
        'hung', -- (why) it says that it hangs
        'failed', -- (why) it has not proved itself
        'extend', -- (ms) it asks for more time, from now
        'closed', -- its channel is closed
        'headless', -- (status) its first process has ended, others of its group live
        'deadline',
        'exit', -- its process is reaped
    },
    deadline = {
        starting = function(self)
            return self.health:alive_ms() or math.max(self.ready_by - self.platform.now(), 0)
        end,
        running = function(self)
            return self.plan.watchdog_ms and self.health:patience()
        end,
        settling = function(self)
            return remaining(self) -- sockets.lua keeps within its share
        end,
        stopping = function(self)
            if self.asks == 'signal' and self.stop_signal == 'SIGTERM' then
                return remaining(self) -- it has its SIGTERM already
            elseif not self.ready_at then
                return math.min(self.plan.kill_timeout_ms, remaining(self))
            end
            return math.max(remaining(self) - self.plan.kill_timeout_ms, 0)
        end,
        disconnected = function(self)
            local patience = self.ready_at and DISCONNECTED_MS or STARTED_IN_VAIN_MS
            return self.leaving.until_ms and math.min(patience, remaining(self)) or patience
        end,
        terminating = remaining,
        headless = remaining,
        killing = function()
            return KILL_AGAIN_MS
        end,
    },
    states = {
        preparing = { -- the script is asked; each of its answers has a deadline of its own
            prepared = prepared,
            unprepared = unprepared,
            stop = stop_preparing,
            kill = stop_preparing,
            bugs = [[ready request_restart retire keep settled leaving closed_servers closed headless alive hung extend
                failed deadline exit]],
        },
        starting = {
            ready = became_ready,
            stop = stop_starting,
            kill = kill_now,
            leaving = leaving,
            closed = closed_while_starting,
            headless = headless,
            deadline = start_deadline,
            extend = extend_start,
            exit = finish,
            ignores = 'request_restart closed_servers alive hung failed',
            bugs = 'prepared unprepared retire keep settled',
        },
        running = {
            request_restart = request_restart,
            retire = mark_retiring,
            stop = walk_out,
            kill = kill_now,
            leaving = leaving,
            closed_servers = closed_servers,
            closed = closed_while_serving,
            headless = headless,
            alive = alive,
            hung = hung,
            failed = failed,
            deadline = silent,
            exit = exit_while_serving,
            ignores = 'ready keep extend', -- the first readiness counts
            bugs = 'prepared unprepared settled',
        },
        retiring = { -- serves until its replacement does
            keep = function()
                return 'running'
            end,
            stop = walk_out,
            kill = kill_now,
            leaving = leaving,
            closed = closed_while_serving,
            headless = headless,
            exit = exit_while_serving,
            ignores = 'ready request_restart retire closed_servers alive hung extend failed',
            bugs = 'prepared unprepared settled deadline',
        },
        settling = { -- gets no new connections
            kill = kill_now,
            settled = ask,
            closed = closed_while_leaving,
            headless = headless,
            deadline = ask,
            extend = extend_stop,
            exit = finish,
            ignores = 'ready request_restart stop leaving closed_servers alive hung failed',
            bugs = 'prepared unprepared retire keep',
        },
        stopping = { -- asked to stop
            kill = kill_now,
            closed = closed_while_leaving,
            headless = headless,
            deadline = function(self)
                if self.asks == 'signal' and self.stop_signal == 'SIGTERM' then
                    return kill(self)
                end
                return terminate(self)
            end,
            extend = extend_stop,
            exit = finish,
            ignores = 'ready request_restart stop settled leaving closed_servers alive hung failed',
            bugs = 'prepared unprepared retire keep',
        },
        disconnected = { -- its channel is closed, it should be ending
            kill = kill_now,
            headless = headless,
            deadline = terminate,
            exit = finish,
            ignores = 'ready request_restart stop settled leaving closed_servers closed alive hung extend failed',
            bugs = 'prepared unprepared retire keep',
        },
        terminating = { -- SIGTERM sent
            kill = kill_now,
            closed = note_closed,
            headless = headless,
            deadline = kill,
            extend = extend_stop,
            exit = finish,
            ignores = 'ready request_restart stop settled leaving closed_servers alive hung failed',
            bugs = 'prepared unprepared retire keep',
        },
        headless = { -- its first process has ended, the rest of its group was asked to end
            kill = kill_now,
            closed = note_closed,
            deadline = kill,
            extend = extend_stop,
            exit = finish,
            ignores = 'ready request_restart stop settled leaving closed_servers alive hung failed',
            bugs = 'prepared unprepared retire keep headless',
        },
        killing = { -- SIGKILL sent to its group
            closed = note_closed,
            headless = kill_rest,
            deadline = kill_again,
            exit = finish,
            ignores = 'ready request_restart stop kill settled leaving closed_servers alive hung extend failed',
            bugs = 'prepared unprepared retire keep',
        },
        exited = {
            ignores = [[prepared unprepared ready request_restart retire keep stop kill settled leaving
                closed_servers closed headless alive hung extend failed]],
            bugs = 'deadline exit',
        },
    },
}

Worker.definition = definition
return Worker
