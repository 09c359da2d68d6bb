local kinds = require 'dutch-master.launch.kinds'

local PRELOAD = '/usr/share/dutch-master/drain.cjs'

local function context(extra)
    local c = {
        id = 7, slot = 2, generation = 3, master_pid = 4242, cwd = '/srv/app',
        environ = { PATH = '/usr/bin:/bin', HOME = '/root', PWD = '/elsewhere' },
        environment = {}, executable = '/usr/bin/dutch-master', preload = PRELOAD,
    }
    for k, v in pairs(extra or {}) do
        c[k] = v
    end
    return c
end

local function env_of(fields)
    local env = {}
    for _, pair in ipairs(fields.env) do
        local name, value = pair:match('^([^=]+)=(.*)$')
        assert.is_nil(env[name], 'twice: ' .. name)
        env[name] = value
    end
    return env
end

describe('the row of a kind', function()
    it('is that which the plan names', function()
        assert.equal('node', kinds.of({ kind = 'node', worker = 'server' }).name)
        assert.equal('exec', kinds.of({ kind = 'exec', worker = 'app.js' }).name)
    end)

    it('has the same fields as the others', function()
        for name, row in pairs(kinds.rows) do
            assert.equal(name, row.name)
            assert.is_boolean(row.has_channel)
            assert.is_function(row.spawn)
            assert.is_string(row.default_ready.type)
            assert.equal(row.has_channel and 'disconnect' or 'signal', row.asks)
        end
    end)
end)

describe('the environment of a fork', function()
    it('is the master\'s, less what speaks of the master alone', function()
        local environ = { PATH = '/bin', HOME = '/root', DUTCH_MASTER_LUA = '/src/lua', DUTCH_MASTER_WORKER = '99' }
        for _, name in ipairs {
            'LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES', 'NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID', 'MAINPID',
            'INVOCATION_ID', 'JOURNAL_STREAM', 'NODE_CHANNEL_FD', 'NODE_UNIQUE_ID', 'NODE_CHANNEL_SERIALIZATION_MODE',
        } do
            environ[name] = 'outer'
        end
        local env = kinds.environment(context { environ = environ })
        assert.same({
            PATH = '/bin', HOME = '/root', DUTCH_MASTER_LUA = '/src/lua', PWD = '/srv/app', DUTCH_MASTER_PID = '4242',
            DUTCH_MASTER_WORKER = '7', DUTCH_MASTER_SLOT = '2', DUTCH_MASTER_GENERATION = '3',
        }, env)
    end)

    it('has the home, name and shell of another user, unless the script says otherwise', function()
        local account = { name = 'www-data', dir = '/var/www', shell = '/usr/sbin/nologin' }
        local env = kinds.environment(context { account = account })
        assert.same({ '/var/www', 'www-data', 'www-data', '/usr/sbin/nologin' },
            { env.HOME, env.USER, env.LOGNAME, env.SHELL })
        env = kinds.environment(context { account = account, environment = { HOME = '/srv', SHELL = false } })
        assert.same({ '/srv', 'www-data' }, { env.HOME, env.USER, env.SHELL })
    end)

    it('has nothing that the script takes away, whoever has set it', function()
        local fields = kinds.rows.exec.spawn({ argv = { 'x' } }, context {
            notify_name = '/run/notify', listen = { { name = 'web', address = ':80' } },
            environment = { NOTIFY_SOCKET = false, LISTEN_FDNAMES = false, LISTEN_PID = false },
        })
        local env = env_of(fields)
        assert.same({ '1' }, { env.LISTEN_FDS, env.LISTEN_FDNAMES, env.NOTIFY_SOCKET })
        assert.is_false(fields.listen_pid)
    end)

    it('takes workerEnvironment over the master\'s, ours over both', function()
        local env = kinds.environment(context {
            environment = {
                HOME = '/home/app', PORT = '8000', PATH = false, PWD = '/lie', DUTCH_MASTER_SLOT = 'lie',
            },
            notify_name = '@abc',
        })
        assert.equal('/home/app', env.HOME)
        assert.equal('8000', env.PORT)
        assert.is_nil(env.PATH)
        assert.equal('/srv/app', env.PWD)
        assert.equal('2', env.DUTCH_MASTER_SLOT)
        assert.equal('@abc', env.NOTIFY_SOCKET)
    end)

    it('leaves the tables it was given alone', function()
        local c = context { environ = { NODE_UNIQUE_ID = '1' }, environment = { A = 'b' } }
        kinds.rows.node.spawn({ worker = 'app.js', stop_timeout_ms = 30000, kill_timeout_ms = 5000 }, c)
        assert.same({ NODE_UNIQUE_ID = '1' }, c.environ)
        assert.same({ A = 'b' }, c.environment)
    end)
end)

