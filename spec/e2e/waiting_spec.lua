-- Connections that wait in a queue behind busy workers, when something happens to those workers: all are answered.
-- Beside each server the same one under the master that it brings along: no more may be lost here than there.
local cjson = require 'cjson'
local uv = require 'luv'
local cli = require 'spec.support.cli'
local connections = require 'spec.support.connections'
local fastcgi = require 'spec.support.fastcgi'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local peer = require 'spec.support.peer'
local wait = require 'spec.support.wait'

-- Each request holds its worker, so of so many at once all but two wait.
local CLIENTS, HOLD_S = 12, 0.15

local WSGI = ([[
import threading
def application(environ, start_response):
    if environ['PATH_INFO'] == '/busy':
        threading.Event().wait(%g)
    start_response('200 OK', [('Content-Length', '2'), ('Connection', 'close')])
    return [b'ok']
]]):format(HOLD_S)
local RACK = ("run ->(env) { sleep %g if env['PATH_INFO'] == '/busy'; [200, { 'Content-Length' => '2' }, ['ok']] }\n")
    :format(HOLD_S)

local FPM = '[global]\nerror_log = fpm.log\nprocess_control_timeout = 10s\n[www]\nuser = www-data\npm = static\n'
    .. 'pm.max_children = %d\nlisten = 127.0.0.1:PORT\n'

-- stock: its own master with two workers. What asks that one for the same: roll, one (of its workers after the other),
-- fewer (and more again), renew (another master beside it, which stays), stop. What it has not, it cannot be asked.
local SERVERS = {
    {
        name = 'gunicorn', worker = "dutch.gunicorn { app = 'app:application', args = { '--log-level', 'warning' } }",
        files = { ['app.py'] = WSGI },
        stock = { 'gunicorn', '--workers', '2', '--bind', '127.0.0.1:PORT', 'app:application' },
        roll = 'sighup', fewer = { 'sigttou', 'sigttin' }, renew = true, stop = 'sigterm',
    },
    {
        name = 'unicorn', worker = 'dutch.unicorn {}',
        files = { ['config.ru'] = RACK, ['peer.rb'] = "worker_processes 2\nlisten '127.0.0.1:PORT'\n" },
        stock = { 'unicorn', '-c', 'peer.rb' }, roll = 'sighup', fewer = { 'sigttou', 'sigttin' }, renew = true,
        stop = 'sigquit',
    },
    {
        name = 'puma', worker = "dutch.puma { app = 'config.ru', args = { '--quiet', '--threads', '1:1' } }",
        files = { ['config.ru'] = RACK },
        stock = { 'puma', '--workers', '2', '--threads', '1:1', '--bind', 'tcp://127.0.0.1:PORT', 'config.ru' },
        roll = 'sigusr2', one = 'sigusr1', fewer = { 'sigttou', 'sigttin' }, stop = 'sigterm',
    },
    {
        name = 'uwsgi',
        worker = "dutch.uwsgi { app = 'app:application', args = { '--plugin', 'python3', '--disable-logging' } }",
        files = { ['app.py'] = WSGI },
        stock = { 'uwsgi', '--master', '--processes', '2', '--http-socket', '127.0.0.1:PORT', '--plugin', 'python3',
            '--module', 'app:application', '--hook-master-start', 'unix_signal:15 gracefully_kill_them_all', '--lazy-apps',
            '--master-fifo', 'DIR/fifo' },
        roll = 'sighup', stop = 'sigterm', one = function(p)
            local fifo = assert(io.open(p.dir .. '/fifo', 'w'))
            fifo:write 'c'
            fifo:close()
        end,
    },
    {
        name = 'php-fpm', program = 'php-fpm8.2', protocol = fastcgi,
        worker = "dutch.phpfpm { command = 'php-fpm8.2', config = dutch.directory .. '/fpm.conf',"
            .. " args = { '--prefix', dutch.directory } }",
        files = { ['busy.php'] = ('<?php usleep(%d); echo "ok";'):format(HOLD_S * 1e6), ['fpm.conf'] = FPM:format(1),
            ['peer.conf'] = FPM:format(2) },
        stock = { 'php-fpm8.2', '--nodaemonize', '--prefix', 'DIR', '--fpm-config', 'peer.conf' },
        roll = 'sigusr2', stop = 'sigquit',
    },
}

