-- The control socket of a real master: who may use it, and what no client can do to it.

local bit = require 'bit'
local uv = require 'luv'
local apps = require 'spec.support.apps'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local SCRIPT = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 1, %s }]]

local function start(more, options)
    options = options or {}
    options.script = SCRIPT:format(more or '')
    options.files = options.files or { ['app.lua'] = apps.idle }
    local m = master.start(options)
    m:await 'Cluster ready'
    return m
end

local function find(m, suffix)
    local scan = uv.fs_scandir(m.dir .. '/run')
    local name = uv.fs_scandir_next(scan)
    while name do
        if name:sub(-#suffix) == suffix then
            return m.dir .. '/run/' .. name
        end
        name = uv.fs_scandir_next(scan)
    end
end

local pipes = {}

--- A client that does only what the spec makes it do: { received, ended, write(text) }.
local function connect(path)
    local client = { received = '', pipe = uv.new_pipe(false) }
    pipes[#pipes + 1] = client.pipe
    client.pipe:connect(path, function(err)
        client.connected, client.err = not err, err
        if not err and not client.deaf then
            client.pipe:read_start(function(_, data)
                if data then
                    client.received = client.received .. data
                else
                    client.ended = true
                end
            end)
        end
    end)
    function client.write(text)
        client.pipe:write(text)
    end
    return client
end

local function lines(client)
    local list = {}
    for line in client.received:gmatch '([^\n]*)\n' do
        list[#list + 1] = cjson.decode(line)
    end
    return list
end

local function await(what, fn)
    return wait.wait_until(fn, { what = what })
end

local function close_pipes()
    for _, pipe in ipairs(pipes) do
        if not pipe:is_closing() then
            pipe:close()
        end
    end
    pipes = {}
    uv.run 'nowait'
end

local function descriptors(pid)
    local count, scan = 0, uv.fs_scandir(('/proc/%d/fd'):format(pid))
    while uv.fs_scandir_next(scan) do
        count = count + 1
    end
    return count
end

describe('the control socket', function()
    after_each(function()
        close_pipes()
        master.cleanup()
    end)

    it('is for its user alone, and leaves with the master', function()
        local m = start()
        local socket = find(m, '.sock')
        assert.equal(6 * 64, bit.band(uv.fs_stat(socket).mode, 511))
        assert.equal(7 * 64, bit.band(uv.fs_stat(m.dir .. '/run').mode, 511))
        m:finish()
    end)

    it('answers requests that come in pieces, and many in one', function()
        local m = start()
        local client = connect(find(m, '.sock'))
        await('a connection', function() return client.connected end)
        for byte in ('{"v":1,"id":7,"verb":"ping"}\n'):gmatch '.' do
            client.write(byte)
            uv.run 'nowait'
        end
        await('an answer', function() return lines(client)[1] end)
        assert.same({ v = 1, id = 7, ok = true }, lines(client)[1])
        client.write(('{"v":1,"id":8,"verb":"status"}\n'):rep(100))
        await('101 answers', function() return #lines(client) == 101 end)
        for _, answer in ipairs(lines(client)) do
            assert.is_true(answer.ok)
        end
        close_pipes()
        m:finish()
    end)

    it('refuses what is no request, and says so', function()
        local m = start()
        local cases = {
            { 'hello\n', 'EJSON' },
            { '[]\n', 'EVERSION' },
            { '{"v":2,"verb":"status"}\n', 'EVERSION' },
            { '{"v":1,"verb":"format"}\n', 'ENOVERB' },
            { ('['):rep(30000) .. '\n', 'EJSON' },
            { '{"v":1,"verb":"scale","workers":1e6}\n', 'EINVAL' },
            { '\0\0\255\n', 'EJSON' },
        }
        for _, case in ipairs(cases) do
            local client = connect(find(m, '.sock'))
            await('a connection', function() return client.connected end)
            client.write(case[1])
            await('an answer to ' .. case[1]:sub(1, 30), function() return lines(client)[1] end)
            assert.equal(case[2], lines(client)[1].error.code)
        end
        -- A line without an end: cut off at its limit.
        local client = connect(find(m, '.sock'))
        await('a connection', function() return client.connected end)
        client.write(('x'):rep(100000))
        await('the end', function() return client.ended end)
        assert.equal(0, cli.run(m, { 'status' }).code)
        close_pipes()
        m:finish()
    end)

    it('lets an administrator in among a thousand silent clients', function()
        local m = start()
        local socket = find(m, '.sock')
        local before = descriptors(m:process_pid())
        for _ = 1, 1000 do
            connect(socket)
        end
        uv.run 'nowait'
        local c = cli.run(m, { 'status' })
        assert.equal(0, c.code, c.err)
        assert.is_true(descriptors(m:process_pid()) - before <= 80)
        -- Supervision goes on meanwhile.
        local mark = m:mark()
        uv.kill(m:workers()[1], 'sigkill')
        m:await('Creating new worker', { after = mark })
        assert.equal(0, cli.run(m, { 'stop', '--wait' }).code)
        m:exit()
        close_pipes()
        m:finish()
    end)

    it('forgets a client that asks and does not read', function()
        local m = start()
        local socket = find(m, '.sock')
        local client = { pipe = uv.new_pipe(false) }
        pipes[1] = client.pipe
        client.pipe:connect(socket, function(err)
            assert(not err, err)
            client.pipe:write(('{"v":1,"verb":"events","last":1000}\n'):rep(200))
            client.pipe:write '{"v":1,"verb":"events","follow":true}\n'
        end)
        local before = descriptors(m:process_pid())
        await('the client to be dropped', function()
            -- Each status is an event of its own for the loop of the master.
            assert.equal(0, cli.run(m, { 'scale', '+1' }).code)
            assert.equal(0, cli.run(m, { 'scale', '-1' }).code)
            return descriptors(m:process_pid()) <= before + 3
        end)
        close_pipes()
        m:finish()
    end)

    it('refuses another user, by mode and by credentials', function()
        if uv.getuid() ~= 0 then
            return pending 'only root can be two users'
        end
        local m = start()
        local nobody = { uid = 65534, gid = 65534 }
        local c = cli.run(m, { 'status', m.script, '--socket', find(m, '.sock') }, nobody)
        assert.equal(77, c.code, c.out)
        assert.matches('belongs to user root', c.err)
        -- With a mode that lets everybody in, the credentials are still those of another user.
        assert(uv.fs_chmod(m.dir .. '/run', 511) and uv.fs_chmod(find(m, '.sock'), 511))
        for _, verb in ipairs { 'status', 'logs', 'events', 'restart' } do
            c = cli.run(m, { verb, m.script, '--socket', find(m, '.sock') }, nobody)
            assert.same({ 77, '' }, { c.code, c.out })
            assert.matches('^[^\n]* not permitted: only the user of the master and root may ask\n$', c.err)
        end
        assert(uv.fs_chmod(m.dir .. '/run', tonumber('700', 8)))
        m:finish()
    end)

    it('lets one master have a script', function()
        local m = start()
        local c = cli.run(m, { 'master.lua' })
        assert.equal(1, c.code)
        assert.matches('is running already', c.err)
        assert.matches(tostring(m.pid), c.err)
        assert.equal(0, cli.run(m, { 'status' }).code)
        m:finish()
    end)

    it('replaces a stale socket, and never a file of somebody else', function()
        local m = start()
        local socket = find(m, '.sock')
        m:kill()
        m:exit()
        m:wait_until(function() return #m:tree() == 0 end, 'the workers to leave')
        assert.truthy(uv.fs_stat(socket))
        local second = cli.start(m, { 'master.lua' })
        second:await_output 'Cluster ready'
        assert.equal(0, cli.run(m, { 'stop', '--wait' }).code)
        assert.equal(0, second:wait().code)

        m:rewrite('precious', 'text')
        m:rewrite('master.lua', SCRIPT:format(("controlSocket = '%s',"):format(m:path 'precious')))
        local c = cli.run(m, { 'master.lua' })
        assert.equal(71, c.code)
        assert.matches('precious', c.err)
        assert.equal('file', uv.fs_stat(m:path 'precious').type)
        m:finish { signal = 'SIGKILL' }
    end)

    it('of a master that was killed stands in nobody\'s way; workers that stayed are named, and replaced if asked', function()
        local port = http.free_port()
        local m = master.start {
            script = ([[require('dutch-master').start { worker = { 'sleep', '1000' }, numWorkers = 1,
                ready = { alive = 0.01 }, listen = '127.0.0.1:%d' }]]):format(port),
        }
        m:await 'Cluster ready'
        local worker = m:workers()[1]
        m:kill()
        m:wait_until(function() return #m:tree() == 1 end, 'the end of the master, not of the keeper alone')
        local c = cli.run(m, { 'master.lua' })
        assert.equal(71, c.code)
        local message = 'address already in use: 127.0.0.1:%d (held by process %d, sleep)'
        assert.truthy(c.err:find(message:format(port, worker), 1, true), c.err)
        local told = ('its workers still run: %s (pid %d). Start with --take-over'):format('sleep', worker)
        assert.truthy(c.err:find(told, 1, true), c.err)
        assert.same({ worker }, m:tree())
        local second = cli.start(m, { 'master.lua', '--take-over' })
        second:await_output 'serve on until those of this one are ready'
        second:await_output 'The workers of the former master have ended'
        assert.same({}, m:tree())
        assert.equal(0, cli.run(m, { 'stop', '--wait' }).code)
        second:wait()
        m:finish { signal = 'SIGKILL' }
    end)

    it('flooded by many clients leaves supervision as quick as it was', function()
        local m = start 'backoff = { first = 0.01, max = 0.02 },'
        local socket = find(m, '.sock')
        local request = ('{"v":1,"id":1,"verb":"status"}\n'):rep(100)
        local answers = 0
        for _ = 1, 20 do
            local pipe = uv.new_pipe(false)
            pipes[#pipes + 1] = pipe
            pipe:connect(socket, function(err)
                assert(not err, err)
                pipe:write(request)
                pipe:read_start(function(_, data)
                    -- For each answer another request: the queue of each client stays as full as it may be.
                    local _, count = (data or ''):gsub('\n', '')
                    answers = answers + count
                    if data and not pipe:is_closing() then
                        pipe:write(('{"v":1,"id":1,"verb":"status"}\n'):rep(count))
                    end
                end)
            end)
        end
        await('a flood', function() return answers > 1000 end)
        local slowest = 0
        for _ = 1, 5 do
            local worker = m:wait_until(function() return m:workers()[1] end, 'a worker')
            local mark, begun = m:mark(), uv.hrtime()
            uv.kill(worker, 'sigkill')
            m:await('Creating new worker', { after = mark })
            slowest = math.max(slowest, (uv.hrtime() - begun) / 1e6)
        end
        assert.is_true(slowest < 500 * wait.scale, ('%d ms from the crash to the next fork'):format(slowest))
        local c = cli.run(m, { 'status' })
        assert.equal(0, c.code, c.err)
        close_pipes()
        m:finish()
    end)

    it('is where the script wants it, and there too', function()
        local m = start("controlSocket = require('dutch-master').environ().PLACE .. '/mine.sock',", {
            env = { PLACE = '/tmp' },
        })
        finally(function() os.remove '/tmp/mine.sock' end)
        assert.equal('socket', uv.fs_stat('/tmp/mine.sock').type)
        assert.equal(0, cli.run(m, { 'status', '--socket', '/tmp/mine.sock' }).code)
        assert.equal(0, cli.run(m, { 'status' }).code)
        -- From a place whose runtime directory is another one, the script tells.
        local c = cli.run(m, { 'status' }, { env = { DUTCH_MASTER_RUNTIME_DIR = m.dir, PLACE = '/tmp' } })
        assert.equal(0, c.code, c.err)
        m:finish()
        assert.is_nil(uv.fs_stat '/tmp/mine.sock')
    end)

    it('plan says what a reload would do, and reload does it', function()
        local m = start()
        assert.equal('No changes\n', cli.run(m, { 'plan' }).out)
        m:rewrite('master.lua', (SCRIPT:format 'stopTimeout = 7,':gsub('numWorkers = 1', 'numWorkers = 2')))
        local plan = cli.run(m, { 'plan' })
        assert.equal(0, plan.code, plan.err)
        assert.matches('numWorkers%s+1%s+2', plan.out)
        assert.matches('stopTimeout', plan.out)
        assert.equal(1, cjson.decode(cli.run(m, { 'status', '--json' }).out).wanted)
        local reload = cli.run(m, { 'reload' })
        assert.matches('numWorkers%s+1%s+2', reload.out)
        m:wait_until(function()
            return #cjson.decode(cli.run(m, { 'status', '--json' }).out).workers == 2
        end, 'the second worker')
        m:rewrite('master.lua', 'require("dutch-master").start { numWorkers = 0 }')
        for _, verb in ipairs { 'plan', 'reload' } do
            local c = cli.run(m, { verb })
            assert.equal(78, c.code)
            assert.matches('master.lua:1: numWorkers: expected', c.err)
        end
        m:finish()
    end)

    it('follows events', function()
        local m = start()
        local c = cli.start(m, { 'events', '--follow', '--last', '1', '--json' })
        c:await_output 'Cluster ready'
        assert.equal(0, cli.run(m, { 'scale', '2' }).code)
        c:await_output 'Scaling cluster.*Creating new worker'
        c:kill 'sigint'
        c:wait()
        assert.matches('Cluster ready', cli.run(m, { 'events' }).out)
        m:finish()
    end)

    it('is gone before the master is: stop --wait, and a new one may start at once', function()
        local m = start()
        local running = {}
        for i = 1, 5 do
            assert.equal(0, cli.run(m, { 'stop', '--wait' }).code)
            if not m.ended then
                assert.equal(0, m:exit().code)
            end
            running[i] = cli.start(m, { 'master.lua' })
            running[i]:await_output 'Cluster ready'
        end
        local c = cli.run(m, { 'stop', '--wait' })
        assert.equal(0, c.code, c.err)
        for _, other in ipairs(running) do
            assert.equal(0, other:wait().code)
        end
        m:finish()
    end)

    it('stop --wait is 1 when a worker had to be killed', function()
        local m = start('stopTimeout = 0.3, killTimeout = 0.3,', { files = { ['app.lua'] = apps.stubborn } })
        local c = cli.run(m, { 'stop', '--wait' })
        assert.equal(1, c.code, c.err)
        m:finish { code = 1 }
    end)

    it('keeps the loop quiet: a silent client costs nothing', function()
        local m = start()
        local client = connect(find(m, '.sock'))
        await('a connection', function() return client.connected end)
        client.write '{"v":1,"id":1,"verb":"events","follow":true}\n'
        await('an answer', function() return lines(client)[1] end)
        local function switches()
            local text = io.open(('/proc/%d/status'):format(m:process_pid())):read '*a'
            return tonumber(text:match 'voluntary_ctxt_switches:%s*(%d+)')
        end
        local before = switches()
        wait.let_run(2000)
        assert.is_true(switches() - before <= 4 + 2, ('%d wake-ups in 2 s'):format(switches() - before))
        close_pipes()
        m:finish()
    end)
end)
