--- Random walks over the lanes of a listener with a virtual clock: workers come, get ready, freeze, take, hold on to or
-- refuse what they are handed, lie about what they hold, leave and die, while clients come. After every step:
--   - a connection is in a queue, on its way to a worker, kept for the next one, or has ended: none is forgotten
--   - a stranger in the group that closes its socket moves no lane that somebody is steered to
--   - a lane of a worker that serves is steered around only while another one can take
-- At the end one worker serves well, and everybody who still waits is answered. DM_SEED and DM_WALKS repeat or lengthen.

local Platform = require 'spec.support.fake_platform'
local Sockets = require 'dutch-master.listen.sockets'
local fake_network = require 'spec.support.fake_network'
local fake_sockets = require 'spec.support.fake_sockets'

local SEED = tonumber(os.getenv 'DM_SEED') or 11
local WALKS = tonumber(os.getenv 'DM_WALKS') or 30
local STEPS = 150
local A = '127.0.0.1:80'

local function new_world(seed, balance)
    math.randomseed(seed)
    local platform = Platform.new()
    local world = { platform = platform, network = fake_network.add(platform), workers = {}, next_id = 1, clients = {},
        answered = 0, seed = seed }
    world.sockets = Sockets.new(fake_sockets.options {
        platform = platform, log = setmetatable({}, { __index = function() return function() end end }),
        want = 3, balance = balance, stall_timeout_ms = ({ 50, 1000, 5000 })[math.random(3)], lost_after_ms = 1e9,
        idle = function(id)
            local worker = world.workers[id]
            if math.random(4) > 1 then
                return worker ~= nil and not worker.frozen and #worker.handed == 0
            end
        end,
        takes = function(id)
            local worker = world.workers[id]
            return worker ~= nil and worker.state == 'live'
        end,
        rescue = function(fd, done, id)
            local worker = world.workers[id]
            if not worker then
                return nil
            end
            table.insert(worker.handed, { fd = fd, done = done })
            return true
        end,
    })
    return world
end

local function lane_of(world, id)
    local listener = world.network.open[A]
    for _, lane in ipairs(listener and listener.all or {}) do
        if lane.fd() == world.workers[id].fd then
            return lane
        end
    end
end

