--- The master dies in every way, under Node of each version, Lua, gunicorn and puma, beside kept connections and a
-- connection for each request: by SIGKILL, SIGSEGV, SIGABRT (an assertion), for want of memory (no allocation succeeds any
-- more), and by its keeper after SIGSTOP for a minute. Requests that failed: 0. The same workers: yes.
-- usage: build/dm-spec spec/bench/takeover.lua [sigkill|sigsegv|sigabrt|memory|sigstop]...   (all without a name)
-- All masters at once; DM_KINDS=node22,lua chooses. Takes three minutes.

local uv = require 'luv'
io.stdout:setvbuf 'line'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local servers = require 'spec.support.servers'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local RATE = 40 -- requests a second of each load
local SETTLE_MS = 1500 -- a master that has lived this long is followed by the next one at once
local TOOK_OVER = 'The former master died, this one has taken over'

local kinds = {}

local function add(name, worker, files, more)
    local chosen = os.getenv 'DM_KINDS'
    if not chosen or (',' .. chosen .. ','):find(',' .. name .. ',', 1, true) then
        kinds[#kinds + 1] = { name = name, worker = worker, files = files, more = more or '', failed = {} }
    end
end

for _, version in ipairs(versions.since(18)) do
    local binary = versions.binary(version)
    if binary then
        add('node' .. version, "'app.js'", { ['app.js'] = [[require('http').createServer((request, response) => {
            setTimeout(() => response.end('works'), Math.random() * 20) }).listen(Number(process.env.PORT))]] },
            ('interpreter = { %q },'):format(binary))
    end
end
add('lua', "'app.lua'", { ['app.lua'] = apps.http })
for _, server in ipairs((servers.installed())) do
    if server[1] == 'gunicorn' or server[1] == 'puma' then
        add(server[1], server.worker, servers.files(server, 'good'), 'listen = LISTEN,')
    end
end

local function start(kind)
    kind.port = http.free_port()
    kind.m = kept.start { files = kind.files, env = { DUTCH_MASTER_LUA = false }, script = ([[local dutch = require 'dutch-master'
        local LISTEN = '127.0.0.1:%d'
        dutch.start { worker = %s, numWorkers = 2, restartSoak = 0, %s workerEnvironment = { LISTEN = LISTEN, PORT = '%d' } }]])
        :format(kind.port, kind.worker, kind.more, kind.port) }
    kind.m:await('Cluster ready', { timeout = 120000 })
    kind.before = table.concat(kind.m:workers(), ' ')
    kind.loads = {}
    for _, mode in ipairs { 'keepalive', 'close' } do
        kind.loads[#kind.loads + 1] = load.start { port = kind.port, clients = 4, mode = mode, rate = RATE, expect = '.' }
    end
end

local function counts(kind)
    local failed, total = 0, 0
    for _, running in ipairs(kind.loads) do
        failed, total = failed + running.counts.total - running.counts.ok, total + running.counts.total
    end
    return failed, total
end

-- Way -> function(kind, pid of its master): what makes it die.
local ways = {}
for _, signal in ipairs { 'sigkill', 'sigsegv', 'sigabrt', 'sigstop' } do
    ways[signal] = function(_, pid)
        uv.kill(pid, signal)
    end
end

-- No more memory than it has. It is asked for things until it needs some.
function ways.memory(kind, pid)
    assert(os.execute(('prlimit --pid %d --as=4096:4096'):format(pid)) == 0)
    kind.asking = cli.start(kind.m, { 'status', kind.m.script })
end

local function still_awaited(kind, count)
    if kind.asking and kind.asking.ended == 3 and #kind.m:records(TOOK_OVER) < count then
        kind.asking = cli.start(kind.m, { 'status', kind.m.script })
    end
    return #kind.m:records(TOOK_OVER) < count
end

local function measure(way)
    local before, awaited = {}, {}
    for i, kind in ipairs(kinds) do
        before[i] = counts(kind)
        awaited[i] = #kind.m:records(TOOK_OVER) + 1
        ways[way](kind, assert(kept.pid(kind.m)))
    end
    local began = uv.hrtime()
    local all = wait.try(function()
        local left = 0
        for i, kind in ipairs(kinds) do
            left = left + (still_awaited(kind, awaited[i]) and 1 or 0)
        end
        return left == 0
    end, { timeout = 100000 })
    wait.let_run(SETTLE_MS)
    for i, kind in ipairs(kinds) do
        local record = kind.m:records(TOOK_OVER)[awaited[i]]
        local failed = counts(kind) - before[i]
        kind.failed[#kind.failed + 1] = failed
        kind.asking = kind.asking and kind.asking:wait() and nil
        print(('%-8s %-9s ended by %-10s taken over after %5.1f s, %d failed'):format(way, kind.name,
            record and (record.signal or 'code ' .. record.code) or '-', record and (record.arrived - began) / 1e9 or -1,
            failed))
    end
    return all
end

local names = #arg > 0 and arg or { 'sigkill', 'sigsegv', 'sigabrt', 'memory', 'sigstop' }
for _, kind in ipairs(kinds) do
    start(kind)
end
local wrong = 0
for _, way in ipairs(names) do
    wrong = wrong + (measure(way) and 0 or 1)
end
print(('\n%-9s %9s  %s  same workers'):format('', 'requests', table.concat(names, '  ')))
for _, kind in ipairs(kinds) do
    local _, total = counts(kind)
    local line = {}
    for i, name in ipairs(names) do
        line[i] = ('%' .. #name .. 'd'):format(kind.failed[i])
        wrong = wrong + kind.failed[i]
    end
    for _, running in ipairs(kind.loads) do
        running:stop()
    end
    local same = kind.before == table.concat(kind.m:workers(), ' ')
    print(('%-9s %9d  %s  %s'):format(kind.name, total, table.concat(line, '  '), same and 'yes' or 'no'))
    kind.m:finish()
end
master.cleanup()
os.exit(wrong == 0 and 0 or 1)
