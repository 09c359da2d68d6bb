-- Under a service manager: what it is told over NOTIFY_SOCKET, and the sockets it passes.

local bit = require 'bit'
local cjson = require 'cjson'
local ffi = require 'ffi'
local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local files = require 'spec.support.files'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local master = require 'spec.support.master'
local net = require 'spec.support.net'
local wait = require 'spec.support.wait'

ffi.cdef 'long recv(int, void *, size_t, int);'
local MSG_DONTWAIT = 0x40

local Manager = {}
Manager.__index = Manager

--- A datagram socket like the one of systemd: { fields of each datagram, in order }. `path` may be '@name', an abstract
--- one.
local function manager(path)
    path = path or master.temp_dir() .. '/notify'
    local fd = ffi.C.socket(1, bit.bor(net.DGRAM, 0x80000), 0)
    local name, size = net.sockaddr(path)
    assert(ffi.C.bind(fd, name, size) == 0)
    return setmetatable({ fd = fd, path = path, datagrams = {} }, Manager)
end

local buffer = ffi.new 'char[8192]'

function Manager:read()
    while true do
        local n = tonumber(ffi.C.recv(self.fd, buffer, 8192, MSG_DONTWAIT))
        if n < 0 then
            return self.datagrams
        end
        local text = ffi.string(buffer, n)
        assert(n > 0 and n < 4096, 'a datagram that systemd ignores: ' .. n)
        local fields = {}
        for line in (text .. '\n'):gmatch '([^\n]*)\n' do
            local key, value = line:match '^([A-Z_]+)=(.+)$'
            assert(key, 'no assignment: ' .. text)
            assert(fields[key] == nil, 'twice: ' .. text)
            fields[key] = value
        end
        table.insert(self.datagrams, fields)
    end
end

--- Waits for a datagram with this field (and value), the first after `from`; returns its place and its fields.
function Manager:await(key, value, from)
    local place
    wait.wait_until(function()
        for i = (from or 0) + 1, #self:read() do
            local found = self.datagrams[i][key]
            if found and (value == nil or found:find(value)) then
                place = i
                return true
            end
        end
    end, { what = ('%s=%s'):format(key, value or '') })
    return place, self.datagrams[place]
end

function Manager:count(key, from)
    local count = 0
    for i = (from or 0) + 1, #self:read() do
        count = count + (self.datagrams[i][key] and 1 or 0)
    end
    return count
end

function Manager:close()
    ffi.C.close(self.fd)
end

