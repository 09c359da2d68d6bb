local Lane = require 'dutch-master.script.lane'
local machine = require 'dutch-master.machine'
local Platform = require 'spec.support.fake_platform'
local Process = require 'dutch-master.script.process'

-- A lane over fake children, which are there and say nothing.
local function new(most, options)
    options = options or {}
    local world = { platform = Platform.new(), spawned = 0, children = {}, done = {}, failed = {}, bugs = {} }
    function world.platform.environ()
        return {}
    end
    world.platform.spawn = function(fields)
        if options.refuse then
            return nil, 'cannot fork', 'EAGAIN'
        end
        world.spawned = world.spawned + 1
        local child = { fields = fields }
        function child.send() return true end
        function child.pid() return world.spawned end
        function child.signal() end
        function child.pause_reading() end
        function child.signal_group()
            child.killed = true
        end
        table.insert(world.children, child)
        return child
    end
    local function bug(...)
        table.insert(world.bugs, { ... })
    end
    world.agenda = machine.agenda { timer = world.platform.timer, on_error = bug, on_bug = bug }
    world.lane = Lane.new { platform = world.platform, agenda = world.agenda, most = most,
        started = options.started and Process.start { platform = world.platform, script = 'master.lua' },
        process = { script = 'master.lua', ask = function() end } }
    --- Adds a job that holds its process until :give(n).
    world.held = {}
    function world.add(name)
        return world.lane:add {
            name = name,
            start = function(process)
                table.insert(world.done, name)
                world.held[name] = process
            end,
            failed = function(err)
                table.insert(world.failed, err.message)
            end,
        }
    end
    function world.give(name)
        world.lane:give_back(world.held[name])
    end
    return world
end

