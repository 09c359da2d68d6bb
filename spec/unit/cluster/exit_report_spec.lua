local exit_report = require 'dutch-master.cluster.exit_report'

describe('exit report', function()
    local oom

    -- A worker that has served for two of its five seconds.
    local function worker(changes)
        local w = {
            id = 7, pid = 4711, slot = 2, generation = 3, release = '/r/1', forked_at = 1000, ready_at = 4000,
            oom_kills_before = 1, leaving = { told = false, lost = true, killed = false },
            child = { tail = function() return 'last words' end },
            platform = {
                now = function() return 6000 end, wall = function() return 1700000000 end,
                oom_kills = function() return oom end,
            },
        }
        for key, value in pairs(changes or {}) do
            w[key] = value
        end
        return w
    end

    local function message(status, changes)
        return exit_report.new(worker(changes), status).message
    end

    before_each(function()
        oom = 1
    end)

    it('is plain values: who, how, when and with which last words', function()
        assert.same({
            worker = 7, pid = 4711, slot = 2, generation = 3, release = '/r/1', code = 3, message = 'exited with code 3',
            unexpected = true, was_ready = true, age_ms = 5000, served_ms = 2000, at = 1700000000, stderr = 'last words',
            cpu_ms = 30, max_rss_kb = 5,
        }, exit_report.new(worker(), { code = 3, user_ms = 10, system_ms = 20, max_rss_kb = 5 }))
        local never = exit_report.new(worker { ready_at = false }, { signal = 'SIGSEGV', core = true })
        assert.same({ 0, 0, true, 'was killed by SIGSEGV' }, { never.served_ms, never.cpu_ms, never.core, never.message })
    end)

    it('says whether it was told to leave, why, and whether we had to kill it', function()
        local report = exit_report.new(worker { leaving = { told = true, why = 'replaced', killed = true } },
            { signal = 'SIGKILL' })
        assert.same({ false, 'replaced', true }, { report.unexpected, report.why, report.killed })
        assert.is_nil(report.oom)
    end)

    it('names the step of a start that failed, in words', function()
        for step, words in pairs { chdir = 'its directory: /x: gone', script = 'the worker: /x: gone',
            exec = 'the program: /x: gone', interpreter = 'the interpreter named in its #! line: /x: gone',
            setuid = 'setuid: /x: gone' } do
            local failed = { step = step, message = step .. ': /x: gone' }
            assert.equal(words, exit_report.start_failure(failed, {}))
            local report = exit_report.new(worker(), { failed = failed })
            assert.same({ step, 'could not be started: ' .. words }, { report.step, report.message })
        end
        local gone = { step = 'script', code = 'ENOENT', path = 'app.js', message = 'app.js: no such file or directory' }
        assert.equal('the worker: app.js: no such file or directory (in /r/1)', exit_report.start_failure(gone, worker()))
        gone.path = '/srv/app.js'
        assert.equal('the worker: app.js: no such file or directory', exit_report.start_failure(gone, worker()))
        local function program(name)
            return exit_report.start_failure({ step = 'exec', code = 'ENOENT', path = name, message = name .. ': gone' },
                { search_path = '/bin:/usr/bin' })
        end
        assert.equal('ruby: not found in PATH (/bin:/usr/bin)', program 'ruby')
        assert.equal("app.py: not found in PATH (/bin:/usr/bin) (a file of the worker's directory is written './app.py', and"
            .. ' must be executable)', program 'app.py')
        assert.equal('the program: odd: text', exit_report.start_failure({ step = 'exec', message = 'odd: text' }, {}))
    end)

    it('says that it was late before anything else that may have come of it', function()
        assert.equal('was not ready within 1 s', message({ signal = 'SIGTERM' },
            { leaving = { told = false, late = 'was not ready within 1 s' } }))
    end)

    it('says that memory ran out only when the kernel counted it since the fork, for a SIGKILL not ours', function()
        oom = 2
        assert.equal('was killed because memory ran out', message { signal = 'SIGKILL' })
        assert.equal('was killed by SIGTERM', message { signal = 'SIGTERM' })
        assert.equal('was killed by SIGKILL', message({ signal = 'SIGKILL' }, { leaving = { killed = true } }))
        oom = 1
        local report = exit_report.new(worker(), { signal = 'SIGKILL' })
        assert.same({ false, 'was killed by SIGKILL' }, { report.oom, report.message })
        oom = nil
        assert.is_nil(exit_report.new(worker { oom_kills_before = false }, { signal = 'SIGKILL' }).oom)
    end)

    it('says that a program which opens its address itself cannot have several workers, and what to write', function()
        local function cause(words, changes)
            changes.child = { tail = function() return words end }
            return exit_report.cause(worker(changes)) or 'nothing'
        end
        local function exec(rule, listen, ready_at)
            return { plan = { kind = 'exec', ready = { type = rule }, listen = listen }, ready_at = ready_at or false }
        end
        local php = 'Failed to listen on 127.0.0.1:8000 (reason: Address already in use)'
        local flask = 'Address already in use\nPort 5000 is in use by another program.'
        local tcp = { { text = '127.0.0.1:80', host = '127.0.0.1', port = 80 } }
        assert.matches('^it opens its address itself, and that is taken', cause(php, exec('auto', {})))
        assert.matches('^it opens its address itself', cause(flask, exec('alive', {}, 4000)))
        for _, text in ipairs { 'OSError: [Errno 98] x', 'Error: That port is already in use.',
            'no acceptor (port is in use or requires root privileges) (RuntimeError)' } do
            assert.matches('^it opens its address itself', cause(text, exec('auto', tcp)))
        end
        assert.equal('nothing', cause(php, exec('auto', tcp, 4000))) -- it has served
        assert.equal('nothing', cause(php, exec('notify', {}, 4000)))
        assert.equal('nothing', cause('database is gone', exec('auto', {})))
        local function node(listening)
            return { plan = { kind = 'node', ready = { type = 'auto' }, listen = {} }, ready_at = false, listening = listening }
        end
        local tsx = 'Error: listen EADDRINUSE: address already in use :::8000'
        assert.matches("interpreter = { 'node', '%-%-import', 'tsx' }$", cause(tsx, node()))
        assert.equal('nothing', cause(tsx, node(':8000')))
        assert.equal('nothing', cause(tsx, { plan = { kind = 'lua', listen = {} }, ready_at = false }))
    end)

    it('names both addresses when a server opens another form of the one that it was given', function()
        local function cause(words, listen)
            return exit_report.cause(worker { ready_at = false, child = { tail = function() return words end },
                plan = { listen = listen or { { text = ':80' } } } })
        end
        local nginx = 'start\n[emerg] 1#1: bind() to 0.0.0.0:80 failed (98: Address already in use)\nend'
        assert.matches('^it tried to open 0%.0%.0%.0:80 itself, but the master holds :80 for it', cause(nginx))
        assert.matches('^it tried to open %[::%]:80 itself', cause('bind() to [::]:80 failed (98: Address already in use)'))
        assert.matches('open port 80 itself', cause "[Errno 98] error while binding on ('0.0.0.0', 80): address already in use")
        assert.matches('open 127%.0%.0%.1:80 itself', cause 'Error: listen EADDRINUSE: address already in use 127.0.0.1:80')
        assert.is_nil(cause(nginx, { { text = ':8080' }, { text = 'unix:/x:80' }, { text = 'udp::80' } }))
        assert.is_nil(cause(nginx, {}))
        assert.is_nil(cause 'bind() to 0.0.0.0:80 failed (13: Permission denied)')
    end)
end)
