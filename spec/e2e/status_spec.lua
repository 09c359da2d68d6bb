-- What runs, as a person and a program are told: the table, its JSON, and which release is which.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

local function status(m)
    local c = cli.run(m, { 'status', '--json' })
    assert.equal(0, c.code, c.err)
    return cjson.decode(c.out)
end

-- releases/1 and releases/2, and a `current` that points to the first; the script is outside of both.
local function release(name)
    return (apps.http:gsub("os.getenv 'VERSION' or '%-'", ("'%s'"):format(name)))
end

local function start_releases(more, port)
    local dir = master.temp_dir()
    assert(uv.fs_symlink('releases/1', dir .. '/current'))
    for _, name in ipairs { 'releases', 'releases/1', 'releases/2' } do
        assert(uv.fs_mkdir(dir .. '/' .. name, tonumber('755', 8)))
    end
    for number, name in ipairs { 'one', 'two' } do
        local file = assert(io.open(('%s/releases/%d/app.lua'):format(dir, number), 'w'))
        file:write(release(name))
        file:close()
    end
    local m = master.start {
        script = ([[
            local dutch = require 'dutch-master'
            dutch.start {
                worker = 'app.lua', restartSoak = 0, stopTimeout = 5, %s
                beforeFork = function() dutch.chdir '%s/current' end,
                workerEnvironment = { LISTEN = '127.0.0.1:%d' },
            }
        ]]):format(more or '', dir, port),
    }
    m.releases = dir
    return m
end

local function point(m, number)
    assert(uv.fs_symlink('releases/' .. number, m.releases .. '/current.new'))
    assert(uv.fs_rename(m.releases .. '/current.new', m.releases .. '/current'))
end

describe('status', function()
    after_each(master.cleanup)

    it('shows every worker with what is known of it', function()
        local port = http.free_port()
        local m = master.start {
            script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = 3,
                workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]):format(port),
            files = { ['app.lua'] = apps.http },
        }
        m:await 'Cluster ready'
        local now = status(m)
        assert.same({ 'steady', 1, 3, m.pid, m.script, true },
            { now.state, now.generation, now.wanted, now.pid, now.script, now.running })
        local pids = m:workers()
        for i, worker in ipairs(now.workers) do
            assert.same({ i, 'running', 1, 0, m.app, 0, true }, { worker.slot, worker.state, worker.generation,
                worker.restarts, worker.release, worker.queue, worker.steered })
            assert.is_true(worker.rss_kb > 500 and worker.cpu_ms >= 0 and worker.uptime_ms >= 0)
            assert.is_true(worker.pid == pids[1] or worker.pid == pids[2] or worker.pid == pids[3])
        end
        local text = cli.run(m, { 'status' }).out
        assert.matches('\nsteady, 3 of 3 workers serving, generation 1\n', text)
        assert.matches('\n +1 +1 +%d+ +running +1 +[%d.]+s +0 +[%d.]+M +[%d.]+s +0 +yes +/', text)
        assert.falsy(text:find '\27')
        uv.kill(pids[1], 'sigkill')
        m:await({ msg = 'Worker listening' }, { count = 4 })
        local restarts = 0
        for _, worker in ipairs(status(m).workers) do
            restarts = restarts + worker.restarts
        end
        assert.equal(1, restarts)
        m:finish()
    end)

    it('goes on with --watch until it is interrupted', function()
        local m = master.start {
            script = "require('dutch-master').start { worker = 'app.lua' }", files = { ['app.lua'] = apps.idle },
        }
        m:await 'Cluster ready'
        local c = cli.start(m, { 'status', '--watch' })
        c:await_output 'steady.*steady'
        c:kill 'sigint'
        assert.equal('SIGINT', master.signal_name(c:wait().signal))
        m:finish()
    end)

    it('ends when nobody reads it any more', function()
        local m = master.start {
            script = "require('dutch-master').start { worker = 'app.lua' }", files = { ['app.lua'] = apps.idle },
        }
        m:await 'Cluster ready'
        local line = ("%s status --watch | head -n 1; echo end"):format(master.binary())
        local c = cli.run(m, { '-c', line }, { program = 'sh' })
        assert.matches('\nend\n$', c.out)
        m:finish()
    end)

    it('shows a slot that waits before its next attempt', function()
        local m = master.start {
            script = "require('dutch-master').start { worker = 'app.lua', numWorkers = 1, "
                .. 'backoff = { first = 20, max = 20 } }',
            files = { ['app.lua'] = 'os.exit(1)' },
        }
        m:await('Worker exited', { count = 2 })
        m:wait_until(function()
            return cli.run(m, { 'status' }).out:match '\n +1 +%- +%- +waiting 1?[%d.]+s'
        end, 'a waiting slot')
        m:finish()
    end)
