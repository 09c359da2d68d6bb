--- dutch-master why: how workers ended, in sentences.

local client = require 'dutch-master.cli.client'
local wire = require 'dutch-master.control.wire'
local format = require 'dutch-master.cli.format'
local restart = require 'dutch-master.cli.restart'

local M = {
    name = 'why',
    talks = true,
    looks = true,
    summary = 'why a worker ended, or why the last ones did',
    description = 'What the master knows of the end of a worker: exit code or signal, whether the master sent it\n'
        .. 'or memory ran out, how long it lived, in which release, and the last it wrote to stderr.\n'
        .. 'Without a worker: who asked for the last restart, what came of it, and the last five ends.',
    argument = {
        name = 'WORKER', pattern = '^%d+$', expects = 'the id of a worker',
        valid = function(word)
            return #word <= 15 and tonumber(word) > 0
        end,
    },
    options = {
        { long = 'all', short = 'a', doc = 'all that the master remembers (100)' },
        { long = 'json', short = 'j', doc = 'one line of JSON' },
    },
    examples = { 'dutch-master why', 'dutch-master why 17', 'dutch-master why 17 /srv/app/master.lua --json' },
    codes = '0, 1 no such worker, 3 not running',
}

local SHOWN = 5
local STDERR_LINES = 15

--- Signals and codes that have a meaning of their own.
local SIGNALS = {
    SIGSEGV = 'it touched memory that is not its own: a bug in native code',
    SIGBUS = 'it touched memory that is not there: a bug, or a file that became shorter',
    SIGABRT = 'it aborted itself: an assertion, or Node out of heap',
    SIGILL = 'it ran an instruction that this CPU does not have',
    SIGFPE = 'it divided an integer by zero',
    SIGPIPE = 'it wrote to a pipe or socket that nobody reads any more',
    SIGXCPU = 'it used more CPU time than its limit',
    SIGXFSZ = 'it wrote a file larger than its limit',
    SIGSYS = 'it used a system call that a sandbox forbids',
}
--- Signals that no fault of the worker's own makes. Of the sender the kernel tells a parent nothing.
local SENT = {
    SIGTERM = true, SIGINT = true, SIGHUP = true, SIGQUIT = true, SIGUSR1 = true, SIGUSR2 = true, SIGALRM = true,
}
local UNKNOWN_SENDER = 'The master did not send it, and the kernel does not say who did.'
local CODES = {
    [126] = 'the shell found the program but could not run it',
    [127] = 'the shell did not find the program',
    [134] = 'a shell says so for SIGABRT: it aborted itself',
    [137] = 'a shell says so for SIGKILL: something killed it hard, often for memory',
    [139] = 'a shell says so for SIGSEGV',
    [143] = 'a shell says so for SIGTERM',
}

--- Why the master wanted it to leave.
local REASONS = {
    ['replaced'] = 'A new worker had taken its place',
    ['asked to be replaced'] = 'It had asked to be replaced',
    ['scaled down'] = 'The cluster was scaled down',
    ['stopped'] = 'The cluster was stopped',
    ['restart aborted'] = 'The restart it was started for was aborted',
}

local WHO_ASKS = { control = 'the command line', script = 'the script', master = 'the master' }

--- Whether it left because it was asked to, and in time: nobody's concern.
function M.is_ordinary(report)
    return report.unexpected == false and not report.killed and not report.step and report.was_ready ~= false
end

local function reason(report)
    local why = report.why
    return why and (REASONS[why] or 'Reason: ' .. format.visible(why)) .. '.'
end

local function ending(report)
    local text = restart.how_ended(report)
    if report.signal and report.core then
        text = text .. ', and left a core file'
    end
    return text
end

local function meaning(report)
    if report.killed then
        return 'The master killed it: it had not left in time.'
    elseif report.oom then
        return 'The kernel killed it because memory ran out.'
    end
    if report.signal == 'SIGKILL' then
        local memory = report.oom == false and 'Memory did not run out, by the count of its cgroup.'
            or 'If memory ran out, `dmesg` tells.'
        return UNKNOWN_SENDER .. ' ' .. memory
    elseif SENT[report.signal] and report.unexpected then
        return UNKNOWN_SENDER
    end
    local text = report.signal and SIGNALS[report.signal] or not report.step and CODES[report.code]
    return text and ('That means: %s.'):format(text)
end

local function when(report)
    local at = report.at
    if type(at) == 'number' then
        at = os.date('%Y-%m-%d %H:%M:%S', at)
    end
    return at and (' at ' .. tostring(at)) or ''
end