describe('kind node', function()
    local row = {}
    function row.spawn(plan, given)
        plan.stop_timeout_ms, plan.kill_timeout_ms = 30000, 5000
        return kinds.rows.node.spawn(plan, given)
    end

    it('runs node from the PATH of the fork, with the drain before the script', function()
        local fields = row.spawn({ worker = 'app.js', args = { '--port', '80' } },
                                 context { environment = { PATH = '/opt/node/bin:/bin' } })
        assert.equal('node', fields.file)
        assert.equal('/opt/node/bin:/bin', fields.search_path)
        assert.same({ 'node', '--require', PRELOAD, 'app.js', '--port', '80' }, fields.argv)
        assert.equal('app.js', fields.must_read)
        assert.is_true(fields.channel)
        assert.is_false(fields.listen_pid)
        local env = env_of(fields)
        assert.equal('7', env.NODE_UNIQUE_ID)
        assert.equal('3', env.NODE_CHANNEL_FD)
        assert.equal('json', env.NODE_CHANNEL_SERIALIZATION_MODE)
        assert.is_nil(env.LISTEN_FDS)
        assert.equal('25000', env.DUTCH_MASTER_PATIENCE)
    end)

    it('takes the interpreter as words before it', function()
        local interpreter = { '/opt/node22/bin/node', '--import', 'tsx' }
        local fields = row.spawn({ worker = 'app.ts', interpreter = interpreter }, context())
        assert.same({ '/opt/node22/bin/node', '--import', 'tsx', '--require', PRELOAD, 'app.ts' }, fields.argv)
        assert.equal('/opt/node22/bin/node', fields.file)
        assert.equal(3, #interpreter)
    end)

    it('gives each worker an inspector\'s port of its own', function()
        local function option(interpreter, node_options, id)
            local fields = row.spawn({ worker = 'app.js', drain = false, interpreter = interpreter },
                context { id = id or 7, environment = { NODE_OPTIONS = node_options } })
            return table.concat(fields.argv, ' '):match '(%-%-inspect%-port=%S+) app%.js$'
        end
        assert.is_nil(option { 'node' })
        assert.is_nil(option { 'node', '--inspect=0' })
        assert.is_nil(option { 'node', '--inspector-of-tests' })
        assert.equal('--inspect-port=9236', option { 'node', '--inspect' })
        assert.equal('--inspect-port=5007', option { 'node', '--inspect-brk=5000' })
        assert.equal('--inspect-port=0.0.0.0:5007', option { 'node', '--inspect=0.0.0.0:5000' })
        assert.equal('--inspect-port=localhost:9236', option { 'node', '--inspect=localhost' })
        assert.equal('--inspect-port=9236', option({ 'node' }, '--max-old-space-size=100 --inspect'))
        assert.equal('--inspect-port=1024', option({ 'node', '--inspect=65535' }, nil, 1))
    end)

    it('passes the master\'s sockets on before the channel, if asked to', function()
        local fields = row.spawn({ worker = 'app.js' }, context { passed = { 'web', 'admin' } })
        local env = env_of(fields)
        assert.same({ '2', 'web:admin', '5' }, { env.LISTEN_FDS, env.LISTEN_FDNAMES, env.NODE_CHANNEL_FD })
        assert.is_true(fields.listen_pid)
    end)

    it('goes without the drain when told so, when it is missing, and for what is not Node', function()
        local function argv(plan, extra)
            plan.worker = 'app.js'
            return table.concat(row.spawn(plan, context(extra)).argv, ' ')
        end
        assert.equal('node app.js', argv { drain = false })
        assert.equal('node app.js', argv({}, { preload = false }))
        assert.equal('bun app.js', argv { interpreter = { 'bun' } })
        assert.matches('^/usr/bin/env node %-%-require', argv { interpreter = { '/usr/bin/env', 'node' } })
        assert.matches('^/x/node18 %-%-require', argv { interpreter = { '/x/node18' } })
    end)

    it('asks for a readable file only where the name is certainly a file', function()
        assert.is_nil(row.spawn({ worker = 'server' }, context()).must_read)
        assert.equal('/abs/server.mjs', row.spawn({ worker = '/abs/server.mjs' }, context()).must_read)
    end)

    it('searches a usual PATH when there is none', function()
        local fields = row.spawn({ worker = 'a.js' }, context { environ = {} })
        assert.equal('/usr/local/bin:/usr/bin:/bin', fields.search_path)
    end)
end)

describe('kind lua', function()
    it('is the same binary on the same channel', function()
        local fields = kinds.rows.lua.spawn({ worker = 'hello.lua', args = { 'a' } }, context())
        assert.equal('/usr/bin/dutch-master', fields.file)
        assert.same({ 'dutch-master', '--lua-worker', 'hello.lua', 'a' }, fields.argv)
        assert.equal('hello.lua', fields.must_read)
        assert.is_true(fields.channel)
        assert.equal('3', env_of(fields).NODE_CHANNEL_FD)
        assert.equal('7', env_of(fields).NODE_UNIQUE_ID)
    end)
end)

describe('kind exec', function()
    local row = kinds.rows.exec
    local listen = {
        { name = 'http', address = '127.0.0.1:80' }, { name = 'a:b c', address = 'unix:/run/x' }, { address = ':9' },
    }

    it('passes sockets as systemd does', function()
        local fields = row.spawn({ argv = { 'server', '-x' }, args = { 'y' } },
                                 context { listen = listen, notify_name = '@n' })
        assert.equal('server', fields.file)
        assert.same({ 'server', '-x', 'y' }, fields.argv)
        assert.is_false(fields.channel)
        assert.is_true(fields.listen_pid)
        local env = env_of(fields)
        assert.equal('3', env.LISTEN_FDS)
        assert.equal('http:a_b_c:socket3', env.LISTEN_FDNAMES)
        assert.equal('@n', env.NOTIFY_SOCKET)
        assert.is_nil(env.NODE_CHANNEL_FD)
        assert.is_nil(env.NODE_UNIQUE_ID)
    end)

    it('is told of a watchdog as by systemd, unless it is asked', function()
        local fields = row.spawn({ argv = { 'server' }, watchdog_ms = 1500 }, context { listen = listen })
        assert.is_true(fields.watchdog_pid)
        assert.equal('1500000', env_of(fields).WATCHDOG_USEC)
        for _, plan in ipairs { { argv = { 'x' } }, { argv = { 'x' }, watchdog_ms = 1500, ready = { type = 'http' } } } do
            fields = row.spawn(plan, context { listen = listen, environ = { WATCHDOG_USEC = '1', WATCHDOG_PID = '2' } })
            assert.is_false(fields.watchdog_pid)
            assert.is_nil(env_of(fields).WATCHDOG_USEC)
            assert.is_nil(env_of(fields).WATCHDOG_PID)
        end
    end)

    it('says nothing of sockets when there are none', function()
        local fields = row.spawn({ worker = 'bin/server' }, context { environ = { LISTEN_FDS = '2' } })
        assert.same({ 'bin/server' }, fields.argv)
        assert.is_false(fields.listen_pid)
        assert.is_nil(env_of(fields).LISTEN_FDS)
    end)

    it('has the other styles of naming descriptors', function()
        local function spawn(style, argv)
            local fields = row.spawn({ argv = argv or { 'x' }, socket_style = style }, context { listen = listen })
            assert.is_false(fields.listen_pid)
            assert.is_nil(env_of(fields).LISTEN_FDS)
            return env_of(fields), fields.argv
        end
        assert.equal('3;4;5;', spawn('nginx').NGINX)
        assert.equal('127.0.0.1:80=3,/run/x=4,:::9=5', spawn('fpm').FPM_SOCKETS)
        assert.equal('127.0.0.1:80=3,/run/x/=4,:::9=5', spawn('fpm_slash').FPM_SOCKETS)
        local six = row.spawn({ argv = { 'x' }, socket_style = 'fpm' }, context { listen = {
            { address = '[::1]:80' }, { address = '[::]:81' } } })
        assert.equal('::1:80=3,:::81=4', env_of(six).FPM_SOCKETS)
        assert.equal('3,4,5', spawn('unicorn').UNICORN_FD)
        local plan_argv = { 'uvicorn', '--fd', '{fd}', 'fd://{fd:http}', '{fd:nobody}', '{other}' }
        local _, argv = spawn('argv', plan_argv)
        assert.same({ 'uvicorn', '--fd', '3', 'fd://3', '{fd:nobody}', '{other}' }, argv)
        assert.equal('{fd}', plan_argv[3])
    end)
end)
