local options = require 'dutch-master.script.options'
local plan = require 'dutch-master.script.plan'
local schema = require 'dutch-master.script.schema'

-- Values that each option takes, and values it refuses. An option that is not in here fails the spec.
local fn = function() end
local NAN, INF = 0 / 0, math.huge
local cases = {
    worker = { good = { 'app.js', { 'gunicorn', '-b', 8000 } }, bad = { '', 7, {}, { '' }, { 'a', {} }, 'a\0b', fn,
        true } },
    kind = { good = { 'node', 'lua', 'exec' }, bad = { 'ruby', 1, {}, '' } },
    args = { good = { {}, { 'a', 1 } }, bad = { 'a', { a = 1 }, { fn }, { 'a\0' }, 1 } },
    interpreter = { good = { 'node', { '/opt/node', '--x' } }, bad = { '', {}, { '' }, 1, fn } },
    numWorkers = { good = { 1, 2, 4096, fn },
        bad = { 0, -1, NAN, INF, -INF, 1.5, '4', {}, 1e6, 4097, true } },
    beforeFork = { good = { fn }, bad = { 'x', {}, 1, true } },
    hookTimeout = { good = { 0.05, 5, 60 }, bad = { 0, -1, NAN, INF, '5', {}, fn } },
    workerEnvironment = { good = { {}, { A = 'b', B = 1, C = 1.5, D = false }, fn },
        bad = { 'x', { [1] = 'a' }, { ['a=b'] = 'c' }, { [''] = 'c' }, { A = {} }, { A = fn }, { A = true },
            { A = NAN },
            { A = 'b\0c' }, { ['A\0'] = 'b' }, { A = ('x'):rep(131072) }, 1 } },
    logger = { good = { {}, { name = 'my-app', level = 'warn', path = '/x', fields = { a = 1 } }, { info = fn },
            { info = fn, warn = fn, other = 1 } },
        bad = { { error = fn }, { level = 'loud' }, { nme = 'x' }, { path = 'x' }, 'x', fn, 1, { fields = 1 } } },
    listen = { good = { '127.0.0.1:8000', ':8000', '[::]:8000', '[::1]:1', 'localhost:80', 'unix:/run/x', 'unix:@x',
            'udp::53', 'udp:127.0.0.1:53', { ':1', ':2' }, { http = ':1', admin = { address = 'unix:/x',
                mode = '0660' } },
            { address = ':1', name = 'http' },
            { address = 'unix:/x', mode = '0660', user = 'root', group = 0 } },
        bad = { '', 'x', ':99999', '300.0.0.1:80', 'host:', 'unix:', 'unix:relative', 'unix:/' .. ('x'):rep(107), {},
            { ':1', ':1' }, { { address = ':1', mode = '0660' } }, { { address = ':1', user = 'root' } },
            { { address = 'unix:/x', group = {} } }, { { name = 'x' } }, { ['a:b'] = ':1' }, 8000, fn,
            'udp:unix:/x', ':80 ', { address = 'unix:/x', mode = '0999' } } },
    balance = { good = { 'steered', 'queue', 'sticky', 'shared' }, bad = { 'fair', 1, {} } },
    nonBlocking = { good = { true, false }, bad = { 1, 'yes', {} } },
    backlog = { good = { 1, 511 }, bad = { 0, -1, 1.5, NAN, INF, '511', {}, 1e6 } },
    stallTimeout = { good = { 1, 0.5 }, bad = { 0, -1, NAN, INF, '1', {} } },
    ready = { good = { 'listening', 'message', 'notify', { alive = 0 }, { port = 80 }, { path = '/x' },
        { tls = true }, { tls = true, port = 443, interval = 1, timeout = 2 },
        { message = 'up' }, { http = '/' },
        { http = '/health?deep=1', port = 80, host = 'example.org:80', interval = 0.1, timeout = 5 } },
        bad = { { http = '' }, { http = 'health' }, { http = '/a b' }, { http = '/\r\n' }, { http = 1 },
            { http = '/', host = 'a b' }, { http = '/', host = '' }, { http = '/', prt = 1 }, { http = '/', port = 0 },
            { http = '/', interval = 0 }, { http = '/', timeout = NAN }, { http = '/', alive = 1 }, { port = 1, host = 'x' },
            'soon', {}, { alive = -1 }, { port = 0 }, { port = 1, path = '/x' }, { prt = 1 },
            1, fn,
            { path = 'x' }, { message = '' }, { alive = NAN } } },
    readyTimeout = { good = { 60, 0.5 }, bad = { 0, -1, NAN, INF, '60', {} } },
    watchdog = { good = { 0.1, 30 }, bad = { 0, -1, NAN, INF, '1', {} } },
    stopSignal = { good = { 'SIGTERM', 'QUIT', 'SIGUSR1', 'SIGUSR2', 'SIGWINCH', 'HUP', 'INT' },
        bad = { 'SIGKILL', 'SIGSTOP', 'SIGCHLD', 'SIGCONT', 'SIGSEGV', 'FOO', 15, {} } },
    stopTimeout = { good = { 0, 30 }, bad = { -1, NAN, INF, '30', {} } },
    killTimeout = { good = { 0, 5 }, bad = { -1, NAN, INF, '5', {} } },
    leftoverTimeout = { good = { 0, 30, false }, bad = { -1, NAN, INF, '5', {}, true } },
    restartSoak = { good = { 0, 1, 2.5 }, bad = { -1, NAN, INF, '5', {} } },
    restartSignal = { good = { 'SIGUSR2', 'USR2', 'SIGHUP', 'WINCH' },
        bad = { 'SIGKILL', 'SIGSTOP', 'SIGCHLD', 'SIGTERM', 'INT', 'QUIT', 'SIGUSR1', 'TTIN', 'TTOU', 'SIGSEGV',
            12, {}, '' } },
    restartConcurrency = { good = { 1, 2, 0.5, 'canary', { canary = true }, { canary = { weight = 0.1, soak = 5,
        judge = fn, timeout = 30 },
            after = 2 } },
        bad = { 0, -1, 1.5, NAN, INF, '1', 'all', {}, { canary = { weight = 0 } }, { canary = { weight = NAN } },
            { canary = { judge = 1 } }, { canary = { judge = fn, timeout = 0 } }, { canary = true, after = 0 }, { canry = true }, fn } },
    restartAttempts = { good = { 1, 3 }, bad = { 0, -1, 1.5, NAN, INF, '3', {} } },
    backoff = { good = { {}, { first = 0.5 }, { first = 1, max = 2, reset = 3 } },
        bad = { { first = 2, max = 1 }, { first = 0 }, { first = NAN }, { frist = 1 }, 1, 'x' } },
    listenFds = { good = { true, false }, bad = { 1, 'yes', {} } },
    drain = { good = { true, false }, bad = { 1, 'yes', {} } },
    metrics = { good = { true, false }, bad = { 1, 'yes', {} } },
    pinRelease = { good = { true, false }, bad = { 1, 'yes', {} } },
    maxMemory = { good = { '512M', 2 ^ 30 }, bad = { 0, -1, NAN, INF, '512 MB', {}, 1000 } },
    maxLifetime = { good = { 3600 }, bad = { 0, -1, NAN, INF, '1h', {} } },
    user = { good = { 'www-data', 33 }, bad = { '', -1, 1.5, NAN, {}, fn } },
    group = { good = { 'www-data', 33 }, bad = { '', -1, 1.5, NAN, {}, fn } },
    umask = { good = { '027', '22', 27, 0, '0', '0o027' }, bad = { '8', '999', -1, 1.5, NAN, '', {}, '07777', 18 } },
    limits = { good = { {}, { nofile = 65536, core = 0, as = '2G', nproc = { soft = 1, hard = 2 },
        stack = 'unlimited' } },
        bad = { { nofil = 1 }, { nofile = -1 }, { nofile = {} }, { nofile = { soft = 3, hard = 2 } }, 'x', 1,
            { nofile = NAN }, { nofile = { sft = 1 } } } },
    nice = { good = { -20, 0, 19 }, bad = { 20, -21, 1.5, NAN, '1', {} } },
    cpus = { good = { { 0, 1 }, '0-3,8', '2' }, bad = { {}, '', 'a', '3-1', { -1 }, { 1.5 }, '0-9999', 1, '1,,2' } },
    dieWithMaster = { good = { true, false }, bad = { 1, 'yes', {} } },
    workerOutput = { good = { 'inherit', 'null', '/var/log/x' }, bad = { 'x', './x', '', 1, {}, '/a\0' } },
    stampOutput = { good = { true, false }, bad = { 'yes', 1, true } }, -- true needs a file
    keepOutput = { good = { 0, '1M', 65536 }, bad = { -1, NAN, INF, 'much', {}, fn, 1.5 } },
    pidFile = { good = { '/run/x.pid' }, bad = { 'x.pid', '', 1, {}, '/a\0' } },
    controlSocket = { good = { '/run/x.sock' }, bad = { 'x', '', 1, '/' .. ('x'):rep(107), '/a\0' } },
    onReady = { good = { fn }, bad = { 1, {}, 'x' } },
    onWorkerReady = { good = { fn }, bad = { 1, {}, 'x' } },
    onWorkerExit = { good = { fn }, bad = { 1, {}, 'x' } },
    onMessage = { good = { fn }, bad = { 1, {}, 'x' } },
    onRestart = { good = { fn }, bad = { 1, {}, 'x' } },
    onUpgrade = { good = { fn }, bad = { 1, {}, 'x' } },
    every = { good = { { 5, fn }, { { 5, fn }, { 60, fn, timeout = 20 } }, { 5, fn, timeout = 2 } },
        bad = { {}, 5, fn, { 5 }, { fn, 5 }, { 0, fn }, { { 5, fn }, 3 }, { NAN, fn }, { 5, fn, 6 } } },
}

