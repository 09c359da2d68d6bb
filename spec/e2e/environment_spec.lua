-- Where and how the master may be started: odd descriptors, signals, directories, a twin, no processes, taken ports.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local read = require('spec.support.files').or_empty

local function script(options)
    return ([[local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', %s }]]):format(options or '')
end

describe('a master started', function()
    after_each(master.cleanup)

    for _, fds in ipairs { { 0 }, { 1 }, { 2 }, { 1, 2 }, { 0, 1, 2 } } do
        it('without descriptor ' .. table.concat(fds, ', ') .. ' works', function()
            local dir = master.temp_dir()
            local port = http.free_port()
            local m = master.start {
                script = script(([[logger = dutch.logger { path = '%s/log' },
                    workerEnvironment = { LISTEN = '127.0.0.1:%d' },]]):format(dir, port)),
                files = { ['app.lua'] = apps.http },
                close_fds = fds,
            }
            m:wait_until(function() return read(dir .. '/log'):find '"Cluster ready"' end, 'the cluster')
            assert.equal(200, (http.get { port = port }))
            m:signal 'SIGUSR2'
            m:wait_until(function() return read(dir .. '/log'):find '"Restart complete"' end, 'the roll')
            m:finish()
            assert.matches('"Cluster shutdown cleanly"', read(dir .. '/log'))
        end)
    end

    it('with signals ignored or blocked sees its workers exit, and obeys', function()
        for _, wrap in ipairs {
            { 'env', '--ignore-signal=CHLD,TERM,USR2,PIPE' },
            { 'env', '--block-signal=CHLD,TERM,USR2,INT,HUP' },
        } do
            local m = master.start { script = script 'restartSoak = 0,', files = { ['app.lua'] = apps.idle }, wrap = wrap }
            m:await 'Cluster ready'
            uv.kill(m:workers()[1], 'sigkill')
            assert.equal('SIGKILL', m:await('Worker exited').signal)
            m:await('Worker listening', { count = 3 })
            m:signal 'SIGUSR2'
            m:await 'Restart complete'
            m:finish { code = 0 }
        end
    end)

    it('in a directory that is gone works, or says why', function()
        local wrap = { 'sh', '-c', 'mkdir gone && cd gone && rmdir ../gone && exec "$0" "$@"' }
        local m = master.start {
            script = [[local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', beforeFork = function() dutch.chdir(dutch.directory) end }]],
            files = { ['app.lua'] = apps.idle }, wrap = wrap,
        }
        m:await 'Cluster ready'
        m:finish()
        m = master.start { script = script(), files = { ['app.lua'] = apps.idle }, wrap = wrap, script_path = 'master.lua' }
        assert.same({ code = 71 }, m:exit())
        assert.matches('^dutch%-master: .*director', m.stderr)
        m:finish { code = 71 }
    end)

    it('outlives its directory', function()
        local m = master.start {
            script = [[local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', restartSoak = 0,
                    beforeFork = function() dutch.chdir(dutch.directory) end }]],
            files = { ['app.lua'] = apps.idle },
            wrap = { 'sh', '-c', 'mkdir away && cd away && exec "$0" "$@"' },
        }
        m:await 'Cluster ready'
        assert(uv.fs_rmdir(m:path 'away'))
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        m:finish()
    end)

    it('twice for one script: the second says so, exits with 1 and touches nothing', function()
        local port = http.free_port()
        local dir = master.temp_dir()
        local options = ([[workerEnvironment = { LISTEN = '127.0.0.1:%d' }, pidFile = '%s/pid',]]):format(port, dir)
        local first = master.start { script = script(options), files = { ['app.lua'] = apps.http } }
        first:await 'Cluster ready'
        for _, name in ipairs { first.script, first.app .. '/../app/master.lua' } do
            local second = master.start { script_path = name, cwd = first.app,
                env = { DUTCH_MASTER_RUNTIME_DIR = first.dir .. '/run' } }
            assert.same({ code = 1 }, second:exit())
            master.wait_until(function() return second.err_ended end)
            assert.matches('^dutch%-master: a master of .*master%.lua is running already: .*' .. first.pid, second.stderr)
            assert.equal(1, select(2, second.stderr:gsub('\n', '')))
            assert.same({}, second.log)
            second:finish { code = 1 }
        end
        assert.equal(first.pid .. '\n', read(dir .. '/pid'))
        assert.equal(200, (http.get { port = port }))
        assert.equal(2, #first:workers())
        first:signal 'SIGUSR2'
        first:await 'Restart complete'
        first:finish()
        -- Now it may.
        local third = master.start { script = script(options), files = { ['app.lua'] = apps.http } }
        third:await 'Cluster ready'
        third:finish()
    end)

    it('where no process can be made retries, and loses no slot', function()
        if os.execute 'strace -o /dev/null true 2>/dev/null' ~= 0 then
            pending 'strace may not trace here'
            return
        end
        local m = master.start {
            script = script 'numWorkers = 2, backoff = { first = 0.05, max = 0.1 },',
            files = { ['app.lua'] = apps.idle },
            env = { ASAN_OPTIONS = 'detect_leaks=0' }, -- does not work in a traced process
            keeper = false, -- not the master's own fork
            wrap = { 'strace', '-o', '/dev/null', '-e', 'trace=clone', '-e', 'inject=clone:error=EAGAIN:when=2..6' },
        }
        local failed = m:await(function(record) return record.msg:find('Fork failed: EAGAIN', 1, true) == 1 end)
        assert.same({ 50, 'number' }, { failed.level, type(failed.slot) })
        m:await 'Cluster ready'
        assert.equal(5, #m:records(function(record) return record.msg:find('Fork failed: EAGAIN', 1, true) == 1 end))
        assert.equal(2, #m:workers())
        uv.kill(m:workers()[1], 'sigkill')
        m:await('Worker listening', { count = 3 })
        m:signal 'SIGTERM'
        m:finish()
    end)
end)

describe('an address that cannot be had', function()
    after_each(master.cleanup)

    local function refused(address, pattern)
        local marker = master.temp_dir() .. '/forked'
        local m = master.start { script = ([[require('dutch-master').start { worker = { 'touch', '%s' },
            listen = { '127.0.0.1:0', '%s' } }]]):format(marker, address) }
        assert.same({ code = 71 }, m:exit())
        master.wait_until(function() return m.err_ended end)
        assert.matches(pattern, m.stderr)
        assert.equal(1, select(2, m.stderr:gsub('\n', '')), m.stderr)
        assert.equal(0, #m:records 'Creating new worker')
        assert.is_nil(uv.fs_stat(marker))
        m:finish { code = 71 }
    end

    it('ends the start with its name and exit 71', function()
        local port = http.free_port()
        local taken = uv.new_tcp()
        assert(taken:bind('127.0.0.1', port))
        assert(taken:listen(1, function() end))
        refused('127.0.0.1:' .. port, '^dutch%-master: .*EADDRINUSE: .*127%.0%.0%.1:' .. port)
        refused(':' .. port, '^dutch%-master: .*EADDRINUSE: .*:' .. port)
        taken:close()
        uv.run 'nowait'
        refused('203.0.113.1:8000', '^dutch%-master: .*EADDRNOTAVAIL: .*203%.0%.113%.1:8000')
        refused('unix:/no/such/directory/sock', '^dutch%-master: .*ENOENT: .*/no/such/directory/sock')
        local file = master.temp_dir() .. '/plain'
        io.open(file, 'w'):close()
        refused('unix:' .. file, '^dutch%-master: .*E%u+: .*' .. file:gsub('%p', '%%%0'))
        assert.equal('file', uv.fs_stat(file).type)
    end)

    it('in use by another master is not shared by it', function()
        local port = http.free_port()
        local function start()
            return master.start {
                script = ([[require('dutch-master').start { worker = { 'sleep', '1000' }, ready = { alive = 0.05 },
                    listen = '127.0.0.1:%d' }]]):format(port),
            }
        end
        local first = start()
        first:await 'Cluster ready'
        local second = start()
        assert.same({ code = 71 }, second:exit())
        master.wait_until(function() return second.err_ended end)
        assert.matches('EADDRINUSE', second.stderr)
        second:finish { code = 71 }
        first:finish()
    end)

    it('wanted by a Lua worker ends the start as well, and aborts a restart', function()
        local port, other = http.free_port(), http.free_port()
        local function script_for(number, more)
            return script(([[numWorkers = 1, workerEnvironment = { LISTEN = '127.0.0.1:%d' }, restartAttempts = 2,
                restartSoak = 0, backoff = { first = 0.05, max = 0.1 }, %s]]):format(number, more or ''))
        end
        local taken = uv.new_tcp()
        assert(taken:bind('127.0.0.1', port))
        assert(taken:listen(1, function() end))
        local m = master.start { script = script_for(port), files = { ['app.lua'] = apps.http } }
        assert.same({ code = 71 }, m:exit())
        local fatal = m:records(function(record) return record.level == 60 end)[1]
        assert.matches('EADDRINUSE: .*127%.0%.0%.1:' .. port, fatal.msg)
        m:finish { code = 71 }

        m = master.start { script = script_for(other), files = { ['app.lua'] = apps.http } }
        m:await 'Cluster ready'
        m:rewrite('master.lua', script_for(port))
        m:signal 'SIGUSR2'
        local failed = m:await(function(record)
            return record.level >= 40 and (record.reason or record.msg):find('EADDRINUSE', 1, true)
        end)
        assert.matches('127%.0%.0%.1:' .. port, failed.reason or failed.msg)
        m:await 'Restart aborted, the old workers stay'
        assert.equal(200, (http.get { port = other }))
        local mark = m:mark()
        taken:close()
        uv.run 'nowait'
        -- The release moves to another port. That is a mistake, unless it says so.
        m:rewrite('master.lua', script_for(port, 'restartAttempts = 1, readyTimeout = 1,'))
        m:signal 'SIGUSR2'
        local moved = m:await('Restart aborted, the old workers stay', { after = mark })
        assert.matches(('it does not listen on 127.0.0.1:%d, where the workers before it do. If that is meant, say'
            .. ' which address counts: ready = { port = %d }'):format(other, port), moved.reason, 1, true)
        assert.equal(200, (http.get { port = other }))
        m:rewrite('master.lua', script_for(port, ('ready = { port = %d },'):format(port)))
        m:signal 'SIGUSR2'
        m:await('Restart complete', { after = moved })
        assert.equal(200, (http.get { port = port }))
        m:finish()
    end)
end)
