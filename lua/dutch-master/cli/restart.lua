--- dutch-master restart: a rolling restart, and with --wait its verdict as an exit code.

local client = require 'dutch-master.cli.client'
local wire = require 'dutch-master.control.wire'
local format = require 'dutch-master.cli.format'

local M = {
    name = 'restart',
    talks = true,
    summary = 'replace all workers gracefully; --wait for the verdict',
    description = 'Replaces every worker by a new one, without losing a request. The old ones go on serving until the\n'
        .. 'new ones are ready. With --wait the exit code says whether the new release serves: what a deploy needs.\n'
        .. 'A client that goes away, or times out, does not disturb the restart.',
    options = {
        { long = 'wait', short = 'w', doc = 'until it is decided; progress, and the failing worker if there is one' },
        { long = 'timeout', short = 't', value = 'SECONDS', number = true, doc = 'wait, but no longer than this' },
        { long = 'json', short = 'j', doc = 'JSON lines' },
    },
    examples = {
        'dutch-master restart --wait',
        'dutch-master restart --wait --timeout 120 /deploys/app/current/master.lua',
    },
    codes = '0 the new release serves, 10 aborted, the old one serves, 11 rolled back, the old one serves,\n'
        .. '12 superseded by a later restart, 3 not running, 124 timed out (it goes on), 1 anything else',
}

local CODES = { done = 0, aborted = 10, rolled_back = 11, superseded = 12, stopped = 1 }
local STDERR_LINES = 20

--- How it ended, in words: "exited with code 1", "was killed by SIGKILL", "could not be started: the program: ...".
function M.how_ended(report)
    if report.step then
        return format.visible(report.message or 'could not be started')
    elseif report.signal then
        return 'was killed by ' .. report.signal
    elseif report.code then
        return ('exited with code %s'):format(tostring(report.code))
    end
    return format.visible(report.reason or report.message or 'failed')
end

--- Reasons that say less than how it ended.
local UNTOLD = { ['disconnected while starting'] = true, ['disconnected'] = true, ['left by itself'] = true }

--- Who failed, as far as that is known: a fork that failed has no worker.
local function subject(failure)
    if not failure.worker then
        return ('slot %s:'):format(tostring(failure.slot))
    end
    return ('worker %s (pid %s, slot %s)'):format(tostring(failure.worker), tostring(failure.pid),
        tostring(failure.slot))
end

local function explain_failure(ctx, failure)
    if failure.rejected then
        local served = failure.served_ms and ' had served ' .. format.duration(failure.served_ms) or ' was asked about'
        return ctx.err(('  %s%s when judge rejected it\n'):format(subject(failure), served))
    end
    ctx.err(('  %s %s\n'):format(subject(failure), M.how_ended(failure)))
    if failure.reason and failure.reason ~= failure.message and not UNTOLD[failure.reason] then
        ctx.err(('  %s\n'):format(format.visible(failure.reason)))
    end
    local lines = format.last_lines(failure.stderr, STDERR_LINES)
    if lines[1] then
        ctx.err('  the last it wrote to stderr:\n    ' .. table.concat(lines, '\n    ') .. '\n')
    elseif failure.stderr then
        ctx.err '  it wrote nothing to stderr\n'
    end
end

local WORDS = {
    done = { 'green', 'done' },
    aborted = { 'red', 'aborted: the old release goes on serving' },
    mixed = { 'red', 'aborted: two releases serve' },
    rolled_back = { 'red', 'rolled back: the old release serves' },
    superseded = { 'yellow', 'superseded by a later restart' },
    stopped = { 'yellow', 'ended: the master stops' },
}

--- Aborted after some workers had been replaced, and there was no way back.
function M.is_mixed(verdict)
    return verdict.result == 'aborted' and (verdict.done or 0) > 0
end

--- Aborted or rolled back, but there was nothing that could go on serving.
local function is_out(verdict)
    return (verdict.result == 'aborted' or verdict.result == 'rolled_back') and verdict.serving == 0
end

local function words_of(verdict)
    if is_out(verdict) then
        return { 'red', verdict.result == 'aborted' and 'aborted: nobody serves' or 'rolled back: nobody serves' }
    end
    return WORDS[M.is_mixed(verdict) and 'mixed' or verdict.result] or { 'red', tostring(verdict.result) }
end

