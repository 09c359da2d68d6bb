--- dutch-master status: what runs now.

local client = require 'dutch-master.cli.client'
local wire = require 'dutch-master.control.wire'
local format = require 'dutch-master.cli.format'

local M = {
    name = 'status',
    talks = true,
    looks = true,
    summary = 'what runs: workers, releases, memory, queues',
    description = 'Shows the cluster and each of its workers: state, generation, the directory it really runs in,\n'
        .. 'its age, how often a worker was started again in its slot, memory, CPU time, connections that wait\n'
        .. 'for it, and whether new connections are steered to it.',
    options = {
        { long = 'json', short = 'j', doc = 'one line of JSON' },
        { long = 'watch', short = 'w', doc = 'again each second, until ^C' },
    },
    examples = {
        'dutch-master status', 'dutch-master status --watch', 'dutch-master status /srv/app/master.lua --json',
    },
    codes = '0 running, 3 not running, 124 the master does not answer',
}

local WATCH_MS = 1000

--- Colours by how much a person should care.
local COLORS = {
    running = 'green', starting = 'yellow', retiring = 'cyan', settling = 'cyan', stopping = 'yellow',
    terminating = 'magenta', killing = 'red', waiting = 'red', steady = 'green', rolling = 'cyan', booting = 'yellow',
}

local COLUMNS = {
    { title = 'SLOT', right = true, drop = 7 }, { title = 'WORKER', narrow = 'ID', right = true },
    { title = 'PID', right = true, drop = 9 }, { title = 'STATE' },
    { title = 'GEN', right = true, drop = 6 }, { title = 'UP', right = true, drop = 8 },
    { title = 'RESTARTS', narrow = 'RST', right = true, drop = 3 },
    { title = 'RSS', right = true, drop = 5 }, { title = 'CPU', right = true, drop = 2 },
    { title = 'QUEUE', narrow = 'Q', right = true, drop = 4 }, { title = 'STEERED', narrow = 'IN', drop = 1 },
    { title = 'RELEASE', flexible = true, drop = 10 },
}

function M.paint_state(ctx, state)
    return ctx.paint(COLORS[state], state)
end

local function steered(value)
    if type(value) == 'boolean' then
        return value and 'yes' or 'no'
    end
    return value and tostring(value) or '-'
end

local function number(value, show)
    return type(value) == 'number' and show(value) or '-'
end

local function worker_row(ctx, worker)
    return { slot = worker.slot, id = worker.id,
        tostring(worker.slot), tostring(worker.id), tostring(worker.pid or '-'), M.paint_state(ctx, worker.state),
        tostring(worker.generation), number(worker.uptime_ms, format.duration), tostring(worker.restarts or 0),
        number(worker.rss_kb, format.kilobytes), number(worker.cpu_ms, format.duration), tostring(worker.queue or '-'),
        steered(worker.steered), worker.release and format.visible(worker.release) or '-',
    }
end

--- A slot whose worker is gone and whose next one is not yet forked.
local function empty_row(ctx, slot)
    local wait = slot.backoff_ms and (' %s'):format(format.duration(slot.backoff_ms)) or ''
    return { slot = slot.slot, id = 0,
        tostring(slot.slot), '-', '-', M.paint_state(ctx, 'waiting') .. wait, '-', '-', tostring(slot.restarts or '-'),
        '-', '-', '-', '-', '-',
    }
end