local function script(server, port, options)
    return ([[local dutch = require 'dutch-master'
        dutch.start { worker = %s, numWorkers = 2, listen = '127.0.0.1:%d', restartSoak = 0.1, %s }
        ]]):format(server.worker, port, options or '')
end

local function start(server)
    local port, files = http.free_port(), {}
    for name, text in pairs(server.files) do
        files[name] = text:gsub('PORT', port)
    end
    local m = master.start { script = script(server, port), files = files, env = { PYTHONDONTWRITEBYTECODE = '1' } }
    m.port = port
    m:await('Cluster ready', { timeout = 30000 })
    return m
end

local function status(m)
    return cjson.decode(cli.run(m, { 'status', '--json' }).out)
end

-- So many clients ask at once, and most of them wait. `at`: a master of ours, or { port =, app = } of the peer.
local function crowd(at, server)
    local l = load.start { port = at.port, clients = CLIENTS, timeout = 30000, expect = '^ok$', protocol = server.protocol,
        path = server.protocol and at.app .. '/busy.php' or '/busy' }
    wait.wait_until(function()
        return l.active == CLIENTS and l.counts.ok >= 1
    end, { what = 'a crowd' })
    l:no_more()
    return l
end

-- Meanwhile `act` happens. All must be answered.
local function all_answered(m, server, act)
    local l = crowd(m, server)
    act(l)
    local counts = l:stop()
    assert(counts.failed == 0, counts.text .. m:dump())
    return counts
end

local function roll(m)
    return function()
        local verdict = cli.run(m, { 'restart', '--wait' }, { timeout = 30000 * wait.scale })
        assert(verdict.code == 0, verdict.out .. verdict.err .. m:dump())
    end
end

local function scale(m, count)
    return function()
        assert(cli.run(m, { 'scale', tostring(count) }).code == 0)
    end
end

local function all_serve(m)
    m:wait_until(function()
        local serving = 0
        for _, worker in ipairs(status(m).workers) do
            serving = serving + (worker.state == 'running' and 1 or 0)
        end
        return serving == 2
    end, 'two workers', { timeout = 30000 })
end

-- Kills a worker, all of its processes: what went on would take another connection before it ends. What these had inside
-- then is lost, and nothing else.
-- @return its figures; `outside`: how many failed that were not inside
local function crash(at, server, victims)
    local l, inside = crowd(at, server), {}
    local pids = victims()
    for _, pid in ipairs(pids) do
        connections.freeze(pid)
    end
    for _, pid in ipairs(pids) do
        for port in pairs(connections.inside(pid, at.port)) do
            inside[port] = true
        end
    end
    for _, pid in ipairs(pids) do
        uv.kill(pid, 'sigkill')
    end
    local counts = l:stop()
    counts.outside = 0
    for _, failure in ipairs(l.failures) do
        if not inside[failure.port] or failure.outcome ~= 'reset' and failure.outcome ~= 'empty' then
            counts.outside, counts.text = counts.outside + 1, failure.outcome .. ' was not inside: ' .. counts.text
        end
    end
    return counts
end