describe('under systemd', function()
    local systemd

    after_each(function()
        if systemd then
            systemd:close()
            systemd = nil
        end
        master.cleanup()
    end)

    local function start(options)
        options.env = options.env or {}
        systemd = manager(options.notify_socket)
        options.env.NOTIFY_SOCKET = systemd.path
        return master.start(options)
    end

    it('is ready when the workers are, reloads and stops, with a status for people', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua', restartSoak = 0.2, restartAttempts = 1 }",
            files = { ['app.lua'] = [[
                local worker = require 'dutch-master.worker'
                local timer = require('luv').new_timer()
                timer:start(200, 0, function() worker.ready() timer:close() end)
            ]] },
        }
        local booting = systemd:await('STATUS', '^starting, 0 of 2 workers ready')
        local ready, fields = systemd:await 'READY'
        assert.is_true(ready > booting)
        assert.equal('2 of 2 workers serving, generation 1', fields.STATUS)
        m:await 'Cluster ready'

        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        local reloading, reload = systemd:await('RELOADING', '1', ready)
        assert.matches('^%d+$', reload.MONOTONIC_USEC)
        assert.is_nil(reload.READY)
        local again = systemd:await('READY', '1', reloading)
        assert.truthy(systemd:await('STATUS', 'restarting, [01] of 2 replaced', ready) < again)

        m:rewrite('app.lua', 'os.exit(3)')
        assert.equal(10, cli.run(m, { 'restart', '--wait' }).code)
        local failed = systemd:await('RELOADING', '1', again)
        systemd:await('READY', '1', failed)
        systemd:await('STATUS', 'the last restart was aborted', failed)

        m:signal 'SIGTERM'
        local stopping = systemd:await('STOPPING', '1', failed)
        m:exit()
        systemd:read()
        assert.same({ 0, 0 }, { systemd:count('READY', stopping), systemd:count('RELOADING', stopping) })
        m:finish()
    end)

    it('is told the same at an abstract socket', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua' }", files = { ['app.lua'] = apps.idle },
            notify_socket = '@dutch-master-spec-' .. uv.os_getpid(),
        }
        local ready = systemd:await('READY', '1')
        m:signal 'SIGTERM'
        systemd:await('STOPPING', '1', ready)
        m:exit()
        m:finish()
    end)

    it('says when a reload began, by the clock of libsystemd', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua', restartSoak = 0 }",
            files = { ['app.lua'] = apps.idle },
        }
        m:await 'Cluster ready'
        -- systemd waits for a RELOADING that is not older than its own SIGHUP.
        local before = uv.hrtime() / 1000
        m:signal 'SIGHUP'
        local _, reload = systemd:await('RELOADING', '1')
        local usec = tonumber(reload.MONOTONIC_USEC)
        assert.is_true(before <= usec and usec <= uv.hrtime() / 1000 + 1000, ('%d %d'):format(before, usec))
        systemd:await('READY', '1', (systemd:await 'RELOADING'))
        m:finish()
    end)

    it('is told everything, and in order, however late it listens', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua', restartSoak = 0 }",
            files = { ['app.lua'] = apps.idle },
        }
        m:await 'Cluster ready'
        -- More than its queue can hold.
        for _ = 1, 6 do
            assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        end
        local place = 0
        for _ = 1, 6 do
            place = systemd:await('READY', '1', (systemd:await('RELOADING', '1', place)))
        end
        assert.matches('generation 7$', systemd.datagrams[(systemd:await('STATUS', '^2 of 2', place - 2))].STATUS)
        assert.same({ 6, 7 }, { systemd:count 'RELOADING', systemd:count 'READY' })
        m:finish()
    end)

    it('that does not listen holds nobody up, and hears the last of it when it does', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua', restartSoak = 0 }",
            files = { ['app.lua'] = apps.idle }, keeper = true, env = { WATCHDOG_USEC = '2000' }, -- its queue is full soon
        }
        m:await 'Cluster ready'
        for _ = 1, 5 do
            assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        end
        m:await('Worker exited', { count = 10 })
        local status = cjson.decode(cli.run(m, { 'status', '--json', m.script }).out)
        assert.is_true(status.held.longest < wait.scale, status.held.longest .. ' s')
        m:signal 'SIGTERM'
        m:await { msg = 'Worker exited', workerId = 12 }
        systemd:await('STOPPING', '1')
        m:exit()
        m:finish()
    end)

    it('that is not there is complained of once, and missed by nobody', function()
        for _, keeper in ipairs { true, false } do
            local m = master.start {
                script = "require('dutch-master').start { worker = 'app.lua', restartSoak = 0 }", keeper = keeper,
                files = { ['app.lua'] = apps.idle }, env = { NOTIFY_SOCKET = '/nowhere/notify', WATCHDOG_USEC = '100000' },
            }
            m:await 'Cluster ready'
            assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
            assert.equal(keeper and 0 or 1, #m:records 'The service manager could not be notified')
            assert.equal(keeper and 1 or 0, select(2, m.stderr:gsub('the service manager could not be notified', '')))
            m:finish()
        end
    end)

    it('never claims to be ready without workers', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua', backoff = { first = 0.05, max = 0.1 }, "
                .. 'restartAttempts = 1000 }',
            files = { ['app.lua'] = 'os.exit(1)' },
        }
        m:await('Worker exited', { count = 6 })
        m:finish()
        assert.equal(0, systemd:count 'READY')
        assert.equal(1, systemd:count 'STOPPING')
    end)

    it('is asked for more time only as long as the workers keep within their own limits', function()
        local m = start {
            script = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 1, readyTimeout = 0.1,
                restartAttempts = 1, restartSoak = 0, stopTimeout = 0.2, backoff = { first = 1, max = 1 },
                beforeFork = function() return false, 'not yet' end }]],
            files = { ['app.lua'] = apps.idle },
        }
        systemd:await('EXTEND_TIMEOUT_USEC', '^15000000$')
        -- It is asked again every 5 s, and by then there was no step within the limits above.
        m:await('Fork abandoned: beforeFork said no: not yet', { count = 8 })
        systemd:read()
        assert.same({ 1, 0 }, { systemd:count 'EXTEND_TIMEOUT_USEC', systemd:count 'READY' })
        m:finish()
    end)

    it('pings the watchdog from its loop', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua' }",
            files = { ['app.lua'] = apps.idle },
            env = { WATCHDOG_USEC = '200000' },
        }
        m:await 'Cluster ready'
        local first = systemd:await 'WATCHDOG'
        systemd:await('WATCHDOG', '1', systemd:await('WATCHDOG', '1', first))
        m:finish()
    end)

    it('is pinged by a master as soon as it takes over, whenever the former one had done it last', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua' }", files = { ['app.lua'] = apps.idle },
            keeper = true, env = { WATCHDOG_USEC = '600000000' },
        }
        m:await 'Cluster ready'
        local before = systemd:await 'READY'
        for _, how in ipairs { 'a death', 'an upgrade' } do
            if how == 'a death' then
                kept.kill(m)
            else
                assert.equal(0, cli.run(m, { 'upgrade', m.script }).code)
            end
            local ready = systemd:await('READY', '1', before)
            assert.equal(1, systemd:count('WATCHDOG', before) - systemd:count('WATCHDOG', ready), how)
            before = ready
        end
        m:finish()
    end)

    it('is not kept waiting by the pauses between masters', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua' }", files = { ['app.lua'] = apps.idle },
            keeper = true, env = { WATCHDOG_USEC = '500000' },
        }
        m:await 'Cluster ready'
        for _ = 1, 6 do
            kept.kill(m)
            systemd:read()
        end
        local longest = 0
        for ms in m.stderr:gmatch 'another one goes on in (%d+) ms' do
            longest = math.max(longest, tonumber(ms))
        end
        assert.is_true(longest > 150 and longest <= 250, m.stderr)
        m:finish()
    end)

    it('hears of one restart, and of its end, whichever master comes to it', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua', restartSoak = 1 }",
            files = { ['app.lua'] = apps.idle }, keeper = true,
        }
        m:await 'Cluster ready'
        local ready = systemd:await('READY', '1')
        local reload = cli.start(m, { 'restart', '--wait' })
        local reloading = systemd:await('RELOADING', '1', ready)
        kept.kill(m)
        assert.equal(0, reload:wait().code)
        local again = systemd:await('READY', '1', reloading)
        m:signal 'SIGTERM'
        local stopping = systemd:await('STOPPING', '1', again)
        m:exit()
        systemd:read()
        assert.same({ 0, 0 }, { systemd:count('READY', stopping), systemd:count('RELOADING', stopping) })
        m:finish()
    end)

    it('asks for time while workers take theirs to leave', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua', stopTimeout = 1, killTimeout = 0.2 }",
            files = { ['app.lua'] = apps.stubborn },
        }
        m:await 'Cluster ready'
        local ready = systemd:await 'READY'
        m:signal 'SIGTERM'
        local _, fields = systemd:await('EXTEND_TIMEOUT_USEC', nil, ready)
        assert.equal(15000000, tonumber(fields.EXTEND_TIMEOUT_USEC))
        m:exit()
        m:finish { code = 1 }
    end)

    it('keeps what is for the master alone from the workers', function()
        local m = start {
            script = "require('dutch-master').start { worker = 'app.lua', numWorkers = 1 }",
            files = { ['app.lua'] = [[
                local found = {}
                for _, name in ipairs { 'NOTIFY_SOCKET', 'WATCHDOG_USEC', 'LISTEN_FDS', 'LISTEN_PID' } do
                    found[#found + 1] = os.getenv(name) and name
                end
                print('for the master: ' .. table.concat(found, ' ') .. '.')
                require('dutch-master.worker').ready()
            ]] },
            env = { WATCHDOG_USEC = '60000000' },
        }
        m:await_output '^for the master: %.$'
        m:finish()
    end)

    it('takes over the socket that is passed for its address', function()
        local port = http.free_port()
        -- What systemd does: binds, and execs with the socket as descriptor 3.
        local activate = [[
            $^F = 100;
            my $socket = IO::Socket::INET->new(Listen => 64, LocalAddr => shift @ARGV, ReuseAddr => 1) or die $!;
            POSIX::dup2(fileno($socket), 3) if fileno($socket) != 3;
            @ENV{qw(LISTEN_PID LISTEN_FDS LISTEN_FDNAMES)} = ($$, 1, 'web');
            exec @ARGV;
        ]]
        local m = start {
            script = ([[require('dutch-master').start { worker = 'app.lua',
                workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]):format(port),
            files = { ['app.lua'] = apps.http },
            wrap = { 'perl', '-MIO::Socket::INET', '-MPOSIX', '-e', activate, '127.0.0.1:' .. port },
        }
        m:await 'Cluster ready'
        assert.equal(200, (http.get { port = port }))
        -- One socket, the one passed: no second one was bound beside it.
        local inode = io.popen(('readlink /proc/%d/fd/3'):format(m.pid)):read '*l':match '%d+'
        local count = 0
        local hex = (':%04X'):format(port)
        for line in io.lines '/proc/net/tcp' do
            local address, state, found = line:match '^%s*%d+: (%S+) %S+ (%S+) %S+ %S+ %S+%s+%d+%s+%d+ (%d+)'
            if address and address:sub(-5) == hex and state == '0A' then
                count = count + 1
                assert.equal(inode, found)
            end
        end
        assert.equal(1, count)
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(0, c.code, c.out .. c.err)
        assert.equal(200, (http.get { port = port }))
        assert.equal(0, #m:records 'Listening socket repaired') -- its backlog is its giver's: no quarrel about it
        m:finish()
    end)

    it('has an example unit that systemd accepts', function()
        if os.execute 'command -v systemd-analyze >/dev/null' ~= 0 then
            return pending 'systemd-analyze is not installed'
        end
        local dir = master.temp_dir()
        local text = files.text 'examples/systemd/dutch-master@.service.in'
            :gsub('@DM_PROGRAM@', master.binary()):gsub('Documentation=[^\n]*\n', '')
        os.execute(("cp 'examples/systemd/dutch-master@.socket' %s"):format(dir))
        local function complaints(unit)
            files.write(dir .. '/dutch-master@.service', unit)
            local pipe = io.popen(('cd %s && systemd-analyze verify ./* 2>&1'):format(dir))
            local said = pipe:read '*a'
            pipe:close()
            return said:match '[^\n]*dutch%-master[^\n]*'
        end
        assert.is_nil(complaints(text))
        assert.matches('StopMode', complaints(text:gsub('KillMode', 'StopMode'))) -- such as it would be
        assert.matches('KillMode=mixed', text)
        assert.matches('OOMPolicy=continue', text)
        assert.matches('ExecReload=[^\n]* restart %-%-wait', text)
    end)
end)
