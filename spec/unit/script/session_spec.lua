local script = require 'dutch-master.script.session'

-- A process that answers as it is told: given.run for an evaluation, given.call(hook, ...) for a call, each
-- true, results... or nil, err.
local function fake(given)
    local log = { kept = {} }
    local platform = {
        cwd = function() return '/start' end,
        read_file = function(path, ...)
            if given.read_file then
                return given.read_file(path, ...)
            end
            log.path = path
            return 'source'
        end,
    }
    local process = { took_ms = 2 }
    function process.new_state()
        return 7
    end
    function process.keep(_, state, session)
        process.kept = session
        table.insert(log.kept, state)
    end
    local function answer(done, ok, ...)
        if not ok then
            return done(nil, (...))
        end
        done({ ok = true, directory = given.directory, results = { n = select('#', ...), ... } })
    end
    function process.await(_, what, budget_ms, done)
        log.awaited = log.awaited or {}
        table.insert(log.awaited, { what, budget_ms })
        answer(done, given.call(what))
    end
    function process.request(_, verb, state, message, what, budget_ms, done)
        log.request = { verb = verb, state = state, message = message, what = what, budget_ms = budget_ms }
        if verb == 'E' and message.like and not given.differs then
            return done { ok = true, same = true, directory = given.directory, results = { n = 0 } }
        elseif verb == 'E' then
            if given.run then
                return answer(done, given.run())
            end
            local file = given.file == nil and 'master.lua' or given.file or nil
            return answer(done, true, given.options or { worker = 'app.js' }, file, 2)
        end
        answer(done, given.call(message.hook, unpack(message.arguments, 1, message.arguments.n)))
    end
    return script.new { platform = platform, path = '/etc/app/master.lua' }, log, process
end

-- What done() is given, at once.
local function now(fn)
    local got
    fn(function(...)
        assert(not got, 'answered twice')
        got = { n = select('#', ...), ... }
    end)
    assert(got, 'not answered')
    return unpack(got, 1, got.n)
end

local function evaluate(given, options)
    local subject, log, process = fake(given)
    local session, err = now(function(done) subject:evaluate(process, options, done) end)
    return session, err, log, subject
end

local function call(session, hook, arguments, timeout)
    return now(function(done) session:call(hook, arguments, done, timeout) end)
end

local function failing(err)
    return function()
        return nil, err
    end
end

