--- fake_cluster.lua: the real cluster, slots, workers and launcher over the fake platform, for unit specs.

local Cluster = require 'dutch-master.cluster.cluster'
local conversation = require 'dutch-master.channel.conversation'
local Launcher = require 'dutch-master.launch.launcher'
local machine = require 'dutch-master.machine'
local Platform = require 'spec.support.fake_platform'
local snapshot = require 'dutch-master.cluster.snapshot'

local M = {}

--- A plan as plan.lua makes it, with changes.
function M.plan(changes)
    local plan = {
        kind = 'lua', worker = 'app.lua', num_workers = 2, environment = {}, restart_signal = 'SIGUSR2', listen = {},
        ready_timeout_ms = 60000, stop_signal = 'SIGTERM', stop_timeout_ms = 30000, kill_timeout_ms = 5000,
        leftover_timeout_ms = 30000, restart_attempts = 3, stall_timeout_ms = 1000,
        backoff = { first_ms = 100, max_ms = 30000, reset_ms = 10000 }, restart_soak_ms = 0, hook_timeout_ms = 5000, hooks = {},
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
    function sockets.is_helped()
        return false
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
    -- Of kind exec: where it must accept.
    function sockets.doors()
        return sockets.doors_list or {}
    end
    sockets.slow = {} -- ids of those whose lane does not move
    function sockets.doubtful(_, id)
        return sockets.slow[id] and 500 or 0
    end
    function sockets.is_slow(_, id)
        return sockets.slow[id] == true
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

-- A lane whose processes are tables: each serves one job at a time, as in lane.lua.
local function new_lane(world, most)
    local lane = { queue = {}, busy = 0 }
    local function turn()
        while lane.busy < most and lane.queue[1] do
            lane.busy = lane.busy + 1
            table.remove(lane.queue, 1).start({ lane = lane })
        end
    end
    function lane.add(_, job)
        if lane.closed then
            return nil
        end
        table.insert(lane.queue, job)
        turn()
        return true
    end
    function lane.give_back(_, process)
        assert(not process.given_back, 'a process was given back twice')
        assert(not process.at_hook, 'a process was given back before it had returned from ' .. tostring(process.at_hook))
        process.given_back = true
        lane.busy = lane.busy - 1
        turn()
    end
    function lane.waiting()
        return #lane.queue
    end
    function lane.is_quiet()
        return lane.busy == 0 and #lane.queue == 0
    end
    function lane.drop(_, fn)
        local kept = {}
        for _, job in ipairs(lane.queue) do
            if not fn(job) then
                table.insert(kept, job)
            end
        end
        lane.queue = kept
    end
    function lane.close()
        lane.closed, lane.queue = true, {}
    end
    table.insert(world.lanes, lane)
    return lane
end

-- A script that answers as the options of the world say: at once, or each answer after script_ms.
local function new_script(world, options)
    local function later(fn, ...)
        local ms = options.script_ms and options.script_ms(world.platform)
        if not ms or ms == 0 then
            return fn(...)
        end
        local arguments, n = { ... }, select('#', ...)
        world.asked_script = world.asked_script + 1
        world.platform:after(ms, function()
            world.asked_script = world.asked_script - 1
            fn(unpack(arguments, 1, n))
        end)
    end
    local script = {}
    function script.failure(_, err)
        return err
    end
    function script.evaluate(_, process, given, done)
        later(function()
            local ok, err = true, nil
            if options.evaluate and not given.source then
                ok, err = options.evaluate()
            end
            if not ok then
                return done(nil, err)
            end
            local session = { plan = world.plan, source = '', process = process, number = given.number,
                cwd = options.cwd and options.cwd(world.platform) or '/release' }
            if given.worker and world.plan.hooks.beforeFork and options.goes_on and options.goes_on(world.platform) then
                session.ahead, process.at_hook = 'beforeFork', 'beforeFork'
            end
            function session.call(_, name, arguments, answer)
                local hook = options.hooks and options.hooks[name]
                session.ahead = nil
                later(function()
                    process.at_hook = nil
                    answer(unpack(hook and { hook(unpack(arguments, 1, arguments.n or #arguments)) } or { true }, 1, 3))
                end)
            end
            function session.environment(_, _, answer)
                later(function()
                    answer(options.environment())
                end)
            end
            function session.keep()
                process.kept = session
                script.newest = session.number and session or script.newest
            end
            done(session)
        end)
    end
    function script.load(_, process, given, done)
        script:evaluate(process, given, function(session, err)
            later(done, session, session and world.plan.num_workers or err)
        end)
    end
    return script
end

--- @param options {plan, seed, behaviour, settle_ms, hooks = {name = fn -> true, results, or nil, err},
--   evaluate = fn() -> whether it is good, err, environment = fn() -> that of a fork, or nil, err,
--   goes_on = fn(platform) -> whether the process goes on to beforeFork by itself behind an evaluation for a fork,
--   cwd = fn(platform) -> the directory the script wants this fork in, script_ms = fn(platform) -> how long an answer of the script takes}
-- @return {cluster, platform, records, bugs, errors, plan, code (once it has ended)}
function M.new(options)
    options = options or {}
    local world = { records = {}, bugs = {}, errors = {}, plan = options.plan or M.plan(), transitions = {},
        lanes = {}, asked_script = 0 }
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
            return world.cluster and snapshot.summary(world.cluster)
        end,
        on_transition = function(object, from, event, to)
            table.insert(world.transitions, { object = object, from = from, event = event, to = to })
            if world.on_transition then
                world.on_transition(object, from, event, to)
            end
        end,
    }
    world.sockets = new_sockets(platform, options.settle_ms)
    world.launcher = Launcher.new {
        platform = platform, script = new_script(world, options), log = world.log, sockets = world.sockets,
        agenda = world.agenda, tickets = conversation.tickets(), environ = {}, cwd = '/', executable = '/dutch-master',
        new_lane = function(most)
            return new_lane(world, most)
        end,
    }
    world.cluster = Cluster.new {
        platform = platform, agenda = world.agenda, log = world.log, launcher = world.launcher, sockets = world.sockets,
        on_adopt = function() end,
        leftovers = { ended = function() end },
        on_exit = function(code)
            world.code = code
        end,
    }
    --- Boots with the plan's number of workers.
    function world.boot()
        world.launcher:load(function(loaded)
            world.cluster:start(loaded.num_workers)
        end)
        platform:run_until(function()
            return world.cluster.state ~= nil
        end, 60000)
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

--- Workers that start and leave as they should.
function M.good()
    return { ready_ms = 10, exit_ms = 5, closes_first = true }
end

--- A cluster that serves.
function M.booted(options)
    options = options or {}
    options.behaviour = options.behaviour or M.good
    local world = M.new(options)
    world.boot()
    assert(world.await('steady') == true)
    return world
end

--- Asks for a restart; its verdict goes into the list.
function M.restart(world, into)
    world.cluster:restart { cause = 'signal', signal = 'SIGUSR2', on_verdict = function(verdict)
        into[#into + 1] = verdict
    end }
end

--- Of the workers that serve, by slot; 0 where none does.
function M.generations(world)
    local list = {}
    for _, slot in ipairs(world.cluster.slots) do
        list[#list + 1] = slot.current and slot.current.generation or 0
    end
    return list
end

return M