function M.rows(ctx, status)
    local rows, held = {}, {}
    for _, worker in ipairs(status.workers) do
        held[worker.slot] = true
        rows[#rows + 1] = worker_row(ctx, worker)
    end
    for _, slot in ipairs(status.slots or {}) do
        if not held[slot.slot] and slot.state ~= 'drained' then
            rows[#rows + 1] = empty_row(ctx, slot)
        end
    end
    table.sort(rows, function(a, b)
        return a.slot < b.slot or a.slot == b.slot and a.id < b.id
    end)
    return rows
end

--- The places in which a worker serves. During a restart one has two for a moment.
function M.serving(workers)
    local count, seen = 0, {}
    for _, worker in ipairs(workers) do
        if (worker.state == 'running' or worker.state == 'retiring') and not seen[worker.slot] then
            seen[worker.slot], count = true, count + 1
        end
    end
    return count
end

--- The line above the table.
function M.headline(ctx, status)
    local roll = ''
    if status.roll then
        local elapsed = format.duration(status.roll.elapsed_ms)
        roll = (', %d of %d %s in %s'):format(status.roll.done, status.roll.total,
            status.roll.back and 'rolled back' or 'replaced', elapsed)
    end
    return ('%s%s, %d of %s serving, generation %d'):format(M.paint_state(ctx, status.state), roll,
        M.serving(status.workers), format.plural(status.wanted, 'worker'), status.generation)
end

-- What workers of kind exec say of themselves by sd_notify.
local function words_of(worker)
    local words = {}
    words[#words + 1] = worker.stopping and 'stopping' or worker.reloading and 'reloading' or nil
    words[#words + 1] = worker.main_pid and worker.main_pid ~= worker.pid and 'main process ' .. worker.main_pid or nil
    words[#words + 1] = worker.status and format.visible(worker.status) or nil
    return words[1] and ('worker %d says: %s'):format(worker.id, table.concat(words, ', '))
end

--- Which process is which: `pid` is the one to signal, which is the keeper's where there is one.
function M.processes(status)
    local kept = status.master_pid and status.master_pid ~= status.pid
    return (kept and 'keeper: pid %d, master: pid %d' or 'master: pid %d'):format(status.pid, status.master_pid)
end

function M.render(ctx, status)
    local lines = {
        ctx.paint('bold', format.visible(status.script)),
        M.headline(ctx, status),
        ('%s, up %s, %s, version %s%s'):format(M.processes(status), format.duration(status.uptime_ms),
            number(status.rss_kb, format.kilobytes), status.version,
            status.image and (' (%s)'):format(format.visible(status.image)) or ''),
    }
    if (status.unserved or 0) > 0 then
        lines[#lines + 1] = ctx.paint('red', ('%s in a queue that nobody serves'):format(
            format.plural(status.unserved, 'connection') .. (status.unserved == 1 and ' waits' or ' wait')))
    end
    if (status.strangers or 0) > 0 then
        lines[#lines + 1] = ctx.paint('red', ('%s at our addresses: see the log'):format(
            format.plural(status.strangers, 'socket') .. ' of others'))
    end
    lines[#lines + 1] = ''
    for _, row in ipairs(format.sheet(ctx, COLUMNS, M.rows(ctx, status))) do
        lines[#lines + 1] = row
    end
    for _, worker in ipairs(status.workers) do
        lines[#lines + 1] = words_of(worker)
    end
    return format.page(ctx, lines)
end

--- Shows a text, in place of the one before if it is watched on a terminal.
function M.show(ctx, text)
    if ctx.options.watch and ctx.tty and not ctx.options.json then
        -- Home, then each line to its end, then what is left of the screen: without the flicker of clearing first.
        text = (ctx.watched and '' or '\27[2J') .. '\27[H' .. text:gsub('\n', '\27[K\n') .. '\27[J'
        ctx.watched = true
    end
    ctx.out(text)
end

function M.run(ctx)
    local timer, again, code
    local function on_done(answer)
        answer.status.running = true
        M.show(ctx, ctx.options.json and wire.encode(answer.status) .. '\n' or M.render(ctx, answer.status))
        if not ctx.options.watch then
            return 0
        end
        timer = timer or ctx.platform.timer(function()
            again()
        end)
        timer:start(WATCH_MS)
    end
    code, again = client.ask(ctx, { verb = 'status' }, { done = on_done })
    return code
end

return M
