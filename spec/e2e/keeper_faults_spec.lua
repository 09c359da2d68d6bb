-- The master dies between each two steps of a fork, a restart, a stop: of what it does in the kernel, gives to its keeper
-- and writes into its state. Whoever takes over goes on from there, whichever it is.
-- DM_FAULTS_EVERY: at each so-manieth step, the sixth unless given; 1 takes minutes.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local points = require 'spec.support.faults'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

local MANY = 1000000
local TAKEOVER = 40 -- steps of a takeover, about
local EVERY = tonumber(os.getenv 'DM_FAULTS_EVERY') or 6

-- A snapshot of this takes long, and the next one comes later.
local MUCH = "require('dutch-master').store.much = ('x'):rep(500000)\n"

-- @param more {script = what it does first, app = what its workers do last}, or nil
local function launch(dir, port, more)
    more = more or { script = '', app = '' }
    return kept.start { script = more.script .. ([[require('dutch-master').start { worker = 'app.lua', restartSoak = 0,
        numWorkers = 2, backoff = { first = 0.01, max = 0.05 },
        onRestart = function(verdict) require('dutch-master').log:info({ result = verdict.result }, 'onRestart') end,
        workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]])
        :format(port), files = { ['app.lua'] = apps.http .. more.app },
        env = points.environment(dir) }
end

-- The master dies at that step of its boot.
local function boot_until(step, dir, more)
    local faults = points.counter(dir)
    faults.set(step)
    local m = launch(dir, http.free_port(), more)
    m:wait_until(function()
        return m.ended or #m:records 'Worker listening' >= 2
            or #m:records 'The former master died, this one has taken over' > 0
    end, 'the cluster, or its end')
    faults.set(0)
    return m
end

local function serving(m)
    m:wait_until(function()
        local out = cli.run(m, { 'status', m.script }).out
        return out:find('2 of 2 workers serving', 1, true) and out:find 'steady' and #m:workers() == 2
    end, 'two workers to serve')
end

-- Does it once, counting; then again and again, with the master dead at the first step, the fourth, ...
-- @param takeover whether the next one dies too, while it takes over or soon after that
-- @return the master, what came of the load, how often it was done
local function at_each_step(act, takeover)
    local dir, port = master.temp_dir(), http.free_port()
    local faults = points.counter(dir)
    local m = launch(dir, port)
    m:await 'Cluster ready'
    local with_pauses = kept.without_pauses(m)
    faults.set(MANY)
    act(m)
    local steps, times = 0, 1
    m:wait_until(function() -- its record may come before the last of them
        steps = MANY - faults.get()
        return steps > 1
    end, 'its steps')
    local running = load.start { port = port, clients = 2, mode = 'keepalive', rate = 200, expect = '.' }
    local killed = 0
    for step = 1, steps, EVERY do
        local deaths = #m:records 'The former master died, this one has taken over'
        faults.set(step, takeover and step * 7 % TAKEOVER + 1)
        act(m)
        times = times + 1
        if faults.get() == 0 then
            killed = killed + 1
            m:await('The former master died, this one has taken over', { count = deaths + 1 })
        end
        faults.set(0)
        serving(m)
    end
    with_pauses()
    assert.is_true(killed >= math.floor(steps / EVERY / 2), killed)
    return m, running:stop(), times
end

-- Its log is one story, whoever has written it.
local function finish(m)
    m:finish()
    local wrong = kept.gaps_in_story(m)
    assert.equal(0, #wrong, table.concat(wrong, '\n') .. m:dump())
end

-- Each restart has its verdict in the log once, and the script was told of each.
local function check_verdicts(m, times)
    m:await('onRestart', { count = times })
    assert.equal(times, #m:records 'Restart complete', m:dump())
end

describe('a master that dies between any two steps', function()
    after_each(master.cleanup)

    teardown(points.clean_up)

    it('of a fork', function()
        local m = at_each_step(function(m)
            local victim = m:workers()[1]
            uv.kill(victim, 'sigkill')
            m:await { msg = 'Worker exited', workerPid = victim }
            m:wait_until(function()
                return #m:workers() == 2
            end, 'another worker')
        end)
        local distrusted = kept.distrusted(m) -- they end by signals, or by the end of their channel
        for _, record in ipairs(m:records 'Worker exited') do
            assert.is_true(distrusted[record.workerPid] or record.signal == 'SIGKILL', m:dump())
        end
        finish(m)
    end)

    it('of a boot', function()
        local dir = master.temp_dir()
        for step = 5, 53, 2 * EVERY do
            local m = boot_until(step, dir)
            if m.ended then -- there was nothing yet to go on from
                m:finish { signal = 'SIGKILL', files_left = true }
            else
                serving(m)
                finish(m)
            end
        end
    end)

    -- A worker that has its socket, is known to nobody and takes its time to leave is in the way of all that follow.
    it('of a boot, when its next snapshot is not due yet', function()
        local dir = master.temp_dir()
        for step = 60, 120, EVERY do
            local m = boot_until(step, dir, { script = MUCH, app = "os.execute 'sleep 0.3'" })
            serving(m)
            assert.same({}, m:records 'Listening failed', m:dump())
            finish(m)
        end
    end)

    it('of a restart', function()
        local m, counts, times = at_each_step(function(m)
            local restart = cli.run(m, { 'restart', '--wait', m.script })
            assert.equal(0, restart.code, restart.out .. restart.err .. m:dump())
        end)
        assert.equal(0, counts.failed, counts.text .. m:dump())
        check_verdicts(m, times)
        finish(m)
    end)

    it('of a restart, and again of the takeover that follows', function()
        local m, counts, times = at_each_step(function(m)
            local restart = cli.run(m, { 'restart', '--wait', m.script })
            assert.equal(0, restart.code, restart.out .. restart.err .. m:dump())
        end, true)
        assert.equal(0, counts.failed, counts.text .. m:dump())
        check_verdicts(m, times)
        finish(m)
    end)

    for signal, done in pairs { SIGHUP = 'Restart complete', SIGUSR1 = 'Log reopened' } do
        it('of what ' .. signal .. ' asks for', function()
            local m, counts, times = at_each_step(function(m)
                local count = #m:records(done)
                m:signal(signal)
                m:await(done, { count = count + 1 })
            end)
            assert.equal(0, counts.failed, counts.text .. m:dump())
            assert.equal(times, #m:records(done), m:dump())
            finish(m)
        end)
    end

    it('of a stop: it ends with the one exit code, and no worker is killed for having been asked twice', function()
        local dir = master.temp_dir()
        local faults = points.counter(dir)
        local function stop(step)
            faults.set(0)
            local m = launch(dir, http.free_port())
            m:await 'Cluster ready'
            local with_pauses = kept.without_pauses(m)
            faults.set(step)
            m:signal 'SIGTERM'
            m:exit()
            with_pauses()
            for msg, most in pairs { ['Shutdown requested again, killing the workers'] = 0, ['Shutdown requested'] = 1,
                ['Cluster shutdown cleanly'] = 1 } do
                assert.is_true(#m:records(msg) <= most, msg .. '\n' .. m:dump())
            end
            finish(m)
        end
        stop(MANY)
        local steps = MANY - faults.get()
        assert.is_true(steps > 5, steps)
        for step = 1, steps, EVERY do
            stop(step)
        end
    end)
end)
