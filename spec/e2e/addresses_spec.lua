-- Addresses that cannot be had: refused with the address and the reason, with nothing half bound left behind.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local NOBODY = { 'setpriv', '--reuid=65534', '--regid=65534', '--clear-groups' }

-- A process of another user that holds a port, in a SO_REUSEPORT group.
local HOLDER = [[
local net = require 'spec.support.net'
local fd = assert(net.bind('127.0.0.1', tonumber(arg[1]), true))
io.write 'bound\n'
io.flush()
io.read '*a'
net.C.close(fd)
]]

local holder

-- Until stop() it holds the port.
local function hold(port, wrap)
    local path = master.temp_dir() .. '/holder.lua'
    local file = assert(io.open(path, 'w'))
    file:write(HOLDER)
    file:close()
    uv.fs_chmod(path:match '^(.*)/', tonumber('755', 8))
    local words = { unpack(wrap or {}) }
    for _, word in ipairs { 'luajit', path, tostring(port) } do
        words[#words + 1] = word
    end
    holder = { stdin = uv.new_pipe(false), stdout = uv.new_pipe(false) }
    local env = { 'LUA_PATH=' .. uv.cwd() .. '/?.lua', 'PATH=' .. os.getenv 'PATH' }
    holder.process = assert(uv.spawn(table.remove(words, 1), {
        args = words, env = env, stdio = { holder.stdin, holder.stdout, 2 },
    }, function()
        holder.ended = true
        holder.process:close()
    end))
    holder.stdout:read_start(function(_, data)
        holder.bound = holder.bound or data
    end)
    wait.wait_until(function() return holder.bound or holder.ended end, { what = 'the holder of the port' })
    assert(holder.bound, 'the port could not be held')
end

local function let_go()
    if holder then
        holder.stdin:close()
        wait.wait_until(function() return holder.ended end, { what = 'the end of the holder' })
        holder.stdout:close()
        uv.run 'nowait'
        holder = nil
    end
end

local function bindable(port)
    local handle = uv.new_tcp()
    local ok = handle:bind('127.0.0.1', port) and handle:listen(1, function() end)
    handle:close()
    uv.run 'nowait'
    return ok ~= nil and ok ~= false
end

-- Starts, waits for the end, and gives what was said on stderr.
local function refused(options, code)
    local m = master.start(options)
    m:exit()
    master.wait_until(function() return m.err_ended and m.out_ended end)
    local said, log = m.stderr, m.log
    m:finish { code = code }
    return said, log
end

local function plan(fields)
    local text = "require('dutch-master').start { worker = { 'sleep', '1000' }, ready = { alive = 0.1 }, %s }"
    return { script = text:format(fields) }
end

describe('addresses', function()
    after_each(function()
        let_go()
        master.cleanup()
    end)

    local function in_use(wrap)
        local free, taken = http.free_port(), http.free_port()
        local path = master.temp_dir() .. '/app.sock'
        hold(taken, wrap)
        for _, balance in ipairs { 'steered', 'sticky', 'shared' } do
            local said = refused(plan(("listen = { '127.0.0.1:%d', 'unix:%s', '127.0.0.1:%d' }, balance = '%s'")
                :format(free, path, taken, balance)), 71)
            assert.matches('EADDRINUSE: address already in use: 127.0.0.1:' .. taken, said, 1, true)
            assert.is_true(bindable(free))
            assert.is_nil(uv.fs_stat(path))
            -- The other's socket is as it was.
            assert.is_false(bindable(taken))
        end
    end

    it('in use by another process, which would have shared its port', function()
        in_use()
    end)

    it('in use by another user, who would have shared it', function()
        if uv.getuid() ~= 0 then
            pending 'this run cannot become another user'
            return
        end
        if os.execute(table.concat(NOBODY, ' ') .. ' test -r spec/support/net.lua') ~= 0 then
            pending 'the tree cannot be read by another user'
            return
        end
        in_use(NOBODY)
    end)

    it('that make no sense are the script\'s fault: told with their place in it', function()
        for _, case in ipairs {
            { "listen = '127.0.0.1'", '127.0.0.1' },
            { "listen = '127.0.0.1:70000'", '127.0.0.1:70000' },
            { "listen = '[127.0.0.1]:80'", '[127.0.0.1]:80' },
            { "listen = '::1:80'", '::1:80' },
            { "listen = 'example.org:80'", 'example.org:80' },
            { "listen = 'unix:relative.sock'", 'unix:relative.sock' },
            { "listen = 'unix:/" .. ('x'):rep(107) .. "'", '107 bytes' },
            { "balance = 'steerd'", 'steered' },
            { "balance = 1", 'balance' },
            { 'backlog = 0', 'backlog' },
            { 'stallTimeout = -1', 'stallTimeout' },
            { 'restartConcurrency = { canary = { weight = -0.1 } }', 'weight' },
            { 'restartConcurrency = { canary = { weight = 0/0 } }', 'weight' },
        } do
            local said = refused(plan(case[1]), 78)
            assert.matches('master%.lua:1: %w+', said, case[1])
            assert.matches(case[2], said, 1, true)
        end
    end)

    it('listed twice, in one family or across both, are refused', function()
        local port = http.free_port()
        for list, code in pairs {
            ["'127.0.0.1:PORT', '127.0.0.1:PORT'"] = 78, ["':PORT', '127.0.0.1:PORT'"] = 71,
            ["'127.0.0.1:PORT', ':PORT'"] = 71, ["'[::]:PORT', ':PORT'"] = 71,
        } do
            local said = refused(plan(('listen = { %s }'):format(list:gsub('PORT', port))), code)
            assert.matches(code == 78 and 'is there twice: leave one out' or 'EADDRINUSE', said)
            assert.matches(':' .. port, said, 1, true)
            assert.is_true(bindable(port))
        end
    end)

    it('with any port are a port each, which stays in a reload', function()
        local script = [[require('dutch-master').start { worker = { 'python3', 'ports.py' }, ready = { alive = 0.1 },
            numWorkers = 1, restartSoak = 0, listen = { %s } }]]
        local m = master.start { script = script:format "web = '127.0.0.1:0', admin = '127.0.0.1:0'",
            files = { ['ports.py'] = [[
import os, signal, socket
names = os.environ['LISTEN_FDNAMES'].split(':')
ports = ['%s=%d' % (name, socket.socket(fileno=3 + i).getsockname()[1]) for i, name in enumerate(names)]
print('ports', os.environ['DUTCH_MASTER_WORKER'], *ports, flush=True)
signal.pause()
]] } }
        m:await 'Cluster ready'
        local function ports()
            local by_name = {}
            local worker = #m:records 'Creating new worker'
            for name, port in m:await_output('^ports ' .. worker .. ' (.*)'):gmatch '(%w+)=(%d+)' do
                by_name[name] = port
            end
            return by_name
        end
        local first = ports()
        assert.not_equal(first.web, first.admin)
        m:rewrite('master.lua', script:format "web = '127.0.0.1:0', zoo = '127.0.0.1:0', admin = '127.0.0.1:0'")
        assert.equal(0, cli.run(m, { 'reload' }).code)
        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        local second = ports()
        assert.same({ first.web, first.admin }, { second.web, second.admin })
        assert.is_true(second.zoo ~= nil and second.zoo ~= first.web and second.zoo ~= first.admin)
        m:rewrite('master.lua', script:format "web = '127.0.0.1:0'")
        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        assert.same({ web = first.web }, ports())
        m:wait_until(function() return bindable(tonumber(second.admin)) end, 'the end of what is not listed')
        m:finish()
    end)

    it('that only the kernel can judge are the script\'s fault too', function()
        local said = refused(plan "listen = '[1:2]:80'", 78)
        assert.matches('listen: [1:2]:80: not an IPv4 or IPv6 address', said, 1, true)
    end)

    it('of both families side by side are served, each by its own', function()
        local port = http.free_port()
        local m = master.start(plan(("listen = { '0.0.0.0:%d', '[::]:%d' }"):format(port, port)))
        m:await 'Cluster ready'
        m:finish()
    end)

    it('that are not ours, or may not be had, are told so', function()
        local said = refused(plan "listen = '192.0.2.1:80'", 71)
        assert.matches('EADDRNOTAVAIL', said)
        assert.matches('192.0.2.1:80', said, 1, true)
        said = refused(plan "listen = 'unix:/nowhere/at/all.sock'", 71)
        assert.matches('ENOENT', said)
        assert.matches('unix:/nowhere/at/all.sock', said, 1, true)
    end)

    local TOO_MANY = "E2BIG: 127.0.0.1:%d: 513 workers, and at most 512 can have a lane each: "
        .. "fewer workers, or balance = 'shared'"

    it('with more workers than lanes are refused before anything is bound or forked', function()
        local port, free = http.free_port(), http.free_port()
        local path = master.temp_dir() .. '/app.sock'
        for _, balance in ipairs { 'steered', 'sticky' } do
            local said, log = refused(plan(("listen = { 'unix:%s', '127.0.0.1:%d', '127.0.0.1:%d' }, numWorkers = 513,"
                .. "balance = '%s'"):format(path, port, free, balance)), 71)
            assert.equal('dutch-master: listen: ' .. TOO_MANY:format(port) .. '\n', said)
            assert.same({}, log)
            assert.is_true(bindable(port) and bindable(free))
            assert.is_nil(uv.fs_stat(path))
        end
    end)

    it('that all workers share may have more of them, and so may a master without addresses', function()
        for _, fields in ipairs {
            ("listen = '127.0.0.1:%d', balance = 'shared'"):format(http.free_port()),
            ("listen = 'udp:127.0.0.1:%d'"):format(http.free_port()),
            'args = {}',
        } do
            local m = master.start(plan(fields .. ', numWorkers = 513'))
            m:await 'Starting cluster'
            m:finish() -- told to stop before all workers were forked
        end
    end)

    it('cannot be given more workers than lanes later: all serves on', function()
        local port = http.free_port()
        local script = [[require('dutch-master').start { worker = 'app.lua', numWorkers = %d,
            workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]
        local m = master.start { script = script:format(2, port), files = { ['app.lua'] = apps.http } }
        local too_many = TOO_MANY:format(port)
        m:await 'Cluster ready'
        local l = load.start { port = port, clients = 4, rate = 200 }
        local scaled = cli.run(m, { 'scale', '513' })
        assert.equal(1, scaled.code)
        assert.matches(too_many, scaled.err, 1, true)
        m:rewrite('master.lua', script:format(513, port))
        local reloaded = cli.run(m, { 'reload' })
        assert.not_equal(0, reloaded.code)
        assert.matches(too_many, reloaded.err, 1, true)
        m:signal 'SIGUSR2'
        assert.equal(too_many, m:await('Restart aborted, the old workers stay').reason)
        l:await(l.counts.total + 50)
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.equal(2, #m:records 'Creating new worker')
        m:finish()
    end)

    describe('asked for by a worker', function()
        local function start(where, more, app)
            return { script = ([[require('dutch-master').start { worker = 'app.lua', %s
                workerEnvironment = { LISTEN = '%s' } }]]):format(more or '', where),
                files = { ['app.lua'] = app or apps.http } }
        end

        it('and not to be had end the boot with a message that names them', function()
            local port = http.free_port()
            hold(port)
            for where, code in pairs { ['127.0.0.1:' .. port] = 'EADDRINUSE', ['192.0.2.1:80'] = 'EADDRNOTAVAIL' } do
                local reason = '^' .. code .. ': .*: ' .. where:gsub('%p', '%%%0')
                local _, log = refused(start(where), 71)
                local fatal
                for _, record in ipairs(log) do
                    fatal = record.level == 60 and record or fatal
                end
                assert.matches(reason, fatal.msg)
            end
            -- An app that does not look at what http.serve returns is not left alone with it.
            local said = refused(start('127.0.0.1:' .. port, nil,
                "require('dutch-master.http').serve(os.getenv 'LISTEN', function() end)"), 71)
            assert.matches(('http%%.serve: .*127%%.0%%.0%%.1:%d'):format(port), said)
        end)

        it('and not to be had later are an error of that worker alone', function()
            local port, other = http.free_port(), http.free_port()
            hold(other)
            local m = master.start {
                script = ([[
                    local dutch = require 'dutch-master'
                    dutch.start { worker = 'app.lua', restartAttempts = 1,
                        workerEnvironment = { LISTEN = '127.0.0.1:' .. require 'port' } }]]),
                files = { ['app.lua'] = apps.http, ['port.lua'] = 'return ' .. port },
            }
            m:await 'Cluster ready'
            m:rewrite('port.lua', 'return ' .. other)
            m:signal 'SIGUSR2'
            local failed = m:await 'Listening failed'
            assert.matches('EADDRINUSE: address already in use: 127.0.0.1:' .. other, failed.reason, 1, true)
            m:await 'Restart aborted, the old workers stay'
            assert.equal(200, (http.get { port = port }))
            m:finish()
        end)
    end)
end)