-- At a stop who waits is served, and nobody new comes in meanwhile.
local function stop(m, server)
    local counts = all_answered(m, server, function(l)
        m:signal 'SIGTERM'
        m:await 'Shutdown requested'
        local came, refused = false, false
        local handle = http.connect({ port = m.port }, function(err)
            came, refused = not err, err and err ~= 'ECANCELED'
        end)
        wait.try(function() return came or refused end, { timeout = 300 / wait.scale }) -- the whole of it, as it should be
        handle:close()
        wait.turn()
        assert(not came, 'somebody new came in')
        -- A refusal is no better, unless all is over, on a busy machine.
        assert(not refused or l.active == 0, 'somebody new was refused: ' .. tostring(refused))
    end)
    m:exit()
    assert(#m:records 'Waiting connections lost, their socket is closed' == 0, m:dump())
    return counts
end

-- Everything that happens to ours. @return what came of each
local function ours(server)
    local m, seen = start(server), {}
    seen.roll = all_answered(m, server, roll(m))
    seen.fewer = all_answered(m, server, scale(m, 1))
    scale(m, 2)()
    all_serve(m)
    seen.crash = crash(m, server, function() return peer.group(status(m).workers[1].pid) end)
    assert(seen.crash.outside == 0, seen.crash.text .. m:dump())
    all_serve(m)
    for name, options in pairs { one = 'restartConcurrency = 1,', renew = "restartConcurrency = 'canary'," } do
        m:rewrite('master.lua', script(server, m.port, options))
        seen[name] = all_answered(m, server, roll(m))
    end
    seen.stop = stop(m, server)
    m:finish()
    return seen
end

-- The same crowds at the peer, as far as its own master can be asked for the same.
local function theirs(server)
    local at = { port = http.free_port(), app = master.temp_dir() }
    assert(uv.fs_chmod(at.app, tonumber('755', 8)))
    for name, text in pairs(server.files) do
        local file = assert(io.open(at.app .. '/' .. name, 'w'))
        file:write((text:gsub('PORT', at.port)))
        file:close()
    end
    local options = { dir = at.app, at = at.port }
    for i, word in ipairs(server.stock) do
        options[i] = word:gsub('PORT', at.port):gsub('DIR', at.app)
    end
    local p = peer.start(options)
    local function meanwhile(act)
        local l = crowd(at, server)
        act()
        return l:stop()
    end
    local first = meanwhile(function() end)
    assert(first.failed == 0, first.text .. p:log())
    local seen = { roll = meanwhile(function() p:roll(server.roll) end) }
    seen.one = server.one and meanwhile(function() p:roll(server.one) end)
    p:await_workers(2)
    if server.fewer then
        seen.fewer = meanwhile(function() p:signal(server.fewer[1]) end)
        p:await_workers(1)
        p:signal(server.fewer[2])
        p:await_workers(2)
    end
    seen.crash = crash(at, server, function() return { p:workers()[1] } end)
    p:await_workers(2)
    seen.renew = server.renew and meanwhile(function() p:renew() end)
    seen.stop = meanwhile(function() p:signal(server.stop) end)
    p:stop 'asked'
    return seen
end

local ACTS = {
    { 'roll', 'a restart' }, { 'one', 'one at a time' }, { 'renew', 'a canary' }, { 'fewer', 'fewer workers' },
    { 'crash', 'a crash' }, { 'stop', 'a stop' },
}

local function lost(counts)
    return counts.outside or counts.failed
end

-- Both, printed; and no more may be lost by ours.
local function compare(server, our, their)
    local words = {}
    for _, act in ipairs(ACTS) do
        local a, b = our[act[1]], their[act[1]]
        local beside = b and (('%d, %.1f s'):format(lost(b), b.max_ms / 1000)) or 'has none'
        words[#words + 1] = ('%s %d, %.1f s (%s)'):format(act[2], lost(a), a.max_ms / 1000, beside)
        assert(not b or lost(a) <= lost(b), server.name .. ': ' .. words[#words])
        assert(not b or a.max_ms <= 2 * b.max_ms + 5000 * wait.scale, 'slower than its own master: ' .. words[#words])
    end
    io.stdout:write(('[%s: lost of %d and the slowest (beside its own master) at %s] '):format(server.name, CLIENTS,
        table.concat(words, ', ')))
end

describe('connections that wait behind busy workers', function()
    after_each(function()
        peer.cleanup()
        master.cleanup()
    end)

    it('are all answered: at a restart of all at once, one at a time, with a canary, with fewer workers, at a crash and'
        .. ' at a stop', function()
        local list, seen = {}, {}
        for _, server in ipairs(SERVERS) do
            local program = server.program or server.name
            if os.execute('command -v ' .. program .. ' >/dev/null') ~= 0 then
                pending(program .. ' is not installed')
            else
                seen[server] = {}
                for name, run in pairs { ours = ours, theirs = theirs } do
                    list[#list + 1] = { server.name .. ', ' .. name, function()
                        local both = seen[server]
                        both[name] = run(server)
                        if both.ours and both.theirs then
                            compare(server, both.ours, both.theirs)
                        end
                    end }
                end
            end
        end
        wait.together(list, 4)
    end)
end)