end)

describe('releases', function()
    after_each(master.cleanup)

    local function start(more)
        local port = http.free_port()
        local m = start_releases(more, port)
        return m, port
    end

    --- The distinct releases that run, without the directory they are in.
    local function releases(m)
        local found, seen = {}, {}
        for _, worker in ipairs(status(m).workers) do
            local name = worker.release:match '[^/]+$'
            if not seen[name] then
                seen[name] = true
                found[#found + 1] = name
            end
        end
        table.sort(found)
        return table.concat(found, ' ')
    end

    it('are told by the directory a worker really runs in, both of them during a roll', function()
        local m, port = start 'restartConcurrency = 1,'
        m:await 'Cluster ready'
        assert.equal('1', releases(m))
        local clients = load.start { port = port, clients = 4 }
        clients:await(20)
        point(m, 2)
        -- The second worker of the new release takes its time, so that both releases are there to be seen.
        local c = cli.start(m, { 'restart', '--wait' })
        m:wait_until(function() return releases(m) == '1 2' or c.ended == 3 end, 'both releases')
        assert.equal(0, c:wait().code, c.err)
        m:wait_until(function() return releases(m) == '2' end, 'the new release alone')
        -- Pruning the old release hurts nobody: neither the master nor its next workers.
        os.execute(("rm -r '%s/releases/1'"):format(m.releases))
        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        m:finish()
    end)

    -- The second release serves twice: the workers 5 and 6 of its roll. The next ones fail.
    local function break_second(m)
        local path = m.releases .. '/releases/2/app.lua'
        local file = assert(io.open(path))
        local text = file:read '*a'
        file:close()
        file = assert(io.open(path, 'w'))
        file:write("if tonumber(os.getenv 'DUTCH_MASTER_WORKER') > 6 then error 'no more connections' end\n", text)
        file:close()
    end

    it('are rolled back when a restart fails half way, and a crash does not bring the failed one in', function()
        local m, port = start 'restartConcurrency = 1, numWorkers = 4, restartAttempts = 2, backoff = { first = 0.05 },'
        m:await 'Cluster ready'
        local clients = load.start { port = port, clients = 4 }
        clients:await(20)
        break_second(m)
        point(m, 2)
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(11, c.code, c.out .. c.err)
        assert.matches('2 of 4 replaced, worker 6 is ready', c.out)
        assert.matches('2 of 2 rolled back, worker %d+ is ready', c.out)
        assert.matches('rolled back: the old release serves %(generation 2, 0 of 4 replaced', c.err)
        assert.matches('no more connections', c.err)
        local record = m:await 'Restart rolled back, the old release serves'
        assert.equal(3, record.slot)
        m:wait_until(function() return #m:family() == 5 end, 'the others to be gone')
        assert.equal('1', releases(m))
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        uv.kill(m:workers()[1], 'sigkill')
        m:await({ msg = 'Worker listening' }, { after = m:await 'Worker disconnection was unexpected' })
        assert.equal('1', releases(m))
        m:finish()
    end)

    for _, pinned in ipairs { false, true } do
        it('and a crash replacement runs the ' .. (pinned and 'pinned' or 'current') .. ' one', function()
            local m, port = start(pinned and 'pinRelease = true, numWorkers = 1,' or 'numWorkers = 1,')
            m:await 'Cluster ready'
            assert.equal('1', releases(m))
            point(m, 2)
            local pid = m:workers()[1]
            uv.kill(pid, 'sigkill')
            m:await('Worker listening', { count = 2 })
            m:wait_until(function() return status(m).workers[1].state == 'running' end, 'the replacement')
            assert.equal(pinned and '1' or '2', releases(m))
            local _, body = http.get { port = port }
            assert.matches(pinned and '^one' or '^two', body)
            m:finish()
        end)
    end
end)
