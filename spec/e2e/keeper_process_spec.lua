-- What a master with a keeper is to whoever started it: one program, as without. In a terminal, under timeout, nohup and
-- setsid, as process 1, beside children that it inherited; with a stderr that nobody reads; when its master hangs.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local kept = require 'spec.support.kept'
local master = require 'spec.support.master'
local read = require('spec.support.files').or_empty
local wait = require 'spec.support.wait'

local IDLE = { ['app.lua'] = apps.idle }
local SCRIPT = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 1, restartSoak = 0,
    stopTimeout = 2, killTimeout = 1 }]]

-- Of /proc/PID/stat, after the name: the third field is the state.
local function stat(pid, field)
    local i = 2
    for word in (read(('/proc/%d/stat'):format(pid)):match '%) (.*)' or ''):gmatch '%S+' do
        i = i + 1
        if i == field then
            return word
        end
    end
end

local function state(pid)
    return stat(pid, 3)
end

describe('a master with a keeper', function()
    after_each(master.cleanup)

    -- A shell in a terminal; what is typed goes in by a FIFO.
    for _, keeper in ipairs { false, true } do
        it('is a job of a shell: ^Z, bg, fg, ^C' .. (keeper and '' or ', as one without'), function()
            local dir = master.temp_dir()
            assert(os.execute(('mkfifo %q'):format(dir .. '/tty')) == 0)
            local m = kept.start { keeper = keeper, script = SCRIPT, files = IDLE, env = { TTY = dir .. '/tty' },
                wrap = { 'sh', '-c', [[exec 7>&1 script -qfec 'bash --norc --noprofile -i' /dev/null <"$TTY"]] } }
            local typed = assert(io.open(dir .. '/tty', 'r+'))
            typed:setvbuf 'no'
            typed:write(("'%s' '%s' %s >&7\n"):format(master.binary(), m.script, keeper and '' or '--no-keeper'))
            local first = m:await('Cluster ready').pid
            local both = keeper and { first, kept.pid(m, first) } or { first }
            local function become(pattern, what)
                m:wait_until(function()
                    for _, pid in ipairs(both) do
                        if not (state(pid) or ''):match(pattern) then
                            return false
                        end
                    end
                    return true
                end, what)
            end
            for _ = 1, 2 do
                typed:write '\26'
                become('T', 'it to stop')
                typed:write 'bg\n'
                become('[SR]', 'it to go on behind')
                typed:write 'fg\n'
                m:wait_until(function()
                    return stat(first, 8) == stat(first, 5) -- the terminal is its group's
                end, 'it to be in front')
            end
            typed:write '\3'
            assert.equal('SIGINT', m:await('Shutdown requested').signal)
            m:await 'Cluster shutdown cleanly'
            typed:write 'exit\n'
            m:exit()
            typed:close()
            assert.equal(1, #m:records 'Shutdown requested')
            m:finish()
        end)
    end

    it('obeys timeout, nohup and setsid, and names who asked', function()
        for name, words in pairs { timeout = { 'timeout', '100' }, nohup = { 'nohup' }, setsid = { 'setsid', '--wait' } } do
            local m = kept.start { script = SCRIPT, files = IDLE, wrap = words }
            local keeper = m:await('Cluster ready').pid
            assert.equal('dutch-keeper\n', read(('/proc/%d/comm'):format(keeper)))
            assert.equal('dutch-master\n', read(('/proc/%d/comm'):format(kept.pid(m, keeper))))
            kept.kill(m, 'sigkill', keeper)
            local asked = name == 'timeout' and m.pid or uv.os_getpid()
            uv.kill(keeper, 'sighup')
            assert.equal(uv.os_getpid(), m:await('Restart requested').by.pid)
            m:await 'Restart complete'
            uv.kill(name == 'timeout' and m.pid or keeper, 'sigterm')
            assert.equal(asked, m:await('Shutdown requested').by.pid, name)
            m:finish()
        end
    end)

    it('leaves alone what was there before it, and reaps it', function()
        local dir = master.temp_dir()
        local m = kept.start { script = SCRIPT, files = IDLE, env = { PIDS = dir .. '/pids' },
            wrap = { 'sh', '-c', 'sleep 1000 & echo $! >"$PIDS"; sleep 1001 & echo $! >>"$PIDS"; exec "$0" "$@"' } }
        m:await 'Cluster ready'
        local pids = {}
        for pid in read(dir .. '/pids'):gmatch '%d+' do
            pids[#pids + 1] = tonumber(pid)
        end
        kept.kill(m)
        uv.kill(pids[1], 'sigkill')
        m:wait_until(function() return state(pids[1]) == nil end, 'the first to be reaped')
        m:signal 'SIGTERM'
        m:exit()
        assert.equal('S', state(pids[2]))
        uv.kill(pids[2], 'sigkill')
        m:finish()

        -- A master that dies before there is anything to go on from takes all with it, but not that.
        m = kept.start { script = "os.execute 'sleep 1000'", env = { PIDS = dir .. '/pids' },
            wrap = { 'sh', '-c', 'sleep 1002 & echo $! >"$PIDS"; exec "$0" "$@"' } }
        m:wait_until(function() return #m:tree() >= 5 end, 'the script to sleep')
        uv.kill(kept.pid(m), 'sigkill')
        assert.same({ signal = 'SIGKILL' }, m:exit())
        local sleeper = tonumber(read(dir .. '/pids'))
        m:wait_until(function() return #m:tree() == 1 end, 'all but the sleeper to end')
        assert.same({ sleeper }, m:tree())
        uv.kill(sleeper, 'sigkill')
        m:finish { signal = 'SIGKILL' }
    end)

    it('needs nobody who reads its stderr', function()
        for _, how in ipairs { 'closed', 'full' } do
            local m = kept.start { script = SCRIPT, files = IDLE, wrap = { 'python3', '-c', [[
import os, signal, sys
r, w = os.pipe()
if sys.argv[1] == 'full':
    os.set_inheritable(r, True)
    os.set_blocking(w, False)
    try:
        while True: os.write(w, b'x' * 4096)
    except BlockingIOError: pass
    os.set_blocking(w, True)
os.dup2(w, 2)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])]], how } }
            m:await 'Cluster ready'
            for _ = 1, 2 do
                kept.kill(m)
            end
            m:finish()
        end
    end)

    it('is reaped for: strangers do not wait behind a worker whose group goes on', function()
        local m = kept.start { script = [[require('dutch-master').start { worker = { '/bin/sh', 'run.sh' }, numWorkers = 1,
            restartSoak = 0, ready = { alive = 0.1 }, stopTimeout = 20, backoff = { first = 0.05 } }]],
            files = { ['run.sh'] = [[
if mkdir first; then
    sh -c 'trap "" TERM; echo lingers $$; exec sleep 1000' &
    (setsid sh -c 'echo stranger $$; exec sleep 1000' &)
fi
exec sleep 1000]] } }
        m:await 'Cluster ready'
        local lingers = tonumber((m:await_output '^lingers (%d+)'))
        local stranger = tonumber((m:await_output '^stranger (%d+)'))
        kept.kill(m)
        local leader = m:workers()[1]
        uv.kill(leader, 'sigkill')
        m:await 'Worker ended, what is left of its process group is asked to end'
        assert.equal('Z', state(leader) or m:dump()) -- its group is waited for
        uv.kill(stranger, 'sigkill')
        m:wait_until(function() return state(stranger) == nil end, 'the stranger to be reaped')
        assert.equal('Z', state(leader))
        uv.kill(lingers, 'sigkill')
        m:wait_until(function() return state(leader) == nil end, 'the leader to be reaped')
        m:finish()
    end)

    it('ends what workers of a former master leave behind', function()
        local m = kept.start { script = [[require('dutch-master').start { worker = { '/bin/sh', 'run.sh' }, numWorkers = 1,
            ready = { alive = 0.1 }, leftoverTimeout = 0.1, killTimeout = 0.1, backoff = { first = 0.05 } }]],
            files = { ['run.sh'] = [[
if mkdir first; then
    (setsid sh -c 'trap "" TERM; echo left $$; exec sleep 1000' &)
fi
exec sleep 1000]] } }
        m:await 'Cluster ready'
        local left = tonumber((m:await_output '^left (%d+)'))
        kept.kill(m)
        uv.kill(m:workers()[1], 'sigkill')
        local record = m:await 'Worker left processes behind in sessions of their own'
        assert.equal(1, record.count)
        assert.matches(('%%(pid %d%%)$'):format(left), record.processes[1])
        m:await 'Killing what the worker left behind'
        m:wait_until(function() return state(left) == nil end, 'it to be reaped')
        m:finish()
    end)

    it('gets another master if one gives no sign of life, and not because both were stopped', function()
        local m = kept.start { script = SCRIPT, files = IDLE }
        m:await 'Cluster ready'
        local hung = kept.pid(m)
        local before = m:workers()
        uv.kill(hung, 'sigstop')
        m:wait_until(function() return state(hung) == 'T' end, 'the master to stop')
        kept.let_patience_end(m)
        m:await({ msg = 'The former master died, this one has taken over', signal = 'SIGKILL' })
        assert.matches(('the master %%(process %d%%) gave no sign of life for 65 s, killing it'):format(hung), m.stderr)
        kept.same_workers(m, before)
        -- A patience that ends while the master is well is only a question.
        local pid = kept.pid(m)
        kept.let_patience_end(m, 1)
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        assert.equal(pid, kept.pid(m))
        m:finish()
    end)

    it('is not held up by a keeper that was stopped, which has all as soon as it goes on', function()
        local m = kept.start { script = (SCRIPT:gsub('numWorkers = 1', 'numWorkers = 6')), files = IDLE }
        m:await 'Cluster ready'
        uv.kill(m.pid, 'sigstop')
        m:wait_until(function() return state(m.pid) == 'T' end, 'the keeper to stop')
        -- More than its socket has room for, and what waits for the state to be kept must not wait for ever.
        local rolls, longest = 0, 0
        repeat
            local roll, began = cli.start(m, { 'restart', '--wait' }), uv.hrtime()
            m:wait_until(function()
                local asked = uv.hrtime()
                assert.equal(0, cli.run(m, { 'status' }).code)
                longest = math.max(longest, (uv.hrtime() - asked) / 1e9)
                return roll.ended == 3
            end, 'a restart')
            assert.equal(0, roll.code)
            assert.is_true((uv.hrtime() - began) / 1e9 < 20 * wait.scale)
            rolls = rolls + 1
        until rolls == 12
        assert.is_true(longest < 1.5 * wait.scale, longest)
        assert.matches(('if somebody has stopped it, kill %%-CONT %d$'):format(m.pid),
            m:await('State could not be kept, the keeper has an older one').reason)
        m:wait_until(function() return #m:workers() == 6 end, 'the last old ones to end')
        local before = m:workers()
        uv.kill(m.pid, 'sigcont')
        m:await 'State is kept again'
        assert.equal(1, #m:records 'State could not be kept, the keeper has an older one')
        kept.await_quiet(m)
        kept.kill(m)
        assert.is_true(kept.same_workers(m, before), m:dump())
        assert.equal(6, #m:workers())
        m:finish()
    end)
end)
