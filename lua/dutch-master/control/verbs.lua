--- verbs.lua: what a client of the control socket may ask for. Each verb is function(control, request, answer), and
-- ends with exactly one answer:done() or answer:fail(), now or later: see server.lua.

local utf8 = require('dutch-master.log.text').utf8
local wire = require 'dutch-master.control.wire'

--- Records kept by the log for `events`.
local MAX_EVENTS = 1000
--- Of the workers' output, sent for one request: a client that reads slowly asks slowly.
local OUTPUT_BYTES = 64 * 1024
--- Bytes of the name by which a client knows its request again.
local MAX_KEY = 64

local verbs = {}

function verbs.ping(_, _, answer)
    answer:done {}
end

function verbs.status(control, _, answer)
    local status, output = control.cluster:snapshot(), control.output
    status.workers, status.slots = wire.list(status.workers), wire.list(status.slots)
    status.log_lost = control.log:lost()
    status.output = { lines = output.lines, bytes = output.bytes, limit = output.limit }
    answer:done { status = status }
end

local function key_of(request)
    return type(request.key) == 'string' and #request.key <= MAX_KEY and request.key or nil
end

-- Who waits for what comes of it is told that it was heard; everybody else has his answer. @return who asks
local function accept(control, request, answer)
    local who = answer:who() -- before the answer: then the client goes
    if request.wait == true then -- whoever waits asks again if this master dies
        answer:hold()
        answer:event('accepted', { kept = control.is_kept })
        answer:promise()
    else
        answer:promise()
        answer:done {}
    end
    return who
end

function verbs.restart(control, request, answer)
    local who = accept(control, request, answer)
    control.cluster:restart {
        cause = 'control',
        who = who,
        key = key_of(request),
        on_progress = function(progress)
            answer:event('progress', { done = progress.done, total = progress.total, worker = progress.worker,
                back = progress.back })
        end,
        on_verdict = function(verdict)
            answer:done { verdict = verdict }
        end,
    }
end

-- What has been done is not done again for a client whose connection went with a former master.
-- @return whether it was answered
local function answered_before(control, request, answer)
    local said = control:said(key_of(request))
    if said then
        answer:done { changes = said.changes and wire.list(said.changes), from = said.from, to = said.to }
    end
    return said ~= nil
end

local function answer_changes(answer, done)
    return function(changes, err)
        if not changes then
            return answer:fail(type(err) == 'table' and err.message or err, 'ESCRIPT')
        end
        if done then
            done { changes = changes.changes }
        end
        answer:done { changes = wire.list(changes.changes) }
    end
end

function verbs.reload(control, request, answer)
    if answered_before(control, request, answer) then
        return
    end
    answer:hold()
    answer:event('accepted', {})
    answer:promise()
    control.cluster:reload(answer:who(), answer_changes(answer, function(said)
        control:note_said(key_of(request), said)
    end))
end

function verbs.plan(control, _, answer)
    answer:hold()
    answer:event('accepted', {})
    control.cluster:preview(answer_changes(answer))
end

function verbs.stop(control, request, answer)
    local who = accept(control, request, answer)
    control.cluster:stop {
        cause = 'control',
        who = who,
        on_stopped = function(exit_code)
            answer:done { exit_code = exit_code }
            answer:outlive()
        end,
    }
end

function verbs.upgrade(control, request, answer)
    local upgrade = control.upgrade
    if not upgrade then
        return answer:fail('the master was started with --no-keeper: an upgrade is a restart of the service',
            'ENOKEEPER')
    end
    answer:hold()
    local function told(verdict)
        answer:done { verdict = verdict }
    end
    if upgrade:hear(key_of(request), told) then
        return
    elseif request.again then
        return answer:fail('nothing is known of that upgrade', 'EUNKNOWN')
    end
    answer:event('accepted', { kept = true })
    local ok, message = upgrade:request({ binary = request.binary, version = request.version, reads = request.reads,
        key = key_of(request), who = answer:who() }, told)
    if not ok then
        answer:fail(message, 'EREFUSED')
    end
end

function verbs.scale(control, request, answer)
    if answered_before(control, request, answer) then
        return
    end
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
    control:note_said(key_of(request), { from = before, to = wanted })
    answer:promise()
    answer:done { from = before, to = wanted }
end

local function natural(value)
    return type(value) == 'number' and value >= 0 and value == math.floor(value) and value or nil
end

function verbs.events(control, request, answer)
    local number = natural(request.last) or 20
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
    why.exits, why.slots = wire.list(why.exits), wire.list(why.slots)
    answer:done(why)
end

return verbs