describe('lane', function()
    it('begins with a process that was started before it, whatever becomes of that', function()
        local world = new(1, { started = true })
        assert.equal(1, world.spawned)
        assert.is_true(world.lane:is_quiet())
        world.add 'a'
        world.platform:advance(0)
        assert.same({ 1, { 'a' } }, { world.spawned, world.done })
        world.give 'a'
        world = new(1, { started = true })
        world.children[1].fields.on_exit(world.children[1], { signal = 'SIGKILL' })
        world.add 'a'
        world.platform:advance(0)
        assert.same({ 2, { 'a' } }, { world.spawned, world.done })
        world.lane:close()
        assert.same({ true, {} }, { world.children[2].killed, world.bugs })
    end)

    it('starts a process for the first job, keeps it, and does the jobs in their order', function()
        local world = new(1)
        assert.equal(0, world.spawned)
        world.add 'a'
        world.add 'b'
        world.add 'c'
        assert.same({}, world.done) -- never before add has returned
        world.platform:advance(1000)
        assert.same({ 'a' }, world.done)
        assert.equal(2, world.lane:waiting())
        world.give 'a'
        world.give 'b'
        assert.same({ 'a', 'b', 'c' }, world.done)
        assert.is_false(world.lane:is_quiet())
        world.give 'c'
        assert.is_true(world.lane:is_quiet())
        assert.equal(1, world.spawned)
        assert.equal(0, world.platform:armed())
        world.add 'd'
        world.platform:advance(0)
        assert.equal(1, world.spawned)
        assert.equal(world.held.a, world.held.d)
    end)

    it('starts another when a job has waited, up to its most, and lets it go again', function()
        local world = new(3)
        for _, name in ipairs { 'a', 'b', 'c', 'd', 'e' } do
            world.add(name)
        end
        world.platform:advance(19)
        assert.same({ 'a' }, world.done)
        world.platform:advance(2)
        assert.same({ 'a', 'b', 'c' }, world.done)
        assert.equal(3, world.spawned)
        world.platform:advance(1000)
        assert.equal(3, world.spawned)
        world.give 'b'
        assert.same({ 'a', 'b', 'c', 'd' }, world.done)
        world.give 'c'
        world.give 'd'
        world.give 'e'
        world.give 'a'
        local killed = 0
        for _, child in ipairs(world.children) do
            killed = killed + (child.killed and 1 or 0)
            if child.killed then
                child.fields.on_exit(child, { signal = 'SIGKILL' })
            end
        end
        assert.equal(2, killed)
        assert.equal(0, world.platform:armed())
        assert.same({}, world.bugs)
    end)

    it('does not start another for jobs that are done at once', function()
        local world = new(8)
        for i = 1, 64 do
            world.add(i)
        end
        world.platform:advance(0)
        for i = 1, 64 do
            world.platform:advance(10)
            world.give(i)
        end
        assert.equal(1, world.spawned)
        assert.equal(64, #world.done)
    end)

    it('starts others for jobs that are slow, and for one that waits behind a job without an end', function()
        local world = new(8)
        for i = 1, 10 do
            world.add(i)
        end
        world.platform:advance(11)
        world.give(1)
        world.platform:advance(9)
        assert.equal(8, world.spawned)
        world = new(8)
        for i = 1, 10 do
            world.add(i)
        end
        world.platform:advance(10)
        world.give(1) -- a quick one; the next never ends
        world.platform:advance(19)
        assert.equal(1, world.spawned)
        world.platform:advance(1)
        assert.equal(8, world.spawned)
    end)

    it('does not start another where jobs wait for a processor, but for one that works for long', function()
        local world = new(8)
        local stat = { runnable = true, cpu_ms = 100 }
        function world.platform.proc_stat()
            return stat
        end
        for i = 1, 10 do
            world.add(i)
        end
        world.platform:advance(100) -- no quick job was done meanwhile, for want of a processor
        stat.cpu_ms = 110
        world.platform:advance(100)
        assert.equal(1, world.spawned)
        stat.cpu_ms = 120
        world.platform:advance(10)
        assert.is_true(world.spawned > 1)
        world = new(8)
        function world.platform.proc_stat()
            return { runnable = false, cpu_ms = 0 }
        end
        world.add 'sleeps'
        world.add 'waits'
        world.platform:advance(20)
        assert.equal(1, world.spawned)
        world.platform:advance(10)
        assert.equal(2, world.spawned)
    end)

    it('starts another process after a death, later each time, until a job is done', function()
        local world = new(1)
        local started = {}
        for i = 1, 6 do
            world.add(i)
            local before = world.platform.now()
            world.platform:run_until(function() return world.done[i] end, 60000)
            started[i] = world.platform.now() - before
            local child = world.children[#world.children]
            child.fields.on_exit(child, { signal = 'SIGSEGV' })
        end
        assert.same({ 0, 0, 50, 100, 200, 400 }, started)
        world.add 'good'
        world.platform:advance(1000)
        world.give 'good'
        local child = world.children[#world.children]
        child.fields.on_exit(child, { signal = 'SIGSEGV' })
        world.add 'again'
        world.platform:advance(0)
        assert.equal('again', world.done[#world.done])
        assert.same({}, world.bugs)
    end)

    it('a job whose process died may give it back', function()
        local world = new(1)
        world.add 'a'
        world.platform:advance(0)
        local child = world.children[1]
        child.fields.on_exit(child, { signal = 'SIGSEGV' })
        world.give 'a'
        assert.is_true(world.lane:is_quiet())
        world.add 'b'
        world.platform:advance(0)
        assert.same({ 'a', 'b' }, world.done)
    end)

    it('tells those who wait when no process can be had', function()
        local world = new(1, { refuse = true })
        world.add 'a'
        world.add 'b'
        world.platform:advance(0)
        assert.same({ 'its process could not be started: cannot fork', 'its process could not be started: cannot fork' },
            world.failed)
        assert.equal(0, world.platform:armed())
    end)

    it('bounds how many wait, and drops those that it is told to', function()
        local world = new(1)
        for i = 1, 4 * 4096 do
            assert.is_true(world.add(i))
        end
        assert.is_nil(world.add 'one more')
        world.lane:drop(function(job) return job.name % 2 == 0 end)
        assert.equal(8192, world.lane:waiting())
        world.platform:advance(0)
        world.give(1)
        assert.same({ 1, 3 }, world.done)
    end)

    it('ends its processes at once, and takes nothing after that', function()
        local world = new(2)
        world.add 'a'
        world.add 'b'
        world.platform:advance(30)
        world.add 'c'
        world.lane:close()
        for _, child in ipairs(world.children) do
            assert.is_true(child.killed)
            child.fields.on_exit(child, { signal = 'SIGKILL' })
        end
        assert.is_nil(world.add 'd')
        world.platform:advance(10000)
        assert.same({ 'a', 'b' }, world.done)
        assert.equal(0, world.platform:armed())
        assert.same({}, world.bugs)
    end)
end)