--- The report of one exit as lines.
function M.explain(ctx, report)
    local lines = {}
    local function add(text)
        lines[#lines + 1] = text
    end
    local name = ('Worker %s (pid %s, slot %s, generation %s)'):format(tostring(report.worker),
        tostring(report.pid or '-'), tostring(report.slot or '-'), tostring(report.generation or '-'))
    add(('%s %s%s.'):format(ctx.paint('bold', name), ending(report), when(report)))
    local why = meaning(report)
    if why then
        add('  ' .. why)
    end
    if report.message and report.message:find '^was not ready' then
        add('  It ' .. format.visible(report.message) .. '.')
    elseif report.was_ready == false and not report.step then
        add '  It was never ready.'
    end
    local asked = reason(report)
    if asked then
        add('  ' .. asked)
    elseif report.unexpected then
        add '  Nobody had asked it to leave.'
    end
    local facts = {}
    if type(report.age_ms) == 'number' then
        facts[#facts + 1] = 'It lived ' .. format.duration(report.age_ms)
    end
    if type(report.cpu_ms) == 'number' then
        facts[#facts + 1] = ('used %s of CPU'):format(format.duration(report.cpu_ms))
    end
    if type(report.max_rss_kb) == 'number' then
        facts[#facts + 1] = ('%s of memory at most'):format(format.kilobytes(report.max_rss_kb))
    end
    if facts[1] then
        add('  ' .. table.concat(facts, ', ') .. '.')
    end
    if report.release then
        add('  It ran in ' .. format.visible(report.release))
    end
    local written = format.last_lines(report.stderr, STDERR_LINES)
    if written[1] then
        add '  The last it wrote to stderr:'
        for _, line in ipairs(written) do
            add('    ' .. line)
        end
    elseif report.stderr_unknown then
        add('  Its stderr is not known: ' .. format.visible(report.stderr_unknown))
    else
        add '  It wrote nothing to stderr.'
    end
    return lines
end

--- One line for an exit that is nobody's concern.
function M.mention(report)
    local text = ('Worker %s (slot %s, generation %s) left as it should%s. %s'):format(tostring(report.worker),
        tostring(report.slot), tostring(report.generation), when(report), reason(report) or '')
    return (text:gsub('%s+$', ''))
end

--- Who wanted a restart or a stop: "SIGUSR2, sent by process 12 (kill, run by bash) of user root".
local function requester(ctx, request)
    local what = request.signal or WHO_ASKS[request.cause] or format.visible(request.cause)
    local by = request.by
    if not by then
        return what
    end
    local user = ctx.platform.getuser(by.uid)
    local of = ('of user %s'):format(format.visible(user and user.name or by.uid))
    if not by.pid then
        return ('%s, a process %s that is not to be seen from where the master runs'):format(what, of)
    end
    local names = by.command and format.visible(by.command)
    if names and by.parent then
        names = ('%s, run by %s'):format(names, format.visible(by.parent))
    end
    return ('%s, %sprocess %s%s %s'):format(what, request.signal and 'sent by ' or '', tostring(by.pid),
        names and (' (%s)'):format(names) or '', of)
end

local RESULTS = { done = 'carried out', rolled_back = 'rolled back' }

-- Sentences are set in the terminal's width; what a worker wrote stays as it is.
local function say(ctx, text)
    local columns = ctx.columns()
    ctx.out((text:gsub('[^\n]+', function(line)
        local blanks = #line:match '^ *'
        if not columns or blanks > 2 then
            return line
        end
        return (' '):rep(blanks) .. format.fold(line, columns, blanks + 2, blanks)
    end)))
end

local function explain_now(ctx, answer)
    local text = ''
    for _, slot in ipairs(answer.slots) do
        if slot.backoff_ms and slot.backoff_ms > 0 then
            text = text .. ('Slot %s is without a worker; the next attempt is in %s.\n'):format(tostring(slot.slot),
                format.duration(slot.backoff_ms))
        end
    end
    local verdict, request, lost = answer.verdict, answer.request, answer.lost_master
    if lost then
        text = text .. ('The master %s%s, and another one went on%s.\n'):format(
            lost.oom and 'was killed by the kernel because memory ran out' or restart.how_ended(lost), when(lost),
            lost.deaths > 1 and (' (the last of %d deaths)'):format(lost.deaths) or '')
    end
    if request then
        local what = request.verb == 'stop' and 'The stop' or 'The last restart'
        text = text .. ('%s was asked for by %s%s%s.'):format(what, requester(ctx, request), when(request),
            request.reason and ': ' .. format.visible(request.reason) or '')
    end
    if answer.state == 'rolling' then
        text = text .. ' It is not decided yet (dutch-master status).'
    elseif verdict and not (request and request.verb == 'stop') then
        text = text .. (' It was %s (generation %s)%s'):format(RESULTS[verdict.result] or verdict.result,
            tostring(verdict.generation), verdict.message and ': ' .. format.visible(verdict.message) .. '.' or '.')
    end
    say(ctx, (request or verdict) and text .. '\n\n' or text)
end

function M.run(ctx)
    local id = tonumber(ctx.argument)
    return (client.ask(ctx, { verb = 'why', worker = id }, {
        done = function(answer)
            if ctx.options.json then
                ctx.out(wire.encode(answer) .. '\n')
                return (answer.exits[1] or answer.alive or not id) and 0 or 1
            end
            if answer.alive then
                say(ctx, ('Worker %d (pid %s) has not ended: it is %s and %s old.\n'):format(id,
                    tostring(answer.alive.pid), answer.alive.state, format.duration(answer.alive.uptime_ms)))
                return 0
            elseif id and not answer.exits[1] then
                return client.fail(ctx, ('no worker %d is known (the last 100 exits are)'):format(id))
            elseif not id then
                explain_now(ctx, answer)
                if not answer.exits[1] then
                    ctx.out 'No worker has ended.\n'
                    return 0
                end
            end
            local left = ctx.options.all and 0 or #answer.exits - SHOWN
            for i = #answer.exits, math.max(left, 0) + 1, -1 do -- the newest first
                local report = answer.exits[i]
                if M.is_ordinary(report) and not id then
                    say(ctx, M.mention(report) .. '\n')
                else
                    say(ctx, table.concat(M.explain(ctx, report), '\n') .. '\n\n')
                end
            end
            if left > 0 then
                ctx.out(('%d earlier: --all\n'):format(left))
            end
            return 0
        end,
    }))
end

return M
