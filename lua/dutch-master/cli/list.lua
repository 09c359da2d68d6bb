--- dutch-master list: every master there is, a line each.

local absent = require 'dutch-master.cli.absent'
local wire = require 'dutch-master.control.wire'
local format = require 'dutch-master.cli.format'
local masters = require 'dutch-master.cli.masters'
local status = require 'dutch-master.cli.status'

local M = {
    name = 'list',
    takes_script = false,
    summary = 'every master of this user (for root: of all users)',
    description = 'One line for each master: its state, workers that serve of those wanted, generation, the release\n'
        .. 'its workers run in, age, memory and CPU time of master and workers together, how often workers were\n'
        .. 'started again, and the last verdict. A socket whose master is dead or does not answer is said too.\n'
        .. 'Masters are found by their sockets in the runtime directories (FILES in dutch-master(1)); with\n'
        .. 'DUTCH_MASTER_RUNTIME_DIR set, in that one alone.',
    options = {
        { long = 'json', short = 'j', doc = 'one line of JSON for each master' },
        { long = 'watch', short = 'w', doc = 'again each second, until ^C' },
    },
    examples = { 'dutch-master list', 'dutch-master list --watch', 'sudo dutch-master list --json | jq .script' },
    codes = '0, also when there is none; 1 a master is dead or does not answer',
}

local WATCH_MS = 1000
local ROOT = 0

local COLUMNS = {
    { title = 'NAME' }, { title = 'STATE' }, { title = 'WORKERS', right = true },
    { title = 'GEN', right = true, drop = 4 }, { title = 'PID', right = true, drop = 2 },
    { title = 'UP', right = true },
    { title = 'RSS', right = true, drop = 6 }, { title = 'CPU', right = true, drop = 3 },
    { title = 'RESTARTS', right = true, drop = 5 }, { title = 'VERDICT' },
    { title = 'RELEASE', flexible = true, least = 24, drop = 1 }, { title = 'SCRIPT', flexible = true, least = 24 },
}

--- /srv/shop/current/master.lua -> shop: the first directory that says something, from the right.
function M.short_name(script)
    local file = script:match '([^/]+)%.lua$' or script:match '[^/]+$' or script
    if file ~= 'master' then
        return file
    end
    local rest = script:match '^(.*)/[^/]*$' or ''
    while rest ~= '' do
        local dir = rest:match '[^/]+$'
        if dir ~= 'current' and dir ~= 'app' and dir ~= 'src' and dir ~= 'config' then
            return dir
        end
        rest = rest:match '^(.*)/[^/]*$' or ''
    end
    return file
end

--- What a status says, in short. Pure; `web` shows the same.
function M.digest(snapshot)
    local rss, cpu, restarts = snapshot.rss_kb or 0, snapshot.cpu_ms or 0, 0
    local releases, seen = {}, {}
    for _, worker in ipairs(snapshot.workers) do
        rss = rss + (tonumber(worker.rss_kb) or 0)
        cpu = cpu + (tonumber(worker.cpu_ms) or 0)
        if worker.release and not seen[worker.release] then
            seen[worker.release] = true
            releases[#releases + 1] = worker.release
        end
    end
    for _, slot in ipairs(snapshot.slots or {}) do
        restarts = restarts + (tonumber(slot.restarts) or 0)
    end
    local verdict = snapshot.last_verdict
    return {
        name = M.short_name(snapshot.script), script = snapshot.script, state = snapshot.state, pid = snapshot.pid,
        serving = status.serving(snapshot.workers), wanted = snapshot.wanted, generation = snapshot.generation,
        uptime_ms = snapshot.uptime_ms, rss_kb = rss, cpu_ms = cpu, restarts = restarts, releases = releases,
        verdict = type(verdict) == 'table' and verdict.result or nil, version = snapshot.version,
    }
end

local VERDICT_COLORS = { done = 'green', aborted = 'red', ['rolled back'] = 'red', rolled_back = 'red' }

local function row(ctx, d)
    local short = d.serving < d.wanted
    return {
        format.visible(d.name), status.paint_state(ctx, d.state),
        ctx.paint(short and 'yellow' or nil, ('%d/%d'):format(d.serving, d.wanted)), tostring(d.generation),
        tostring(d.pid), format.duration(d.uptime_ms), format.kilobytes(d.rss_kb), format.duration(d.cpu_ms),
        tostring(d.restarts), d.verdict and ctx.paint(VERDICT_COLORS[d.verdict], format.visible(d.verdict)) or '-',
        #d.releases == 0 and '-' or format.visible(table.concat(d.releases, ' ')), format.visible(d.script),
    }
end

--- found: what masters.ask gives. -> text
function M.render(ctx, found)
    local rows, notes = {}, {}
    for _, master in ipairs(found) do
        if master.status then
            rows[#rows + 1] = row(ctx, M.digest(master.status))
        else
            notes[#notes + 1] = absent.note(ctx, master)
        end
    end
    local text = ''
    if rows[1] then
        text = format.page(ctx, format.sheet(ctx, COLUMNS, rows))
    elseif not notes[1] then
        text = ctx.platform.uid() == ROOT and 'No master runs here.\n'
            or 'No master of this user runs here. Root sees those of all users: sudo dutch-master list\n'
    end
    return text .. table.concat(notes)
end

local function as_json(found)
    local lines = {}
    for i, master in ipairs(found) do
        local item
        if master.status then
            item = M.digest(master.status)
            item.running, item.socket = true, master.path
            item.releases = wire.list(item.releases)
        else
            item = { running = false, socket = master.path, problem = master.problem, message = master.message,
                pid = master.pid, script = master.script }
        end
        lines[i] = wire.encode(item) .. '\n'
    end
    return table.concat(lines)
end

function M.run(ctx)
    local timer
    local function look()
        masters.ask(ctx.platform, { verb = 'status' }, function(found)
            local text, well = ctx.options.json and as_json(found) or M.render(ctx, found), true
            for _, master in ipairs(found) do
                well = well and (master.status ~= nil or master.problem == 'foreign')
            end
            status.show(ctx, text)
            if not ctx.options.watch then
                return ctx.platform.stop(well and 0 or 1)
            end
            timer = timer or ctx.platform.timer(look)
            timer:start(WATCH_MS)
        end)
    end
    look()
end

return M
