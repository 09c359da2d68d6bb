--- dutch-master logs: what the workers wrote, from the master's memory of it (`keepOutput`); the past from the file of
-- `workerOutput` where its lines are stamped, or where more is asked for than the master remembers.
-- The client asks on from the last line it has: a slow reader holds up nobody, and what it missed is counted.

local client = require 'dutch-master.cli.client'
local wire = require 'dutch-master.control.wire'
local format = require 'dutch-master.cli.format'
local logs_file = require 'dutch-master.cli.logs_file'

local M = {
    name = 'logs',
    talks = true,
    looks = true,
    summary = 'what the workers wrote to stdout and stderr; --follow for more',
    description = 'The master keeps the last of what its workers write: 256K of stderr, or as much of stdout and\n'
        .. 'stderr as the option keepOutput says. Each line comes with its time and worker; E marks stderr.\n'
        .. 'With stampOutput = true the past comes from the file of workerOutput, also when no master runs.\n'
        .. 'Lines of a plain file have neither time nor worker: with --since or --worker only what the master\n'
        .. 'remembers is shown.\n'
        .. '(What the master itself has to say is in `events`.)',
    options = {
        { long = 'follow', short = 'f', doc = 'go on with what comes, until ^C' },
        { long = 'worker', value = 'ID', integer = true, doc = 'of this worker alone' },
        { long = 'since', value = 'T', doc = 'since then: 90s, 10m, 2h, 1d ago, or 14:30, or 2026-11-22T14:30:00Z' },
        { long = 'lines', short = 'n', value = 'K', integer = true, doc = 'how many of the past (default 100)' },
        { long = 'json', short = 'j', doc = 'a line of JSON each: time, worker, stream, text' },
    },
    examples = {
        'dutch-master logs --follow', 'dutch-master logs --worker 3 --since 10m', 'dutch-master logs -n 1000 --json',
    },
    codes = '0, 1 the master went away or keeps nothing, 3 not running',
}

local NOT_RUNNING = 3
local NOTHING = "logs: no such line is kept\n  Of stdout none is, unless the script says keepOutput = '1M' or so."
local DEFAULT_LINES = 100
--- Pause after an answer: a flood is fetched a few times a second, not a line at a time.
local PAUSE_MS = 50
--- The question waits in the master for at most this long; then it is asked again.
local WAIT_MS = 366 * 86400 * 1000

local UNITS = { s = 1, m = 60, h = 3600, d = 86400 }

--- "10m", "14:30", "2026-11-22T14:30:00Z" (without Z: local time) -> unix time | nil
function M.moment(text, now)
    local number, unit = text:match '^(%d+%.?%d*)([smhd])$'
    if number then
        return now - number * UNITS[unit]
    end
    local hour, minute, second = text:match '^(%d%d?):(%d%d):?(%d*)$'
    if hour then
        local day = os.date('*t', now)
        day.hour, day.min, day.sec = tonumber(hour), tonumber(minute), tonumber(second) or 0
        local at = day.hour < 24 and day.min < 60 and day.sec < 60 and os.time(day) or nil
        return at and (at <= now and at or at - 86400) -- of yesterday, if it has not come yet today
    end
    local y, mo, d, h, mi, s, zone = text:match '^(%d%d%d%d)%-(%d%d)%-(%d%d)[T ]?(%d*):?(%d*):?(%d*)%.?%d*(Z?)$'
    if not y then
        return nil
    end
    local fields = { year = y, month = mo, day = d, hour = tonumber(h) or 0, min = tonumber(mi) or 0,
        sec = tonumber(s) or 0 }
    if zone == 'Z' then
        fields.isdst = false -- else it is found out: summer time or not
    end
    local at = os.time(fields)
    if zone == 'Z' then
        at = at + os.difftime(os.time(os.date('*t', at)), os.time(os.date('!*t', at)))
    end
    return at
end

local COLORS = { 'cyan', 'green', 'yellow', 'blue', 'magenta' }

