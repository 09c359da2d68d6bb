-- Hooks that misbehave: a throw, a veto, a loop, hunger, os.exit, slowness. The workers never notice.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local master = require 'spec.support.master'

local SANITIZED = os.getenv 'DM_SANITIZE' ~= nil -- there is no limit of memory then

local function script(hook, body, more)
    return ([[
        local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', restartSoak = 0, backoff = { first = 0.05, max = 0.05 }, %s
            workerEnvironment = { LISTEN = os.getenv 'LISTEN' },
            %s = function(...) %s end }]]):format(more or '', hook, body)
end

-- name, what it does, how it is told
local FAST = {
    { 'throws', 'error "no"', 'master%.lua:4: beforeFork: no$' },
    { 'throws a table', 'error { "no" }', 'master%.lua.*beforeFork: .*table' },
    { 'throws nothing', 'error(nil)', 'master%.lua.*beforeFork: ' },
    { 'calls os.exit', 'os.exit(3)', 'master%.lua:4: beforeFork: os%.exit was called' },
    { 'eats memory', 'local t = {} while true do t[#t + 1] = ("x"):rep(1e7) .. #t end',
        SANITIZED and 'beforeFork' or 'beforeFork .*memory', not SANITIZED and 'hookTimeout = 30,' },
    { 'eats memory in pcall', 'local t = {} while true do pcall(function() t[#t + 1] = ("x"):rep(1e7) .. #t end) end',
        'beforeFork' },
    { 'recurses', 'local function f() return 1 + f() end f()', 'beforeFork: .*stack overflow' },
    { 'changes the libraries', 'string.format = nil table.concat = nil error(nil)', 'beforeFork' },
}
local SLOW = {
    { 'loops', 'while true do end', 'master%.lua:4: beforeFork took longer than its budget of 5 s' },
    { 'loops in pcall', 'while true do pcall(function() while true do end end) end', 'took longer than its budget of 5 s' },
    { 'loops in a coroutine', 'coroutine.wrap(function() while true do end end)()', 'took longer than its budget of 5 s' },
    { 'loops inside a pattern', 'local s = ("a"):rep(40) s:find(("a*"):rep(20) .. "b")', 'took longer than its budget of 5 s' },
    { 'makes long strings in pcall', 'while true do pcall(string.rep, "x", 3e7) end', 'took longer than its budget of 5 s' },
    { 'opens a fifo that nobody writes to', 'os.execute("mkfifo " .. dutch.directory .. "/fifo") '
        .. 'io.open(dutch.directory .. "/fifo")', 'beforeFork took longer than its budget of 5 s' },
    { 'waits for a command of 6 s', 'os.execute "sleep 6"', 'beforeFork' },
    { 'reads from a command of 6 s', 'io.popen("sleep 6"):read "*a"', 'beforeFork' },
}

local function start(hook, body, env, more)
    env = env or { LISTEN = '127.0.0.1:' .. http.free_port() }
    return master.start { script = script(hook, body, more), files = { ['app.lua'] = apps.http }, env = env }
end

