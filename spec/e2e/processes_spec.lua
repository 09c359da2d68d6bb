-- What a worker is given, what it is kept from, and that nothing of it stays.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local master = require 'spec.support.master'

local NOBODY = { 'setpriv', '--reuid=65534', '--regid=65534', '--clear-groups' }

local function start_report(options, more)
    local dir = master.temp_dir()
    assert(uv.fs_chmod(dir, tonumber('777', 8)))
    more = more or {}
    more.script = ([[local dutch = require 'dutch-master'
        dutch.start { worker = { './report.sh' }, numWorkers = 1, ready = { alive = 0.05 }, %s }]]):format(options or '')
    more.files = { ['report.sh'] = apps.report }
    more.env = more.env or {}
    more.env.OUT = dir .. '/report'
    local m = master.start(more)
    local report = m:wait_until(function() return apps.read_report(dir .. '/report') end, 'the report of the worker')
    return m, report
end

local function status_of(pid, name)
    local file = io.open(('/proc/%d/status'):format(pid))
    local text = file and file:read '*a' or ''
    if file then file:close() end
    return text:match(name .. ':%s*([^\n]*)')
end

local function is_alive(pid)
    local state = status_of(pid, 'State')
    return state ~= nil and not state:find '^[ZX]'
end

describe('a worker', function()
    after_each(master.cleanup)

    it('leads a process group of its own, with default signals', function()
        local m, report = start_report(nil, { wrap = { 'env', '--ignore-signal=HUP', '--block-signal=USR1' } })
        assert.equal(report.pid, report.pgid)
        assert.equal(m:await('Creating new worker').workerPid, tonumber(report.pid))
        assert.same({ '0000000000000000', '0000000000000000' }, { report.SigBlk, report.SigIgn })
        m:finish()
    end)

    it('has no descriptor that is not meant for it', function()
        local m = master.start {
            script = [[require('dutch-master').start { worker = { 'ls', '-l', '/proc/self/fd' }, numWorkers = 1,
                backoff = { first = 10, max = 10 }, pidFile = os.getenv 'PID_FILE' }]],
            env = { PID_FILE = master.temp_dir() .. '/pid' },
            wrap = { 'sh', '-c', 'exec 7</etc/passwd 9>/dev/null; exec "$0" "$@"' },
        }
        m:await 'Waiting before the next fork'
        local found = {}
        for _, line in ipairs(m.output) do
            local fd, target = line:match '(%d+) %-> (.*)$'
            if fd then
                found[tonumber(fd)] = target
            end
        end
        assert.equal('/dev/null', found[0])
        assert.matches('^socket:', found[1]) -- luv's pipe, the output of the master
        assert.matches('^pipe:', found[2])
        assert.matches('^/proc/', found[3]) -- what ls itself has opened
        found[0], found[1], found[2], found[3] = nil, nil, nil, nil
        assert.same({}, found)
        m:finish()
    end)

    it('inherits the environment, less what speaks of the master alone, plus its own', function()
        local alone = { LISTEN_FDS = '1', LISTEN_PID = '1', LISTEN_FDNAMES = 'x', WATCHDOG_USEC = '1000000',
            WATCHDOG_PID = '1', MAINPID = '1', INVOCATION_ID = 'x', JOURNAL_STREAM = '1:2', NODE_CHANNEL_FD = '9',
            NODE_UNIQUE_ID = '9', NODE_CHANNEL_SERIALIZATION_MODE = 'json', UNICORN_FD = '9', NGINX = '9;',
            EINHORN_FD_COUNT = '1', DUTCH_MASTER_SLOT = '9' }
        local env = { KEPT = 'yes', DROPPED = 'yes', NOTIFY_SOCKET = '@nobody-is-there' }
        for name, value in pairs(alone) do
            env[name] = value
        end
        local m, report = start_report('workerEnvironment = { MINE = "a=b c", DROPPED = false }', { env = env })
        for name in pairs(alone) do
            if name ~= 'DUTCH_MASTER_SLOT' then
                assert.is_nil(report.env[name], name)
            end
        end
        assert.same({ 'yes', nil, 'a=b c', '1', '1', '1', tostring(m.pid) }, { report.env.KEPT, report.env.DROPPED,
            report.env.MINE, report.env.DUTCH_MASTER_WORKER, report.env.DUTCH_MASTER_SLOT,
            report.env.DUTCH_MASTER_GENERATION, report.env.DUTCH_MASTER_PID })
        assert.matches('^/.*/notify%-%x+$', report.env.NOTIFY_SOCKET)
        assert.not_equal('@nobody-is-there', report.env.NOTIFY_SOCKET)
        m:finish()
    end)

    it('has the user, group, mask, limits, priority and processors that the script says', function()
        if uv.getuid() ~= 0 then
            pending 'only root can change the user'
            return
        end
        local m, report = start_report([[user = 'nobody', group = 'daemon', umask = '027', nice = 5, cpus = { 0 },
            limits = { nofile = { soft = 123, hard = 456 }, core = 0 }, workerEnvironment = { NOTIFY_SOCKET = false }]])
        assert.equal('65534 65534 65534 65534', report.Uid) -- the saved one too: it cannot go back
        assert.equal('1 1 1 1', report.Gid)
        assert.is_nil((' ' .. report.Groups .. ' '):find ' 0 ')
        assert.same({ '0027', '5', '123 456', '0', '0' }, { report.umask, report.nice, report.nofile, report.core,
            report.Cpus_allowed_list })
        local account = io.popen 'getent passwd nobody':read '*l'
        local home, shell = account:match '^[^:]*:[^:]*:[^:]*:[^:]*:[^:]*:([^:]*):([^:]*)$'
        assert.same({ home, 'nobody', 'nobody', shell },
            { report.env.HOME, report.env.USER, report.env.LOGNAME, report.env.SHELL })
        assert.is_nil(report.env.NOTIFY_SOCKET) -- the script's word is the last one
        m:finish()
    end)

    it('is not made of what this user may not set: the boot and a restart name the option and its line', function()
        if uv.getuid() ~= 0 then
            return pending 'the refused one must be able to become nobody'
        elseif os.execute(table.concat(NOBODY, ' ') .. ' test -x ' .. master.binary()) ~= 0 then
            return pending 'the tree cannot be read by an ordinary user'
        end
        local runtime = master.temp_dir()
        assert(uv.fs_chown(runtime, 65534, 65534))
        local env = { DUTCH_MASTER_RUNTIME_DIR = runtime }
        local function script(option)
            return ("require('dutch-master').start {\n worker = { 'sleep', '1000' },\n %s }"):format(option)
        end
        local function refusal(option)
            return ('master.lua:3: %s: nobody may not set it for the workers: '):format(option)
        end
        local m
        for _, case in ipairs { { "user = 'daemon'", 'user', 'start workers as another user' }, { 'nice = -5', 'nice',
            'raise a priority' }, { 'limits = { nofile = 99999999 }', 'limits.nofile', 'raise a hard limit' } } do
            m = master.start { script = script(case[1]), wrap = NOBODY, env = env }
            m:exit()
            assert.matches('^dutch%-master: ' .. refusal(case[2]):gsub('%p', '%%%0') .. '[^\n]*: only root can '
                .. case[3], m.stderr)
            m:finish { code = 78 }
        end
        m = master.start { script = script 'nice = 5', wrap = NOBODY, env = env }
        m:await 'Cluster ready'
        m:rewrite('master.lua', script 'nice = -5')
        m:signal 'SIGUSR2'
        m:await(function(record)
            return record.msg:find '^Restart' and (record.reason or record.msg):find(refusal 'nice', 1, true)
        end)
        m:finish()
    end)

    it('writes where workerOutput says', function()
        local file = master.temp_dir() .. '/out.log'
        for output, expected in pairs { [file] = { nil, 'to stdout\nto stderr\n' }, null = {}, inherit = { 'to stdout' } } do
            local m = master.start {
                script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = 1,
                    workerOutput = '%s' }]]):format(output),
                files = { ['app.lua'] = 'io.stdout:setvbuf "no" io.stdout:write "to stdout\\n" io.stderr:write "to stderr\\n"'
                    .. apps.idle },
            }
            m:await 'Cluster ready'
            m:signal 'SIGTERM'
            m:exit()
            master.wait_until(function() return m.out_ended and m.err_ended end)
            assert.equal(expected[1], m.output[1])
            assert.equal(output == 'inherit' and 'to stderr\n' or '', m.stderr)
            if expected[2] then
                local handle = assert(io.open(file))
                local lines = { handle:read '*l', handle:read '*l' }
                table.sort(lines) -- two pipes
                assert.equal(expected[2], ('%s\n%s\n'):format(lines[2], lines[1]))
                handle:close()
            end
            m:finish()
        end
    end)