--- "14:30:01.123  worker 3 E  text"
function M.line(ctx, line, width)
    local seconds = math.floor(line.time)
    local time = ('%s.%03d'):format(os.date('%H:%M:%S', seconds), math.floor((line.time - seconds) * 1000))
    local who = ('worker %' .. (width or 1) .. 'd'):format(line.worker)
    local mark = line.stream == 'stderr' and ctx.paint('red', 'E') or ' '
    return ('%s %s %s %s'):format(ctx.paint('dim', time), ctx.paint(COLORS[line.worker % #COLORS + 1], who), mark,
        format.visible((line.text:gsub('\27%[[%d;]*m', '')))) -- colours are ours here
end

local function utc(time)
    return ('%s.%03dZ'):format(os.date('!%Y-%m-%dT%H:%M:%S', math.floor(time)), math.floor(time % 1 * 1000))
end

local function show(ctx, state, line)
    if ctx.options.json then
        line.time = utc(line.time)
        return ctx.out(wire.encode(line) .. '\n')
    end
    state.width, state.shown = math.max(state.width, #tostring(line.worker)), true
    ctx.out(M.line(ctx, line, state.width) .. '\n')
end

local function nothing_kept(ctx, file)
    local what = file and 'to follow (keepOutput = 0), see ' .. file.path
        or 'of what its workers write (keepOutput = 0)'
    client.finish(ctx, client.fail(ctx, ('%s keeps nothing %s'):format(ctx.script_name, what)))
end

local function show_stored(ctx, state, line)
    if not line.time then
        return ctx.out((ctx.options.json and wire.encode(line) or format.visible(line.text)) .. '\n')
    end
    line.time = M.moment(line.time, 0) + tonumber('0' .. line.time:match '%.%d+')
    show(ctx, state, line)
end

-- Whose line it is, and of when, a plain file does not have. -> whether that was asked, and is said
local function cannot_tell(ctx, state, file)
    if file.stamped or not state.since and not ctx.options.worker then
        return false
    end
    client.fail(ctx, ('logs: the lines of %s have no time and no worker (stampOutput = true): %s'):format(
        file.path, file.kept and 'here is what the master remembers'
        or 'nothing of it can be shown by --since or --worker'))
    return true
end

-- The past, from a file. -> whether that is where it came from; if not, the master's memory is all there is
local function show_file(ctx, state, file)
    if not file.stamped and not ctx.options.lines and file.kept then
        return false
    end
    local wish = { last = state.last, worker = ctx.options.worker, since = state.since and utc(state.since) }
    local ok, message = logs_file.read(file.path, file.size, wish, function(line)
        if not ctx.mute then
            show_stored(ctx, state, line)
        end
    end)
    if not ok then
        client.fail(ctx, ('logs: %s; here is what the master remembers'):format(message))
    end
    return ok
end

-- No master runs: the script says where the file is.
local function show_what_is_left(ctx, state)
    local plan = client.plan(ctx)
    local path = plan and plan.worker_output
    if type(path) == 'string' and path:sub(1, 1) == '/' and ctx.platform.stat(path) then
        local file = { path = path, stamped = plan.stamp_output, size = ctx.platform.stat(path).size }
        if not cannot_tell(ctx, state, file) then
            show_file(ctx, state, file)
        end
    end
end

--- More than any line's number: asks for none of the past, only for where the master stands.
local NO_LINE = 2 ^ 52

-- Shows the past if it is in a file, and sets where in the master's memory to go on from; then done().
local function begin(ctx, peer, state, silent, done)
    peer:ask({ verb = 'logs', after = NO_LINE }, {
        silent = silent,
        done = function(answer, error)
            if error then
                return client.finish(ctx, client.refused(ctx, 'logs', error))
            end
            local file = answer.file
            if file then
                file.kept = answer.limit > 0
                local enough = not file.stamped and answer.kept >= (ctx.options.lines or 0) and file.kept
                if not cannot_tell(ctx, state, file) and not enough and show_file(ctx, state, file) then
                    state.after = answer.next
                    if not ctx.options.follow then
                        return client.finish(ctx, 0)
                    end
                end
            end
            done()
        end,
    })
end

-- A master has answered.
local function heard(ctx, state)
    if state.lost > 0 and state.after and not ctx.options.json then
        ctx.out(ctx.paint('dim', '(the master died, another one goes on: its last lines may be missing)') .. '\n')
    end
    state.lost = 0
end

-- Asks on and on. state = { after, width, shown, lost = masters since the last answer, timer }
local function follow(ctx, peer, state)
    local timer
    local function silent()
        client.say_silent(ctx, 'logs')
        client.finish(ctx, 124)
    end
    local function ask()
        peer:ask({ verb = 'logs', after = state.after, worker = ctx.options.worker, since = state.since,
            last = not state.after and state.last or nil,
            wait = ctx.options.follow and state.after ~= nil and not state.more }, {
            timeout_ms = state.after and WAIT_MS or nil,
            event = function(answer)
                heard(ctx, state)
                if answer.event == 'line' and not ctx.mute then
                    show(ctx, state, answer.line)
                end
            end,
            silent = silent,
            done = function(answer, error)
                heard(ctx, state)
                if error then
                    return client.finish(ctx, client.refused(ctx, 'logs', error))
                elseif answer.limit == 0 then
                    return nothing_kept(ctx, answer.file)
                end
                if state.after and answer.lost > 0 and not ctx.options.json then
                    ctx.out(ctx.paint('dim', ('(%s came and went meanwhile)'):format(
                        format.plural(answer.lost, 'line'))) .. '\n')
                end
                state.after, state.more = answer.next, answer.more
                if not answer.more and not ctx.options.follow then
                    if not state.shown and not ctx.options.json then
                        client.fail(ctx, NOTHING)
                    end
                    return client.finish(ctx, 0)
                elseif answer.more then
                    return ask()
                end
                state.timer = timer or ctx.platform.timer(ask)
                timer = state.timer
                timer:start(PAUSE_MS)
            end,
        })
    end
    if state.after then
        return ask()
    end
    begin(ctx, peer, state, silent, ask)
end

-- The master has died, and another one may follow: it remembers what was written since.
local function go_on(ctx, state)
    local function lost()
        go_on(ctx, state)
    end
    if state.timer then
        state.timer:stop()
    end
    state.lost = state.lost + 1
    local peer = state.lost <= client.MOST_LOST and client.next_peer(ctx, lost)
    if not peer then
        return client.finish(ctx, client.fail(ctx, ctx.script_name .. ': the master went away'))
    end
    if state.after then
        state.after, state.more = 0, nil
    end
    follow(ctx, peer, state)
end

function M.run(ctx)
    local state = { width = 1, lost = 0, last = ctx.options.lines or not ctx.options.since and DEFAULT_LINES or nil }
    if ctx.options.since then
        state.since = M.moment(ctx.options.since, ctx.platform.wall())
        if not state.since then
            return ctx.usage(('--since: expected a time such as 10m, 14:30 or 2026-11-22T14:30:00Z, found "%s"')
                :format(ctx.options.since))
        end
    end
    local peer, code = client.peer(ctx, 'logs', function()
        go_on(ctx, state)
    end)
    if not peer then
        if code == NOT_RUNNING then
            show_what_is_left(ctx, state)
        end
        return code
    end
    follow(ctx, peer, state)
end

return M
