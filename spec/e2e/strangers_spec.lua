-- Servers that do something else with the address than to accept from the socket that they were given: they open others
-- in its group, another form of the address, or close it. Found, named, and nobody waits there. Beside each the same
-- server under its own master, where such a socket is no stranger: no more may be lost here than there.
local uv = require 'luv'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local peer = require 'spec.support.peer'

local NGINX = [[
pid nginx.pid;
error_log stderr warn;
worker_processes 2;
events {}
http {
    access_log off;
    server { listen %s; location / { return 200 "ok"; } }
}
]]
local RACK = "run ->(env) { [200, { 'Content-Length' => '2' }, ['ok']] }\n"

local function has(name)
    return os.execute('command -v ' .. name .. ' >/dev/null') == 0
end

local function nginx(listen, its)
    local port = http.free_port()
    local m = master.start {
        script = ([[local dutch = require 'dutch-master'
            dutch.start { worker = dutch.nginx { config = dutch.directory .. '/nginx.conf',
                args = { '-p', dutch.directory } }, numWorkers = 2, listen = '%s', restartSoak = 0.1,
                backoff = { first = 0.05 } }]]):format((listen:gsub('PORT', port))),
        files = { ['nginx.conf'] = NGINX:format((its:gsub('PORT', port))) },
    }
    return m, port
end

local function stock_nginx(its)
    local p = { dir = master.temp_dir(), at = http.free_port() }
    p.write = function(listen)
        local file = assert(io.open(p.dir .. '/nginx.conf', 'w'))
        file:write(NGINX:format((listen:gsub('PORT', p.at))))
        file:close()
    end
    p.write(its)
    return peer.start { 'nginx', '-p', p.dir, '-c', p.dir .. '/nginx.conf', '-g', 'daemon off;', dir = p.dir, at = p.at },
        p.at, p.write
end

local function compare(ours, theirs)
    assert.is_true(ours.failed <= theirs.failed, ours.text)
    io.stdout:write(('[failed %d of %d, its own master %d of %d] '):format(ours.failed, ours.total, theirs.failed,
        theirs.total))
end

describe('an address', function()
    after_each(function()
        peer.cleanup()
        master.cleanup()
    end)

    it("at which a server opens sockets of its own, too, is steered round them", function()
        if not has 'nginx' then
            return pending 'nginx is not installed'
        end
        local m, port = nginx('127.0.0.1:PORT', '127.0.0.1:PORT reuseport')
        m:await('Cluster ready', { timeout = 20000 })
        local found = m:await { msg = 'Others have opened sockets at this address', level = 40 }
        assert.equal('127.0.0.1:' .. port, found.address)
        assert.matches('^nginx %(pid %d+%)$', found.processes[1])
        assert.is_true(found.workerId == 1 or found.workerId == 2)
        assert.matches('For nginx: no "reuseport"', found.hint)
        assert.matches('For haproxy: bind fd@${DUTCH_FD_1}', found.hint, 1, true)
        local l = load.start { port = port, clients = 6, rate = 400, expect = '^ok$' }
        for i = 1, 3 do
            m:signal 'SIGUSR2'
            m:await('Restart complete', { count = i, timeout = 20000 })
            l:await(l.counts.total + 50)
        end
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text .. m:dump()) -- the kernel's order never changes for who is steered to
        local status = cli.run(m, { 'status', '--json' }).out
        assert.is_true(cjson.decode(status).strangers > 0, status)
        assert.matches('sockets? of others at our addresses', cli.run(m, { 'status' }).out)
        m:finish()

        local p, own = stock_nginx '127.0.0.1:PORT reuseport'
        l = load.start { port = own, clients = 6, rate = 400, expect = '^ok$' }
        for _ = 1, 3 do
            p:roll 'sighup'
            l:await(l.counts.total + 50)
        end
        compare(counts, l:stop())
        p:stop()
    end)

    it('that a server writes in another form is named, in both forms', function()
        if not has 'nginx' then
            return pending 'nginx is not installed'
        end
        local m, port = nginx(':PORT', '[::]:PORT ipv6only=off')
        m:await('Cluster ready', { timeout = 20000 })
        local l = load.start { port = port, clients = 2, rate = 50, expect = '^ok$' }
        m:rewrite('nginx.conf', NGINX:format(port)) -- that is 0.0.0.0
        local verdict = cli.run(m, { 'restart', '--wait' }, { timeout = 60000 })
        assert.equal(10, verdict.code, verdict.err .. m:dump())
        local words = ('it tried to open 0.0.0.0:%d itself, but the master holds :%d for it'):format(port, port)
        assert.truthy((verdict.out .. verdict.err):find(words, 1, true), verdict.out .. verdict.err)
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        m:finish()

        -- nginx says it in its error log alone, and the signal has no verdict.
        local p, own, write = stock_nginx '[::]:PORT ipv6only=off'
        l = load.start { port = own, clients = 2, rate = 50, expect = '^ok$' }
        write 'PORT'
        p:signal 'sighup'
        p:await_log 'still could not bind()'
        compare(counts, l:stop())
        p:stop()
    end)

    it('whose socket a server closes gets another worker, and who waits is served', function()
        if not has 'puma' then
            return pending 'puma is not installed'
        end
        local port, own = http.free_port(), http.free_port()
        local m = master.start {
            script = ([[local dutch = require 'dutch-master'
                dutch.start { worker = dutch.puma { args = { '-C', 'puma.rb' } }, numWorkers = 1,
                    listen = '127.0.0.1:%d', stallTimeout = 0.5 }]]):format(port),
            files = { ['config.ru'] = RACK, ['puma.rb'] = ("pidfile 'server.pid'\nport %d\n"):format(own) },
        }
        m:await('Cluster ready', { timeout = 20000 })
        local pid = m:await('Worker listening').workerPid
        uv.kill(pid, 'sigusr2') -- its own restart, which knows nothing of the socket
        m:wait_until(function()
            return (http.get { port = own, path = '/' }) == 200
        end, 'puma at its own port', { timeout = 20000 })
        local l = load.start { port = port, clients = 3, timeout = 30000, expect = '^ok$' }
        local let_go = m:await({ msg = 'Worker has closed the socket that it was given, it is replaced' },
            { timeout = 20000 })
        assert.equal(1, let_go.workerId)
        l:await(3)
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text .. m:dump())
        m:await('Worker exited', { timeout = 20000 })
        m:finish()

        local dir, at = master.temp_dir(), http.free_port()
        local file = assert(io.open(dir .. '/config.ru', 'w'))
        file:write(RACK)
        file:close()
        local p = peer.start { 'puma', '--bind', 'tcp://127.0.0.1:' .. at, 'config.ru', dir = dir, at = at }
        p:await_log 'Use Ctrl-C to stop'
        p:signal 'sigusr2' -- with a socket that it has opened itself
        l = load.start { port = at, clients = 3, timeout = 30000, expect = '^ok$' }
        p:await_log('Use Ctrl-C to stop', 2)
        l:await(3)
        compare(counts, l:stop())
        p:stop()
    end)
end)
