-- The verbs over a fake master: arguments, exit codes, what is printed.
-- Longer than 400 lines: one fake master, and a verb after the other.

local fake = require 'spec.support.fake_cli'

local cli = require 'dutch-master.cli'
local cjson = require 'cjson'

local SCRIPT = '/srv/app/master.lua'
local claims = require 'dutch-master.control.claim'
local SOCKET = '/run/user/1000/dutch-master/' .. claims.name_for(SCRIPT) .. '.sock'

local function run(world, ...)
    local w = fake.new(world)
    w.code = cli.main(fake.argv(...), w.platform)
    return w
end

--- A world in which a master answers `verb` requests with the given messages.
local function answering(...)
    local messages = { ... }
    local world = { files = { [SCRIPT] = true, [SOCKET] = true }, sockets = {}, requests = {} }
    world.sockets[SOCKET] = function(line, conn)
        local request = cjson.decode(line)
        world.requests[#world.requests + 1] = request
        world.conn = conn
        for _, message in ipairs(messages) do
            message.v, message.id = 1, request.id
            conn.receive(cjson.encode(message))
        end
    end
    return world
end

local status = {
    script = SCRIPT, pid = 100, version = '9.9.9', state = 'rolling', generation = 3, wanted = 2, uptime_ms = 3723000,
    rss_kb = 6144,
    workers = {
        { id = 7, slot = 2, pid = 107, state = 'running', generation = 3, release = '/srv/releases/2', uptime_ms = 900,
            restarts = 0, rss_kb = 46080, cpu_ms = 120, queue = 0, steered = true },
        { id = 5, slot = 1, pid = 105, state = 'retiring', generation = 2, release = '/srv/releases/1',
            uptime_ms = 60000, restarts = 4, rss_kb = 46080, cpu_ms = 120, queue = 3, steered = false },
    },
    slots = { { slot = 1, state = 'replacing' }, { slot = 2, state = 'serving' } },
    roll = { generation = 3, total = 2, done = 1, elapsed_ms = 1200 },
}

describe('the command line', function()
    it('explains itself', function()
        for _, word in ipairs { '--help', '-h', 'help' } do
            local w = run({}, word)
            assert.equal(0, w.code)
            for _, verb in ipairs(cli.verbs) do
                assert.truthy(w.text():find('\n  ' .. verb .. ' ', 1, true), verb)
            end
        end
        assert.equal('dutch-master 9.9.9\n', run({}, '--version').text())
    end)

    it('has the verbs that main.c takes for no master', function()
        local file = assert(io.open 'src/main.c')
        local list, found = file:read('*a'):match 'verbs%[%] = (%b{})', {}
        file:close()
        for name in list:gmatch '"([^"]+)"' do
            found[#found + 1] = name
        end
        assert.same({ 'help', 'version' }, { unpack(found, #cli.verbs + 1) })
        assert.same(cli.verbs, { unpack(found, 1, #cli.verbs) })
    end)

    it('fits help into a terminal of 80 columns', function()
        for line in run({}, '--help').text():gmatch '[^\n]+' do
            assert.is_true(#line < 80, line)
        end
        for _, verb in ipairs(cli.verbs) do
            local w = run({}, verb, '--help')
            assert.equal(0, w.code)
            for line in w.text():gmatch '[^\n]+' do
                assert.is_true(#line < 80, line)
            end
            assert.equal(w.text(), run({}, 'help', verb).text())
        end
    end)

    it('refuses what it does not know with exit code 2 and usage on stderr', function()
        local cases = {
            { {}, 'which script' },
            { { 'statsu' }, 'did you mean "status"' },
            { { 'ls' }, 'did you mean "list"' },
            { { 'start' }, 'started with `dutch%-master master.lua`' },
            { { 'zzzz' }, 'unknown verb "zzzz"\n' },
            { { '--frobnicate' }, 'unknown option' },
            { { '--json', 'status' }, 'options come after the verb: dutch%-master status %-%-json' },
            { { 'master.lua', 'status' }, 'the verb comes first: dutch%-master status master.lua' },
            { { '-v' }, 'did you mean "%-V"' },
            { { 'app.js' }, "worker = 'app.js'" },
            { { 'reload-all' }, 'did you mean "restart"' },
            { { 'scale', '1.5', 'a.lua' }, 'found "1.5"' },
            { { 'status', '--jsno' }, 'did you mean "%-%-json"' },
            { { 'status', '-x' }, 'unknown option "%-x"' },
            { { 'status', 'a.lua', 'b.lua' }, 'unexpected "b.lua"' },
            { { 'status', '' }, 'empty' },
            { { 'status', '--json=yes' }, 'takes no value' },
            { { 'restart', '--timeout' }, 'needs a value' },
            { { 'restart', '--timeout', 'soon' }, 'expected a number of seconds of at least 0, found "soon"' },
            { { 'restart', '--timeout', '-1' }, 'expected a number of seconds of at least 0, found "%-1"' },
            { { 'restart', '--timeout', 'nan' }, 'expected a number' },
            { { 'restart', '--timeout', 'inf' }, 'expected a number' },
            { { 'scale' }, 'a number of workers' },
            { { 'scale', 'master.lua' }, 'is missing' },
            { { 'scale', 'master.lua', 'many' }, 'found "many"' },
            { { 'completion', 'tcsh' }, 'bash, zsh, fish or luals' },
            { { 'completion' }, 'is missing' },
            { { 'master.lua', '--now' }, 'unexpected "%-%-now"' },
            { { '--' }, 'which script' },
            { { 'help', 'statsu' }, 'did you mean "status"' },
        }
        for _, case in ipairs(cases) do
            local w = run({ files = { [SCRIPT] = true } }, unpack(case[1]))
            assert.equal(2, w.code, table.concat(case[1], ' '))
            assert.equal('', w.text())
            assert.truthy(w.errors():find(case[2]), w.errors())
        end
    end)

    it('runs a script by its absolute path, whose process is started before the master is read', function()
        local asked, given
        package.preload['dutch-master.master'] = function()
            assert(asked)
            return { run = function(options) given = options end }
        end
        local process = require 'dutch-master.script.process'
        local start = process.start
        function process.start(options)
            asked = options.script
            return 'started'
        end
        finally(function()
            package.loaded['dutch-master.master'], package.preload['dutch-master.master'] = nil, nil
            process.start = start
        end)
        run({ files = { [SCRIPT] = true } }, './x/../master.lua')
        assert.same({ SCRIPT, SCRIPT, 'started' }, { asked, given.script, given.script_process })
        asked = nil
        assert.equal(78, run({}, 'other.lua').code)
        assert.is_nil(asked)
    end)
end)

describe('a verb', function()
    it('says that nothing runs with exit code 3', function()
        for _, verb in ipairs { 'status', 'restart', 'reload', 'plan', 'stop', 'events', 'why' } do
            local w = run({ files = { [SCRIPT] = true } }, verb)
            assert.equal(3, w.code, verb)
            assert.truthy(w.errors():find('not running', 1, true))
        end
        assert.equal(3, run({}, 'scale', '3').code)
        assert.equal(3, run({ tty = true }, 'top').code)
        assert.equal(1, run({}, 'top').code)
        -- A socket file that nobody serves is no master.
        assert.equal(3, run({ files = { [SCRIPT] = true, [SOCKET] = true } }, 'status').code)
    end)

    it('does not believe a stranger', function()
        local world = answering { ok = true, status = status }
        world.peer_uid = 1234
        local w = run(world, 'status')
        assert.equal(77, w.code)
        assert.truthy(w.errors():find('user 1234', 1, true))
        assert.equal(0, #world.requests)
    end)

    it('gives up on a master that does not answer', function()
        local w = run(answering(), 'status')
        assert.is_nil(w.code)
        w.advance(5000)
        assert.equal(124, w.stopped)
    end)

    it('says when the master hangs up', function()
        local world = answering()
        local w = run(world, 'status')
        world.sockets[SOCKET] = nil
        world.conn.lose()
        assert.equal(1, w.stopped)
    end)

    it('asks the next master, if there is one, by the same key, and no more than some', function()
        for _, words in ipairs { { 'status' }, { 'scale', '+1' }, { 'reload' }, { 'restart', '--wait' }, { 'stop', '--wait' } } do
            local world = answering()
            local w = run(world, unpack(words))
            for i = 1, 20 do
                world.conn.lose()
                assert.same({ nil, i + 1 }, { w.stopped, #world.requests }, words[1])
                assert.same(world.requests[1], world.requests[i + 1])
            end
            assert.equal(words[1] ~= 'status' and words[1] ~= 'stop', world.requests[1].key ~= nil)
            world.conn.lose()
            assert.equal(1, w.stopped)
        end
    end)

    it('that waits hears the next master, also after the one before had spoken', function()
        local world = answering { event = 'accepted' }
        local w = run(world, 'restart', '--wait', '--timeout', '3')
        w.advance(2000)
        local former = world.conn
        world.sockets[SOCKET] = function(line, conn)
            world.requests[#world.requests + 1] = cjson.decode(line)
            world.conn = conn
        end
        former.lose()
        w.advance(999)
        assert.is_nil(w.stopped)
        world.conn.receive(cjson.encode { v = 1, id = 1, ok = true, verdict = { result = 'aborted', generation = 2,
            done = 0, total = 2, serving = 2, slots = 2 } })
        assert.equal(10, w.stopped)
        assert.equal(world.requests[1].key, world.requests[2].key)
    end)

    it('reports a refusal', function()
        local w = run(answering { ok = false, error = { message = 'no', code = 'EFAILED' } }, 'scale', '5')
        assert.equal(1, w.stopped)
        assert.equal('dutch-master: scale: no\n', w.errors())
        w = run(answering { ok = false, error = { message = 'no', code = 'EINVAL' } }, 'scale', '-5')
        assert.equal(2, w.stopped)
        assert.matches('^dutch%-master: scale: no\nusage: ', w.errors())
    end)
end)

describe('status', function()
    it('shows a table, slots in order', function()
        local w = run(answering { ok = true, status = status }, 'status')
        assert.equal(0, w.stopped)
        local text = w.text()
        local head = 'rolling, 1 of 2 replaced in 1.2s, 2 of 2 workers serving, generation 3'
        assert.truthy(text:find(head, 1, true), text)
        assert.truthy(text:find('up 1h02m, 6.0M', 1, true))
        assert.is_true(text:find 'releases/1' < text:find 'releases/2')
        assert.falsy(text:find '\27')
    end)

    it('cuts lines to the terminal and colours them there, unless NO_COLOR', function()
        local world = answering { ok = true, status = status }
        world.tty = true
        local text = run(world, 'status').text()
        assert.truthy(text:find '\27%[32mrunning')
        for line in text:gmatch '[^\n]+' do
            assert.is_true(#line:gsub('\27%[[%d;]*m', '') <= 88, line)
        end
        world.environ = { NO_COLOR = '1' }
        assert.falsy(run(world, 'status').text():find '\27')
        world.environ = {}
        assert.falsy(run(world, 'status', '--no-color').text():find '\27')
    end)

    it('shows a slot that waits', function()
        local copy = { workers = {}, slots = { { slot = 1, state = 'filling', backoff_ms = 1600, attempts = 5 } } }
        for key, value in pairs(status) do
            copy[key] = copy[key] or value
        end
        copy.roll = nil
        local text = run(answering { ok = true, status = copy }, 'status').text()
        assert.truthy(text:find('waiting 1.6s', 1, true), text)
        assert.truthy(text:find('0 of 2 workers serving', 1, true), text)
    end)

    it('writes control bytes of others visibly', function()
        local copy = {}
        for key, value in pairs(status) do
            copy[key] = value
        end
        copy.script = '/srv/\27[2J.lua'
        local text = run(answering { ok = true, status = copy }, 'status').text()
        assert.falsy(text:find '\27')
        assert.truthy(text:find('\\e[2J', 1, true))
    end)

    it('gives JSON', function()
        local text = run(answering { ok = true, status = status }, 'status', '--json').text()
        assert.equal(1, select(2, text:gsub('\n', '')))
        assert.equal(107, cjson.decode(text).workers[1].pid)
        assert.is_true(cjson.decode(text).running)
    end)

    it('ends when nobody reads any more', function()
        local world = answering { ok = true, status = status }
        world.deaf = true
        assert.equal(1, run(world, 'status', '--watch').stopped)
    end)

    it('asks again with --watch', function()
        local world = answering { ok = true, status = status }
        local w = run(world, 'status', '--watch')
        w.advance(1000)
        w.advance(1000)
        assert.equal(3, #world.requests)
        assert.is_nil(w.stopped)
    end)
end)

describe('restart --wait', function()
    local function verdict(fields)
        fields.generation, fields.total, fields.duration_ms = 4, 2, 1500
        fields.done = fields.done or 0
        return { ok = true, verdict = fields }
    end

    it('ends with the code of the verdict', function()
        local codes = { done = 0, aborted = 10, superseded = 12, stopped = 1 }
        for result, code in pairs(codes) do
            local w = run(answering(verdict { result = result }), 'restart', '--wait')
            assert.equal(code, w.stopped, result)
        end
    end)

    it('shows progress in lines', function()
        local world = answering(
            { event = 'accepted', generation = 4 },
            { event = 'progress', done = 1, total = 2, worker = 9 },
            verdict { result = 'done', done = 2 })
        local w = run(world, 'restart', '--wait')
        assert.equal('1 of 2 replaced, worker 9 is ready, 0.0s\nRestart done (generation 4, 2 of 2 replaced, 1.5s)\n',
            w.text())
        assert.is_true(world.requests[1].wait)
    end)

    it('shows a bar on a terminal, and leaves none of it', function()
        local world = answering({ event = 'progress', done = 1, total = 2 }, verdict { result = 'done', done = 2 })
        world.tty, world.environ = true, { NO_COLOR = '1' }
        local text = run(world, 'restart', '--wait').text()
        assert.truthy(text:find('####', 1, true))
        assert.truthy(text:find '\r\27%[KRestart done')
    end)

    it('never fills the last column of a terminal, which would wrap', function()
        for _, columns in ipairs { 10, 20, 32, 40, 200 } do
            local world = answering({ event = 'progress', done = 1, total = 2 }, verdict { result = 'done', done = 2 })
            world.tty, world.columns, world.environ = true, columns, { NO_COLOR = '1' }
            local line = run(world, 'restart', '--wait').text():match '\r\27%[K(.-)\r'
            assert.is_true(#line:gsub('\27%[[%d;]*m', '') < columns, line)
            assert.equal(columns >= 32, line:find('#', 1, true) ~= nil, line)
            assert.equal(columns > 21, line:find('1 of 2 replaced, 0.0s', 1, true) ~= nil, line)
        end
    end)

    it('prints how the failing worker ended', function()
        local w = run(answering(verdict {
            result = 'aborted', message = '3 attempts failed',
            failure = { worker = 9, pid = 909, slot = 1, code = 7, stderr = 'one\nError: no such table\n' },
        }), 'restart', '--wait')
        assert.truthy(w.errors():find('worker 9 (pid 909, slot 1) exited with code 7', 1, true), w.errors())
        assert.truthy(w.errors():find('    Error: no such table\n', 1, true))
        assert.truthy(w.errors():find('the old release goes on serving', 1, true))
        assert.equal('', w.text())
    end)

    it('says who serves, and promises nobody who does not', function()
        for _, result in ipairs { 'aborted', 'rolled_back' } do
            local w = run(answering(verdict { result = result, slots = 2, serving = 0 }), 'restart', '--wait')
            assert.equal(1, w.stopped)
            assert.truthy(w.errors():find(': nobody serves (generation 4, 0 of 2 replaced, 0 of 2 slots served', 1, true))
        end
        local w = run(answering(verdict { result = 'aborted', slots = 2, serving = 1 }), 'restart', '--wait')
        assert.equal(10, w.stopped)
        assert.truthy(w.errors():find('goes on serving (generation 4, 0 of 2 replaced, 1 of 2 slots served', 1, true))
    end)

    it('says nothing of a failure that is not known', function()
        local w = run(answering(verdict { result = 'aborted', message = 'EAGAIN',
            failure = { slot = 1, message = 'EAGAIN', reason = 'EAGAIN' } }), 'restart', '--wait')
        assert.truthy(w.errors():find('\n  slot 1: EAGAIN\n$'), w.errors())
        w = run(answering(verdict { result = 'aborted', message = 'the canary was rejected: slow',
            failure = { slot = 1, worker = 9, pid = 909, rejected = true, served_ms = 5000, reason = 'slow' } }),
            'restart', '--wait')
        assert.truthy(w.errors():find('\n  worker 9 %(pid 909, slot 1%) had served 5.0s when judge rejected it\n$'),
            w.errors())
    end)

    it('times out with 124', function()
        local w = run(answering { event = 'accepted' }, 'restart', '--wait', '--timeout', '3')
        w.advance(2999)
        assert.is_nil(w.stopped)
        w.advance(1)
        assert.equal(124, w.stopped)
    end)

    it('waits without limit once the master has spoken', function()
        local w = run(answering { event = 'accepted' }, 'restart', '--wait')
        w.advance(1000000)
        assert.is_nil(w.stopped)
    end)

    it('fails when the master goes away', function()
        local world = answering { event = 'accepted' }
        local w = run(world, 'restart', '--wait')
        world.sockets[SOCKET] = nil
        world.conn.lose()
        assert.equal(1, w.stopped)
    end)

    it('gives JSON lines', function()
        local w = run(answering({ event = 'progress', done = 1, total = 2 }, verdict { result = 'superseded' }),
            'restart', '--wait', '--json')
        local lines = {}
        for line in w.text():gmatch '[^\n]+' do
            lines[#lines + 1] = cjson.decode(line)
        end
        assert.equal('progress', lines[1].event)
        assert.equal('superseded', lines[2].verdict.result)
    end)
end)

describe('stop --wait', function()
    it('is over when the master is gone', function()
        local world = answering({ event = 'accepted' }, { ok = true, exit_code = 0 })
        local w = run(world, 'stop', '--wait')
        assert.is_nil(w.stopped)
        world.conn.lose()
        assert.equal(0, w.stopped)
    end)

    it('tells that a worker had to be killed', function()
        local world = answering({ event = 'accepted' }, { ok = true, exit_code = 1 })
        local w = run(world, 'stop', '--wait')
        world.conn.lose()
        assert.equal(1, w.stopped)
    end)
end)

describe('scale', function()
    it('sets and changes', function()
        for word, request in pairs { ['4'] = { workers = 4 }, ['+2'] = { by = 2 }, ['-1'] = { by = -1 } } do
            local world = answering { ok = true, from = 2, to = 4 }
            local w = run(world, 'scale', word)
            assert.equal(0, w.stopped)
            assert.equal(request.workers, world.requests[1].workers)
            assert.equal(request.by, world.requests[1].by)
            assert.equal('4 workers, were 2\n', w.text())
        end
    end)
end)

describe('why', function()
    local report = {
        worker = 7, pid = 107, slot = 2, generation = 3, release = '/srv/releases/2', signal = 'SIGKILL',
        age_ms = 61000, cpu_ms = 1500, max_rss_kb = 204800, oom = true,
        stderr = 'heap full\27[2J\n',
        unexpected = true, was_ready = true, at = '2026-01-02T03:04:05Z',
    }

    it('speaks in sentences', function()
        local text = run(answering { ok = true, exits = { report }, slots = {} }, 'why', '7').text()
        for _, part in ipairs {
            'Worker 7 (pid 107, slot 2, generation 3) was killed by SIGKILL',
            'because memory ran out', 'Nobody had asked it to leave.',
            'It lived 1m01s, used 1.5s of CPU, 200.0M of memory at most.',
            'It ran in /srv/releases/2', '    heap full\\e[2J\n',
        } do
            assert.truthy(text:find(part, 1, true), text)
        end
    end)

    it('does not dwell on those that left as they should', function()
        local ordinary = {
            worker = 1, slot = 1, generation = 1, code = 0, unexpected = false, was_ready = true, why = 'replaced',
        }
        local text = run(answering { ok = true, exits = { ordinary }, slots = {} }, 'why').text()
        local line = 'Worker 1 (slot 1, generation 1) left as it should. A new worker had taken its place.\n'
        assert.equal(line, text)
        text = run(answering { ok = true, exits = { ordinary }, slots = {} }, 'why', '1').text()
        assert.truthy(text:find('exited with code 0', 1, true))
        ordinary.killed = true
        text = run(answering { ok = true, exits = { ordinary }, slots = {} }, 'why').text()
        assert.truthy(text:find('had not left in time', 1, true))
    end)

    it('tells apart alive, unknown and nobody', function()
        local alive = { id = 7, pid = 107, state = 'running', uptime_ms = 100 }
        assert.truthy(run(answering { ok = true, exits = {}, slots = {}, alive = alive }, 'why', '7').text()
            :find('has not ended', 1, true))
        assert.equal(1, run(answering { ok = true, exits = {}, slots = {} }, 'why', '7').stopped)
        assert.equal('No worker has ended.\n', run(answering { ok = true, exits = {}, slots = {} }, 'why').text())
    end)
end)

describe('plan and reload', function()
    local changes = {
        { key = 'numWorkers', from = 2, to = 4, applies = 'now' },
        { key = 'worker', from = 'a.js', to = 'b.js', applies = 'next fork' },
        { key = 'stopTimeout', from = 30000, to = 1500, applies = 'next fork' },
        { key = 'workerEnvironment', from = { A = 'x' }, to = { A = 'hush' }, applies = 'next fork' },
        { key = 'pidFile', to = '/x', applies = 'start' },
    }

    it('say what changes, and when', function()
        local plan = run(answering { ok = true, changes = changes }, 'plan').text()
        local reload = run(answering { ok = true, changes = changes }, 'reload').text()
        assert.matches('\nnumWorkers +2 +4 +by a reload, at once\n', plan)
        assert.matches('\nnumWorkers +2 +4 +applied\n', reload)
        assert.matches('\nworker +a.js +b.js +by a restart, or at the next fork\n', reload)
        assert.matches('\nstopTimeout +30 s +1.5 s +by', reload)
        assert.matches('\nworkerEnvironment +A +A %(with other values%) +by', reload)
        assert.matches('\npidFile +%(none%) +/x +when the master is started\n', reload)
        assert.equal('No changes\n', run(answering { ok = true, changes = {} }, 'plan').text())
    end)

    it('fail with 78 for a script with errors', function()
        local w = run(answering { ok = false, error = { message = 'master.lua:3: no', code = 'ESCRIPT' } }, 'reload')
        assert.equal(78, w.stopped)
        assert.equal('master.lua:3: no\n', w.errors())
    end)
end)

describe('events', function()
    local record = {
        name = 'x', level = 40, msg = 'Worker exited\n', time = '2026-01-02T03:04:05.678Z', code = 1, pid = 1,
    }

    it('are readable, or as they are', function()
        local messages = { { event = 'record', record = record }, { ok = true } }
        local line = '03:04:05.678 warn  Worker exited\\n  code=1\n'
        assert.equal(line, run(answering(unpack(messages)), 'events').text())
        local text = run(answering(unpack(messages)), 'events', '--json').text()
        assert.equal(40, cjson.decode(text).level)
    end)
end)
