local advice = require 'dutch-master.script.advice'
local plan = require 'dutch-master.script.plan'

local STATUS = 'Name:\tx\nCpus_allowed_list:\t0-1\n'

-- What check says of these options, where these files are: 'option: text' each.
local function said(options, files, alone)
    files = files or { ['/srv/app.js'] = true, ['/usr/bin/node'] = true, ['/usr/bin/sleep'] = true }
    local built, messages = plan.build(options)
    assert(built, messages and messages[1])
    local list = {}
    for i, warning in ipairs(advice.of(built, {
        cwd = '/srv', environ = { PATH = '/bin:/usr/bin' }, status = STATUS,
        no_preload = alone and 'it is not there: ' or nil,
        stat = function(path) return files[path] and {} or nil end,
        read = function(path) return type(files[path]) == 'string' and files[path] or nil end,
        access = function(path) return files[path] or nil, path .. ': permission denied' end,
    })) do
        list[i] = (warning.option or '-') .. ': ' .. warning.text
    end
    return table.concat(list, '\n')
end

describe('advice on a plan', function()
    it('is silent where there is nothing to say', function()
        assert.equal('', said { worker = 'app.js' })
        assert.equal('', said { worker = { 'sleep', '1' }, listen = ':8000' })
    end)

    it('misses a worker, its interpreter, a program', function()
        assert.equal('worker: /srv/nothere.js: no such file', said { worker = 'nothere.js' })
        assert.matches('beforeFork, which was not run, may choose another directory',
            said { worker = 'nothere.js', beforeFork = function() end })
        assert.equal('interpreter: node: not found in PATH (/bin:/usr/bin)',
            said({ worker = 'app.js' }, { ['/srv/app.js'] = true }))
        assert.matches('^worker: gunicorn: not found in PATH', said { worker = { 'gunicorn' }, listen = ':8000' })
        assert.matches("a command with arguments is a list: { 'sleep', '1000' }",
            said { worker = 'sleep 1000', listen = ':8000' })
        assert.matches("the file beside the script is './app.rb'",
            said({ worker = 'app.rb', listen = ':8000' }, { ['/srv/app.rb'] = true }))
    end)

    it('knows what a preset needs, and times that cut each other short', function()
        local preset = { preset = 'gunicorn', argv = { 'sleep' }, sockets = 'listen_fds', ready = { alive = 1 } }
        assert.matches('listen: gunicorn binds its address itself', said { worker = preset })
        assert.equal('killTimeout: 60 s is not less than stopTimeout (30 s): a worker gets SIGTERM as soon as it is '
            .. 'asked to leave', said { worker = 'app.js', killTimeout = 60 })
    end)

    it('says that the file which lets keep-alive connections leave was not installed with the program', function()
        local files = { ['/srv/app.js'] = true, ['/srv/app.lua'] = true, ['/usr/bin/node'] = true }
        assert.equal('worker: it is not there: keep-alive draining is off', said({ worker = 'app.js' }, files, true))
        assert.matches(': metrics are off$', said({ worker = 'app.js', drain = false, metrics = true }, files, true))
        assert.equal('', said({ worker = 'app.js', drain = false }, files, true))
        assert.equal('', said({ worker = 'app.lua', metrics = true }, files, true))
    end)

    it('names launchers, which keep the sockets and the channel to themselves', function()
        local files = { ['/srv/app.ts'] = true, ['/usr/bin/npm'] = true, ['/usr/bin/tsx'] = true, ['/bin/node'] = true }
        assert.equal('worker: npm runs the app in a process of its own, which gets neither the sockets nor the channel: '
            .. "write the file that it runs, such as worker = 'server.js'",
            said({ worker = { 'npm', 'start' }, ready = 'notify' }, files))
        assert.matches("^interpreter: tsx runs .*: write interpreter = { 'node', '%-%-import', 'tsx' }$",
            said({ worker = 'app.ts', interpreter = '/usr/bin/tsx' }, files))
        assert.equal('', said({ worker = 'app.ts', interpreter = { 'node', '--import', 'tsx' } }, files))
    end)

    it('compares the pools of php-fpm with listen', function()
        local presets = require 'dutch-master.launch.presets'
        local function fpm(text, listen, slash)
            return said({ worker = presets.phpfpm { command = 'sleep', config = 'fpm.conf', slash = slash }, listen = listen,
                ready = 'notify' }, { ['/usr/bin/sleep'] = true, ['/srv/fpm.conf'] = text })
        end
        local good = '[global]\nprocess_control_timeout = 10s\n[www]\n listen = "/run/a.sock/"\n'
        assert.equal('', fpm(good, 'unix:/run/a.sock'))
        assert.equal('', fpm(good, ':9000'))
        assert.equal('worker: fpm.conf: no pool has listen = /run/b.sock/ (without the slash at its end php-fpm removes '
            .. 'the path whenever a worker ends)', fpm(good, 'unix:/run/b.sock'))
        assert.matches('no pool has listen = /run/a.sock/ (without', fpm(good:gsub('k/"', 'k"'), 'unix:/run/a.sock'), 1, true)
        assert.matches('no pool has listen = /run/a.sock, as slash = false needs it', fpm(good, 'unix:/run/a.sock', false), 1,
            true)
        assert.equal('', fpm('process_control_timeout = 1\ninclude = pool.d/*.conf', 'unix:/run/a.sock'))
        assert.matches('^worker: fpm.conf: without process_control_timeout', fpm(';process_control_timeout = 10s', ':9000'))
        assert.matches('^worker: fpm.conf: without process_control_timeout', fpm('process_control_timeout = 0s', ':9000'))
    end)

    it('knows CPUs, files, readiness and hooks', function()
        assert.equal('cpus: none of them is usable here: there are 0-1; no worker can start',
            said { worker = 'app.js', cpus = '9' })
        assert.equal('cpus: 2 and 7 more cannot be used here: there are 0-1', said { worker = 'app.js', cpus = '0-9' })
        assert.equal('workerOutput: /nonexist: permission denied; no worker can start',
            said { worker = 'app.js', workerOutput = '/nonexist/x.log' })
        assert.matches('ready: a worker is taken for ready when it has lived', said { worker = { 'sleep', '1' } })
        local asked = { worker = { 'sleep', '1' }, listen = ':8000', ready = { http = '/' }, watchdog = 5 }
        assert.matches('^watchdog: with balance = "queue" any worker of a release answers', said(asked))
        asked.balance = 'steered'
        assert.equal('', said(asked))
        assert.equal('-: the hooks were not run: beforeFork, onReady',
            said { worker = 'app.js', beforeFork = function() end, onReady = function() end })
    end)
end)
