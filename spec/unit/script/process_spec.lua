local machine = require 'dutch-master.machine'
local Platform = require 'spec.support.fake_platform'
local Process = require 'dutch-master.script.process'
local values = require 'dutch-master.script.values'

-- A process of a fake child, and what is asked of it.
local function new(options)
    options = options or {}
    local world = { platform = Platform.new { seed = options.seed }, answers = {}, gone = 0, bugs = {}, killed = 0,
        sent = {}, signals = {} }
    local platform = world.platform
    function platform.environ()
        return { A = 'b' }
    end
    platform.spawn = function(fields)
        if options.refuse then
            return nil, options.refuse, 'EAGAIN'
        end
        world.fields = fields
        local child = { alive = true }
        function child.send(_, line, _, now)
            table.insert(world.sent, line)
            world.sent_now = now or false
            return not options.deaf or nil, options.deaf
        end
        function child.signal(_, name)
            table.insert(world.signals, name)
        end
        function child.signal_group(_, name)
            assert(name == 'SIGKILL')
            world.killed = world.killed + 1
        end
        function child.pause_reading(_, paused)
            world.paused = paused
        end
        world.child = child
        return child
    end
    world.agenda = machine.agenda {
        timer = platform.timer,
        on_error = function(message) table.insert(world.bugs, message) end,
        on_bug = function(object, event)
            table.insert(world.bugs, ('%s in %s'):format(event, object.state))
        end,
    }
    local message
    world.process, message = Process.new {
        platform = platform, agenda = world.agenda, script = '/srv/master.lua',
        ask = options.ask or function(name, _, ...) return name, ... end,
        on_gone = function() world.gone = world.gone + 1 end,
    }
    world.refused = message
    -- more: how many answers follow the first one of themselves
    function world.request(budget_ms, more)
        local function expect(left)
            local answer = { at = platform.now() }
            table.insert(world.answers, answer)
            return answer, function(result, err)
                answer.count = (answer.count or 0) + 1
                answer.result, answer.err = result, err
                if result and left > 0 then
                    local _, done = expect(left - 1)
                    world.process:await('beforeFork', budget_ms or 5000, done)
                end
            end
        end
        local answer, done = expect(more or 0)
        world.process:request('C', 3, { hook = 'onReady' }, 'onReady', budget_ms or 5000, done)
        return answer
    end
    function world.line(text)
        world.fields.on_line(world.child, text, false)
    end
    function world.exit(status)
        world.child.alive = false
        world.fields.on_exit(world.child, status)
    end
    return world
end

local GOOD = '{"ok":true,"results":["l",1]}'

