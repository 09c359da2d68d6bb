--- Random walks over the machines with a virtual clock: workers that crash, hang, are stubborn, slow or cannot be
-- forked, under random restarts, scalings and, at the end, a stop. After every transition the invariants hold.
-- DM_SEED and DM_WALKS repeat or lengthen a run.

local fake = require 'spec.support.fake_cluster'
local State = require 'dutch-master.keeper.estate'

local SEED = tonumber(os.getenv 'DM_SEED') or os.time()
local WALKS = tonumber(os.getenv 'DM_WALKS') or 200

local BEHAVIOURS = {
    { weight = 12, make = function(random)
        return { ready_ms = 1 + random() * 50, exit_ms = random() * 100 }
    end },
    { weight = 2, make = function(random) -- crashes at boot
        return { crash_ms = random() * 20 }
    end },
    { weight = 2, make = function(random) -- ready, then crashes
        return { ready_ms = 5, crash_ms = 6 + random() * 3000, closes_first = random() < 0.5 }
    end },
    { weight = 1, make = function() -- never ready
        return {}
    end },
    { weight = 1, make = function() -- stubborn
        return { ready_ms = 10, ignores_disconnect = true, ignores_term = true }
    end },
    { weight = 1, make = function() -- leaves on SIGTERM only
        return { ready_ms = 10, ignores_disconnect = true }
    end },
    { weight = 1, make = function() -- the directory is missing
        return { failed = { step = 'chdir', code = 'ENOENT', message = 'no such directory' } }
    end },
    { weight = 1, make = function()
        return { fork_fails = 'EAGAIN' }
    end },
}

local function pick(random)
    local total = 0
    for _, entry in ipairs(BEHAVIOURS) do
        total = total + entry.weight
    end
    local at = random() * total
    for _, entry in ipairs(BEHAVIOURS) do
        at = at - entry.weight
        if at <= 0 then
            return entry.make(random)
        end
    end
    return BEHAVIOURS[1].make(random)
end

local LEAVING = { settling = true, stopping = true, disconnected = true, terminating = true, killing = true,
    headless = true }

local function holds(world, condition, text)
    if not condition then
        error('invariant: ' .. text .. '; seed ' .. world.seed, 0)
    end
end

local function check_slots(world)
    local held = {}
    for _, slot in ipairs(world.cluster.slots) do
        for _, worker in ipairs { slot.current or false, slot.incoming or false } do
            if worker then
                holds(world, not held[worker], 'a worker belongs to one slot')
                held[worker] = true
            end
        end
        if not slot.current and not slot.incoming then
            holds(world, slot.deadline_armed, 'a slot without a worker has a fork to come (4)')
        end
        holds(world, slot.state ~= 'serving' or slot.current and not slot.incoming, 'serving holds one worker (2)')
        holds(world, slot.state ~= 'proving' or slot.current and slot.incoming, 'proving holds two workers (2)')
    end
    return held
end