--- The exit code: 10 and 11 promise that somebody serves.
function M.code(verdict)
    return not M.is_mixed(verdict) and not is_out(verdict) and CODES[verdict.result] or 1
end

function M.tell(ctx, verdict)
    local words = words_of(verdict)
    local write = verdict.result == 'done' and ctx.out or ctx.err
    local replaced = ''
    if verdict.total and verdict.total > 0 then
        replaced = (', %d of %d replaced'):format(verdict.done, verdict.total)
    end
    if verdict.serving and verdict.serving < verdict.slots then
        replaced = ('%s, %d of %d slots served'):format(replaced, verdict.serving, verdict.slots)
    end
    write(('Restart %s (generation %s%s, %s)\n'):format(ctx.paint(words[1], words[2]), tostring(verdict.generation),
        replaced, format.duration(verdict.duration_ms or 0)))
    if verdict.result ~= 'done' and verdict.message then
        write('  ' .. format.block(verdict.message):gsub('\n', '\n  ') .. '\n')
    end
    if verdict.failure then
        explain_failure(ctx, verdict.failure)
    end
end

--- Columns; a shorter bar says nothing.
local BAR_LEAST = 5

--- One line that is written over and over on a terminal, a line each elsewhere.
local function progress_writer(ctx)
    local begun = ctx.platform.now()
    return function(progress)
        local total = math.max(progress.total or 0, 1)
        local elapsed = format.duration(ctx.platform.now() - begun)
        local doing = progress.back and 'rolled back' or 'replaced'
        if not ctx.tty then
            local worker = progress.worker
            worker = type(worker) == 'table' and worker.id or worker
            worker = worker and (', worker %s is ready'):format(tostring(worker)) or ''
            return ctx.out(('%d of %d %s%s, %s\n'):format(progress.done, progress.total or 0, doing, worker, elapsed))
        end
        -- A line that wraps could not be written over. The last column stays free: the cursor is there.
        local text = ('%d of %d %s, %s'):format(progress.done, progress.total or 0, doing, elapsed)
        local columns = ctx.columns() or 80
        local width = math.min(40, columns - #text - 2)
        if width >= BAR_LEAST then
            local full = math.floor(width * progress.done / total + 0.5)
            local on, off = ctx.utf8 and '█' or '#', ctx.utf8 and '░' or '.'
            text = ('%s%s %s'):format(ctx.paint(progress.back and 'red' or 'green', on:rep(full)),
                off:rep(width - full), text)
        end
        ctx.out('\r\27[K' .. format.cut(text, columns - 1))
    end
end

local function wait(ctx)
    local show, ticker, last = progress_writer(ctx), nil, nil
    local function end_bar()
        if ticker then
            ticker:stop()
        end
        if last and ctx.tty and not ctx.options.json then
            ctx.out '\r\27[K'
        end
    end
    local function on_event(answer)
        if ctx.options.json then
            return ctx.out(wire.encode(answer) .. '\n')
        elseif answer.event ~= 'progress' then
            return
        end
        last = answer
        show(answer)
        if ctx.tty and not ticker then
            ticker = ctx.platform.timer(function()
                show(last)
                ticker:start(200)
            end)
            ticker:start(200)
        end
    end
    return (client.ask(ctx, { verb = 'restart', wait = true, key = client.key(ctx) }, {
        event = on_event,
        timeout_ms = ctx.options.timeout and ctx.options.timeout * 1000,
        timed_out = ctx.options.timeout and function()
            end_bar()
            return client.fail(ctx, ('not decided within %gs; the restart goes on (dutch-master status)'):format(
                ctx.options.timeout), 124)
        end,
        failed = end_bar,
        lost = end_bar,
        gone = function()
            return client.fail(ctx, ctx.script_name .. ': the master went away before the restart was decided\n'
                .. '  `dutch-master list` shows what runs now.')
        end,
        done = function(answer)
            end_bar()
            if ctx.options.json then
                ctx.out(wire.encode(answer) .. '\n')
            else
                M.tell(ctx, answer.verdict)
            end
            return M.code(answer.verdict)
        end,
    }))
end

function M.run(ctx)
    if ctx.options.wait or ctx.options.timeout then
        return (wait(ctx))
    end
    return (client.ask(ctx, { verb = 'restart', key = client.key(ctx) }, {
        done = function(answer)
            return client.tell(ctx, answer, 'Restart requested\n')
        end,
    }))
end

return M
