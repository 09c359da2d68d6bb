-- From the command to a cluster that serves, and back to nothing.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local master = require 'spec.support.master'

local function messages(m)
    local list = {}
    for _, record in ipairs(m.log) do
        list[#list + 1] = record.msg
    end
    return list
end

local function position(list, wanted)
    for i, message in ipairs(list) do
        if message == wanted then
            return i
        end
    end
    error('no record ' .. wanted .. ' among: ' .. table.concat(list, ' | '), 2)
end

describe('boot', function()
    after_each(master.cleanup)

    it('says on a kernel that is too old what it needs', function()
        local m = master.start { script = "require('dutch-master').start { worker = 'app.lua' }",
            files = { ['app.lua'] = apps.idle }, wrap = { 'luajit', uv.cwd() .. '/spec/support/refusing.lua',
                'close_range' } }
        assert.same({ code = 71 }, m:exit())
        assert.matches('^dutch%-master: Linux 5%.11 or later is needed, this is %d+%.%d+[^ ]*: close_range: Invalid argument',
            m.stderr)
        assert.equal(0, #m.log)
    end)

    it('starts the workers, serves, and stops, a record for each step', function()
        local port = http.free_port()
        local m = master.start {
            script = ([[
                local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', workerEnvironment = { LISTEN = '127.0.0.1:%d', VERSION = 'one' } }
            ]]):format(port),
            files = { ['app.lua'] = apps.http },
        }
        local starting = m:await 'Starting cluster'
        assert.equal(2, starting.numWorkers)
        assert.equal(2, m:await('Cluster ready').workers)
        assert.same({ 2, 2 }, { #m:records 'Creating new worker', #m:records 'Worker listening' })
        local status, body = http.get { port = port }
        assert.equal(200, status)
        assert.matches('^one [12] %d+$', body)

        m:signal 'SIGTERM'
        assert.same({ code = 0 }, m:exit())
        local list = messages(m)
        local last = 0
        for _, message in ipairs { 'Starting cluster', 'Creating new worker', 'Worker listening', 'Cluster ready',
            'Shutdown requested', 'Worker disconnected', 'Worker exited', 'Cluster shutdown cleanly' } do
            local place = position(list, message)
            assert.is_true(place > last, message .. ' came too early: ' .. table.concat(list, ' | '))
            last = place
        end
        assert.equal('SIGTERM', m:records('Shutdown requested')[1].signal)
        assert.same({ 2, 2 }, { #m:records 'Worker disconnected', #m:records 'Worker exited' })
        for _, record in ipairs(m.log) do
            assert.same({ 'number', 'string', 'string', 0, m.pid },
                { type(record.level), type(record.name), type(record.hostname), record.v, record.pid })
            assert.matches('^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%dZ$', record.time)
        end
        for _, message in ipairs { 'Creating new worker', 'Worker listening', 'Worker disconnected', 'Worker exited' } do
            for _, record in ipairs(m:records(message)) do
                assert.same({ 'number', 'number', 1 }, { type(record.workerId), type(record.workerPid),
                    record.generation }, message)
            end
        end
        for _, record in ipairs(m:records 'Worker exited') do
            assert.equal(0, record.code)
        end
        m:finish()
    end)

    it('asks the script for everything that may be a function', function()
        local m = master.start {
            script = [[
                local dutch = require 'dutch-master'
                dutch.start {
                    worker = 'app.lua',
                    numWorkers = function() return math.max(dutch.cpus(), 3) end,
                    beforeFork = function(worker)
                        dutch.store['fork ' .. worker.slot] = worker.id
                        dutch.log:info({ id = worker.id, slot = worker.slot, stored = dutch.store['fork ' .. worker.slot],
                            host = dutch.hostname(), extra = dutch.environ 'EXTRA' }, 'about to fork')
                    end,
                    workerEnvironment = function(worker) return { MINE = 'slot ' .. worker.slot } end,
                    logger = dutch.logger { name = 'my-app', fields = { release = 'r7' } },
                    onReady = function() dutch.log:info(dutch.store(), 'hook: ready') end,
                    onWorkerReady = function(worker) dutch.log:info({ id = worker.id }, 'hook: worker ready') end,
                }]],
            env = { EXTRA = 'from outside' },
            files = { ['app.lua'] = apps.idle .. ' print(os.getenv "MINE")' },
            wrap = { 'taskset', '-c', '0' },
        }
        local ready = m:await 'Cluster ready'
        assert.same({ 'my-app', 'r7', 3 }, { ready.name, ready.release, ready.workers })
        local third = m:await { msg = 'about to fork', slot = 3 }
        assert.same({ 3, 3, 3, uv.os_gethostname(), 'from outside' },
            { third.id, third.slot, third.stored, third.host, third.extra })
        for slot = 1, 3 do
            m:await_output('^slot ' .. slot .. '$')
        end
        local stored = m:await 'hook: ready' -- forks may run side by side, in processes of their own
        assert.same({ 1, 2, 3 }, { stored['fork 1'], stored['fork 2'], stored['fork 3'] })
        m:await('hook: worker ready', { count = 3 })
        m:finish()
    end)

    it('counts the processors that it may use', function()
        local script = [[
            local dutch = require 'dutch-master'
            dutch.start { worker = 'app.lua', numWorkers = dutch.cpus }]]
        local m = master.start { script = script, files = { ['app.lua'] = apps.idle }, wrap = { 'taskset', '-c', '0' } }
        assert.equal(1, m:await('Cluster ready').workers)
        m:finish()
        m = master.start { script = script, files = { ['app.lua'] = apps.idle } }
        assert.equal(uv.available_parallelism and uv.available_parallelism() or #uv.cpu_info(),
            m:await('Cluster ready').workers)
        m:finish()
    end)

    it('runs a fork where beforeFork says, under the path that was said, and stays itself', function()
        local m = master.start {
            script = [[
                local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', numWorkers = 1, beforeFork = function()
                    dutch.chdir(dutch.directory .. '/current')
                end }]],
            files = {
                ['releases/1/app.lua'] = apps.idle .. [[
                    print('PWD ' .. os.getenv 'PWD' .. ' cwd ' .. require('luv').cwd())]],
                ['run.sh'] = '#!/bin/sh\nln -s releases/1 current\nexec "$@"\n',
            },
            wrap = { './run.sh' },
        }
        m:await 'Cluster ready'
        local pwd, cwd = m:await_output '^PWD (%S+) cwd (%S+)$' -- luacheck: ignore 211
        assert.equal(m:path 'current', pwd)
        local line = m:await_output '^PWD.*'
        assert.equal(('PWD %s cwd %s'):format(m:path 'current', m:path 'releases/1'), line)
        assert.equal(m.app, uv.fs_readlink(('/proc/%d/cwd'):format(m:master_pid())))
        m:finish()
    end)

    it('writes its pid file and removes it', function()
        local dir = master.temp_dir()
        local m = master.start {
            script = ([[require('dutch-master').start { worker = 'app.lua', pidFile = '%s/dm.pid' }]]):format(dir),
            files = { ['app.lua'] = apps.idle },
        }
        m:await 'Cluster ready'
        local file = assert(io.open(dir .. '/dm.pid'))
        assert.equal(m.pid .. '\n', file:read '*a')
        file:close()
        m:finish()
        assert.is_nil(uv.fs_stat(dir .. '/dm.pid'))
    end)

    it('gives up a worker that is never ready, names it, and tries again', function()
        local m = master.start {
            script = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 1, readyTimeout = 0.2,
                backoff = { first = 0.05 }, workerEnvironment = { WHAT = 'never' } }]],
            files = { ['app.lua'] = apps.never_ready },
        }
        local late = m:await(function(record) return record.msg:find('Worker was not ready in time', 1, true) == 1 end)
        assert.same({ 1, 0.2, 40 }, { late.workerId, late.readyTimeout, late.level })
        assert.equal(2, m:await('Creating new worker', { count = 2 }).workerId)
        m:rewrite('app.lua', apps.idle)
        m:await 'Cluster ready'
        m:finish()
    end)

    it('refuses what is no script, by usage', function()
        local m = master.start { script = false, args = {} }
        assert.same({ code = 2 }, m:exit())
        assert.matches('which script', m.stderr)
        m:finish { code = 2 }
    end)
end)