-- A restart holds slots only while it goes on, and what it waits for will come.
local function check_restart(world)
    local cluster, restart = world.cluster, world.cluster.restarting
    holds(world, not cluster.loading or cluster.loading.state == 'loading', 'who waits for its plan has not begun')
    holds(world, (restart ~= nil) == (cluster.state == 'rolling'), 'the cluster rolls while a restart is under way')
    if not restart then
        return
    end
    local failed = restart.state == 'aborting' and restart.cause.worker
        or restart.state == 'giving_up' and restart.obstacle.worker
    if failed then
        return holds(world, failed.child.is_alive, 'a verdict waits for an exit that will come')
    end
    local walk, active = restart.walk, 0
    for slot in pairs(walk.active) do
        active = active + 1
        holds(world, slot.state ~= 'serving' or slot.current.generation == walk.generation
            or slot.generation == walk.generation, 'a slot of the batch is on its way')
    end
    holds(world, active > 0 or walk.done > 0 and #walk.pending > 0 or restart.state == 'judging',
        'a restart has slots on their way, or waits for room')
    holds(world, walk.done + active + #walk.pending == walk.total, 'each slot is counted once')
end

local function yes()
    return true
end

-- What another master would go on from: no object has changed without a word (keeper/book.lua).
local function check_state(world)
    if world.seed % 64 ~= 0 then -- it takes long
        return
    end
    world.writer = world.writer or State.writer { checks = true,
        platform = { keep = yes, keep_fd = yes, drop_fd = yes }, collect = function(book)
            return { cluster = world.cluster:keep(book) }
        end }
    holds(world, pcall(world.writer.write, world.writer))
end

local function check(world)
    check_state(world)
    check_restart(world)
    local held = check_slots(world)
    local alive = 0
    for _, worker in pairs(world.cluster.workers) do
        alive = alive + 1
        holds(world, worker.child.is_alive, 'every worker in the book is alive')
        holds(world, held[worker] or worker.leaving.told or worker.leaving.lost, 'a worker outside of a slot is leaving')
        if worker.state == 'starting' or LEAVING[worker.state] then
            holds(world, worker.deadline_armed, 'whoever starts or leaves has a deadline (3): ' .. worker.state)
        else
            holds(world, not worker.deadline_armed, 'whoever serves has none (3)')
        end
        holds(world, not world.sockets.joined[worker.id] or worker.state == 'running' or worker.state == 'retiring',
            'only those who serve are in rotation')
    end
    holds(world, alive == #world.platform:live_children(), 'workers and children are the same (2)')
    holds(world, world.platform.spawned == world.platform.reaped + alive, 'every pid is reaped exactly once (2)')
end

-- Invariant 1: a serving worker is told to leave only when its successor serves, its slot is given up, or on stop.
local function watch_leaving(world)
    world.on_transition = function(object, from, event)
        check_state(world)
        if object.machine.name == 'slot' and event == 'commit' then
            local successor = object.current
            holds(world, successor.ready_at and successor.generation == object.generation,
                'a slot commits to a worker of its generation that serves (1)')
        elseif object.machine.name == 'worker' and event == 'stop' and (from == 'running' or from == 'retiring') then
            holds(world, ({ replaced = true, ['asked to be replaced'] = true, stopped = true, ['scaled down'] = true,
                superseded = true, ['restart aborted'] = true })[object.leaving.why], 'told to leave for no reason (1)')
            local unproved = object.leaving.why == 'superseded' or object.leaving.why == 'restart aborted'
            for _, slot in ipairs(world.cluster.slots) do
                holds(world, not unproved or slot.current ~= object, 'only a replacement can be superseded (1)')
            end
        end
    end
end

local function random_event(world, random)
    local cluster, kind = world.cluster, random()
    if kind < 0.25 then
        world.asked = world.asked + 1
        cluster:restart { cause = 'signal', signal = 'SIGUSR2', on_verdict = function(verdict)
            world.verdicts = world.verdicts + 1
            world.results[verdict.result] = true
        end }
    elseif kind < 0.45 then
        cluster:scale(1 + math.floor(random() * 6))
    elseif kind < 0.75 then
        local children = world.platform:live_children()
        local child = children[1 + math.floor(random() * #children)]
        if child then
            local what = random()
            if what < 0.4 then
                child:line('{"event":"request-restart"}')
            elseif what < 0.6 then
                child:exit { signal = 'SIGSEGV' }
            elseif what < 0.7 then
                child:close_channel()
            elseif what < 0.75 then
                child:end_leader { code = 0 }
            elseif what < 0.8 then
                child:line('{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":7}')
            else
                child:line('not json')
            end
        end
    end
end

-- How long it may take then: a roll of one slot after the other has room for the next replacement when an old worker is
-- gone, and each of them may be a stubborn one, who stays to the end of its time.
local function peace_ms(world)
    local plan = world.plan
    return (#world.cluster.slots + 1) * (plan.ready_timeout_ms + plan.kill_timeout_ms + plan.backoff.max_ms
        + plan.restart_soak_ms + plan.stop_timeout_ms)
end

-- What is left of an answer that never comes, is not one, or comes a second time: process_spec.lua.
local FAILED = { message = 'took longer than its budget', kind = 'budget' }

local function walk(seed)
    local world
    local function fails(how_often)
        return world and world.cluster.state and not world.tame and world.platform.random() < how_often
    end
    world = fake.new {
        seed = seed,
        settle_ms = 150,
        plan = fake.plan { num_workers = 3, ready_timeout_ms = 2000, backoff = { first_ms = 100, max_ms = 3000,
            reset_ms = 10000 }, restart_soak_ms = seed % 2 * 500, hooks = { judge = true, beforeFork = true,
            workerEnvironment = true },
            restart_concurrency = ({ [0] = false, 1, 0.5, { after = 1,
                canary = { soak_ms = 300, weight = 0.5, judge = true } } })[seed % 4] },
        hooks = { judge = function()
            if fails(0.1) then
                return nil, FAILED
            end
            return true, world.tame or world.platform.random() < 0.5, 'no'
        end, beforeFork = function()
            if fails(0.03) then
                return nil, FAILED
            end
            return true, not fails(0.03), 'no'
        end },
        evaluate = function()
            return not fails(0.05), FAILED
        end,
        environment = function()
            if fails(0.03) then
                return nil, FAILED
            end
            return world.plan.environment
        end,
        goes_on = function(platform)
            return platform.random() < 0.5
        end,
        script_ms = function(platform)
            return platform.random() < 0.3 and 0 or platform.random() * 2000
        end,
        cwd = function(platform)
            return seed % 2 == 0 and '/release' or '/release/' .. math.floor(platform.random() * 3)
        end,
        behaviour = function(_, platform)
            if world and world.tame then
                return { ready_ms = 5, exit_ms = 5 }
            end
            return pick(platform.random)
        end,
    }
    world.seed, world.asked, world.verdicts, world.results = seed, 0, 0, {}
    watch_leaving(world)
    world.boot()
    local random = world.platform.random
    for _ = 1, 60 do
        world.platform:advance(random() * random() * 4000)
        check(world)
        random_event(world, random)
        check(world)
        holds(world, #world.errors == 0, world.errors[1] or '')
        holds(world, #world.bugs == 0, 'cannot happen, happened: ' .. tostring(world.bugs[1]))
    end
    if world.cluster.failure then -- the boot has failed
        world.platform:advance(36000)
        holds(world, world.code == 1 or world.code == 78, 'a boot that fails says whose fault it was (78: the script)')
        holds(world, #world.platform:live_children() == 0, 'a boot that fails leaves nothing')
        return world
    end
    -- Left in peace with good workers, it settles: everyone serves, and whoever was told to leave has left.
    world.tame = true
    world.platform:advance(peace_ms(world))
    check(world)
    holds(world, world.cluster.state == 'steady', 'left in peace the cluster is steady, not ' .. world.cluster.state)
    for _, slot in ipairs(world.cluster.slots) do
        holds(world, slot.state == 'serving', 'left in peace every slot serves')
    end
    holds(world, world.cluster.process_count == #world.cluster.slots, 'nobody lingers')
    holds(world, world.asked == world.verdicts, 'each request gets one verdict (5)')
    holds(world, not world.cluster.restarting and not world.cluster.loading, 'no restart lingers')
    world.tame = false
    world.platform:advance(random() * 3000)
    -- Stop ends within its deadline and leaves nothing (6).
    world.cluster:restart { cause = 'signal', on_verdict = function(verdict)
        world.verdicts = world.verdicts + 1
        world.results[verdict.result] = true
    end }
    world.asked = world.asked + 1
    world.platform:advance(random() * 300)
    world.cluster:stop { cause = 'signal', signal = 'SIGTERM' }
    world.platform:advance(36000)
    holds(world, world.code ~= nil, 'stop ends within its deadline (6)')
    holds(world, #world.platform:live_children() == 0, 'stop leaves no process (6)')
    holds(world, world.platform:armed() == 0, 'no timer survives the stop')
    holds(world, world.asked == world.verdicts, 'each request gets one verdict, also on stop (5)')
    holds(world, #world.errors == 0, world.errors[1] or '')
    holds(world, #world.bugs == 0, 'cannot happen, happened: ' .. tostring(world.bugs[1]))
    return world
end

-- The walks are worth something only if they get around. Some of this a walk in twenty takes, so that it can be missing
-- after WALKS of them; it is not after ten times as many. What is rarer, restart_spec walks through.
local PLACES = { 'worker starting deadline', 'worker retiring keep', 'worker settling exit',
    'worker terminating deadline', 'worker killing exit', 'worker headless exit', 'slot proving lost',
    'slot proving commit',
    'slot replacing cancel', 'slot filling replace', 'slot replacing replace', 'cluster rolling stop',
    'restart loading superseded', 'restart loading begin', 'restart replacing superseded', 'restart replacing filled',
    'restart replacing failed', 'restart canary proved', 'restart canary failed', 'restart judging judged',
    'restart judging failed', 'restart judging superseded', 'restart aborting gone',
    'restart rolling_back filled', 'restart rolling_back superseded',
    'roll done', 'roll aborted', 'roll rolled_back', 'roll superseded', 'roll stopped' }

local function not_visited(visited)
    local missing = {}
    for _, place in ipairs(PLACES) do
        if not visited[place] then
            missing[#missing + 1] = place
        end
    end
    return missing
end

describe('the model', function()
    it('keeps its invariants in ' .. WALKS .. ' random walks from seed ' .. SEED, function()
        local visited, i = {}, 0
        while i < WALKS or i < 10 * WALKS and #not_visited(visited) > 0 do
            i = i + 1
            local world = walk(SEED + i)
            for result in pairs(world.results) do
                visited['roll ' .. result] = true
            end
            for _, transition in ipairs(world.transitions) do
                visited[transition.object.machine.name .. ' ' .. transition.from .. ' ' .. transition.event] = true
            end
        end
        assert.same({}, not_visited(visited))
    end)
end)
