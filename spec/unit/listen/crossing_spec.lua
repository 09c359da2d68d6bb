--- Random walks of workers that open and close their servers, over channels that are as slow as they like: what one
-- worker says crosses what another one says, and what the master answers. Two rules:
--   - an app that has closed its server may listen again at once: it is never refused its own address
--   - where a server is open when all words have arrived, everybody who waits is answered, and so is who comes next
-- DM_SEED and DM_WALKS repeat or lengthen.

local cjson = require 'cjson'
local conversation = require 'dutch-master.channel.conversation'
local fake_sockets = require 'spec.support.fake_sockets'

local SEED = tonumber(os.getenv 'DM_SEED') or 17
local WALKS = tonumber(os.getenv 'DM_WALKS') or 40
local STEPS = 120
local PORTS, WORKERS = { 80, 81 }, 3

local function address(port)
    return '127.0.0.1:' .. port
end

-- A worker as Node makes it, from 20 on. Of each port it has a list of servers that it made: the last one counts.
local Worker = {}
Worker.__index = Worker

local function new_worker(world, id)
    local self = setmetatable({ world = world, id = id, up = {}, down = {}, servers = {}, by_key = {}, seq = 0 }, Worker)
    self.talk = conversation.new {
        worker_id = id,
        channel = { send = function(_, line, fd)
            table.insert(self.down, { cjson.decode(line), fd })
            return true
        end },
        query = function(request, reply)
            world.sockets:query(id, request, reply)
        end,
        on_listening = function()
            if not self.ready then
                self.ready = true
                world.sockets:join(id)
            end
        end,
        on_close_server = function(_, request)
            world.sockets:forsake(id, request)
        end,
    }
    return self
end

function Worker:says(message)
    message.cmd = 'NODE_CLUSTER'
    table.insert(self.up, cjson.encode(message))
end

function Worker:listen(port)
    self.seq = self.seq + 1
    local server = { port = port, seq = self.seq, state = 'asked' }
    self.servers[port] = server
    self[self.seq] = server
    self:says { act = 'queryServer', index = 0, address = '127.0.0.1', port = port, addressType = 4, seq = self.seq }
end

function Worker:close(port)
    local server = self.servers[port]
    self.servers[port] = nil
    if server.state == 'open' then
        self.by_key[server.key] = nil
        self:says { act = 'close', key = server.key, seq = 0 }
    end
    server.state = 'closed'
end

-- One line of the master's.
function Worker:hear()
    local entry = table.remove(self.down, 1)
    local message, fd = entry[1].msg or entry[1], entry[2]
    if message.act == 'newconn' then
        local server = self.by_key[message.key]
        self:says { ack = message.seq, accepted = server ~= nil, seq = 0 }
        if server then
            self.world.answered[fd] = true
        end
        return
    end
    local server = self[message.ack]
    assert(message.errno == 0, 'refused its own address')
    server.key, server.fd = message.key, fd
    if server.state == 'closed' then
        return self:says { act = 'close', key = message.key, seq = 0 }
    end
    server.state = 'open'
    self.by_key[message.key] = server
    self:says { act = 'listening', index = 0, address = '127.0.0.1', port = server.port, addressType = 4, seq = 0 }
end

-- Takes what waits where it listens.
function Worker:serve()
    for port, server in pairs(self.servers) do
        local listener = self.world.network.open[address(port)]
        for _, lane in ipairs(server.state == 'open' and listener.all or {}) do
            if lane.fd() == server.fd then
                for _, fd in ipairs(lane.waiting) do
                    self.world.answered[fd], self.world.network.live_fds[fd] = true, nil
                end
                lane.waiting = {}
            end
        end
    end
end

local function connect(world, port)
    local listener = world.network.open[address(port)]
    if listener then
        local _, fd = listener.client()
        table.insert(world.clients, { fd = fd, port = port })
    end
end

local function deliver(worker)
    if worker.up[1] and math.random(2) == 1 then
        worker.talk:line(table.remove(worker.up, 1))
    elseif worker.down[1] then
        worker:hear()
    end
end

local function step(world)
    local worker, port = world.workers[math.random(#world.workers)], PORTS[math.random(#PORTS)]
    local what = math.random(10)
    if what <= 2 and not worker.servers[port] then
        worker:listen(port)
    elseif what == 3 and worker.servers[port] then
        worker:close(port)
    elseif what <= 6 then
        deliver(worker)
    elseif what == 7 then
        worker:serve()
    elseif what == 8 then
        connect(world, port)
    else
        world.platform:advance(({ 1, 3, 50, 400 })[math.random(4)])
    end
end

-- Nobody does anything any more but to say and hear what is under way, and to answer who comes.
local function settle(world)
    for _ = 1, 40 do
        for _, worker in ipairs(world.workers) do
            while worker.up[1] or worker.down[1] do
                deliver(worker)
            end
            worker:serve()
        end
        world.platform:advance(100)
    end
end

local function walk(seed)
    math.randomseed(seed)
    local world = fake_sockets.new()
    world.answered, world.clients, world.workers = {}, {}, {}
    function world.rescue(fd, done, id, request)
        return world.workers[id].talk:newconn(fd, done, request.name) == true
    end
    world.new { want = WORKERS, lost_after_ms = 1e9, takes = function(id, request)
        return world.workers[id].talk:takes(request.name)
    end }
    for id = 1, WORKERS do
        world.workers[id] = new_worker(world, id)
    end
    for _ = 1, STEPS do
        step(world)
    end
    settle(world)
    local open = {}
    for _, worker in ipairs(world.workers) do
        for port, server in pairs(worker.servers) do
            assert(server.state == 'open', 'a listen without an answer')
            open[port] = true
        end
    end
    for port in pairs(open) do
        connect(world, port)
    end
    settle(world)
    for _, client in ipairs(world.clients) do
        assert(not open[client.port] or world.answered[client.fd], 'somebody waits where a server is open')
    end
    for _, worker in ipairs(world.workers) do
        worker.talk:closed()
    end
    world.sockets:close()
    return #world.clients
end

describe('workers whose words cross', function()
    it('are never refused what they have closed, and nobody waits where one of them is open', function()
        local clients = 0
        for i = 1, WALKS do
            local ok, result = xpcall(walk, debug.traceback, SEED * 1000 + i)
            assert(ok, ('DM_SEED=%d, walk %d: %s'):format(SEED, i, tostring(result)))
            clients = clients + result
        end
        assert.is_true(clients > 3 * WALKS, clients)
    end)
end)
