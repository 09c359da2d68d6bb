-- The harness of the e2e specs has to fail when it should. A Lua program plays the master.

local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local GOOD = [[
local uv = require 'luv'
local stop = uv.new_signal()
stop:start('sigterm', function() print '{"msg":"Bye"}' os.exit(0) end)
local again = uv.new_signal()
again:start('sigusr2', function() print '{"msg":"Restart complete","level":30}' end)
print '{"msg":"Cluster ready","level":30}'
print 'plain text'
io.stderr:write 'a complaint\n'
]]

local function start(script, more)
    more = more or {}
    more.script, more.before = script, { '--lua-worker' }
    return master.start(more)
end

describe('the harness', function()
    after_each(master.cleanup)

    it('reads the log, sends signals and is content with a clean end', function()
        local m = start(GOOD)
        local ready = m:await 'Cluster ready'
        assert.equal(30, ready.level)
        assert.equal('plain text', m:await_output '^plain.*')
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        m:signal 'SIGUSR2'
        m:await('Restart complete', { count = 2 })
        assert.equal(2, #m:records 'Restart complete')
        assert.equal(0, #m:records('Cluster ready', ready))
        m:finish { code = 0 }
        assert.equal('a complaint\n', m.stderr)
        assert.equal('Bye', m.log[#m.log].msg)
        assert.is_nil(uv.fs_stat(m.dir))
    end)

    it('reads a record that shares its line with the output of a worker', function()
        local m = start [[
            io.stdout:setvbuf 'no'
            io.write 'no newline yet'
            io.write '{"name":"app","msg":"Cluster ready"}\n'
            io.write '\n'
            io.write '{"half": {"name":"app"}\n'
            print '{"msg":"Bye"}'
        ]]
        m:exit()
        m:await 'Bye'
        assert.equal(2, #m.log)
        assert.same({ 'no newline yet', '', '{"half": {"name":"app"}' }, m.output)
        m:finish()
    end)

    it('shows the log when a record does not come', function()
        local m = start(GOOD)
        m:await 'Cluster ready'
        m:wait_until(function() return m.stderr ~= '' end, 'the complaint')
        local ok, message = pcall(m.await, m, 'Never', { timeout = 50 })
        assert.is_false(ok)
        assert.matches("'Never' did not come", message)
        assert.matches('Cluster ready', message)
        assert.matches('a complaint', message)
        m:finish()
    end)

    it('runs tasks side by side, each as if it were alone', function()
        local order, began = {}, uv.hrtime()
        local function task(name)
            return { name, function()
                local m = start(GOOD)
                m:await 'Cluster ready'
                wait.let_run(400)
                order[#order + 1] = name
                m:finish { code = 0 }
            end }
        end
        wait.together({ task 'a', task 'b', task 'c', task 'd' }, 4)
        local ms = (uv.hrtime() - began) / 1e6
        table.sort(order)
        assert.same({ 'a', 'b', 'c', 'd' }, order)
        assert.is_true(ms >= 400)
        local most, now = 0, 0
        local function count()
            now = now + 1
            most = math.max(most, now)
            wait.let_run(30)
            now = now - 1
        end
        wait.together({ { 'a', count }, { 'b', count }, { 'c', count }, { 'd', count } }, 3)
        assert.equal(3, most)
    end)

    it('says of each task that ran beside others how it failed', function()
        local ended
        local ok, message = pcall(wait.together, {
            { 'first', function() wait.wait_until(function() end, { what = 'nothing', timeout = 30 }) end },
            { 'second', function() assert.equal(1, 2) end },
            { 'third', function() wait.try(function() error 'in a predicate' end) end },
            { 'fourth', function()
                assert.is_false((pcall(wait.try, function() error 'caught' end)))
                wait.let_run(60)
                ended = true
            end },
        }, 4)
        assert.is_false(ok)
        assert.matches('first: .*timed out waiting for nothing', message)
        assert.matches('second: .*Expected objects to be equal', message)
        assert.matches('third: .*in a predicate', message)
        assert.not_matches('fourth: ', message)
        assert.is_true(ended)
    end)

    it('does not wait for a record once the master is gone', function()
        local m = start 'os.exit(3)'
        local before = uv.hrtime()
        local ok, message = pcall(m.await, m, 'Cluster ready')
        assert.is_false(ok)
        assert.matches('"code":3', message)
        assert.is_true(uv.hrtime() - before < 5e9)
        m:finish { code = 3 }
    end)

    it('fails on a wrong exit status', function()
        local m = start 'os.exit(3)'
        m:exit()
        local ok, message = pcall(m.finish, m)
        assert.is_false(ok)
        assert.matches('expected exit code 0, got {"code":3}', message)
    end)

    it('tells a signal from an exit', function()
        local m = start(GOOD)
        m:await 'Cluster ready'
        m:kill()
        assert.same({ signal = 'SIGKILL' }, m:exit())
        m:finish { signal = 'SIGKILL' }
    end)

    it('fails on a process that is left, and ends it', function()
        local m = start [[
            local uv = require 'luv'
            local _, pid = uv.spawn('sleep', { args = { '1000' }, detached = true }, function() end)
            print(('{"msg":"Creating new worker","workerPid":%d}'):format(pid))
            os.exit(0)]]
        m:exit()
        local pid = m:await('Creating new worker').workerPid
        assert.same({ pid }, m:tree())
        assert.same({ pid }, m:workers())
        local ok, message = pcall(m.finish, m)
        assert.is_false(ok)
        assert.matches('processes left: ' .. pid, message)
        master.wait_until(function() return not uv.fs_stat('/proc/' .. pid) or #m:tree() == 0 end)
    end)

    it('fails on a file that is left', function()
        local m = start [[io.open(os.getenv 'DUTCH_MASTER_RUNTIME_DIR' .. '/lock', 'w'):close()]]
        m:exit()
        local ok, message = pcall(m.finish, m)
        assert.is_false(ok)
        assert.matches('files left in its runtime directory: lock', message)
    end)

    it('fails on a sanitizer report', function()
        local m = start [[
            io.open(os.getenv 'DUTCH_MASTER_RUNTIME_DIR' .. '/../sanitizer.1', 'w'):write 'overflow']]
        m:exit()
        local ok, message = pcall(m.finish, m)
        assert.is_false(ok)
        assert.matches('sanitizer:\noverflow', message)
    end)

    it('fails on a descriptor that the spec has kept', function()
        local m = start(GOOD)
        m:await 'Cluster ready'
        local file = io.open '/dev/null'
        local ok, message = pcall(m.finish, m)
        file:close()
        assert.is_false(ok)
        assert.matches('descriptors that the spec did not have at the start: %d+ /dev/null', message)
    end)

    it('can close descriptors, add variables and files, and wrap the binary', function()
        local m = start([[
            local uv = require 'luv'
            print(os.getenv 'EXTRA', require('other'))]], {
            env = { EXTRA = 'yes' },
            files = { ['other.lua'] = 'return "module"' },
            wrap = { 'env', 'LC_ALL=C' },
        })
        m:exit()
        assert.equal('yes\tmodule', m:await_output '.*')
        m:finish()
        m = master.start { binary = '/bin/sh', before = { '-c', 'ls /proc/$$/fd' }, close_fds = { 0 }, script = false }
        m:exit()
        assert.is_nil((' ' .. table.concat(m.output, ' ') .. ' '):find(' 0 ', 1, true))
        m:finish()
    end)
end)

-- What it says, and its status.
local function run_limited(lua)
    local pipe = io.popen(("spec/support/limit 0.5 0.5 luajit -joff -e '%s' 2>&1; echo status $?"):format(lua))
    local said = pipe:read '*a'
    pipe:close()
    return said
end

describe('the limit of a file', function()
    it('tells where a run stands that does not end, and ends it and what it has started', function()
        local said = run_limited [=[
            os.execute "setsid sleep 1000 >/dev/null 2>&1 & echo began"
            local uv = require "luv"
            uv.new_timer():start(10, 10, function() end)
            uv.run()]=]
        assert.matches('^began\nnot done after 0.5 s: luajit .*interrupted!\nstack traceback:.*status 124\n$', said)
        assert.matches('ended what was left: %d+\n', said)
        said = run_limited 'pcall(function() while true do end end) os.execute "env -i sleep 1000"'
        assert.matches('ended what was left: %d+ %d+[ %d]*\n', said)
        for pid in said:match('ended what was left:([ %d]*)'):gmatch '%d+' do
            wait.wait_until(function() return not uv.fs_stat('/proc/' .. pid) end, { what = 'the end of ' .. pid })
        end
    end)

    it('passes on the status of one that ends, and ends what is left by one that fails', function()
        assert.equal('hi\nstatus 0\n', run_limited 'print "hi"')
        assert.matches('^ended what was left: %d+\nstatus 3\n$', run_limited
            'os.execute "setsid sleep 1000 >/dev/null 2>&1 &" os.exit(3)')
    end)
end)

describe('the load generator', function()
    after_each(master.cleanup)

    local SERVER = [[
        local worker = require 'dutch-master.worker'
        local server = assert(worker.listen '127.0.0.1:0')
        local n = 0
        server:accept(function(connection)
            connection:read_start(function(_, data)
                if not data then return connection:is_closing() or connection:close() end
                n = n + 1
                RESPOND(connection, n)
            end)
        end)
        print(('{"msg":"port","port":%d}'):format(server.port))
    ]]

    local function count(respond, options)
        local m = start('local function RESPOND(c, n) ' .. respond .. ' end\n' .. SERVER)
        options.port = m:await('port').port
        local l = load.start(options)
        l:await(options.total or 50)
        local counts = l:stop()
        m:kill()
        m:exit()
        m:finish { signal = 'SIGKILL' }
        return counts, l
    end

    local OK = [[c:write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi')]]

    it('counts what went well, with a connection for each request and with kept ones', function()
        for _, mode in ipairs { 'close', 'keepalive' } do
            local counts, l = count(OK, { mode = mode, clients = 3, expect = '^hi$' })
            assert.equal(0, counts.failed, counts.text)
            assert.is_true(counts.ok >= 50)
            assert.equal(counts.total, l.bodies.hi)
        end
    end)

    it('tells the ways apart in which a request fails', function()
        assert.is_true(count([[c:write('HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n')]], {}).bad >= 50)
        assert.is_true(count([[c:write('HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi') c:shutdown()]], {}).bad >= 50)
        assert.is_true(count([[c:close()]], {}).empty >= 50)
        assert.is_true(count([[c:close_reset()]], {}).reset >= 50)
        assert.is_true(count('', { timeout = 20, total = 8 }).timeout >= 8)
        local l = load.start { port = http.free_port(), clients = 2 }
        l:await(4)
        assert.is_true(l:stop().refused >= 4)
    end)

    it('sends once more what was on a kept connection that ended', function()
        local counts = count([[if n % 5 == 0 then c:close() else ]] .. OK .. ' end',
            { mode = 'keepalive', clients = 2 })
        assert.is_true(counts.stale > 0)
        assert.is_true(counts.ok > 0)
        assert.equal(counts.total, counts.ok + counts.empty)
    end)

    it('keeps to a rate', function()
        local before = uv.hrtime()
        local counts = count(OK, { rate = 100, clients = 2, total = 20 })
        assert.equal(0, counts.failed)
        assert.is_true(uv.hrtime() - before > 100e6)
    end)

    it('gets single pages, in pieces too', function()
        local m = start('local function RESPOND(c) c:write("HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n'
            .. '3\\r\\nabc\\r\\n2\\r\\nde\\r\\n0\\r\\n\\r\\n") end\n' .. SERVER)
        local status, body = http.get { port = m:await('port').port }
        assert.same({ 200, 'abcde' }, { status, body })
        m:kill()
        m:exit()
        assert.same({ nil, 'ECONNREFUSED' }, { http.get { port = m.log[1].port } })
        m:finish { signal = 'SIGKILL' }
    end)
end)
