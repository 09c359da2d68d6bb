--- dutch-master top: a live view to leave open on a second screen.
-- The alternate screen is used, so that the shell's own comes back as it was; so does the terminal's mode, on every
-- way out. Each frame is written over the last one, at most one a second and one for each key.
-- Longer than 400 lines: one screen.

local client = require 'dutch-master.cli.client'
local events = require 'dutch-master.cli.events'
local format = require 'dutch-master.cli.format'
local status = require 'dutch-master.cli.status'

local M = {
    name = 'top',
    talks = true,
    looks = true,
    summary = 'a live view of the workers; q quits',
    description = 'Shows the workers with their CPU and memory, and the last log records, and goes on doing so.\n'
        .. 'A master that goes away is waited for.\n'
        .. 'Keys: q quits; s slot, c CPU, m memory, u age, w queue sort; r reverses; space is a pause;\n'
        .. 'j and k, arrows and page keys scroll.',
    options = {
        { long = 'interval', short = 'i', value = 'SECONDS', number = true, least = 0.1, doc = 'default 1' },
    },
    examples = { 'dutch-master top', 'ssh -t app1 dutch-master top /srv/app/master.lua' },
    codes = '0, 1 no terminal, 3 not running (one that goes away later is waited for),\n'
        .. '124 the master does not answer',
}

--- Samples kept of each worker, which is the width of its history.
local HISTORY = 12
local BARS = { ' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█' }
local ASCII_BARS = { ' ', '.', ':', '-', '=', '+', '*', '#', '@' }
local MAX_RECORDS = 50
--- How often a master that went away is looked for, in ms.
local RETRY_MS = 1000

local ORDERS = {
    s = { name = 'slot', key = function(w) return w.slot * 1e6 + w.id end },
    c = { name = 'CPU', key = function(w) return -w.cpu end },
    m = { name = 'memory', key = function(w) return -(w.rss_kb or 0) end },
    u = { name = 'age', key = function(w) return -(w.uptime_ms or 0) end },
    w = { name = 'queue', key = function(w) return -(w.queue or 0) end },
}

