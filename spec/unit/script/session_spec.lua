local script = require 'dutch-master.script.session'

-- A sandbox that does what it is told: run and call are functions of the spec.
local function fake(given)
    local log = {}
    local platform = {
        cpus = function() return 4 end,
        hostname = function() return 'host' end,
        environ = function() return { A = 'b' } end,
        cwd = function() return '/start' end,
        read_file = given.read_file or function(path)
            log.path = path
            return 'source'
        end,
        sandbox = function(options)
            if given.refuse then
                return nil, given.refuse, 'ENOMEM'
            end
            log.host, log.memory, log.directory = options.host, options.memory, options.directory
            return {
                run = function(_, name, source, budget)
                    log.run = { name, source, budget }
                    if given.run then
                        return given.run()
                    end
                    return true
                end,
                call = function(_, entry, budget, ...)
                    log.call = { entry, budget, ... }
                    if entry == 'options' then
                        local file = given.file == nil and 'master.lua' or given.file
                        return true, given.options or { worker = 'app.js' }, file, 2
                    end
                    return given.call(...)
                end,
                directory = function(_, set) log.set = set return given.directory end,
                close = function() log.closed = (log.closed or 0) + 1 end,
            }
        end,
    }
    local asked = {}
    local subject = script.new { platform = platform, path = '/etc/app/master.lua', budget_ms = 5000,
        host = function(...)
            asked[#asked + 1] = { ... }
            return 'answer'
        end }
    return subject, log, asked
end

local function failing(err)
    return function()
        return nil, err
    end
end

describe('script', function()
    it('evaluates the file as it is now, under its short name, from its directory', function()
        local subject, log = fake {}
        local session = assert(subject:evaluate())
        assert.equal('/etc/app/master.lua', log.path)
        assert.same({ '@master.lua', 'source', 5000 }, log.run)
        assert.equal('/etc/app', log.directory)
        assert.equal('node', session.plan.kind)
        assert.is_nil(session.cwd)
        session:close()
        session:close()
        assert.equal(1, log.closed)
    end)

    it('tells apart why a file cannot be read', function()
        for code, text in pairs { ENOENT = 'there is no such file', EACCES = 'may not be read',
            EISDIR = 'is a directory',
            EFBIG = 'too large', EIO = 'input/output error' } do
            local subject = fake { read_file = function()
                return nil, 'input/output error', code
            end }
            local session, err = subject:evaluate()
            assert.is_nil(session)
            assert.truthy(err.message:find('/etc/app/master.lua: ', 1, true))
            assert.truthy(err.message:find(text, 1, true), err.message)
            assert.equal(code == 'ENOENT' and 'missing' or 'unreadable', err.kind)
        end
    end)

    it('reports every failure in one line with its place, and gives the state back', function()
        local cases = {
            { { kind = 'syntax', message = "master.lua:3: unexpected symbol near '='" },
                "master.lua:3: unexpected symbol near '='" },
            { { kind = 'runtime', message = 'master.lua:3: boom', traceback = 'stack' }, 'master.lua:3: boom' },
            { { kind = 'runtime', message = 'stack overflow' }, 'master.lua: stack overflow' },
            { { kind = 'bytecode', message = 'master.lua: is compiled Lua; a script must be text' },
                'master.lua: is compiled Lua; a script must be text' },
            { { kind = 'budget', message = 'x', where = 'master.lua:7' },
                'master.lua:7: the script took longer than its budget of 5 s' },
            { { kind = 'memory', message = 'used more than its 64 MiB of memory' },
                'master.lua: the script used more than its 64 MiB of memory' },
        }
        for _, case in ipairs(cases) do
            local subject, log = fake { run = failing(case[1]) }
            local session, err = subject:evaluate()
            assert.is_nil(session)
            assert.equal(case[2], err.message)
            assert.same({ case[2] }, err.messages)
            assert.equal(case[1].kind, err.kind)
            assert.equal(case[1].traceback, err.traceback)
            assert.equal(1, log.closed)
        end
    end)

    it('wants start to be called', function()
        local subject, log = fake { file = false }
        local session, err = subject:evaluate()
        assert.is_nil(session)
        assert.equal('start', err.kind)
        assert.equal('master.lua:1: the script never calls start { ... }', err.message)
        assert.equal(1, log.closed)
    end)

    it('reports all errors of the options', function()
        local subject, log = fake { options = { worker = 'x', numWorkers = 0, nice = 99 } }
        local session, err = subject:evaluate()
        assert.is_nil(session)
        assert.equal('options', err.kind)
        assert.equal(2, #err.messages)
        assert.equal(err.messages[1], err.message)
        assert.equal(1, log.closed)
    end)

    it('says when no state can be made', function()
        local session, err = fake({ refuse = 'not enough memory' }):evaluate()
        assert.is_nil(session)
        assert.equal('system', err.kind)
        assert.equal('master.lua: cannot be evaluated: not enough memory', err.message)
    end)

    it('calls hooks and names the one that failed', function()
        local answer
        local subject, log = fake { call = function()
            return unpack(answer, 1, 3)
        end }
        local session = assert(subject:evaluate())
        answer = { true, false, 'not today' }
        assert.same({ true, false, 'not today' }, { session:call('beforeFork', { id = 1 }) })
        assert.same({ 'hook', 5000, 'beforeFork', { id = 1 } }, log.call)
        for _, case in ipairs {
            { { kind = 'budget', where = 'master.lua:14' },
                'master.lua:14: beforeFork took longer than its budget of 5 s' },
            { { kind = 'runtime', message = 'master.lua:14: boom' }, 'master.lua:14: beforeFork: boom' },
            { { kind = 'runtime', message = 'stack overflow' }, 'master.lua: beforeFork: stack overflow' },
            { { kind = 'memory', message = 'used more than its 64 MiB of memory' },
                'master.lua: beforeFork used more than its 64 MiB of memory' },
            { { kind = 'busy', message = 'in a call' }, 'master.lua: beforeFork was not called: in a call' },
        } do
            answer = { nil, case[1] }
            local ok, err = session:call('beforeFork')
            assert.is_nil(ok)
            assert.equal(case[2], err.message)
            assert.equal(case[1].kind, err.kind)
        end
        session:close()
        local ok, err = session:call('beforeFork')
        assert.is_nil(ok)
        assert.equal('closed', err.kind)
        assert.equal('closed', select(2, session:log('info', {}, 'x')).kind)
    end)

    it('makes the directory of the fork absolute', function()
        local given = { directory = 'releases/1' }
        local session = assert(fake(given):evaluate())
        assert.equal('/start/releases/1', session.cwd)
        given.directory = '/deploys/current'
        session = assert(fake(given):evaluate())
        assert.equal('/deploys/current', session.cwd)
    end)

    it('checks what the functions of the script return', function()
        local fn = function() end
        local answer
        local subject = fake { options = { worker = 'x', numWorkers = fn, workerEnvironment = fn }, call = function()
            return true, answer
        end }
        local session = assert(subject:evaluate())
        answer = 3
        assert.equal(3, session:num_workers())
        for _, bad in ipairs { 0, -1, 0 / 0, 1 / 0, 1.5, '4', {}, 1e6, false } do
            answer = bad
            local count, err = session:num_workers()
            assert.is_nil(count)
            assert.equal('options', err.kind)
            assert.truthy(err.message:find('^master.lua:%d+: numWorkers: expected an integer from 1 to 4096, found'))
        end
        answer = nil
        assert.truthy(select(2, session:num_workers()).message:find('found nothing', 1, true))
        answer = { A = 1, B = false }
        assert.same({ A = '1', B = false }, session:environment { id = 1 })
        answer = { ['a=b'] = 1 }
        assert.truthy(select(2, session:environment { id = 1 }).message
            :find('^master.lua:%d+: workerEnvironment%["a=b"%]: expected a name'))
    end)

    it('gives what is written down without asking', function()
        local session = assert(fake({ options = { worker = 'x', numWorkers = 5, workerEnvironment = { A = 'b' } },
            call = error }):evaluate())
        assert.equal(5, session:num_workers())
        assert.same({ A = 'b' }, session:environment { id = 1 })
    end)

    it('keeps the environment of a preset under that of a function', function()
        local preset = { preset = 'p', argv = { 'p' }, environment = { ['FD_{index}'] = { each = '{fd}' },
            B = { each = 'x' } } }
        local session = assert(fake({ options = { worker = preset, listen = ':1',
            workerEnvironment = function() end },
            call = function()
                return true, { B = 'mine' }
            end }):evaluate())
        assert.same({ FD_1 = '3', B = 'mine' }, session:environment { id = 1 })
    end)

    it('answers what the platform knows, and asks the rest', function()
        local subject, log, asked = fake {}
        assert(subject:evaluate())
        assert.equal(4, log.host 'cpus')
        assert.equal('host', log.host 'hostname')
        assert.same({ A = 'b' }, log.host 'environ')
        assert.equal('answer', log.host('restart', 'why'))
        assert.same({ { 'restart', 'why' } }, asked)
    end)

    it('keeps the store from one evaluation to the next', function()
        local subject, log = fake {}
        assert(subject:evaluate())
        log.host('store_set', 'n', 1)
        assert(subject:evaluate())
        assert.equal(1, log.host('store_get', 'n'))
        assert.same({ n = 1 }, log.host 'store_all')
        log.host('store_set', 'n', nil)
        assert.is_nil(log.host('store_get', 'n'))
    end)
end)
