--- dutch-master logs: what the workers wrote, from the master's memory of it (`keepOutput`).
-- The client asks on from the last line it has: a slow reader holds up nobody, and what it missed is counted.

local client = require 'dutch-master.cli.client'
local control = require 'dutch-master.control.server'
local format = require 'dutch-master.cli.format'

local M = {
    name = 'logs',
    talks = true,
    looks = true,
    summary = 'what the workers wrote to stdout and stderr; --follow for more',
    description = 'The master keeps the last of what its workers write: 256K of stderr, or as much of stdout and\n'
        .. 'stderr as the option keepOutput says. Each line comes with its time and worker; E marks stderr.\n'
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
    local at = os.time { year = y, month = mo, day = d, hour = tonumber(h) or 0, min = tonumber(mi) or 0,
        sec = tonumber(s) or 0, isdst = zone ~= 'Z' and nil or false }
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

local function show(ctx, state, line)
    if ctx.options.json then
        line.time = ('%s.%03dZ'):format(os.date('!%Y-%m-%dT%H:%M:%S', math.floor(line.time)),
            math.floor(line.time % 1 * 1000))
        return ctx.out(control.encode(line) .. '\n')
    end
    state.width = math.max(state.width, #tostring(line.worker))
    ctx.out(M.line(ctx, line, state.width) .. '\n')
end

local function nothing_kept(ctx)
    ctx.err(('dutch-master: %s keeps nothing of what its workers write (keepOutput = 0)\n'):format(ctx.script_name))
    client.finish(ctx, 1)
end

-- Asks on and on. state = { after, width, shown }
local function follow(ctx, peer, state)
    local timer
    local function ask()
        peer:ask({ verb = 'logs', after = state.after, worker = ctx.options.worker, since = state.since,
            last = not state.after and state.last or nil,
            wait = ctx.options.follow and state.after ~= nil and not state.more }, {
            timeout_ms = state.after and WAIT_MS or nil,
            event = function(answer)
                if answer.event == 'line' and not ctx.mute then
                    show(ctx, state, answer.line)
                end
            end,
            silent = function()
                ctx.err(('dutch-master: %s: the master does not answer\n'):format(ctx.script_name))
                client.finish(ctx, 124)
            end,
            done = function(answer, error)
                if error then
                    ctx.err(('dutch-master: logs: %s\n'):format(tostring(error.message)))
                    return client.finish(ctx, 1)
                elseif answer.limit == 0 then
                    return nothing_kept(ctx)
                end
                if state.after and answer.lost > 0 and not ctx.options.json then
                    ctx.out(ctx.paint('dim', ('(%s came and went meanwhile)'):format(
                        format.plural(answer.lost, 'line'))) .. '\n')
                end
                state.after, state.more = answer.next, answer.more
                if not answer.more and not ctx.options.follow then
                    return client.finish(ctx, 0)
                elseif answer.more then
                    return ask()
                end
                timer = timer or ctx.platform.timer(ask)
                timer:start(PAUSE_MS)
            end,
        })
    end
    ask()
end

function M.run(ctx)
    local state = { width = 1, last = ctx.options.lines or not ctx.options.since and DEFAULT_LINES or nil }
    if ctx.options.since then
        state.since = M.moment(ctx.options.since, ctx.platform.wall())
        if not state.since then
            return ctx.usage(('--since: expected a time such as 10m, 14:30 or 2026-11-22T14:30:00Z, found "%s"')
                :format(ctx.options.since))
        end
    end
    local peer, code = client.peer(ctx, 'logs', function()
        ctx.err(('dutch-master: %s: the master went away\n'):format(ctx.script_name))
        client.finish(ctx, 1)
    end)
    if not peer then
        return code
    end
    follow(ctx, peer, state)
end

return M
