local plan = require 'dutch-master.script.plan'
local presets = require 'dutch-master.launch.presets'

local function build(raw, where)
    return assert(plan.build(raw, where))
end

describe('plan', function()
    it('fills in every default', function()
        local p = build { worker = 'app.js' }
        assert.equal('node', p.kind)
        assert.equal('app.js', p.worker)
        assert.equal(2, p.num_workers)
        assert.same({}, p.environment)
        assert.same({}, p.listen)
        assert.same({ type = 'auto' }, p.ready)
        assert.equal('SIGUSR2', p.restart_signal)
        assert.equal('SIGTERM', p.stop_signal)
        assert.equal(60000, p.ready_timeout_ms)
        assert.equal(30000, p.stop_timeout_ms)
        assert.equal(5000, p.kill_timeout_ms)
        assert.is_nil(p.restart_concurrency)
        assert.equal(3, p.restart_attempts)
        assert.same({ first_ms = 100, max_ms = 30000, reset_ms = 10000 }, p.backoff)
        assert.equal('steered', p.balance)
        assert.equal(511, p.backlog)
        assert.equal(1000, p.stall_timeout_ms)
        assert.equal('inherit', p.worker_output)
        assert.is_true(p.drain)
        assert.is_false(p.pin_release)
        assert.is_false(p.die_with_master)
        assert.same({ name = 'dutch-master', level = 'info' }, p.logger)
        assert.same({}, p.hooks)
    end)

    it('gives each plan its own defaults', function()
        build({ worker = 'app.js' }).environment.A = 'b'
        assert.same({}, build({ worker = 'app.js' }).environment)
    end)

    it('chooses the kind by the worker', function()
        for worker, kind in pairs { ['app.js'] = 'node', ['a/b.mjs'] = 'node', ['x.cjs'] = 'node', ['x.ts'] = 'node',
            ['w.lua'] = 'lua', ['./server'] = 'exec', ['app.py'] = 'exec', ['dir.js/server'] = 'exec',
                ['.js'] = 'exec' } do
            assert.equal(kind, build({ worker = worker }).kind, worker)
        end
        assert.equal('exec', build({ worker = { 'node', 'app.js' } }).kind)
        assert.equal('queue', build({ worker = { 'node', 'app.js' } }).balance)
        assert.equal('steered', build({ worker = { 'node', 'app.js' }, balance = 'steered' }).balance)
        assert.equal('node', build({ worker = 'server', kind = 'node' }).kind)
        local _, messages = plan.build { worker = { 'node', 'app.js' }, kind = 'node' }
        assert.truthy(messages[1]:find('kind: a worker given as a list', 1, true))
    end)

    it('notes which hooks there are', function()
        local fn = function() end
        local p = build { worker = 'app.js', beforeFork = fn, numWorkers = fn, workerEnvironment = fn,
            every = { { 5, fn }, { 0.5, fn, timeout = 20 } }, restartConcurrency = { canary = { judge = fn } } }
        assert.same({ beforeFork = true, numWorkers = true, workerEnvironment = true, judge = true,
            every = { { interval_ms = 5000 }, { interval_ms = 500, timeout_ms = 20000 } } }, p.hooks)
        assert.is_true(p.num_workers)
        assert.same({}, p.environment)
        assert.equal(10000, p.restart_concurrency.canary.soak_ms)
    end)

    it('knows a logger of the user', function()
        local fn = function() end
        local p = build { worker = 'app.js', logger = { info = fn, error = fn } }
        assert.is_true(p.logger.custom)
        assert.same({ info = true, error = true }, p.logger.methods)
    end)

    it('turns what the user writes into what is used', function()
        local p = build { worker = './x', umask = '027', cpus = '0-2,5', limits = { nofile = { soft = 1 },
            as = '1K' },
            workerEnvironment = { PORT = 8000, GONE = false }, listen = { b = ':2', a = { address = 'unix:/x',
                mode = '660' } },
            ready = { alive = 2 }, maxLifetime = 60, stopSignal = 'quit' }
        assert.equal(23, p.umask)
        assert.same({ 0, 1, 2, 5 }, p.cpus)
        assert.same({ { name = 'as', soft = 1024, hard = 1024 }, { name = 'nofile', soft = 1, hard = 1 } }, p.limits)
        assert.same({ PORT = '8000', GONE = false }, p.environment)
        assert.same({ { text = 'unix:/x', name = 'a', mode = 432 }, { text = ':2', name = 'b' } }, p.listen)
        assert.same({ type = 'alive', alive_ms = 2000 }, p.ready)
        assert.equal(60000, p.max_lifetime_ms)
        assert.equal('SIGQUIT', p.stop_signal)
    end)

    it('reads a umask in octal digits, as number or string', function()
        assert.equal(build({ worker = 'x', umask = '027' }).umask, build({ worker = 'x', umask = 027 }).umask)
    end)

    it('knows what does not go together', function()
        local function refused(raw, text)
            local p, messages = plan.build(raw)
            assert.is_nil(p)
            assert.truthy(messages[1]:find(text, 1, true), messages[1])
        end
        refused({ worker = { 'x' }, ready = 'listening' }, 'ready: a worker of kind "exec" has no channel')
        refused({ worker = { 'x' }, ready = { path = '/x' } }, 'ready: a worker of kind "exec" has no channel')
        refused({ worker = { 'x' }, ready = { port = 80 }, listen = { ':81', 'udp::80' } },
            'ready: no TCP address in listen has the port 80')
        assert.same({ type = 'port', port = 80 },
            build({ worker = { 'x' }, ready = { port = 80 }, listen = { ':81', ':80' } }).ready)
        local asked = { http = '/health' }
        refused({ worker = 'app.js', ready = asked, balance = 'shared' },
            'ready: with balance = "shared" a worker cannot be asked alone')
        refused({ worker = { 'x' }, ready = asked }, 'ready: a worker of kind "exec" is asked at a TCP address of listen')
        refused({ worker = { 'x' }, ready = asked, listen = { 'udp:127.0.0.1:80', 'unix:/x:80' } },
            'ready: a worker of kind "exec" is asked at a TCP address of listen')
        refused({ worker = { 'x' }, ready = { http = '/', port = 81 }, listen = { ':80', 'udp::81' } },
            'ready: no TCP address in listen has the port 81')
        assert.same({ type = 'http', path = '/', port = 81, interval_ms = 500, timeout_ms = 1000 },
            build({ worker = { 'x' }, ready = { http = '/', port = 81 }, listen = { ':80', '[::1]:81' } }).ready)
        for _, kind in ipairs { 'js', 'lua' } do
            refused({ worker = 'app.' .. kind, watchdog = 1 }, 'expected ready = { http = "/path" }')
            assert.equal(1500, build({ worker = 'app.' .. kind, watchdog = 1.5, ready = asked }).watchdog_ms)
        end
        assert.equal(2000, build({ worker = { 'x' }, watchdog = 2 }).watchdog_ms)
        refused({ worker = 'app.js', listen = ':80' }, 'listen: a worker of kind "node" names its addresses itself')
        refused({ worker = { 'x' }, interpreter = 'node' }, 'interpreter: a worker given as a list')
        refused({ worker = 'app.js', interpreter = '/opt/bin/bun' }, 'interpreter: bun does not speak the channel')
        refused({ worker = 'app.ts', interpreter = { 'deno', 'run', '-A' } }, 'with worker = { "deno", ... } and listen')
    end)

    it('asks for users and groups by name', function()
        local where = {
            getuser = function(name)
                if name == 'www' then
                    return { uid = 33, gid = 34, groups = { 34, 35 } }
                end
                return nil, 'no such user: ' .. name
            end,
            getgroup = function(name)
                if name == 'adm' then
                    return 4
                end
                return nil, 'no such group: ' .. name
            end,
        }
        local p = build({ worker = 'x', user = 'www' }, where)
        assert.same({ 33, 34, { 34, 35 } }, { p.uid, p.gid, p.groups })
        p = build({ worker = 'x', user = 'www', group = 'adm' }, where)
        assert.same({ 33, 4 }, { p.uid, p.gid })
        local _, messages = plan.build({ worker = 'x', user = 'nobdy', group = 'x' }, where)
        assert.same({ 'master.lua:0: group: no such group: x', 'master.lua:0: user: no such user: nobdy' }, messages)
    end)

    it('reports all errors, each on the line of its key', function()
        local source = [=[
local dutch = require 'dutch-master'
dutch.start {
  worker = 'app.js', numWrokers = 3, -- backlog = 1
  numWorkers = 0,
  beforeFork = function() if x then return { stopTimeout = 1 } end end, --[[ nice =
  ]]
  backoff = {
    first = -1,
    ["max"] = 'a',
  },
  workerEnvironment = { A = '}', ['a=b'] = [[
    umask = {
  ]] },
  stopTimeout = 0/0; args = f { killTimeout = 1 },
  listen = { ':1',
    'foo' },
  killTimeout = 'x'
}
]=]
        local raw = { worker = 'app.js', numWrokers = 3, numWorkers = 0, backoff = { first = -1, max = 'a' },
            workerEnvironment = { A = '}', ['a=b'] = 'x' }, stopTimeout = 0 / 0, args = 7, listen = { ':1', 'foo' },
            killTimeout = 'x' }
        local p, messages = plan.build(raw, { file = 'master.lua', line = 2, source = source })
        assert.is_nil(p)
        local heads = {}
        for i, message in ipairs(messages) do
            heads[i] = message:match('^master.lua:%d+: [^:]+')
        end
        assert.same({ 'master.lua:3: numWrokers', 'master.lua:4: numWorkers', 'master.lua:8: backoff.first',
            'master.lua:9: backoff.max', 'master.lua:11: workerEnvironment["a=b"]', 'master.lua:14: args',
            'master.lua:14: stopTimeout', 'master.lua:16: listen[2]', 'master.lua:17: killTimeout' }, heads)
        assert.equal('master.lua:3: numWrokers: unknown option (did you mean "numWorkers"?)', messages[1])
        assert.equal('master.lua:4: numWorkers: expected an integer from 1 to 4096, found 0', messages[2])
    end)

    it('names the line of the call where the key is not written down', function()
        local _, messages = plan.build({ worker = 'x', nice = 99 }, { file = 'm.lua', line = 4,
            source = 'x\n\n\nstart(t)\n' })
        assert.same({ 'm.lua:4: nice: expected an integer from -20 to 19, found 99' }, messages)
    end)

    it('reads any text without failing', function()
        for _, source in ipairs { '', '{', 'start {', 'start { a', 'start { [', 'start { a = "', 'start { [[',
            'start { --[[',
            'start { end end }', 'start { a = function', '\0\1\2{=,}' } do
            local _, messages = plan.build({ worker = 'x', nice = 99 }, { file = 'm', line = 1, source = source })
            assert.equal(1, #messages)
        end
    end)

    it('needs a table with a worker', function()
        for _, raw in ipairs { false, 1, 'x' } do
            local _, messages = plan.build(raw, { file = 'm', line = 1 })
            assert.truthy(messages[1]:find('m:1: start: expected a table of options', 1, true))
        end
        local _, messages = plan.build({}, { file = 'm', line = 1 })
        assert.truthy(messages[1]:find('m:1: worker: expected a path, ', 1, true))
        _, messages = plan.build({ 'app.js' }, { file = 'm', line = 1 })
        assert.equal('m:1: [1]: unknown option', messages[1])
    end)

    it('checks what a function of the script returned', function()
        assert.equal(3, plan.check('numWorkers', 3))
        local where = { file = 'm.lua', line = 1, source = 'start {\n numWorkers = function() return 0 end }' }
        for value, shown in pairs { [0] = '0', [-1] = '-1', [1 / 0] = 'infinity', [1.5] = '1.5', ['4'] = '"4"',
            [1e6] = '1000000', [print] = 'a function', [false] = 'false' } do
            local inside, messages = plan.check('numWorkers', value, where)
            assert.is_nil(inside)
            assert.same({ 'm.lua:2: numWorkers: expected an integer from 1 to 4096, found ' .. shown }, messages)
        end
        local _, messages = plan.check('numWorkers', nil, where)
        assert.truthy(messages[1]:find('found nothing', 1, true))
        assert.same({ A = '1' }, plan.check('workerEnvironment', { A = 1 }, where))
        assert.is_nil((plan.check('workerEnvironment', print, where)))
    end)

    describe('with a preset', function()
        it('may be run by another program', function()
            local rest = { '--bind-to-activated-sockets', 'only', 'config.ru' }
            assert.same({ 'bin/puma', unpack(rest) }, presets.puma({ command = 'bin/puma' }).argv)
            assert.same({ 'bundle', 'exec', 'puma', unpack(rest) },
                presets.puma({ command = { 'bundle', 'exec', 'puma' } }).argv)
            for _, wrong in ipairs { 5, {}, { 'a', 5 }, true } do
                assert.error_matches(function()
                    presets.puma { command = wrong }
                end, '^dutch%.puma: command: expected a string or a list of strings')
            end
        end)

        local makers = {
            gunicorn = { app = 'a:b', workers = 2 }, uvicorn = { app = 'a:b' }, hypercorn = { app = 'a:b' },
                puma = {},
            unicorn = {}, nginx = { config = '/x' }, haproxy = { config = '/x' }, uwsgi = { app = 'a' },
            phpfpm = { config = '/x' },
        }
        for name, given in pairs(makers) do
            it('takes ' .. name, function()
                local p = build { worker = presets[name](given),
                    listen = { ':8000', name ~= 'uvicorn' and 'unix:/x' or nil } }
                assert.equal('exec', p.kind)
                assert.equal(name, p.preset)
                for _, word in ipairs(p.argv) do
                    assert.is_string(word)
                    assert.is_nil(word:find('{', 1, true))
                end
                assert.has_error(function()
                    presets[name] { nonsense = 1 }
                end)
            end)
        end

        it('fills in the sockets', function()
            local p = build { worker = presets.uvicorn { app = 'a:b' }, listen = ':8000' }
            assert.same({ 'uvicorn', '--fd', '3', 'a:b' }, p.argv)
            p = build { worker = presets.haproxy { config = '/x' }, listen = { ':1', ':2' },
                workerEnvironment = { A = 'b' } }
            assert.same({ DUTCH_FD_1 = '3', DUTCH_FD_2 = '4', A = 'b' }, p.environment)
            assert.equal('SIGUSR1', p.stop_signal)
        end)

        it('refuses more sockets than the server takes', function()
            local p, errors = plan.build({ worker = presets.uvicorn { app = 'a:b' }, listen = { ':1', ':2' } }, {})
            assert.is_nil(p)
            assert.matches('listen: uvicorn takes 1 of them at most, found 2', errors[1], 1, true)
        end)

        it('takes a slash behind the paths of php-fpm', function()
            local p = build { worker = presets.phpfpm { config = '/x' }, listen = ':1' }
            assert.equal('fpm_slash', p.socket_style)
            p = build { worker = presets.phpfpm { config = '/x', slash = false }, listen = ':1' }
            assert.equal('fpm', p.socket_style)
        end)

        it('waits for READY=1 only where the server always says it', function()
            local expected = { uwsgi = { type = 'notify' }, haproxy = { type = 'notify' } }
            for name, given in pairs(makers) do
                local p = build { worker = presets[name](given), listen = ':1' }
                assert.same(expected[name] or { type = 'auto' }, p.ready, name)
            end
        end)

        it('puts the arguments of uwsgi, such as --plugin, before the words that need them', function()
            for field, word in pairs { app = '--module', file = '--wsgi-file' } do
                local p = build { worker = presets.uwsgi { [field] = 'x', args = { '--plugin', 'python3' } },
                    listen = ':1' }
                assert.same({ '--plugin', 'python3', word, 'x' }, { unpack(p.argv, #p.argv - 3) })
            end
        end)

        it('lets the user overrule it', function()
            local p = build { worker = presets.unicorn {}, stopSignal = 'TERM', ready = 'notify',
                listen = ':1' }
            assert.equal('SIGTERM', p.stop_signal)
            assert.same({ type = 'notify' }, p.ready)
        end)
    end)

    it('knows what options of other programs are called here', function()
        for name, hint in pairs {
            instances = 'did you mean "numWorkers"', env = 'did you mean "workerEnvironment"',
            script = 'did you mean "worker"', port = 'did you mean "listen"', workers = 'did you mean "numWorkers"',
            onExit = 'did you mean "onWorkerExit"', cwd = 'dutch%.chdir', kill_timeout = 'did you mean "killTimeout"',
        } do
            local _, messages = plan.build { worker = 'app.js', [name] = 1 }
            assert.matches(name .. ': unknown option %([^\n]*' .. hint, messages[1])
        end
    end)
end)