end)

describe('what a worker leaves behind', function()
    after_each(master.cleanup)

    local function start(script, options)
        return master.start {
            script = ([[require('dutch-master').start { worker = { 'sh', '-c', %q }, numWorkers = 1,
                ready = { alive = 0.02 }, backoff = { first = 20, max = 20 }, %s }]]):format(script, options or ''),
        }
    end

    it('in its process group dies with it, though it holds the output', function()
        local m = start 'sleep 1000 & echo grandchild $!; sleep 0.1; exit 3'
        local before = uv.hrtime()
        local pid = tonumber(m:await_output '^grandchild (%d+)$')
        assert.equal(3, m:await('Worker exited').code)
        assert.is_true((uv.hrtime() - before) / 1e9 < 3)
        m:wait_until(function() return not is_alive(pid) end, 'the end of the grandchild')
        m:await('Creating new worker', { count = 2 })
        m:finish()
    end)

    it('in a session of its own lives on, holds nobody up, and is ended with the master', function()
        local m = start 'setsid sleep 1000 & echo grandchild $!; sleep 0.1; exit 3'
        local before = uv.hrtime()
        local pid = tonumber(m:await_output '^grandchild (%d+)$')
        m:await 'Worker exited'
        assert.is_true((uv.hrtime() - before) / 1e9 < 3)
        assert.is_true(is_alive(pid))
        assert.equal(tostring(m:process_pid()), status_of(pid, 'PPid'))
        m:signal 'SIGTERM'
        m:exit()
        m:wait_until(function() return not is_alive(pid) end, 'the end of the grandchild')
        m:finish()
    end)

    it('in sessions of their own is named, asked after leftoverTimeout, and killed', function()
        local m = start([[trap 'exit 3' USR1; setsid sh -c 'trap "echo asked" TERM; echo ready $$; exec 2>&-; while :; do sleep 0.1; done' &
            while :; do sleep 0.05; done]], 'leftoverTimeout = 0.5, killTimeout = 0.5')
        local pid = tonumber(m:await_output '^ready (%d+)$')
        assert(uv.kill(m:await('Worker listening').workerPid, 'sigusr1'))
        local said = m:await 'Worker left processes behind in sessions of their own'
        assert.same({ 1, 1, 0.5, { ('sh (pid %d)'):format(pid) } },
            { said.workerId, said.count, said.endsIn, said.processes })
        m:await 'Asking what the worker left behind to end'
        m:await_output '^asked$'
        m:await 'Killing what the worker left behind'
        m:wait_until(function() return not is_alive(pid) end, 'the end of what was left')
        m:finish()
    end)

    it('does not pile up when they die again and again', function()
        local m = master.start {
            script = [[require('dutch-master').start { worker = { 'sh', '-c', 'setsid sleep 1000 & sleep 0.05; exit 1' },
                numWorkers = 3, ready = { alive = 0.02 }, leftoverTimeout = 0.1, killTimeout = 0.1,
                backoff = { first = 0.05, max = 0.1, reset = 1 } }]],
        }
        m:await('Asking what the worker left behind to end', { count = 20 })
        local sleeping = 0
        for _, pid in ipairs(m:tree()) do
            local file = io.open(('/proc/%d/cmdline'):format(pid))
            sleeping = sleeping + (file and file:read '*a' == 'sleep\0001000\0' and 1 or 0)
        end
        assert.is_true(sleeping < 15, sleeping)
        m:finish()
    end)

    it('is reaped: no zombie stays', function()
        local m = start 'for i in 1 2 3 4 5 6 7 8 9 10; do (setsid sh -c "sleep 0.0$i" &); done; sleep 1000'
        m:await 'Worker listening'
        local function zombies()
            local count, children, own = 0, 0, tostring(m:process_pid())
            local scan = uv.fs_scandir '/proc'
            for name in function() return uv.fs_scandir_next(scan) end do
                local file = io.open(('/proc/%s/cmdline'):format(name))
                local words = file and file:read '*a' or ''
                if file then
                    file:close()
                end
                if name:match '^%d+$' and status_of(name, 'PPid') == own
                    and not words:find('--script-process', 1, true) then
                    children = children + 1
                    count = count + (is_alive(name) and 0 or 1)
                end
            end
            return count, children
        end
        m:wait_until(function()
            local dead, children = zombies()
            return dead == 0 and children == 1
        end, 'one child and no zombie')
        m:finish()
    end)

    it('is a Lua worker that leaves, when it is the master that dies', function()
        local port = http.free_port()
        local m = master.start {
            script = [[require('dutch-master').start { worker = 'app.lua',
                workerEnvironment = { LISTEN = os.getenv 'LISTEN' } }]],
            files = { ['app.lua'] = apps.http },
            env = { LISTEN = '127.0.0.1:' .. port },
        }
        m:await 'Cluster ready'
        m:kill()
        m:exit()
        m:wait_until(function() return #m:tree() == 0 end, 'the workers to leave')

        -- The files of the dead one are in nobody's way.
        local second = master.start { script_path = m.script, cwd = m.app,
            env = { LISTEN = '127.0.0.1:' .. port, DUTCH_MASTER_RUNTIME_DIR = m.dir .. '/run' } }
        second:await 'Cluster ready'
        assert.equal(200, (http.get { port = port }))
        second:finish()
        m:finish { signal = 'SIGKILL' }
    end)

    it('is nothing with dieWithMaster', function()
        local m = start('sleep 1000 & trap "" TERM; while :; do wait; done', 'dieWithMaster = true')
        local pid = m:await('Worker listening').workerPid
        m:kill()
        m:exit()
        m:wait_until(function() return not is_alive(pid) end, 'the end of the worker')
        m:wait_until(function() return #m:tree() == 0 end, 'the end of its group')
        m:finish { signal = 'SIGKILL', files_left = true }
    end)
end)
