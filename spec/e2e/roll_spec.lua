-- Rolling restarts: nobody is asked to leave before the successor serves, and no request is lost.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

local function script(options)
    return ([[
        local dutch = require 'dutch-master'
        local release = require 'release'
        dutch.start {
            worker = 'app.lua',
            restartSoak = 0.05,
            workerEnvironment = { LISTEN = os.getenv 'LISTEN', VERSION = 'script1/' .. release },
            onRestart = function(verdict) dutch.log:info({ verdict = verdict }, 'hook: verdict') end,
            %s
        }]]):format(options or '')
end

local function start(options, more)
    more = more or {}
    local port = http.free_port()
    more.script = more.script or script(options)
    more.env = { LISTEN = '127.0.0.1:' .. port }
    more.files = { ['app.lua'] = apps.http, ['release.lua'] = 'return "module1"' }
    local m = master.start(more)
    m.port = port
    m:await 'Cluster ready'
    return m
end

local function pids_of(m, generation)
    local pids = {}
    for _, record in ipairs(m:records { msg = 'Worker listening', generation = generation }) do
        pids[#pids + 1] = record.workerPid
    end
    table.sort(pids)
    return pids
end

local function body(m)
    local status, text = http.get { port = m.port }
    assert.equal(200, status, text)
    return text
end

describe('a roll', function()
    after_each(master.cleanup)

    it('loses no request, and takes an edited script and an edited module', function()
        local m = start 'numWorkers = 3,'
        local l = load.start { port = m.port, clients = 8, mode = 'close' }
        l:await(200)
        m:rewrite('release.lua', 'return "module2"')
        m:signal 'SIGUSR2'
        local requested = m:await 'Restart requested'
        assert.equal('SIGUSR2', requested.signal)
        m:await 'Restart complete'
        m:rewrite('master.lua', (script 'numWorkers = 3,':gsub('script1', 'script2')))
        m:signal 'SIGUSR2'
        m:await('Restart complete', { count = 2 })
        m:await('Worker exited', { count = 6 })
        l:await(l.counts.total + 200)
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        local seen = {}
        for text in pairs(l.bodies) do
            seen[text:match '^%S+'] = true
        end
        assert.same({ ['script1/module1'] = true, ['script1/module2'] = true, ['script2/module2'] = true }, seen)
        assert.matches('^script2/module2 ', body(m))

        -- All replacements served before the first of the old ones was told anything.
        for generation = 2, 3 do
            local told = 0
            for _, record in ipairs(m.log) do
                if record.msg == 'Replacement worker available - disconnecting' and record.generation < generation then
                    told = told + 1
                    assert.is_true(#m:records { msg = 'Worker listening', generation = record.generation + 1 } == 3)
                end
            end
            assert.equal(3 * (generation - 1), told)
            assert.equal(3, #pids_of(m, generation))
        end
        assert.equal(3, #m:records { msg = 'Restarting worker', generation = 1 })
        for _, record in ipairs(m:records 'Worker exited') do
            assert.equal(0, record.code)
        end
        m:finish()
    end)

    it('answers what was in flight', function()
        local m = start 'numWorkers = 1,'
        local l = load.start { port = m.port, clients = 4, path = '/slow' }
        m:wait_until(function() return l.active == 4 end, 'requests in flight')
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        l:await(8)
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        m:finish()
    end)

    it('replaces so many at a time as it was told', function()
        local m = start 'numWorkers = 4, restartConcurrency = 1, restartSoak = 0,'
        m:signal 'SIGHUP'
        assert.equal('SIGHUP', m:await('Restart requested').signal)
        m:await 'Restart complete'
        local alive, most = 4, 4
        for _, record in ipairs(m:records(nil, m:records('Restart requested')[1])) do
            if record.msg == 'Creating new worker' then
                alive = alive + 1
                most = math.max(most, alive)
            elseif record.msg == 'Worker exited' then
                alive = alive - 1
            end
        end
        assert.equal(5, most)
        m:finish()

        m = start 'numWorkers = 4, restartConcurrency = 0.5, restartSoak = 0,'
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        local first = m:await { msg = 'Replacement worker available - disconnecting', generation = 1 }
        local before = 0
        for _, record in ipairs(m:records { msg = 'Creating new worker', generation = 2 }) do
            before = before + (record.index < first.index and 1 or 0)
        end
        assert.equal(2, before)
        m:finish()
    end)

    it('lets the latest request win', function()
        local m = start()
        local old = pids_of(m, 1)
        m:rewrite('app.lua', "print 'thinking'\n" .. apps.never_ready)
        m:signal 'SIGUSR2'
        m:wait_until(function() -- they have read what is rewritten now
            return select(2, table.concat(m.output, '\n'):gsub('thinking', '')) == 2
        end, 'two workers that think')
        m:rewrite('app.lua', apps.http)
        m:rewrite('release.lua', 'return "module3"')
        m:signal 'SIGUSR2'
        local superseded = m:await 'Restart superseded by a later one'
        assert.equal(2, superseded.generation)
        assert.equal(3, m:await('Restart complete').generation)
        local first = m:await 'Replacement worker available - disconnecting'
        assert.equal(2, #m:records(function(record)
            return record.msg == 'Worker listening' and record.generation == 3 and record.index < first.index
        end))
        m:await('hook: verdict', { count = 2 })
        local results = {}
        for _, record in ipairs(m:records 'hook: verdict') do
            results[#results + 1] = record.verdict.result
        end
        assert.same({ 'superseded', 'done' }, results)
        for _, pid in ipairs(old) do
            m:await { msg = 'Worker exited', workerPid = pid }
        end
        m:wait_until(function() return #m:family() == 3 end, 'the workers of before to be gone')
        assert.matches('^script1/module3 ', body(m))
        m:finish()
    end)

    it('aborts when replacements fail: the old workers stay, and the reason is told', function()
        local m = start 'restartAttempts = 2, backoff = { first = 0.05 }, readyTimeout = 0.3,'
        local old = pids_of(m, 1)
        for _, bad in ipairs {
            { app = 'io.stderr:write("no database\\n") os.exit(7)', code = 7, stderr = 'no database' },
            { app = apps.never_ready, message = 'not ready within 0.3 s' },
            { app = 'error "broken"', stderr = 'broken' },
            { app = nil, message = 'app.lua' },
        } do
            local mark = m:mark()
            if bad.app then
                m:rewrite('app.lua', bad.app)
            else
                assert(uv.fs_unlink(m:path 'app.lua'))
            end
            m:signal 'SIGUSR2'
            local aborted = m:await('Restart aborted, the old workers stay', { after = mark })
            assert.equal(50, aborted.level)
            assert.equal(bad.code or aborted.code, aborted.code)
            assert.matches(bad.message or 'failed 2 times', aborted.reason, 1, true)
            assert.matches(bad.stderr or '', aborted.stderr or '', 1, true)
            local verdict = m:await('hook: verdict', { after = mark }).verdict
            assert.same({ 'aborted', 2, 0 }, { verdict.result, verdict.total, verdict.done })
            assert.is_true(#m:records('Creating new worker', mark) <= 4)
            m:wait_until(function() return #m:family() == 3 end, 'the failed replacements to be gone')
            assert.same(old, m:workers())
            assert.matches('^script1/module1 ', body(m))
        end
        assert.equal(0, #m:records 'Replacement worker available - disconnecting')
        -- A crash now is replaced by what there is, and a good release rolls.
        m:rewrite('app.lua', apps.http)
        uv.kill(old[1], 'sigkill')
        m:await({ msg = 'Worker listening' }, { after = m:await 'Worker disconnection was unexpected' })
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        m:finish()
    end)

    it('proves a replacement for restartSoak before its predecessor leaves', function()
        local m = start 'restartAttempts = 1, restartSoak = 0.4,'
        local old = pids_of(m, 1)
        m:rewrite('app.lua', apps.http .. [[
            local timer = uv.new_timer()
            timer:start(150, 0, function() os.exit(9) end)]])
        m:signal 'SIGUSR2'
        local aborted = m:await 'Restart aborted, the old workers stay'
        assert.equal(9, aborted.code)
        m:wait_until(function() return #m:family() == 3 end, 'the replacements to be gone')
        assert.same(old, m:workers())
        m:finish()
    end)

    it('copes with an old worker that dies meanwhile, without a fork too many', function()
        local m = start()
        local old = pids_of(m, 1)
        m:rewrite('app.lua', 'require("luv").sleep(400)\n' .. apps.http)
        m:signal 'SIGUSR2'
        m:await({ msg = 'Creating new worker', generation = 2 }, { count = 2 })
        uv.kill(old[1], 'sigkill')
        m:await { msg = 'Worker exited', workerPid = old[1] }
        m:await 'Restart complete'
        assert.equal(4, #m:records 'Creating new worker')
        assert.equal(1, #m:records 'Replacement worker available - disconnecting')
        m:finish()
    end)

    it('starts also while the cluster boots', function()
        local port = http.free_port()
        local m = master.start {
            script = script(),
            env = { LISTEN = '127.0.0.1:' .. port },
            files = { ['app.lua'] = apps.never_ready, ['release.lua'] = 'return 1' },
        }
        m:await('Creating new worker', { count = 2 })
        m:rewrite('app.lua', apps.http)
        m:signal 'SIGUSR2'
        assert.equal(2, m:await('Restart complete').generation)
        m:await 'Cluster ready'
        m:finish()
    end)

    it('follows the symbolic link of a deploy while the old release is pruned', function()
        local m = master.start {
            script = [[
                local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', restartSoak = 0,
                    beforeFork = function() dutch.chdir(dutch.directory .. '/current') end }]],
            files = {
                ['releases/1/app.lua'] = apps.idle .. ' print("release one")',
                ['releases/2/app.lua'] = apps.idle .. ' print("release two")',
                ['run.sh'] = '#!/bin/sh\nln -s releases/1 current\nexec "$@"\n',
            },
            wrap = { './run.sh' },
        }
        m:await 'Cluster ready'
        m:await_output '^release one$'
        assert(uv.fs_symlink('releases/2', m:path 'next'))
        assert(uv.fs_rename(m:path 'next', m:path 'current'))
        os.execute(('rm -r %q'):format(m:path 'releases/1'))
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        m:await_output '^release two$'
        m:finish()
    end)
end)