describe('process of the script:', function()
    it('is this program, in the master\'s environment, and knows nothing else of it', function()
        local world = new()
        assert.equal('/proc/self/exe', world.fields.file)
        assert.same({ 'dutch-master', '--script-process', '/srv/master.lua' }, world.fields.argv)
        assert.same({ 'A=b' }, world.fields.env)
        assert.is_true(world.fields.channel)
        assert.is_true(world.fields.lingers) -- what it started goes with it
        assert.equal('no more', new { refuse = 'no more' }.refused)
        assert.equal(0, world.platform:armed())
    end)

    it('a request goes out as one line and is answered once', function()
        local world = new()
        local answer = world.request()
        assert.same({ 'C3 {"hook":"onReady"}' }, world.sent)
        world.line(GOOD)
        assert.equal(1, answer.count)
        assert.same({ 1, n = 1 }, answer.result.results)
        assert.equal('idle', world.process.state)
        local again = world.request()
        world.line('{"ok":false,"kind":"runtime","message":"master.lua:1: boom","traceback":"stack"}')
        assert.same({ kind = 'runtime', message = 'master.lua:1: boom', traceback = 'stack' }, again.err)
        assert.equal('idle', world.process.state)
        world.platform:advance(60000)
        assert.same({ 1, 1, 0 }, { answer.count, again.count, world.gone })
    end)

    it('a request on the way to a fork goes out at once, others when a successor would know what they tell', function()
        local world = new()
        for _, case in ipairs { { 'E', 'the script', true }, { 'C', 'beforeFork', true }, { 'C', 'numWorkers', true },
            { 'C', 'workerEnvironment', true }, { 'C', 'onWorkerExit', false }, { 'C', 'judge', false } } do
            world.process:request(case[1], 3, {}, case[2], 5000, function() end)
            assert.equal(case[3], world.sent_now, case[2])
            world.line(GOOD)
        end
        world.process:keep(3, {})
        assert.is_true(world.sent_now) -- the next one would wait behind it
    end)

    it('a hook that overruns its time is stopped where it is, and its process goes', function()
        local world = new()
        local answer = world.request(300)
        world.platform:advance(299)
        assert.same({}, world.signals)
        world.platform:advance(1)
        assert.same({ 'SIGVTALRM' }, world.signals)
        assert.is_nil(answer.count)
        world.line('{"ok":false,"kind":"budget","message":"x","where":"master.lua:7"}')
        assert.same({ 1, 'budget', 'master.lua:7', 1, 1 },
            { answer.count, answer.err.kind, answer.err.where, world.gone, world.killed })
        world.exit { signal = 'SIGKILL' }
        assert.same({ 'gone', 1, 1 }, { world.process.state, answer.count, world.gone })
        assert.equal(0, world.platform:armed())
    end)

    it('one that does not come back is killed half a second later; what it noted last tells where', function()
        local world = new()
        local answer = world.request(300)
        world.line('{"at":"master.lua:9"}')
        world.platform:advance(800)
        assert.same({ 1, 'budget', 'master.lua:9', 1 },
            { answer.count, answer.err.kind, answer.err.where, world.killed })
        world.platform:advance(1000)
        assert.equal(2, world.killed) -- again, until it is reaped
        world.line(GOOD)
        world.line('junk')
        world.exit { signal = 'SIGKILL' }
        assert.equal(1, answer.count)
    end)

    it('what ends a moment too late has overrun its time all the same', function()
        local world = new()
        local answer = world.request(300)
        world.platform:advance(300)
        world.line(GOOD)
        assert.same({ 1, 'budget', 1 }, { answer.count, answer.err.kind, world.killed })
    end)

    it('says what its process died of', function()
        for _, case in ipairs {
            { { signal = 'SIGSEGV' }, 'was cut short, its process died of SIGSEGV' },
            { { signal = 'SIGKILL' }, 'was cut short, its process was killed by SIGKILL (by hand, or by the kernel for '
                .. 'want of memory)' },
            { { code = 3 }, 'was cut short, its process exited with code 3' },
            { { code = 3 }, 'os.exit was called, which ends the process of the script with code 3; dutch.stop() stops the '
                .. 'cluster', '{"at":"master.lua:4","exit":3}' },
            { { failed = { message = 'exec: no such file' } },
                'could not be called, its process did not start: exec: no such file' },
        } do
            local world = new()
            local answer = world.request()
            if case[3] then
                world.line(case[3])
            end
            world.fields.on_channel_closed(world.child)
            assert.is_nil(answer.count) -- the reason is to come
            world.exit(case[1])
            assert.same({ 1, case[3] and 'exit' or 'died', case[2] },
                { answer.count, answer.err.kind, answer.err.message })
            assert.equal(1, world.gone)
            assert.equal(0, world.platform:armed())
        end
    end)

    it('one that closes its socket and stays is killed', function()
        local world = new()
        local answer = world.request()
        world.fields.on_channel_closed(world.child)
        world.platform:advance(500)
        assert.same({ 1, 'closed the socket of its process', 1 }, { answer.count, answer.err.message, world.killed })
    end)

    it('one that says what no answer is, busy or not, is killed', function()
        for _, junk in ipairs { 'x', '{}x', '[1]', '{"ok":1}', '\0\255', '{"results":[]}', '{"ask":1}', ('x'):rep(5e6) } do
            local world = new()
            local answer = world.request()
            world.line(junk)
            assert.same({ 1, 'junk', 1 }, { answer.count, answer.err.kind, world.killed })
        end
        local world = new()
        world.line(GOOD) -- nobody asked
        assert.same({ 1, 1 }, { world.gone, world.killed })
    end)

    it('what it says of an error is text, or is not passed on', function()
        local world = new()
        local answer = world.request()
        world.line('{"ok":false,"kind":{},"message":[],"where":[1],"traceback":{"a":1}}')
        assert.same({ 1, 'string', 'string' }, { answer.count, type(answer.err.kind), type(answer.err.message) })
        assert.same({}, { answer.err.where, answer.err.traceback })
        answer = world.request()
        world.line(('{"ok":false,"kind":"x","message":"x","where":"%s","traceback":"t"}'):format(('x'):rep(1000)))
        assert.same({ 160, 't' }, { #answer.err.where, answer.err.traceback })
    end)

    it('what it asks is answered at once; what it commands happens when it has returned', function()
        local order = {}
        local world
        world = new { ask = function(name, process, ...)
            assert.equal(world.process, process)
            if name == 'restart' then
                process:later('restart', function() table.insert(order, 'restart') end)
                return true
            elseif name == 'bad' then
                error('dutch.store["x"]: too much', 0)
            end
            return { name, ... }, nil, 'third'
        end }
        world.request()
        world.line('{"ask":"workers","arguments":["l",null,"x"]}')
        local reply = values.decode(world.sent[2]:match '^R(.*)')
        assert.same({ { 'workers', nil, 'x' }, nil, 'third' }, { unpack(reply.results, 1, reply.results.n) })
        world.line('{"ask":"restart","arguments":["l"]}')
        assert.same({}, order)
        world.line('{"ask":"bad"}')
        assert.equal('dutch.store["x"]: too much', values.decode(world.sent[4]:sub(2)).failed)
        world.line(GOOD)
        assert.same({ 'restart' }, order)
    end)

    it('commands the same again and again, it happens once', function()
        local order = {}
        local world = new { ask = function(name, process)
            process:later(name, function() table.insert(order, name) end)
            return true
        end }
        world.request()
        for _ = 1, 50 do
            world.line('{"ask":"restart","arguments":["l"]}')
            world.line('{"ask":"scale","arguments":["l"]}')
        end
        world.line('{"ask":"restart","arguments":["l"]}')
        world.platform:advance(1)
        world.line(GOOD)
        world.platform:advance(10)
        assert.same({ 'scale', 'restart' }, order)
    end)

    it('a flood of it is read a few lines a turn', function()
        local asked = 0
        local world = new { ask = function() asked = asked + 1 end }
        local answer = world.request()
        for _ = 1, 1000 do
            world.line('{"ask":"log"}')
        end
        assert.is_true(asked <= 16, asked)
        assert.is_true(world.paused)
        world.line(GOOD)
        world.platform:advance(0)
        assert.is_true(asked <= 1000)
        world.platform:advance(1)
        assert.same({ 1000, 1, false }, { asked, answer.count, world.paused })
    end)

    it('an answer that was read before the exit still counts', function()
        local world = new()
        local answer = world.request()
        for _ = 1, 20 do
            world.line('{"ask":"log"}')
        end
        world.line(GOOD)
        world.exit { code = 0 }
        assert.same({ 1, true }, { answer.count, answer.result.ok })
    end)

    it('what cannot cross is not asked: the request fails at once', function()
        local world, err = new(), nil
        world.process:request('C', 3, { arguments = { 1, { f = print } } }, 'onMessage', 5000, function(_, why)
            err = why
        end)
        assert.same({ 'value.f: a function cannot be passed', {}, 'idle' },
            { err.message, world.sent, world.process.state })
    end)

    it('one that cannot be written to fails its request', function()
        local world = new { deaf = 'no buffer space available' }
        local answer = world.request()
        assert.same({ 1, 'died' }, { answer.count, answer.err.kind })
        assert.matches('no buffer space', answer.err.message)
    end)

    it('goes on by itself: what follows has its own answer, and all of its time', function()
        local world = new()
        world.request(300, 2)
        world.platform:advance(250)
        world.line(GOOD)
        local first, second = unpack(world.answers)
        assert.same({ 1, nil, 'busy' }, { first.count, second.count, world.process.state })
        world.platform:advance(250)
        world.line(GOOD)
        assert.same({ 1, 'busy' }, { second.count, world.process.state })
        local third = world.answers[3]
        world.line('{"at":"master.lua:9"}')
        world.platform:advance(300)
        assert.same({ 'SIGVTALRM' }, world.signals)
        world.platform:advance(500)
        assert.same({ 1, 'budget', 'master.lua:9', 1, 1, 1 },
            { third.count, third.err.kind, third.err.where, first.count, second.count, world.gone })
        world.exit { signal = 'SIGKILL' }
        assert.same({ 1, 0 }, { third.count, world.platform:armed() })
    end)

    it('dies on the way: what was answered is, what follows says so; two answers at once are two', function()
        local world = new()
        world.request(nil, 1)
        world.line('{"at":"master.lua:3"}')
        world.line(GOOD)
        world.exit { signal = 'SIGSEGV' }
        local first, second = unpack(world.answers)
        assert.same({ 1, 1, 'was cut short, its process died of SIGSEGV' },
            { first.count, second.count, second.err.message })
        assert.is_nil(second.err.where) -- that was of the first
        world = new()
        world.request(nil, 1)
        world.line(GOOD)
        world.line(GOOD)
        assert.same({ 1, 1, 'idle' }, { world.answers[1].count, world.answers[2].count, world.process.state })
        world.line(GOOD)
        assert.same({ 2, 1 }, { #world.answers, world.killed })
    end)

    it('is ended at once when it is not wanted any more', function()
        local world = new()
        local answer = world.request()
        world.process:close()
        assert.same({ 1, 'closed', 1 }, { answer.count, answer.err.kind, world.killed })
        world.exit { signal = 'SIGKILL' }
        assert.same({ 1, 1, 0 }, { answer.count, world.gone, world.platform:armed() })
    end)

    -- Answers in any order, late, never, twice; deaths at any moment: each request is answered once, in its time.
    it('each request is answered once and in its time, whatever the process does', function()
        local seed = tonumber(os.getenv 'DM_SEED') or os.time()
        for walk = 1, 300 do
            local world = new { seed = seed + walk }
            local random = world.platform.random
            local words = { GOOD, GOOD, '{"ok":false,"kind":"runtime","message":"x"}', 'junk', '{"ask":"workers"}',
                '{"at":"master.lua:1"}', '{"ok":false,"kind":"memory","message":"x"}', '' }
            for _ = 1, 30 do
                local last = world.answers[#world.answers]
                if world.gone == 0 and (not last or last.count) and random() < 0.7 then
                    world.request(1000, math.floor(random() * 3))
                end
                local what = random()
                if not world.child.alive then
                    break
                elseif what < 0.5 then
                    world.line(words[1 + math.floor(random() * #words)])
                elseif what < 0.55 then
                    world.fields.on_channel_closed(world.child)
                elseif what < 0.6 then
                    world.exit { signal = 'SIGSEGV' }
                elseif what < 0.63 then
                    world.process:close()
                end
                world.platform:advance(random() * random() * 900)
                last = world.answers[#world.answers]
                assert(not last or last.count or world.platform.now() - last.at <= 1500, 'late; seed ' .. seed + walk)
            end
            world.platform:advance(2000)
            for _, answer in ipairs(world.answers) do
                assert(answer.count == 1, 'answered ' .. tostring(answer.count) .. ' times; seed ' .. seed + walk)
            end
            assert.same({}, world.bugs, 'seed ' .. seed + walk)
            assert.is_true(world.gone <= 1)
            if world.child.alive and world.gone == 1 then
                assert.is_true(world.killed > 0)
                world.exit { signal = 'SIGKILL' }
            end
            assert.equal(0, world.platform:armed(), 'seed ' .. seed + walk)
        end
    end)
end)
