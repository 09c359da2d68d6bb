-- The script's processes at their worst: the master's loop is never held. Asked from outside, by a ping over the control
-- socket every 5 ms, while a hook blocks, loops, crashes, floods or is stopped; no worker, request or verdict suffers
-- that did not depend on it.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local pings = require 'spec.support.pings'
local wait = require 'spec.support.wait'

-- What a ping may take, in ms: 20 on a quiet machine (spec/bench/hooks.lua prints it), here with all that runs beside.
local HELD_MAX = 100 * wait.scale

-- A master of HTTP workers with `options` besides.
local function start(options, env)
    env = env or {}
    env.LISTEN = env.LISTEN or '127.0.0.1:' .. http.free_port()
    return master.start { script = ([[
        local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', restartSoak = 0, backoff = { first = 0.05, max = 0.05 },
            controlSocket = dutch.directory .. '/control',
            workerEnvironment = { LISTEN = os.getenv 'LISTEN' },
            %s }]]):format(options), files = { ['app.lua'] = apps.http }, env = env }
end

-- An HTTP server that thinks for 20 s before it answers.
local function slow_server()
    local server = uv.new_tcp()
    assert(server:bind('127.0.0.1', 0))
    assert(server:listen(8, function()
        local client, timer = uv.new_tcp(), uv.new_timer()
        server:accept(client)
        client:read_start(function() end)
        timer:start(20000, 0, function()
            timer:close()
            client:write('HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nslow but', function() client:close() end)
        end)
    end))
    return { port = server:getsockname().port, close = function() server:close() end }
end

local function options(text)
    return ([[
        local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', restartSoak = 0, backoff = { first = 0.05, max = 0.05 },
            controlSocket = dutch.directory .. '/control',
            workerEnvironment = { LISTEN = os.getenv 'LISTEN' },
            %s }]]):format(text)
end

local function watched(m)
    m:await 'Cluster ready'
    return pings.start(m.app .. '/control', m:process_pid())
end

local function check_held(watch, what, may_have_ended)
    local longest, count, seen = watch.stop(may_have_ended)
    assert.is_true(count > 0, what)
    assert.is_true(longest <= HELD_MAX, ('%s: the loop was held for %.0f ms, in the states %s'):format(what, longest, seen))
end

-- Requests meanwhile, on kept connections; none may fail. -> function() at the end
local function requests(port)
    local l = load.start { port = port, clients = 2, mode = 'keepalive', rate = 50, timeout = 5000 }
    return function(what)
        l:await(20)
        local counts = l:stop()
        assert.equal(counts.total, counts.ok, what .. ': ' .. counts.text)
    end
end

