--- fake_cluster.lua: the real cluster, slots, workers and launcher over the fake platform, for unit specs.

local Cluster = require 'dutch-master.cluster.cluster'
local conversation = require 'dutch-master.channel.conversation'
local Launcher = require 'dutch-master.launch.launcher'
local machine = require 'dutch-master.machine'
local Platform = require 'spec.support.fake_platform'

local M = {}

--- A plan as plan.lua makes it, with changes.
function M.plan(changes)
    local plan = {
        kind = 'lua', worker = 'app.lua', num_workers = 2, environment = {}, restart_signal = 'SIGUSR2', listen = {},
        ready_timeout_ms = 60000, stop_timeout_ms = 30000, kill_timeout_ms = 5000, restart_attempts = 3,
        backoff = { first_ms = 100, max_ms = 30000, reset_ms = 10000 }, restart_soak_ms = 0, hooks = {},
    }
    for key, value in pairs(changes or {}) do
        plan[key] = value
    end
    return plan
end

-- A logger that keeps what it is told.
local function new_log(records, fields)
    local log = {}
    for _, level in ipairs { 'trace', 'debug', 'info', 'warn', 'error', 'fatal' } do
        log[level] = function(_, own, message)
            if type(own) == 'string' then
                own, message = {}, own
            end
            local record = { level = level, msg = message }
            for key, value in pairs(fields) do
                record[key] = value
            end
            for key, value in pairs(own) do
                record[key] = value
            end
            records[#records + 1] = record
        end
    end
    function log.child(_, more)
        local merged = {}
        for key, value in pairs(fields) do
            merged[key] = value
        end
        for key, value in pairs(more) do
            merged[key] = value
        end
        return new_log(records, merged)
    end
    return log
end

-- Sockets that keep the book of who is in rotation, and settle at once or after settle_ms.
local function new_sockets(platform, settle_ms)
    local sockets = { joined = {} }
    function sockets:join(id)
        self.joined[id] = true
    end
    function sockets:leave(id, done)
        self.joined[id] = nil
        if settle_ms then
            platform:after(settle_ms, done)
        else
            done()
        end
    end
    function sockets:drop(id)
        self.joined[id] = nil
    end
    -- What a worker is asked by: sockets.target or {why, code} in sockets.no_target.
    sockets.target = { address = { text = '127.0.0.1:80' } }
    function sockets.target.probe()
        return true
    end
    function sockets.target.probed()
        return true
    end
    function sockets.target.unprobe() end
    function sockets.target.waiting()
        return 0
    end
    function sockets.probe_target()
        if sockets.no_target then
            return nil, unpack(sockets.no_target)
        end
        return sockets.target
    end
    sockets.weights = {}
    function sockets:weigh(id, weight)
        self.weights[id] = weight
    end
    function sockets.want() end
    function sockets.shut_out() end
    function sockets.has_room(_, count)
        if count > (sockets.most or math.huge) then
            return nil, 'too many workers', 'E2BIG'
        end
        return true
    end
    function sockets.forsake() end
    function sockets.restarted() end
    function sockets.snapshot()
        return {}
    end
    function sockets.update(_, _, count)
        return sockets:has_room(count)
    end
    function sockets.take()
        return {}, {}
    end
    return sockets
end

--- @param options {plan, seed, behaviour, settle_ms, hooks = {name = fn}, evaluate = fn() -> session or nil, err,
--   cwd = fn(platform) -> the directory the script wants this fork in, script_ms = fn(platform) -> how long the script
--   takes for a plan or a judgement}
-- @return {cluster, platform, records, bugs, errors, plan, code (once it has ended)}
function M.new(options)
    options = options or {}
    local world = { records = {}, bugs = {}, errors = {}, plan = options.plan or M.plan(), transitions = {} }
    local platform = Platform.new { seed = options.seed, behaviour = options.behaviour }
    world.platform = platform
    world.log = new_log(world.records, {})
    world.agenda = machine.agenda {
        timer = platform.timer,
        on_error = function(message)
            table.insert(world.errors, message)
        end,
        on_bug = function(object, event)
            table.insert(world.bugs, ('%s in %s: %s'):format(object.machine.name, object.state, event))
        end,
        on_settled = function()
            return world.cluster and world.cluster:summary()
        end,
        on_transition = function(object, from, event, to)
            table.insert(world.transitions, { object = object, from = from, event = event, to = to })
            if world.on_transition then
                world.on_transition(object, from, event, to)
            end
        end,
    }
    world.sessions = 0
    local script = {
        evaluate = function()
            if options.evaluate then
                local session, err = options.evaluate()
                if not session then
                    return nil, err
                end
            end
            world.sessions = world.sessions + 1
            return {
                plan = world.plan,
                cwd = options.cwd and options.cwd(platform) or '/release',
                call = function(_, name, ...)
                    local hook = options.hooks and options.hooks[name]
                    if not hook then
                        return true
                    end
                    return hook(...)
                end,
                num_workers = function()
                    return world.plan.num_workers
                end,
                environment = function()
                    return world.plan.environment
                end,
                close = function()
                    world.sessions = world.sessions - 1
                end,
            }
        end,
    }
    world.sockets = new_sockets(platform, options.settle_ms)
    world.launcher = Launcher.new {
        platform = platform, script = script, log = world.log, sockets = world.sockets, agenda = world.agenda,
        tickets = conversation.tickets(), environ = {}, cwd = '/', executable = '/dutch-master',
    }
    for _, name in ipairs(options.script_ms and { 'load', 'judge' } or {}) do
        local call = world.launcher[name]
        world.launcher[name] = function(...)
            local arguments, n = { ... }, select('#', ...)
            platform:after(world.cluster.state and options.script_ms(platform) or 0, function()
                call(unpack(arguments, 1, n))
            end)
        end
    end
    world.cluster = Cluster.new {
        platform = platform, agenda = world.agenda, log = world.log, launcher = world.launcher, sockets = world.sockets,
        on_adopt = function() end,
        on_change = function() end,
        on_exit = function(code)
            world.code = code
        end,
    }
    --- Boots with the plan's number of workers.
    function world.boot()
        world.launcher:load(function(loaded)
            world.cluster:start(loaded.num_workers)
        end)
    end
    --- Messages logged, as a list; with a level, of that level alone.
    function world.messages(level)
        local list = {}
        for _, record in ipairs(world.records) do
            if not level or record.level == level then
                list[#list + 1] = record.msg
            end
        end
        return list
    end
    function world.count(message)
        local count = 0
        for _, record in ipairs(world.records) do
            if record.msg == message then
                count = count + 1
            end
        end
        return count
    end
    --- Lets time pass until the cluster is in a state. @return whether it got there
    function world.await(state, limit_ms)
        return platform:run_until(function()
            return world.cluster.state == state
        end, limit_ms or 60000)
    end
    return world
end

return M