local function anyone(world, state)
    local list = {}
    for id, worker in pairs(world.workers) do
        if not state or worker.state == state then
            list[#list + 1] = id
        end
    end
    table.sort(list)
    return list[math.random(math.max(#list, 1))]
end

local function ended(world, fd)
    world.clients[fd] = nil
    world.answered = world.answered + 1
end

-- A worker takes one connection: of its queue, or one that it was handed.
local function serve(world, id)
    local worker, lane = world.workers[id], lane_of(world, id)
    if worker.frozen or worker.state == 'starting' then
        return
    end
    local one = table.remove(worker.handed, 1)
    if one then
        ended(world, one.fd)
        return one.done(true)
    end
    local fd = lane and table.remove(lane.waiting, 1)
    if fd then
        ended(world, fd)
        world.network.live_fds[fd] = nil
    end
end

local function holds(world, condition, text)
    if not condition then
        error(('invariant: %s; DM_SEED=%d'):format(text, world.seed), 0)
    end
end

local STEP = {
    client = function(world)
        local listener = world.network.open[A]
        if listener then
            local _, fd = listener.client()
            world.clients[fd] = true
        end
    end,
    fork = function(world)
        if not world.workers[world.next_id - 6] then
            local id = world.next_id
            world.next_id = id + 1
            world.workers[id] = { state = 'starting', handed = {} }
            world.sockets:query(id, { name = A, text = A, type = 'tcp4', stream = true, port = 80, index = 0 },
                function(fd)
                    world.workers[id].fd = fd
                end, math.ceil(id / 3))
        end
    end,
    ready = function(world)
        local id = anyone(world, 'starting')
        if id then
            world.workers[id].state = 'live'
            world.sockets:join(id)
        end
    end,
    serve = function(world)
        local id = anyone(world)
        if id then
            serve(world, id)
        end
    end,
    freeze = function(world)
        local id = anyone(world)
        if id then
            world.workers[id].frozen = not world.workers[id].frozen
        end
    end,
    refuse = function(world) -- late
        local id = anyone(world)
        local one = id and table.remove(world.workers[id].handed)
        if one then
            one.done(false, true) -- as one whose worker ends: not counted against the connection
        end
    end,
    lie = function(world)
        local id = anyone(world)
        if id then
            world.sockets:load(id, math.random(3) == 1 and 2 ^ 53 or math.random(0, 100), math.random(0, 1000))
        end
    end,
    leave = function(world)
        local id = anyone(world, 'live')
        if id then
            world.workers[id].state = 'leaving'
            world.sockets:leave(id, function() end)
        end
    end,
    die = function(world)
        local id = anyone(world)
        if id then
            local worker = world.workers[id]
            world.workers[id] = nil
            world.sockets:drop(id)
            for _, one in ipairs(worker.handed) do
                one.done(false, true)
            end
        end
    end,
    forsake = function(world)
        local id = anyone(world, 'live')
        if id then
            world.workers[id].state = 'closed'
            world.sockets:forsake(id, { name = A, text = A, type = 'tcp4', stream = true, port = 80, index = 0 })
        end
    end,
    migrate = function(world)
        world.network.migrates = not world.network.migrates
    end,
    stranger = function(world)
        local listener = world.network.open[A]
        if listener and #listener.others < 12 then
            world.next_inode = (world.next_inode or 0) + 1
            listener.stranger(world.next_inode)
        end
    end,
    stranger_closes = function(world)
        local listener = world.network.open[A]
        if listener and #listener.others > 0 then
            local before = {}
            for i, entry in ipairs(listener.steered) do
                before[i] = entry.lane.index()
            end
            listener.stranger_closes(listener.others[math.random(#listener.others)])
            for i, entry in ipairs(listener.steered) do
                holds(world, entry.lane.index() == before[i], 'a stranger that closes moves a lane in use')
            end
        end
    end,
    pass = function(world)
        world.platform:advance(({ 1, 3, 20, 60, 400, 2000 })[math.random(6)])
    end,
}
local CHOICE = {}
for name, weight in pairs { client = 12, fork = 3, ready = 4, serve = 10, freeze = 2, refuse = 1, lie = 2, leave = 1, die = 1,
    forsake = 1, migrate = 1, stranger = 2, stranger_closes = 2, pass = 10 } do
    for _ = 1, weight do
        CHOICE[#CHOICE + 1] = name
    end
end
table.sort(CHOICE)

local function check(world)
    local found, unplaced = {}, 0
    local listener = world.network.open[A]
    for _, lane in ipairs(listener and listener.all or {}) do
        for _, fd in ipairs(lane.waiting) do
            found[fd] = true
        end
    end
    for _, worker in pairs(world.workers) do
        for _, one in ipairs(worker.handed) do
            found[one.fd] = true
        end
    end
    for fd in pairs(world.clients) do
        unplaced = unplaced + (found[fd] and 0 or 1)
        holds(world, world.network.live_fds[fd], 'a connection was closed that nobody answered')
    end
    local kept, takers, out = 0, 0, 0
    for _, rotation in ipairs(world.sockets.directory.rotations) do
        kept = kept + rotation.rescue:waiting()
        for _, lane in ipairs(rotation.lanes) do
            local takes = lane.state == 'live'
            takers = takers + (takes and lane.steered and 1 or 0)
            out = out + (takes and not lane.steered and 1 or 0)
        end
    end
    holds(world, unplaced == kept, ('%d connections are nowhere, %d are kept'):format(unplaced, kept))
    holds(world, out == 0 or takers > 0, 'all that serve are steered around')
end

local function walk(seed, balance)
    local world = new_world(seed, balance)
    for _ = 1, STEPS do
        STEP[CHOICE[math.random(#CHOICE)]](world)
        check(world)
    end
    -- All is well again: one worker serves, the others go.
    for id, worker in pairs(world.workers) do
        worker.frozen = false
        world.workers[id] = nil
        world.sockets:drop(id)
        for _, one in ipairs(worker.handed) do
            one.done(false, true)
        end
    end
    world.next_id = world.next_id + 10
    STEP.fork(world)
    local id = world.next_id - 1
    world.workers[id].state = 'live'
    world.sockets:join(id)
    for _ = 1, 2000 do
        world.platform:advance(20)
        serve(world, id)
        check(world)
        -- What waits where nobody serves is another worker's or the kernel's: here the latter.
        world.network.migrates = true
        if next(world.clients) == nil then
            break
        end
    end
    holds(world, next(world.clients) == nil, 'somebody waits for ever')
    world.sockets:close()
    return world.answered
end

describe('lanes in random walks', function()
    for _, balance in ipairs { 'steered', 'queue', 'sticky' } do
        it('forget nobody, and go round a worker only while another can take: ' .. balance, function()
            local answered = 0
            for i = 1, WALKS do
                answered = answered + walk(SEED * 1000 + i, balance)
            end
            assert.is_true(answered > 5 * WALKS, answered)
        end)
    end
end)