--- Values as a line of small bars, the last to the right. `top` is what a full bar stands for.
function M.sparkline(values, top, width, utf8)
    local bars, out = utf8 and BARS or ASCII_BARS, {}
    for i = 1, width do
        local value = values[#values - width + i]
        local level = 0
        if value and top > 0 then
            level = math.floor(math.min(value / top, 1) * 8 + 0.5)
        end
        out[i] = bars[level + 1]
    end
    return table.concat(out)
end

--- What is known of the workers over time: their CPU in percent of one core, from one status to the next.
function M.observe(history, snapshot, now)
    local seen = {}
    for _, worker in ipairs(snapshot.workers) do
        local past = history[worker.id] or { cpu = {}, rss = {} }
        worker.cpu = 0
        if past.at and now > past.at and worker.cpu_ms and past.cpu_ms then
            worker.cpu = math.max(0, (worker.cpu_ms - past.cpu_ms) / (now - past.at) * 100)
            past.cpu[#past.cpu + 1] = worker.cpu
        end
        past.rss[#past.rss + 1] = worker.rss_kb or 0
        for _, values in ipairs { past.cpu, past.rss } do
            if #values > HISTORY then
                table.remove(values, 1)
            end
        end
        past.at, past.cpu_ms = now, worker.cpu_ms
        seen[worker.id] = past
    end
    return seen
end

--- Without room for them the histories go first: what is known of a worker must fit into 80 columns, with enough of the
--- release to know it by.
local COLUMNS = {
    { title = 'SLOT', right = true, drop = 5 }, { title = 'WORKER', narrow = 'ID', right = true },
    { title = 'PID', right = true, drop = 7 }, { title = 'STATE' }, { title = 'GEN', right = true, drop = 4 },
    { title = 'UP', right = true, drop = 6 }, { title = 'CPU%', right = true, drop = 8 }, { title = '', drop = 0 },
    { title = 'RSS', right = true, drop = 3 }, { title = '', drop = 0 },
    { title = 'QUEUE', narrow = 'Q', right = true, drop = 2 },
    { title = 'RESTARTS', narrow = 'RST', right = true, drop = 1 },
    { title = 'RELEASE', flexible = true, least = 20, drop = 9 },
}

local function rows(ctx, view, columns)
    local workers = {}
    local top_rss = 1
    for i, worker in ipairs(view.snapshot.workers) do
        workers[i] = worker
        for _, value in ipairs(view.history[worker.id].rss) do
            top_rss = math.max(top_rss, value)
        end
    end
    local key, sign = ORDERS[view.order].key, view.reverse and -1 or 1
    table.sort(workers, function(a, b)
        local x, y = key(a) * sign, key(b) * sign
        if x ~= y then
            return x < y
        end
        return a.id < b.id
    end)
    local cells = {}
    for i, worker in ipairs(workers) do
        local past = view.history[worker.id]
        cells[i] = {
            tostring(worker.slot), tostring(worker.id), tostring(worker.pid or '-'),
            status.paint_state(ctx, worker.state), tostring(worker.generation),
            worker.uptime_ms and format.duration(worker.uptime_ms) or '-', ('%.0f'):format(worker.cpu),
            ctx.paint('green', M.sparkline(past.cpu, 100, HISTORY, ctx.utf8)),
            worker.rss_kb and format.kilobytes(worker.rss_kb) or '-',
            ctx.paint('blue', M.sparkline(past.rss, top_rss, HISTORY, ctx.utf8)),
            tostring(worker.queue or '-'), tostring(worker.restarts or 0),
            worker.release and format.visible(worker.release) or '-',
        }
    end
    for _, slot in ipairs(view.snapshot.slots) do
        if slot.backoff_ms and slot.backoff_ms > 0 then
            cells[#cells + 1] = {
                tostring(slot.slot), '-', '-', status.paint_state(ctx, 'waiting'), '-', '-', '-', '', '-', '', '-', '-',
                'next attempt in ' .. format.duration(slot.backoff_ms),
            }
        end
    end
    return format.table(COLUMNS, cells, columns, ctx.utf8)
end

--- What is known of the master, in two lines; of one that is away, what was last known.
local function heading(ctx, view)
    local s = view.snapshot
    if view.away then
        local since = format.duration(ctx.platform.now() - view.away.at)
        return ctx.paint('red', ('%s %s ago, waiting for it'):format(view.away.what, since)),
            ('it was pid %d'):format(s.pid)
    end
    local total = 0
    for _, worker in ipairs(s.workers) do
        total = total + worker.cpu
    end
    return status.headline(ctx, s), ('%s, up %s, %s    workers: CPU %.0f%%'):format(status.processes(s),
        format.duration(s.uptime_ms), s.rss_kb and format.kilobytes(s.rss_kb) or '-', total)
end

--- The lines of one frame, exactly `height` of them.
-- view = { snapshot, history, records, order, reverse, paused, away = { what, at } or nil }
function M.frame(ctx, view, columns, height)
    local s = view.snapshot
    local first, second = heading(ctx, view)
    local lines = {
        ctx.paint('bold', 'dutch-master ' .. format.visible(s.version)) .. '  ' .. format.visible(s.script),
        first, second, '',
    }
    -- A small screen is for the workers.
    local log_lines = math.min(#view.records, height < 12 and 0 or math.max(3, math.floor(height / 4)))
    if height < 12 then
        lines = { first }
    end
    -- Workers of a master that is away are not known: no old picture that looks like now.
    local table_lines = view.away and { '' } or rows(ctx, view, columns)
    table_lines[1] = ctx.paint('dim', table_lines[1])
    -- The title, as many rows as there is room for from the first one that is shown, and what is beyond them.
    local count = #table_lines - 1
    local room = math.max(1, height - #lines - log_lines - 2 - (height < 12 and 0 or 1))
    if count > room then
        room = math.max(1, room - 1)
    end
    view.first = math.max(1, math.min(view.first or 1, count - room + 1))
    view.room = room
    lines[#lines + 1] = table_lines[1]
    for i = view.first, math.min(view.first + room - 1, count) do
        lines[#lines + 1] = table_lines[i + 1]
    end
    if count > room then
        local last = math.min(view.first + room - 1, count)
        lines[#lines + 1] = ctx.paint('dim', ('%d to %d of %d'):format(view.first, last, count))
    end
    while #lines < height - log_lines - 1 do
        lines[#lines + 1] = ''
    end
    for i = #view.records - log_lines + 1, #view.records do
        lines[#lines + 1] = events.line(ctx, view.records[i])
    end
    local keys = 'q quit  sort: s slot c CPU m memory u age w queue  r reverse  space pause  j k scroll'
    local now = ('[by %s%s%s]'):format(ORDERS[view.order].name, view.reverse and ', reversed' or '',
        view.paused and ', paused' or '')
    -- What is cut off on a narrow terminal is a key, not the state.
    local fits = #keys + 3 + #now <= columns
    lines[#lines + 1] = ctx.paint('dim', fits and keys .. '   ' .. now or now .. '  ' .. keys)
    while #lines > height do
        table.remove(lines, #lines - 1)
    end
    for i, line in ipairs(lines) do
        lines[i] = format.cut(line, columns)
    end
    return lines
end

local function draw(ctx, view)
    if not view.snapshot then
        return
    end
    local columns, height = ctx.platform.tty_size(1)
    columns, height = math.max(10, columns or 80), math.max(4, height or 24)
    local lines = M.frame(ctx, view, columns, height)
    ctx.out('\27[H' .. table.concat(lines, '\27[K\r\n') .. '\27[K\27[J')
end

--- Keys that move the rows: by a line, and by a screen. Arrows and page keys come as sequences.
local SCROLLS = { j = 1, k = -1, ['\27[B'] = 1, ['\27[A'] = -1, ['\27OB'] = 1, ['\27OA'] = -1,
    f = 1, b = -1, ['\27[6~'] = 1, ['\27[5~'] = -1 }
local PAGES = { f = true, b = true, ['\27[6~'] = true, ['\27[5~'] = true }

--- The keys in what came from the terminal: sequences are one key each.
local function each_key(bytes, fn)
    local i = 1
    while i <= #bytes do
        local key = bytes:match('^\27[%[O][%d;]*[%a~]', i) or bytes:sub(i, i)
        fn(key)
        i = i + #key
    end
end

local function set_keys(view, raw)
    if view.keys then
        view.keys:set_mode(raw and 1 or 0)
    end
end

local function enter_screen(ctx, view)
    set_keys(view, true)
    ctx.out '\27[?1049h\27[?25l\27[2J'
end

local function leave_screen(ctx, view)
    ctx.out '\27[?25h\27[?1049l'
    set_keys(view, false)
end

local function on_key(ctx, view, key, quit)
    if key:find '^[qQ\3\4\28]$' then -- and ^C, ^D, ^\
        return quit(0)
    elseif key == '\26' then -- ^Z
        leave_screen(ctx, view)
        ctx.platform.suspend()
        enter_screen(ctx, view)
    elseif key == ' ' then
        view.paused = not view.paused
    elseif key == 'r' then
        view.reverse = not view.reverse
    elseif SCROLLS[key] then
        view.first = math.max(1, (view.first or 1) + SCROLLS[key] * (PAGES[key] and view.room or 1))
    elseif ORDERS[key] then
        view.order, view.first = key, 1
    else
        return
    end
    draw(ctx, view)
end

--- Asks for status again and again, and follows the log; draws after each status.
-- -> nil, or an exit code if there is no master
local function connect(ctx, view, quit, away)
    local peer, code
    local function refused(error)
        quit(client.refused(ctx, 'top', error))
    end
    local function silent()
        peer:close()
        away('the master stopped answering', true)
    end
    peer, code = client.peer(ctx, 'top', function()
        away 'the master went away'
    end)
    if not peer then
        return code
    end
    function view.again()
        peer:ask({ verb = 'status' }, {
            silent = silent,
            done = function(answer, error)
                if error then
                    return refused(error)
                elseif view.away or not view.entered then
                    view.away, view.history, view.snapshot = nil, {}, nil
                end
                if not view.entered then
                    view.entered = true
                    enter_screen(ctx, view)
                end
                if not view.paused or not view.snapshot then
                    view.history = M.observe(view.history, answer.status, ctx.platform.now())
                    view.snapshot = answer.status
                    draw(ctx, view)
                end
                view.timer:start((ctx.options.interval or 1) * 1000)
            end,
        })
    end
    local records = {}
    peer:ask({ verb = 'events', last = MAX_RECORDS, follow = true }, {
        silent = silent,
        event = function(answer)
            if answer.event ~= 'record' then
                return
            end
            view.records = records
            table.insert(records, answer.record)
            if #records > MAX_RECORDS then
                table.remove(records, 1)
            end
        end,
        done = function(_, error)
            return error and refused(error)
        end,
    })
    view.again()
end

--- Goes on until somebody quits, whatever becomes of the master: it is on somebody's second screen.
local function start(ctx, view, quit)
    -- Without a master there is nothing to say while one is waited for.
    local quiet = setmetatable({ err = function() end }, { __index = ctx })
    local function away(what, is_silent)
        if not view.entered and is_silent then
            client.say_silent(ctx, 'top')
            return quit(124)
        elseif not view.entered then
            return quit(1, what)
        end
        view.again, view.away = nil, view.away or { what = what, at = ctx.platform.now() }
        draw(ctx, view)
        view.timer:start(RETRY_MS)
    end
    view.timer = ctx.platform.timer(function()
        if view.again then
            return view.again()
        elseif connect(quiet, view, quit, away) then
            away()
        end
    end)
    return connect(ctx, view, quit, away)
end

function M.run(ctx)
    local view = { history = {}, records = {}, order = 's', reverse = false, paused = false }
    local function quit(code, message)
        if view.over then
            return code
        end
        view.over = true
        if view.entered then
            view.entered = false
            leave_screen(ctx, view)
        end
        if view.keys then
            view.keys = view.keys:close()
        end
        if message then
            client.fail(ctx, message)
        end
        client.finish(ctx, code)
        return code
    end
    if not (ctx.tty and ctx.platform.isatty(0)) then
        return client.fail(ctx, 'top needs a terminal (dutch-master status --watch does not)')
    end
    local code = start(ctx, view, quit)
    if code then
        return code
    end
    ctx.platform.signals({ 'SIGINT', 'SIGTERM', 'SIGHUP', 'SIGWINCH' }, function(name)
        if name == 'SIGWINCH' then
            return draw(ctx, view)
        end
        quit(name == 'SIGINT' and 0 or 1)
    end)
    view.keys = ctx.platform.keys(function(bytes)
        if bytes == nil or bytes == '' then
            return quit(1)
        end
        each_key(bytes, function(key)
            on_key(ctx, view, key, quit)
        end)
    end)
end

return M
