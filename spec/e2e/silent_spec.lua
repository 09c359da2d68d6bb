-- Clients that send their request some time after they have connected, while workers leave a socket that others go on
-- serving: each preset with its real server, and Node, in one queue; one socket for all, of the master's own or passed to
-- it. Many servers close a connection that they have accepted and heard nothing of when they are asked to leave.
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local net = require 'spec.support.net'
local servers = require 'spec.support.servers'
local versions = require 'spec.support.node_versions'

local LAG_MS, CLIENTS = 60, 16
local IPPROTO_TCP, TCP_DEFER_ACCEPT = 6, 9

local NODE = [[
    require('http').createServer((request, response) => response.end('works')).listen(+process.env.PORT, '127.0.0.1')]]
local ACTIVATE = [[
    $^F = 100;
    my $socket = IO::Socket::INET->new(Listen => 511, LocalAddr => shift @ARGV, ReuseAddr => 1) or die $!;
    POSIX::dup2(fileno($socket), 3) if fileno($socket) != 3;
    @ENV{qw(LISTEN_PID LISTEN_FDS)} = ($$, 1);
    exec @ARGV;
]]

local function start(server, options, passed)
    local port = http.free_port()
    local address = '127.0.0.1:' .. port
    local m = master.start {
        script = ([[local dutch = require 'dutch-master'
            dutch.start { worker = %s, numWorkers = 3, %s %s }]]):format(server.worker,
            server[1]:find 'Node' and '' or ("listen = '%s',"):format(address), options),
        files = servers.files(server, 'good', address),
        env = { PYTHONDONTWRITEBYTECODE = '1', PORT = tostring(port) },
        wrap = passed and { 'perl', '-MIO::Socket::INET', '-MPOSIX', '-e', ACTIVATE, address } or nil,
    }
    m.port = port
    m:await('Cluster ready', { timeout = 60000 })
    return m
end

local function scale(m, count)
    local c = cli.run(m, { 'scale', tostring(count) })
    assert.equal(0, c.code, c.out .. c.err)
end

local function await_workers(m, count)
    m:wait_until(function()
        local serving, all = 0, cjson.decode(cli.run(m, { 'status', '--json' }).out).workers
        for _, worker in ipairs(all) do
            serving = serving + (worker.state == 'running' and 1 or 0)
        end
        return serving == count and #all == count
    end, count .. ' workers', { timeout = 60000 })
end

-- One leaves, one leaves that has just begun to serve or has not yet, one by one all are replaced.
local function leave(m)
    scale(m, 2)
    await_workers(m, 2)
    scale(m, 3)
    local c = cli.run(m, { 'restart', '--wait' }, { timeout = 60000 })
    assert.equal(0, c.code, c.out .. c.err)
    scale(m, 2)
    await_workers(m, 2)
end

-- @return what the listeners of the master have as TCP_DEFER_ACCEPT: the most of all, nil: there are none
local function deferred(m)
    local most
    kept.each_socket(kept.pid(m), function(fd)
        if net.option(fd, 1, 30) == 1 and net.option(fd, 1, 39) == 2 and net.option(fd, 1, 38) == IPPROTO_TCP then
            most = math.max(most or 0, net.option(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT)) -- it listens, at an IPv4 address
        end
    end)
    return most
end

local function answers_all(m, balance, act)
    assert.equal(balance, cjson.decode(cli.run(m, { 'status', '--json' }).out).balance)
    local before = deferred(m) -- 1 of unicorn, which asks for it itself
    local l = load.start { port = m.port, clients = CLIENTS, lag_ms = LAG_MS, timeout = 30000,
        expect = '^works' }
    l:await(CLIENTS)
    act(m)
    l:await(l.counts.total + CLIENTS)
    local counts = l:stop()
    assert.equal(0, counts.failed, counts.text .. m:dump())
    m:wait_until(function() return deferred(m) == before end, 'the socket to be as it was')
    m:finish {}
end

describe('clients that are silent at first', function()
    after_each(master.cleanup)

    local list = {}
    for _, server in ipairs((servers.installed())) do
        list[#list + 1] = not server.unix and not server.protocol and server or nil
    end
    for _, version in ipairs { '18', '26' } do
        local binary = versions.binary(version)
        list[#list + 1] = binary and { 'Node ' .. version, files = { ['app.js'] = NODE },
            worker = ("'app.js', interpreter = %q"):format(binary) } or nil
    end
    local function it_answers(server, title, balance, act, passed)
        it(('are answered while workers of %s leave%s'):format(server[1], title), function()
            local options = passed and '' or ("balance = '%s',"):format(balance)
            answers_all(start(server, 'restartSoak = 0.1, ' .. options, passed), balance, act)
        end)
    end
    for _, server in ipairs(list) do
        -- uvicorn accepts in one turn of its loop and reads in a later one: asked in between, it closes the connection,
        -- whatever that has sent. A lane of its own is quiet by then.
        local balance = server[1] == 'uvicorn' and 'steered' or 'queue'
        it_answers(server, ', ' .. balance, balance, leave)
        if server[1] == 'puma' or server[1] == 'Node 26' then
            it_answers(server, ', one socket', 'shared', leave)
            it_answers(server, ', a socket that was passed', 'shared', leave, true)
        end
        if server[1] == 'puma' then
            it_answers(server, ', and a master dies', 'queue', function(m)
                for _ = 1, 2 do
                    scale(m, 1)
                    kept.kill(m)
                    await_workers(m, 1)
                    scale(m, 3)
                    await_workers(m, 3)
                end
            end)
        end
    end
end)