describe('a hook', function()
    after_each(master.cleanup)

    it('that fails at the first fork ends the start, with its name and its line', function()
        local masters = {}
        for i, case in ipairs(FAST) do
            masters[i] = start('beforeFork', case[2], nil, case[4])
        end
        for i, case in ipairs(FAST) do
            local m = masters[i]
            m:exit { timeout = 20000 }
            assert.same({ code = 78 }, m.ended, case[1] .. m:dump())
            local fatal = m:records(function(record) return record.level == 60 end)[1]
            assert.is_truthy(fatal, case[1] .. m:dump())
            assert.matches(case[3], fatal.msg, case[1])
            assert.equal(0, #m:records 'Creating new worker')
            m:finish { code = 78 }
        end
    end)

    it('that takes longer than 5 s is cut off, wherever it is', function()
        local masters = {}
        for i, case in ipairs(SLOW) do
            masters[i] = start('beforeFork', case[2])
        end
        for i, case in ipairs(SLOW) do
            local m = masters[i]
            m:exit { timeout = 30000 }
            assert.same({ code = 78 }, m.ended, case[1] .. m:dump())
            local fatal = m:records(function(record) return record.level == 60 end)[1]
            assert.is_truthy(fatal, case[1] .. m:dump())
            assert.matches(case[3], fatal.msg, case[1])
            m:finish { code = 78 }
        end
    end)

    it('that fails later costs that fork alone', function()
        local port = http.free_port()
        local m = start('onReady', '', { LISTEN = '127.0.0.1:' .. port })
        m:await 'Cluster ready'
        for _, case in ipairs(FAST) do
            local mark = m:mark()
            m:rewrite('master.lua', script('beforeFork', case[2]))
            uv.kill(m:workers()[1], 'sigkill')
            local abandoned = m:await(function(record)
                return record.msg:find('Fork abandoned: ', 1, true) == 1
            end, { after = mark })
            assert.matches(case[3], abandoned.msg, case[1])
            assert.same({ 'number', 1 }, { type(abandoned.slot), abandoned.generation })
            assert.equal(200, (http.get { port = port }))
            m:rewrite('master.lua', script('onReady', ''))
            m:await('Worker listening', { after = mark })
            m:wait_until(function() return #m:workers() == 2 end, 'both workers')
        end
        m:finish()
    end)

    it('may say no, and why', function()
        local m = start('beforeFork', [[if not io.open(dutch.directory .. '/go') then return false, 'not yet' end]])
        local veto = m:await 'Fork abandoned: beforeFork said no: not yet'
        assert.same({ 50, 1 }, { veto.level, veto.slot })
        m:await({ msg = 'Fork abandoned: beforeFork said no: not yet', slot = 2 }, { count = 3 })
        assert.equal(0, #m:records 'Creating new worker')
        m:rewrite('go', '')
        m:await 'Cluster ready'
        m:finish()
    end)

    it('that nobody waits for fails into the log alone', function()
        for name, trigger in pairs {
            onReady = function() end,
            onWorkerReady = function() end,
            onWorkerExit = function(m) uv.kill(m:workers()[1], 'sigkill') end,
            onRestart = function(m) m:signal 'SIGUSR2' end,
            onMessage = function() end,
        } do
            local m = master.start {
                script = script(name, 'error "no"'),
                files = { ['app.lua'] = apps.idle .. '\nrequire("dutch-master.worker").send "hello"' },
            }
            m:await 'Cluster ready'
            trigger(m)
            local failed = m:await('Hook failed: master.lua:4: ' .. name .. ': no')
            assert.same({ 50, name }, { failed.level, failed.hook })
            m:wait_until(function() return #m:workers() == 2 end, 'both workers')
            m:finish()
        end
    end)

    it('that nobody waits for and that loops is cut off, and left alone for a while', function()
        local m = master.start {
            script = script('onMessage', 'while true do pcall(error) end'),
            files = { ['app.lua'] = apps.idle .. '\nfor i = 1, 5 do require("dutch-master.worker").send(i) end' },
        }
        local failed = m:await('Hook failed: master.lua:4: onMessage took longer than its budget of 5 s (hookTimeout)')
        assert.same({ 50, 'onMessage' }, { failed.level, failed.hook })
        -- What had come meanwhile does not get five seconds each.
        m:await('Hook skipped: the script took too long a moment ago', { count = 4 })
        m:await 'Cluster ready'
        m:signal 'SIGTERM'
        m:exit()
        m:finish { code = 0 }
    end)

    it('for the environment fails the boot, and later that fork, by name', function()
        local function with_hook(body)
            return (script('workerEnvironment', body):gsub("workerEnvironment = { LISTEN.- },", ''))
        end
        local files = { ['app.lua'] = apps.idle }
        local bad = master.start { script = with_hook 'error "no"', files = files }
        bad:exit()
        assert.equal(1, #bad:records 'Fork failed: master.lua:4: workerEnvironment: no')
        bad:finish { code = 78 }

        local m = master.start { script = script('onReady', ''), files = files }
        m:await 'Cluster ready'
        for body, told in pairs {
            ['error "no"'] = 'workerEnvironment: no',
            ['return 5'] = 'workerEnvironment: expected a table',
            ['return { A = {} }'] = 'workerEnvironment.A: expected a string',
            ['return { ["A=B"] = "c" }'] = 'workerEnvironment["A=B"]: expected a name without',
            ['return { A = "x\\0y" }'] = 'workerEnvironment.A: expected a string without NUL',
        } do
            local mark = m:mark()
            m:rewrite('master.lua', with_hook(body))
            uv.kill(m:workers()[1], 'sigkill')
            local failed = m:await(function(record) return record.msg:find('Fork failed: ', 1, true) == 1 end,
                { after = mark })
            assert.matches(told, failed.msg, 1, true)
            m:rewrite('master.lua', script('onReady', ''))
            m:await('Worker listening', { after = mark })
            m:wait_until(function() return #m:workers() == 2 end, 'both workers')
        end
        m:finish()
    end)

    it('cannot re-enter the cluster: what it asks for comes after it', function()
        local m = start('onReady', [[
            dutch.restart() dutch.scale(3) dutch.restart()
            dutch.log:info 'hook: over']])
        m:await 'hook: over'
        assert.equal(0, #m:records('Restart requested', 0) - #m:records('Restart requested', m:records('hook: over')[1]))
        m:await 'Restart complete'
        m:wait_until(function() return #m:workers() == 3 end, 'three workers')
        m:finish()
    end)

    it('that a timer calls cannot either', function()
        local m = master.start { files = { ['app.lua'] = apps.idle }, script = [[
            local dutch = require 'dutch-master'
            dutch.start { worker = 'app.lua', numWorkers = 1, restartSoak = 0, every = { 0.05, function()
                local worker = dutch.workers()[1]
                if not worker or worker.state ~= 'running' or dutch.store.asked then return end
                dutch.store.asked = true
                dutch.restart()
                dutch.log:info 'hook: over'
            end } }]] }
        m:await('Restart requested', { after = m:await('hook: over').index })
        m:await 'Restart complete'
        assert.equal(1, #m:records 'Restart requested')
        m:finish()
        for _, record in ipairs(m.log) do
            assert.is_true(record.level < 40, record.msg)
        end
    end)

    it('may stop the cluster, and say why in words', function()
        local m = start('onReady', [[
            dutch.log:info('hook: ' .. select(2, pcall(dutch.restart, { why = 'words' })))
            dutch.stop 'it is late']])
        assert.same({ code = 0 }, m:exit())
        local asked = m:records('Shutdown requested')[1]
        assert.same({ 'script', 'it is late' }, { asked.cause, asked.reason })
        assert.equal(1, #m:records(function(record)
            return record.msg:find('hook: .*dutch%.restart: expected the reason in words, found a table$')
        end))
        assert.equal(0, #m:records 'Restart requested')
        m:finish()
    end)
end)
