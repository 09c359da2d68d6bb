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

-- stock: its own master with two workers; roll, stop: the signals by which that one replaces them, and ends.
local SERVERS = {
    {
        name = 'gunicorn', worker = "dutch.gunicorn { app = 'app:application', args = { '--log-level', 'warning' } }",
        files = { ['app.py'] = WSGI },
        stock = { 'gunicorn', '--workers', '2', '--bind', '127.0.0.1:PORT', 'app:application' },
        roll = 'sighup', stop = 'sigterm',
    },
    {
        name = 'unicorn', worker = 'dutch.unicorn {}',
        files = { ['config.ru'] = RACK, ['peer.rb'] = "worker_processes 2\nlisten '127.0.0.1:PORT'\n" },
        stock = { 'unicorn', '-c', 'peer.rb' }, roll = 'sighup', stop = 'sigquit',
    },
    {
        name = 'puma', worker = "dutch.puma { app = 'config.ru', args = { '--quiet', '--threads', '1:1' } }",
        files = { ['config.ru'] = RACK },
        stock = { 'puma', '--workers', '2', '--threads', '1:1', '--bind', 'tcp://127.0.0.1:PORT', 'config.ru' },
        roll = 'sigusr1', stop = 'sigterm',
    },
    {
        name = 'uwsgi',
        worker = "dutch.uwsgi { app = 'app:application', args = { '--plugin', 'python3', '--disable-logging' } }",
        files = { ['app.py'] = WSGI },
        stock = { 'uwsgi', '--master', '--processes', '2', '--http-socket', '127.0.0.1:PORT', '--plugin', 'python3',
            '--module', 'app:application', '--hook-master-start', 'unix_signal:15 gracefully_kill_them_all' },
        roll = 'sighup', stop = 'sigterm',
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
    act()
    local counts = l:stop()
    assert(counts.failed == 0, counts.text .. m:dump())
    m.slowest = math.max(m.slowest or 0, counts.max_ms)
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

-- Kills a worker, all of its group: what went on would take another connection before it ends. What the group had
-- inside then is lost, and nothing else.
local function crash(m, server)
    local l = crowd(m, server)
    local victim, inside = status(m).workers[1].pid, {}
    local group = peer.group(victim)
    for _, pid in ipairs(group) do
        connections.freeze(pid)
    end
    for _, pid in ipairs(group) do
        for port in pairs(connections.inside(pid, m.port)) do
            inside[port] = true
        end
    end
    for _, pid in ipairs(group) do
        uv.kill(pid, 'sigkill')
    end
    local counts = l:stop()
    m.slowest = math.max(m.slowest, counts.max_ms)
    for _, failure in ipairs(l.failures) do
        assert(inside[failure.port] and (failure.outcome == 'reset' or failure.outcome == 'empty'),
            failure.outcome .. ' was not inside: ' .. counts.text .. m:dump())
    end
    all_serve(m)
end

-- At a stop who waits is served, and nobody new comes in meanwhile.
local function stop(m, server)
    local counts = all_answered(m, server, function()
        m:signal 'SIGTERM'
        m:await 'Shutdown requested'
        local connected = false
        local handle = http.connect({ port = m.port }, function(err)
            connected = not err or err ~= 'ECANCELED' -- a refusal is no better
        end)
        wait.try(function() return connected end, { timeout = 300 / wait.scale }) -- the whole of it, as it should be
        handle:close()
        assert(not connected, 'somebody new came in')
    end)
    m:exit()
    assert(#m:records 'Waiting connections lost, their socket is closed' == 0, m:dump())
    return counts
end

-- The same crowd at the peer, when its own master replaces its workers, and when that one ends.
local function stock(server)
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
    local rolled = meanwhile(function() p:roll(server.roll) end)
    local stopped = meanwhile(function() p:signal(server.stop) end)
    p:stop 'asked'
    return rolled, stopped
end

describe('connections that wait behind busy workers', function()
    after_each(function()
        peer.cleanup()
        master.cleanup()
    end)

    it('are all answered: at a restart of all at once, one at a time, with a canary, with fewer workers, at a crash and'
        .. ' at a stop', function()
        local list = {}
        for _, server in ipairs(SERVERS) do
            local program = server.program or server.name
            if os.execute('command -v ' .. program .. ' >/dev/null') ~= 0 then
                pending(program .. ' is not installed')
            else
                list[#list + 1] = { server.name, function()
                    local m = start(server)
                    local their_roll, their_stop = stock(server)
                    local our_roll = all_answered(m, server, roll(m))
                    all_answered(m, server, scale(m, 1))
                    scale(m, 2)()
                    all_serve(m)
                    crash(m, server)
                    for _, options in ipairs { 'restartConcurrency = 1,', "restartConcurrency = 'canary'," } do
                        m:rewrite('master.lua', script(server, m.port, options))
                        all_answered(m, server, roll(m))
                    end
                    local our_stop = stop(m, server)
                    m:finish()
                    assert(our_roll.failed <= their_roll.failed and our_stop.failed <= their_stop.failed)
                    assert(our_roll.max_ms <= 2 * their_roll.max_ms + 5000 * wait.scale, 'slower than its own master')
                    io.stdout:write(('[%s: the slowest after %.1f s; lost of %d at a roll %d, its own master %d (slowest'
                        .. ' %.1f s, %.1f s), at a stop %d, %d] '):format(server.name, m.slowest / 1000, CLIENTS,
                        our_roll.failed, their_roll.failed, our_roll.max_ms / 1000, their_roll.max_ms / 1000,
                        our_stop.failed, their_stop.failed))
                end }
            end
        end
        wait.together(list, 3)
    end)
end)