describe('options', function()
    for _, option in ipairs(options.list) do
        describe(option.name, function()
            it('is described', function()
                assert.truthy(cases[option.name], 'no cases for it')
                assert.is_string(option.doc)
                assert.is_string(option.default_text)
                assert.is_string(option.type.expects)
                assert.is_nil(option.inside:find('%u'))
            end)

            it('takes what is right', function()
                for _, value in ipairs(cases[option.name].good) do
                    local raw = { worker = 'app.js', [option.name] = value }
                    if option.name == 'listen' or option.name == 'stopSignal' or option.name == 'watchdog' then
                        raw.worker = './server'
                    end
                    if option.name == 'stampOutput' then
                        raw.workerOutput = '/var/log/app.log'
                    end
                    local result, messages = plan.build(raw)
                    assert.truthy(result, schema.describe(value) .. ' -> ' .. table.concat(messages or {}, '\n'))
                end
            end)

            it('refuses what is wrong, by name and place', function()
                for _, value in ipairs(cases[option.name].bad) do
                    local raw = { worker = './server', [option.name] = value }
                    local result, messages = plan.build(raw, { file = 'master.lua', line = 3 })
                    assert.is_nil(result, 'took ' .. schema.describe(value))
                    assert.truthy(messages[1])
                    for _, message in ipairs(messages) do
                        assert.truthy(message:find('master.lua:3: ' .. option.name, 1, true), message)
                    end
                end
            end)
        end)
    end

    it('are all in the list of cases and no others', function()
        for name in pairs(cases) do
            assert.truthy(options.by_name[name], name)
        end
    end)
end)
