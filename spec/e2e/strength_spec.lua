-- What cannot hurt the master itself: a program file that is replaced, signals before it listens, clients that stay.
-- One spec for each line of SECURITY.md that needs the real binary; the others are in spec/core.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local SCRIPT = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 1, %s }]]

local pipes = {}

local function start(more, options)
    options = options or {}
    options.script = SCRIPT:format(more or '')
    options.files = { ['app.lua'] = apps.idle }
    local m = master.start(options)
    m:await 'Cluster ready'
    return m
end

local function socket_of(m)
    local path = io.popen('ls ' .. m.dir .. '/run/*.sock'):read '*l'
    return path
end

--- A client that sends the text once it is connected: { received, ended }.
local function ask(path, text)
    local client = { received = '', pipe = uv.new_pipe(false) }
    pipes[#pipes + 1] = client.pipe
    client.pipe:connect(path, function(err)
        client.err = err
        if not err then
            client.pipe:write(text)
            client.pipe:read_start(function(_, data)
                client.ended = not data
                client.received = client.received .. (data or '')
            end)
        end
    end)
    return client
end

local function hang_up()
    for _, pipe in ipairs(pipes) do
        if not pipe:is_closing() then
            pipe:close()
        end
    end
    pipes = {}
    uv.run 'nowait'
end

describe('the master', function()
    after_each(function()
        hang_up()
        master.cleanup()
    end)

    it('answers behind a request that JSON cannot write back', function()
        local m = start()
        local path = socket_of(m)
        local bad = ask(path, ('{"v":1,"id":1,"verb":"ping"}\n'):rep(6) .. '{"v":1,"id":1e999,"verb":"pong"}\n')
        wait.wait_until(function() return select(2, bad.received:gsub('\n', '')) == 7 end, { what = '7 answers' })
        assert.matches('number that JSON can write back', bad.received, 1, true)
        local good = ask(path, '{"v":1,"id":2,"verb":"ping"}\n')
        wait.wait_until(function() return good.received ~= '' end, { what = 'an answer' })
        assert.is_true(cjson.decode(good.received).ok)
        hang_up()
        m:finish()
    end)

    it('does not send a waiting deploy away for 80 clients that stay', function()
        local m = start 'restartSoak = 2,'
        local path = socket_of(m)
        local deploy = cli.start(m, { 'restart', '--wait' })
        m:await 'Restart requested'
        local clients = {}
        for i = 1, 80 do
            clients[i] = ask(path, '{"v":1,"id":1,"verb":"ping"}\n')
            wait.wait_until(function() return clients[i].received ~= '' or clients[i].err end, { what = 'an answer' })
        end
        hang_up()
        assert.equal(0, deploy:wait().code, deploy.err)
        m:finish()
    end)

    it('answers while it is flooded with signals, and has done what they ask for', function()
        local m = start()
        local path = socket_of(m)
        local pings = 0
        for round = 1, 20 do
            for _ = 1, 150 do
                for _, name in ipairs { 'sighup', 'sigusr2', 'sigchld' } do
                    assert(uv.kill(m.pid, name))
                end
            end
            local ping = ask(path, '{"v":1,"id":1,"verb":"ping"}\n')
            wait.wait_until(function() return ping.received ~= '' end, { what = 'an answer in round ' .. round })
            pings = pings + 1
        end
        hang_up()
        assert.equal(20, pings)
        local mark, before = m:mark(), m:workers()[1]
        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        m:await({ msg = 'Restart complete' }, { after = mark })
        m:await { msg = 'Worker exited', workerPid = before }
        assert.is_true(#m:records 'Restart requested' < 3000)
        m:finish()
    end)

    it('has no descriptor left, and is there again when it has some', function()
        local m = start('restartAttempts = 2,', { wrap = { 'sh', '-c', 'ulimit -n 44; exec "$0" "$@"' } })
        local path = socket_of(m)
        local clients = {}
        for i = 1, 40 do
            clients[i] = ask(path, '{"v":1,"id":1,"verb":"ping"}\n')
            wait.wait_until(function() return clients[i].received ~= '' or clients[i].err or clients[i].ended end,
                { what = 'an answer, or none' })
        end
        m:signal 'SIGTTIN' -- one more worker
        m:signal 'SIGHUP'
        m:await(function(record) return tostring(record.reason or record.msg):match 'EMFILE' end, { timeout = 20000 })
        hang_up()
        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        assert.is_nil(m.ended)
        m:finish()
    end)

    it('makes its files again when its directory is emptied, and stays the only master of its script', function()
        local pid_file = master.temp_dir() .. '/pid'
        local m = start(("pidFile = '%s',"):format(pid_file))
        local path = socket_of(m)
        for _, remove in ipairs { 'rm -f %s/run/*', 'rm -rf %s/run' } do
            assert(os.execute(remove:format(m.dir)) == 0)
            os.remove(pid_file)
            local second = cli.start(m, { m.script }):wait() -- it leaves nothing of its own there
            assert.equal(1, second.code, second.err)
            assert.matches('is running already: held by process ' .. m.pid, second.err, 1, true)
            wait.wait_until(function()
                return uv.fs_stat(path) and uv.fs_stat((path:gsub('sock$', 'lock'))) and uv.fs_stat(pid_file)
            end, { what = 'its files' })
            assert.equal(0, cli.run(m, { 'status' }).code)
            assert.equal(tostring(m.pid), io.open(pid_file):read '*l')
        end
        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        m:finish()
    end)

    it('runs its own image when the file of its program is replaced or gone', function()
        local dir = master.temp_dir()
        local binary = dir .. '/dutch-master'
        assert(os.execute(('cp %s %s'):format(master.binary(), binary)) == 0)
        local m = start(nil, { binary = binary })
        for _, replace in ipairs { 'cp /bin/false %s.new && mv %s.new %s', 'rm %s' } do
            assert(os.execute((replace:gsub('%%s', binary))) == 0)
            local mark, pid = m:mark(), m:workers()[1]
            assert(uv.kill(pid, 'sigkill'))
            local now = m:await({ msg = 'Worker listening' }, { after = mark }).workerPid
            assert.equal('dutch-master', io.open(('/proc/%d/comm'):format(now)):read '*l')
            assert.equal(uv.fs_readlink(('/proc/%d/exe'):format(m.pid)), uv.fs_readlink(('/proc/%d/exe'):format(now)))
        end
        m:finish()
    end)

    it('is not ended by a signal that asks a master for something, from its first moments on', function()
        for i, name in ipairs { 'sighup', 'sigusr1', 'sigusr2', 'sigttin', 'sighup', 'sigusr2' } do
            local m = master.start { script = SCRIPT:format '', files = { ['app.lua'] = apps.idle } }
            -- As soon as the program has begun: its signal mask says so.
            wait.wait_until(function()
                local status = io.open(('/proc/%d/status'):format(m.pid))
                local mask = status and status:read('*a'):match 'SigBlk:%s*(%x+)'
                local low = mask and tonumber(mask:sub(-4), 16)
                local comm = io.open(('/proc/%d/comm'):format(m.pid)):read '*l'
                return (comm == 'dutch-master' or comm == 'dutch-keeper') and low and low % 2 == 1
            end, { what = 'its first instruction' })
            assert(uv.kill(m.pid, name))
            m:await 'Cluster ready'
            assert.is_nil(m.ended, i)
            m:finish()
        end
    end)
end)