describe('script', function()
    it('evaluates the file as it is now, under its short name, from its directory', function()
        local session, _, log = evaluate {}
        assert.equal('/etc/app/master.lua', log.path)
        assert.same({ verb = 'E', state = 7, what = 'the script', budget_ms = 5000,
            message = { source = 'source', name = 'master.lua', directory = '/etc/app' } }, log.request)
        assert.equal('node', session.plan.kind)
        assert.is_nil(session.cwd)
        session:keep()
        session:keep()
        assert.same({ 7 }, log.kept)
        assert.equal(session, session.process.kept)
        assert.is_nil(session.script.newest) -- it has no number: it only makes hooks ready
    end)

    it('knows the newest of the evaluations that were good', function()
        local second, _, _, subject = evaluate({}, { number = 2 })
        second:keep()
        assert.equal(second, subject.newest)
        for number, is_newer in pairs { false, true, true } do
            subject:adopt({ number = number })
            assert.equal(is_newer, subject.newest ~= second)
            subject.newest = second
        end
    end)

    it('evaluates the text of an earlier evaluation again', function()
        local session, _, log = evaluate({}, { source = 'older', repeated = true, budget_ms = 70 })
        assert.is_nil(log.path)
        assert.same({ 'older', true, 70 },
            { log.request.message.source, log.request.message.repeated, log.request.budget_ms })
        assert.equal('older', session.source)
    end)

    it('tells apart why a file cannot be read', function()
        for code, text in pairs { ENOENT = 'there is no such file', EACCES = 'may not be read',
            EISDIR = 'is a directory', EFBIG = 'too large', EIO = 'input/output error' } do
            local session, err = evaluate { read_file = function()
                return nil, 'input/output error', code
            end }
            assert.is_nil(session)
            assert.truthy(err.message:find('/etc/app/master.lua: ', 1, true))
            assert.truthy(err.message:find(text, 1, true), err.message)
            assert.equal(code == 'ENOENT' and 'missing' or 'unreadable', err.kind)
        end
    end)

    it('reports every failure in one line with its place', function()
        local cases = {
            { { kind = 'syntax', message = "master.lua:3: unexpected symbol near '='" },
                "master.lua:3: unexpected symbol near '='" },
            { { kind = 'runtime', message = 'master.lua:3: boom', traceback = 'stack' }, 'master.lua:3: boom' },
            { { kind = 'runtime', message = 'stack overflow' }, 'master.lua: stack overflow' },
            { { kind = 'bytecode', message = 'master.lua: is compiled Lua; a script must be text' },
                'master.lua: is compiled Lua; a script must be text' },
            { { kind = 'budget', message = 'x', where = 'master.lua:7' },
                'master.lua:7: the script took longer than its budget of 5 s' },
            { { kind = 'budget', message = 'x' }, 'master.lua: the script took longer than its budget of 5 s' },
            { { kind = 'memory', message = 'x' }, 'master.lua: the script used more than its 128 MiB of memory' },
            { { kind = 'died', message = 'was cut short, its process died of SIGSEGV' },
                'master.lua: the script was cut short, its process died of SIGSEGV' },
        }
        for _, case in ipairs(cases) do
            local session, err = evaluate { run = failing(case[1]) }
            assert.is_nil(session)
            assert.equal(case[2], err.message)
            assert.same({ case[2] }, err.messages)
            assert.equal(case[1].kind, err.kind)
            assert.equal(case[1].traceback, err.traceback)
        end
    end)

    it('wants start to be called', function()
        local session, err = evaluate { file = false }
        assert.is_nil(session)
        assert.equal('start', err.kind)
        assert.equal('master.lua:1: the script never calls start { ... }', err.message)
    end)

    -- A script may write to the socket of its own process, and so answer for the master's next question.
    it('believes nothing of an answer', function()
        local fn, odd = function() end, newproxy()
        local some = { fn, odd, 1 / 0, -1e308, 0 / 0, 0.5, '', '\0', 'master.lua', false, true, {}, { {} }, { worker = 'x' } }
        local n = #some + 1 -- the last one is nil
        local good = 0
        for i = 1, n do
            for j = 1, n do
                for k = 1, n do
                    local session, err = evaluate { run = function()
                        return true, some[i], some[j], some[k]
                    end }
                    assert(session or type(err.message) == 'string' and #err.messages > 0)
                    good = good + (session and 1 or 0)
                end
            end
        end
        assert.equal(3 * 4, good) -- one table of options, from any name of a file, at any number
        local _, err = evaluate { run = function()
            return true, fn, 1 / 0, { 2 }
        end }
        assert.equal('junk', err.kind)
        assert.equal('master.lua: the script wrote to the socket of its process what is no answer', err.message)
    end)

    it('reports all errors of the options', function()
        local session, err = evaluate { options = { worker = 'x', numWorkers = 0, nice = 99 } }
        assert.is_nil(session)
        assert.equal('options', err.kind)
        assert.equal(2, #err.messages)
        assert.equal(err.messages[1], err.message)
    end)

    it('calls hooks and names the one that failed', function()
        local answer
        local session, _, log, subject = evaluate { call = function()
            return unpack(answer, 1, 3)
        end }
        answer = { true, false, 'not today' }
        assert.same({ true, false, 'not today' }, { call(session, 'onReady', { { id = 1 } }) })
        assert.same({ 'C', 7, 5000 }, { log.request.verb, log.request.state, log.request.budget_ms })
        assert.equal('onReady', log.request.message.hook)
        assert.same({ { id = 1 } }, log.request.message.arguments)
        for _, case in ipairs {
            { { kind = 'budget', where = 'master.lua:14' },
                'master.lua:14: beforeFork took longer than its budget of 5 s (hookTimeout)' },
            { { kind = 'runtime', message = 'master.lua:14: boom' }, 'master.lua:14: beforeFork: boom' },
            { { kind = 'runtime', message = 'stack overflow' }, 'master.lua: beforeFork: stack overflow' },
            { { kind = 'memory', message = 'x' }, 'master.lua: beforeFork used more than its 128 MiB of memory' },
            { { kind = 'died', message = 'was cut short', where = 'master.lua:9' },
                'master.lua:9: beforeFork was cut short' },
            { { kind = 'exit', message = 'os.exit was called', where = 'master.lua:9' },
                'master.lua:9: beforeFork: os.exit was called' },
        } do
            answer = { nil, case[1] }
            local ok, err = call(session, 'beforeFork', {})
            assert.is_nil(ok)
            assert.equal(case[2], err.message)
            assert.equal(case[1].kind, err.kind)
        end
        assert.same({ calls = 6, failures = 6, ms = 12 }, subject.totals.beforeFork)
        assert.same({ calls = 1, failures = 0, ms = 2 }, subject.totals.onReady)
    end)

    it('gives a hook the time that it may take', function()
        local session, _, log = evaluate { options = { worker = 'x', hookTimeout = 2 }, call = failing { kind = 'budget' } }
        call(session, 'onReady', {})
        assert.equal(2000, log.request.budget_ms)
        local _, err = call(session, 'judge', { n = 2, {} }, { ms = 20000, option = 'canary.timeout' })
        assert.equal(20000, log.request.budget_ms)
        assert.equal('master.lua: judge took longer than its budget of 20 s (canary.timeout)', err.message)
    end)

    -- A second evaluation for a fork, in the process that keeps the first one. @return the session, log
    local function for_a_fork(given)
        local subject, log, process = fake(given)
        local before = assert(now(function(done) subject:evaluate(process, {}, done) end))
        before:keep()
        return now(function(done) subject:evaluate(process, { worker = { id = 5 } }, done) end), log, before
    end

    local function environment_of(session)
        return now(function(done) session:environment({ id = 5 }, done) end)
    end

    it('has the plan that it had, and the hooks of the fork follow by themselves', function()
        local fn = function() end
        local session, log, before = for_a_fork {
            directory = '/a', options = { worker = 'x', hookTimeout = 2, beforeFork = fn, workerEnvironment = fn },
            call = function(hook) return true, hook == 'workerEnvironment' and { A = 1 } or nil end,
        }
        assert.same({ 7, { { id = 5 } } }, { log.request.message.like, log.request.message.arguments })
        assert.equal(before.plan, session.plan) -- one for all that have its like
        assert.not_equal(before.where, session.where)
        assert.equal('beforeFork', session.ahead)
        log.request = nil
        assert.is_true(call(session, 'beforeFork', { { id = 5 } }))
        assert.equal('/a', session.cwd)
        assert.equal('workerEnvironment', session.ahead)
        assert.same({ A = '1' }, environment_of(session))
        assert.same({ { 'beforeFork', 2000 }, { 'workerEnvironment', 2000 } }, log.awaited)
        assert.is_nil(log.request)
        assert.is_nil(session.ahead)
        call(session, 'beforeFork', { { id = 6 } }) -- of another fork, when a later script is bad
        assert.same({ 'C', 2 }, { log.request.verb, #log.awaited })
    end)

    it('has the plan that it had for what is no fork, too', function()
        local fn = function() end
        local subject, log, process = fake { options = { worker = 'x', beforeFork = fn, workerEnvironment = fn } }
        local before = now(function(done) subject:evaluate(process, {}, done) end)
        before:keep()
        local session = now(function(done) subject:evaluate(process, {}, done) end)
        assert.same({ 7, nil }, { log.request.message.like, log.request.message.arguments })
        assert.equal(before.plan, session.plan)
        assert.is_nil(session.ahead)
    end)

    it('nothing follows a beforeFork that failed or said no', function()
        for _, verdict in ipairs { { true, false, 'no' }, { nil, { kind = 'runtime', message = 'master.lua:3: no' } } } do
            local session, log = for_a_fork {
                options = { worker = 'x', beforeFork = error, workerEnvironment = error },
                call = function() return unpack(verdict, 1, 3) end,
            }
            local ok, why = call(session, 'beforeFork', {})
            assert.equal(verdict[1], ok)
            assert.truthy(ok and why == false or why.message == 'master.lua:3: beforeFork: no')
            assert.is_nil(session.ahead)
            assert.equal(1, #log.awaited)
        end
    end)

    it('has a plan of its own when it says something else, and calls its hooks', function()
        local session, log, before = for_a_fork { differs = true, options = { worker = 'x', beforeFork = error },
            call = function() return true end }
        assert.not_equal(before.plan, session.plan)
        assert.is_nil(session.ahead)
        call(session, 'beforeFork', { { id = 5 } })
        assert.same({ 'C' }, { log.request.verb })
        assert.is_nil(log.awaited)
    end)

    it('looks again when a user of the plan may be another by now', function()
        for _, changed in ipairs { false, true } do
            local uid = 3
            local subject, log, process = fake { options = { worker = { 'x' }, user = 'app' } }
            subject.platform.getuser = function(name)
                return uid and { name = name, uid = uid, gid = 4, groups = { 4 }, dir = '/', shell = '/bin/sh' }
            end
            subject.platform.uid = function() return 0 end
            subject.platform.rehearse = function() return true end
            now(function(done) subject:evaluate(process, {}, done) end):keep()
            uid = changed and 9 or uid
            local session = now(function(done) subject:evaluate(process, { worker = { id = 5 } }, done) end)
            assert.equal(not changed, log.request.message.like == 7)
            assert.equal(uid, session.plan.uid)
        end
    end)

    it('begins each fork in the directory in which the evaluation ended', function()
        local given = { directory = '/a', call = function() return true end }
        local session, _, log = evaluate(given)
        given.directory = '/a/b'
        call(session, 'beforeFork', {})
        assert.equal('/a', log.request.message.directory)
        assert.equal('/a/b', session.cwd)
        call(session, 'onReady', {})
        assert.is_nil(log.request.message.directory)
        call(session, 'beforeFork', {})
        assert.equal('/a', log.request.message.directory)
        given.directory = nil
        session, _, log = evaluate(given)
        call(session, 'beforeFork', {})
        assert.is_false(log.request.message.directory)
    end)

    it('makes the directory of the fork absolute', function()
        assert.equal('/start/releases/1', (evaluate { directory = 'releases/1' }).cwd)
        assert.equal('/deploys/current', (evaluate { directory = '/deploys/current' }).cwd)
    end)

    it('checks what the functions of the script return', function()
        local fn = function() end
        local answer
        local session = evaluate { options = { worker = 'x', numWorkers = fn, workerEnvironment = fn }, call = function()
            return true, answer
        end }
        local function num_workers()
            return now(function(done) session:num_workers(done) end)
        end
        local function environment()
            return now(function(done) session:environment({ id = 1 }, done) end)
        end
        answer = 3
        assert.equal(3, num_workers())
        for _, bad in ipairs { 0, -1, 0 / 0, 1 / 0, 1.5, '4', {}, 1e6, false } do
            answer = bad
            local count, err = num_workers()
            assert.is_nil(count)
            assert.equal('options', err.kind)
            assert.truthy(err.message:find('^master.lua:%d+: numWorkers: expected an integer from 1 to 4096, found'))
        end
        answer = nil
        assert.truthy(select(2, num_workers()).message:find('found nothing', 1, true))
        answer = { A = 1, B = false }
        assert.same({ A = '1', B = false }, environment())
        answer = { ['a=b'] = 1 }
        assert.truthy(select(2, environment()).message
            :find('^master.lua:%d+: workerEnvironment%["a=b"%]: expected a name'))
    end)

    it('gives what is written down without asking', function()
        local session = evaluate { options = { worker = 'x', numWorkers = 5, workerEnvironment = { A = 'b' } },
            call = error }
        assert.equal(5, now(function(done) session:num_workers(done) end))
        assert.same({ A = 'b' }, session.plan.environment)
    end)

    it('keeps the environment of a preset under that of a function', function()
        local preset = { preset = 'p', argv = { 'p' }, environment = { ['FD_{index}'] = { each = '{fd}' },
            B = { each = 'x' } } }
        local session = evaluate { options = { worker = preset, listen = ':1',
            workerEnvironment = function() end },
            call = function()
                return true, { B = 'mine' }
            end }
        assert.same({ FD_1 = '3', B = 'mine' }, now(function(done) session:environment({ id = 1 }, done) end))
    end)
end)