local function scripts_of(m)
    local found = {}
    local family = {}
    for _, pid in ipairs(m:family()) do
        family[pid] = true
    end
    for _, pid in ipairs(m:tree()) do
        if not family[pid] and pid ~= m:process_pid() then
            found[#found + 1] = pid
        end
    end
    return found
end

-- name, beforeFork's body, what the log says of it
local WORST = {
    { 'loops', 'while true do end', 'took longer than its budget of 0%.4 s' },
    { 'loops in pcall', 'while true do pcall(function() while true do end end) end', 'took longer than its budget' },
    { 'loops in a coroutine', 'coroutine.wrap(function() while true do end end)()', 'took longer than its budget' },
    { 'loops in a pattern', '(("a"):rep(40)):find(("a*"):rep(20) .. "b")', 'took longer than its budget' },
    { 'blocks in C', 'ffi.cdef "unsigned alarm(unsigned); int pause(void);" while true do ffi.C.pause() end',
        'took longer than its budget' },
    { 'blocks in a child that ignores SIGTERM', [[io.popen("trap '' TERM; sleep 60"):read '*a']],
        'took longer than its budget' },
    { 'segfaults', 'ffi.cast("int *", 0)[0] = 1', 'its process died of SIG', true },
    { 'aborts', 'ffi.cdef "void abort(void);" ffi.C.abort()', 'its process died of SIGABRT' },
    { 'exits', 'os.exit(3)', 'os%.exit was called' },
    { 'closes its descriptors', 'ffi.cdef "int close(int);" for fd = 0, 9 do ffi.C.close(fd) end while true do end',
        'closed the socket of its process' },
    { 'forks', 'ffi.cdef "int fork(void);" ffi.C.fork() error "twin"', 'twin' },
    { 'writes junk', 'ffi.cdef "long write(int, const char *, long);" while true do ffi.C.write(3, "junk\\n", 5) end',
        'wrote to the socket of its process what is no answer' },
    { 'writes without an end', 'ffi.cdef "long write(int, const char *, long);" local s = ("x"):rep(65536) '
        .. 'while true do ffi.C.write(3, s, #s) end', 'beforeFork' },
    { 'asks and never reads', 'ffi.cdef "long write(int, const char *, long);" local s = "{\\"ask\\":\\"store_all\\",'
        .. '\\"arguments\\":{}}\\n" while true do ffi.C.write(3, s, #s) end', 'took longer than its budget' },
    { 'is out of descriptors', 'ffi.cdef "struct rl { unsigned long cur, max; }; int setrlimit(int, const struct rl *);" '
        .. 'ffi.C.setrlimit(7, ffi.new("struct rl", 64, 64)) local t = {} '
        .. 'while true do t[#t + 1] = assert(io.open "/dev/null") end', 'Too many open files' },
    { 'is stopped', 'ffi.cdef "int raise(int);" ffi.C.raise(19)', 'took longer than its budget' },
    { 'eats memory by strings', 'local t = {} while true do t[#t + 1] = ("x"):rep(1e7) .. #t end', 'MiB of memory', true },
    { 'eats memory by ffi', 'local t = {} while true do t[#t + 1] = ffi.new("char[?]", 1e7) end', 'MiB of memory', true },
}

describe('a script in a process of its own', function()
    after_each(function()
        pings.cleanup()
        master.cleanup()
    end)

    it('at its worst fails its fork with a name, while another slot crashes and requests are served', function()
        local port = http.free_port()
        local m = start('', { LISTEN = '127.0.0.1:' .. port })
        local watch = watched(m)
        local l = load.start { port = port, clients = 2, rate = 50, timeout = 5000 }
        for _, case in ipairs(WORST) do
            if not (case[4] and os.getenv 'DM_SANITIZE') then -- the sanitizer has its own way with these
                local mark = m:mark()
                m:rewrite('master.lua', options(('hookTimeout = %s, beforeFork = function(worker) '
                    .. 'if worker.slot == 1 then local ffi = require "ffi"; %s end end')
                    :format(case[3]:find 'memory' and '10' or '0.4', case[2])))
                for _, pid in ipairs(m:workers()) do
                    uv.kill(pid, 'sigkill')
                end
                local failed = m:await(function(record)
                    return record.msg:find('Fork abandoned: ', 1, true) == 1
                end, { after = mark })
                assert.matches(case[3], failed.msg, case[1])
                assert.matches('^Fork abandoned: master%.lua.* beforeFork', failed.msg)
                assert.equal(1, failed.slot)
                m:wait_until(function() return #m:workers() == 1 end, 'the worker of the other slot: ' .. case[1])
                m:rewrite('master.lua', options(''))
                m:wait_until(function() return #m:workers() == 2 end, 'both workers after: ' .. case[1])
                m:await('Worker listening', { after = m:await('Worker listening', { after = mark }).index })
            end
        end
        local counts = l:stop()
        assert.equal(0, counts.bad, counts.text)
        check_held(watch, 'all of them')
        m:finish()
    end)

    it('that sleeps at each fork delays that fork alone: a crash, a roll and a stop go on', function()
        local port = http.free_port()
        local m = start('', { LISTEN = '127.0.0.1:' .. port })
        local watch = watched(m)
        m:rewrite('master.lua', options [[numWorkers = 2, hookTimeout = 30,
            beforeFork = function(worker) if worker.slot == 1 then os.execute 'sleep 4' end end]])
        local mark = m:mark()
        for _, pid in ipairs(m:workers()) do
            uv.kill(pid, 'sigkill')
        end
        m:await('Worker listening', { after = mark }) -- of slot 2
        assert.equal(1, #m:workers())
        local check_requests = requests(port)
        m:signal 'SIGUSR2'
        m:await 'Restart requested'
        m:await({ msg = 'Creating new worker', generation = 2 }, { after = mark })
        check_requests 'in the roll'
        local before = uv.hrtime()
        m:signal 'SIGTERM'
        m:exit { timeout = 5000 }
        assert.is_true((uv.hrtime() - before) / 1e6 < 3000 * wait.scale)
        check_held(watch, 'sleep', true)
        m:finish { code = 0 }
    end)

    it('that takes its time to say how many: restart, reload and plan wait for it, a crash and a scaling do not', function()
        local m = start [[hookTimeout = 30, numWorkers = function() os.execute 'sleep 0.2' return 2 end]]
        local watch = watched(m)
        m:rewrite('master.lua', options [[hookTimeout = 30,
            numWorkers = function() os.execute 'sleep 2' return 2 end]])
        local verbs = {}
        for _, verb in ipairs { 'plan', 'reload', 'restart' } do
            verbs[verb] = cli.start(m, { verb, verb == 'restart' and '--wait' or nil })
        end
        m:await 'Restart requested'
        local mark = m:mark()
        uv.kill(m:workers()[1], 'sigkill')
        m:await('Worker listening', { after = mark })
        assert.equal(0, cli.run(m, { 'scale', '3' }).code)
        m:wait_until(function() return #m:workers() == 3 end, 'the third')
        for verb, command in pairs(verbs) do
            assert.equal(0, command.ended, verb .. ' did not wait: ' .. command.out)
        end
        for verb, command in pairs(verbs) do
            assert.equal(0, command:wait().code, verb .. ': ' .. command.err)
        end
        check_held(watch, 'numWorkers')
        m:finish()
    end)

    it('whose judge asks a slow server for long decides then, and delays no other hook and no fork', function()
        local server, port = slow_server(), http.free_port()
        local m = start(([[numWorkers = 2, hookTimeout = 1, restartConcurrency = { canary = { soak = 0.1, timeout = 60,
            judge = function(new, old)
                local answer = io.popen 'curl -s http://127.0.0.1:%d/errors':read '*a'
                return false, answer .. ' ' .. new.state
            end } }, onWorkerExit = function() dutch.log:info 'hook: gone' end]]):format(server.port),
            { LISTEN = '127.0.0.1:' .. port })
        local watch = watched(m)
        m:signal 'SIGUSR2'
        m:await { msg = 'Worker listening', generation = 2 }
        local mark = m:mark()
        local old = m:records(function(record) return record.msg == 'Creating new worker' and record.generation == 1 end)
        uv.kill(old[2].workerPid, 'sigkill')
        m:await('hook: gone', { after = mark, timeout = 2500 })
        m:await('Worker listening', { after = mark, timeout = 2500 })
        local check_requests = requests(port)
        local verdict = m:await(function(record) return record.msg:find('^Restart aborted') end, { timeout = 40000 })
        check_requests 'while it is judged'
        assert.matches('the canary was rejected: slow but running', verdict.reason)
        check_held(watch, 'judge')
        m:finish()
        server.close()
    end)

    it('whose logger blocks costs the records alone: they go to stdout, by name', function()
        local m = start [[hookTimeout = 0.5, logger = { info = function(_, message)
            if message == 'Cluster ready' then while true do end end end }]]
        m:wait_until(function() return uv.fs_stat(m.app .. '/control') end, 'its control socket')
        local watch = pings.start(m.app .. '/control', m:process_pid())
        m:wait_until(function() return #m:records 'The logger of the script failed, writing here instead' > 0 end,
            'word of it')
        local told = m:records 'The logger of the script failed, writing here instead'[1]
        assert.matches('logger took longer than its budget of 0.5 s', told.error)
        check_held(watch, 'logger')
        local before = uv.hrtime()
        m:signal 'SIGTERM'
        m:exit()
        assert.is_true((uv.hrtime() - before) / 1e6 < 2000 * wait.scale)
        m:finish { code = 0 }
    end)

    it('that floods the log, or never reads, holds nothing', function()
        local m = start [[hookTimeout = 1, onReady = function()
            for i = 1, 1e9 do dutch.log:debug('flood') end end]]
        local watch = watched(m)
        m:await(function(record)
            return record.msg:find('Hook failed: master.lua:%d+: onReady took longer than its budget of 1 s') == 1
        end)
        check_held(watch, 'flood')
        m:finish()
    end)

    it('is killed by hand in every phase of a roll: the next request has another, and the verdict is right', function()
        local port = http.free_port()
        local m = start([[numWorkers = 2,
            restartConcurrency = { canary = { soak = 0.1, judge = function()
                dutch.log:info 'hook: judging'
                os.execute 'sleep 0.3'
                return true
            end } },
            beforeFork = function()
                dutch.store.forks = (dutch.store.forks or 0) + 1
                dutch.log:info 'hook: preparing'
                os.execute 'sleep 0.1'
            end]], { LISTEN = '127.0.0.1:' .. port })
        local watch, check_requests = watched(m), requests(port)
        -- The script is evaluated; its hook runs; the worker starts; it proves itself; it is judged; the old one leaves
        -- and the next fork is prepared; the old one has left.
        -- @return false if the process was killed before it heard of the roll: that roll says so, the next has another
        local function kill_in(phase)
            local mark = m:mark()
            m:signal 'SIGUSR2'
            m:await(phase, { after = mark })
            for _, pid in ipairs(scripts_of(m)) do
                pcall(uv.kill, pid, 'sigkill')
            end
            local verdict = m:await(function(record)
                return record.msg == 'Restart complete' or record.msg:find('^Restart aborted') ~= nil
            end, { after = mark })
            m:wait_until(function() return #m:workers() == 2 end, 'two workers')
            if verdict.msg == 'Restart complete' then
                return true
            elseif verdict.reason:find('could not be asked', 1, true) then
                return false
            end
            assert.matches('its process was killed by SIGKILL', verdict.reason) -- it was being evaluated, or asked to judge
            return true
        end
        for _, phase in ipairs { 'Restart requested', 'hook: preparing', 'Creating new worker', 'Worker listening',
            'hook: judging', 'Replacement worker available - disconnecting', 'Worker exited' } do
            assert.is_true(kill_in(phase) or kill_in(phase) or kill_in(phase), phase)
        end
        check_requests 'in the rolls'
        check_held(watch, 'kill -9')
        m:finish()
    end)

    it('has its store in the master, where no process can take it along, and bounded', function()
        local m = start [[onReady = function()
            dutch.store.kept = { 1, ['x'] = 'y\0z' }
            local ok, err = pcall(function() dutch.store.large = ('x'):rep(600 * 1024) end)
            dutch.log:info({ ok = ok, err = err }, 'store: refused')
            os.exit(0) end,
            onWorkerExit = function() dutch.log:info({ kept = dutch.store.kept.x }, 'store: kept') end]]
        local refused = m:await 'store: refused'
        assert.is_false(refused.ok)
        assert.matches('dutch.store%["large"%]: the store would hold 601 KiB, at most 512 are possible', refused.err)
        m:await(function(record) return record.msg:find('Hook failed: .*onReady: os%.exit was called') ~= nil end)
        uv.kill(m:workers()[1], 'sigkill')
        assert.equal('y\0z', m:await('store: kept').kept)
        m:finish()
    end)

    it('ends with its master, whatever it does', function()
        local m = start [[onReady = function() dutch.log:info 'hook: in' while true do end end]]
        m:await 'hook: in'
        local pids = scripts_of(m)
        assert.is_true(#pids >= 2)
        m:kill()
        wait.wait_until(function()
            for _, pid in ipairs(pids) do
                if uv.kill(pid, 0) then return false end
            end
            return true
        end, { what = 'the end of the script processes' })
        os.execute(("rm -f '%s'/run/*"):format(m.dir)) -- what a master that is killed leaves
        m:finish { signal = 'SIGKILL', left = true }
    end)
end)
