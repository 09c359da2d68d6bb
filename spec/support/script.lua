-- Scripts in real processes, from core's loop: what is asked is waited for.

local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local Lane = require 'dutch-master.script.lane'
local machine = require 'dutch-master.machine'
local p = require 'spec.support.process'
local script = require 'dutch-master.script.session'

local M = {}

local function new_agenda(world)
    return machine.agenda {
        timer = core.timer,
        on_error = function(message)
            table.insert(world.errors, message)
        end,
        on_bug = function(object, event)
            table.insert(world.errors, ('%s in %s: %s'):format(object.machine.name, object.state, event))
        end,
    }
end

--- A lane of real processes.
-- @param options {path of the script, most = processes, budget_ms, ask = function(name, process, ...)}
-- @return {lane, script, agenda, errors, store, asked}
function M.world(options)
    local world = { errors = {}, asked = {}, store = {}, processes = {} }
    local own = {
        store_get = function(key) return world.store[key] end,
        store_set = function(key, value) world.store[key] = value end,
        store_all = function() return world.store end,
    }
    world.agenda = new_agenda(world)
    world.script = script.new { platform = core, path = options.path, budget_ms = options.budget_ms }
    world.lane = Lane.new {
        platform = core, agenda = world.agenda, most = options.most or 1,
        process = {
            script = options.path,
            ask = options.ask or function(name, _, ...)
                if own[name] then
                    return own[name](...)
                end
                table.insert(world.asked, { name, ... })
                return 'answer'
            end,
        },
    }

    --- Calls fn(done, ...) and waits for what done() is given.
    function world.await(fn, ...)
        local result, n
        fn(function(...)
            assert(not result, 'answered twice')
            result, n = { ... }, select('#', ...)
        end, ...)
        p.await(function() return result or world.errors[1] end, 20000, 'an answer')
        assert(not world.errors[1], world.errors[1])
        return unpack(result, 1, n)
    end

    --- Takes a process for itself.
    function world.take()
        return world.await(function(done)
            assert(world.lane:add { start = done, failed = function(err) done(nil, err) end })
        end)
    end

    --- Evaluates the script. @return a session whose calls wait, or nil, err
    function world.evaluate(evaluation)
        local process, why = world.take()
        if not process then
            return nil, why
        end
        world.process = process
        local session, err = world.await(function(done)
            world.script:evaluate(process, evaluation, done)
        end)
        if not session then
            world.lane:give_back(process)
            return nil, err
        end
        local waits = { plan = session.plan, session = session, process = process }
        function waits.call(_, hook, ...)
            local arguments = { n = select('#', ...), ... }
            return world.await(function(done)
                session:call(hook, arguments, done, waits.timeout)
            end)
        end
        function waits.num_workers()
            return world.await(function(done) session:num_workers(done) end)
        end
        function waits.environment(_, worker)
            return world.await(function(done) session:environment(worker, done) end)
        end
        function waits.close()
            world.lane:give_back(process)
        end
        return setmetatable(waits, { __index = session })
    end

    --- Ends what was started, and says so.
    function world.close()
        world.lane:close()
        p.await(function() return loop.children() == 0 end, 5000, 'the end of the processes')
        p.step()
        assert(not world.errors[1], world.errors[1])
    end
    return world
end

--- That of the README.
M.README = [[
local dutch = require 'dutch-master'

dutch.start {
  worker = 'app.js',
  beforeFork = function()
    dutch.chdir '/deploys/app/current'
  end,
  numWorkers = function()
    return math.max(dutch.cpus(), 2)
  end,
  logger = dutch.logger { name = 'my-app' },
  workerEnvironment = { NODE_ENV = 'production' },
}
]]

--- A directory for a script, and the world of that script, one at a time. Open it before each case, close it behind.
-- @return {dir, world, open(), close(), write(name, text), subject(options of world), evaluate(text, options)}
function M.scratch()
    local self = {}

    local function end_world()
        if self.world then
            self.world.close()
            self.world = nil
        end
    end

    function self.open()
        self.dir = os.tmpname()
        os.remove(self.dir)
        assert(os.execute('mkdir ' .. self.dir) == 0)
    end

    function self.close()
        end_world()
        os.execute('rm -rf ' .. self.dir)
    end

    function self.write(name, text)
        local file = assert(io.open(self.dir .. '/' .. name, 'wb'))
        file:write(text)
        file:close()
    end

    function self.subject(more)
        local given = { path = self.dir .. '/master.lua', budget_ms = 5000 * p.patience }
        for key, value in pairs(more or {}) do
            given[key] = value
        end
        end_world()
        self.world = M.world(given)
        return self.world
    end

    function self.evaluate(text, more)
        self.write('master.lua', text)
        return self.subject(more).evaluate()
    end

    return self
end

return M
