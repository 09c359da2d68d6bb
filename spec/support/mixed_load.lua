--- mixed_load.lua: who waits for a busy worker, simulated: the load of spec/bench/tails under listen/ itself, with a
-- virtual clock, kernel and workers. Left out: what things cost; but a worker works a little at each connection beside its
-- request.

local Platform = require 'spec.support.fake_platform'
local Sockets = require 'dutch-master.listen.sockets'
local fake_network = require 'spec.support.fake_network'
local fake_sockets = require 'spec.support.fake_sockets'

local M = {}

local RATE_OF_A_WORKER, FAST_MS, SLOW_MS, SLOW_SHARE = 62.5, 2, 100, 0.05
local WORK_MS = 0.25 -- of each connection, beside its request
local WAKE_MS, GIVE_MS = 0.1, 0.3 -- until a worker that sleeps has seen a connection; the same over its channel
local REPORT_MS, BRIEF_MS = 20, 200 -- see worker.lua

local quiet_log = setmetatable({}, { __index = function() return function() end end })

-- ---------------------------------------------------------------------------------------------------------------------
-- A worker: one request after the other.

local Worker = {}
Worker.__index = Worker

local function begin(self, fd)
    local platform = self.run.platform
    self.run.waited[#self.run.waited + 1] = platform.now() - self.run.came[fd]
    self.run.came[fd] = nil
    self.at_work, self.reported_came = true, self.reported_came + 1
    platform:after((math.random() < SLOW_SHARE and SLOW_MS or FAST_MS) + WORK_MS, function()
        self.at_work = false
        self.worked = self.worked + platform.now() - self.begun
        self:turn()
    end)
    self.begun = platform.now()
end

-- How one turn of its loop accepts: Node empties the queue; a Lua worker takes one, which a request that is read in the
-- same turn may keep waiting.
local ACCEPTS = {
    node = function(self)
        while self.lane.waiting[1] do
            table.insert(self.accepted, self.lane.accept())
        end
    end,
    lua = function(self)
        if not self.accepted[1] and self.lane.waiting[1] then
            table.insert(self.accepted, self.lane.accept())
        end
    end,
}

local function report(self)
    local now, held = self.run.platform.now(), #self.accepted
    local pause = self.reported_came > held and BRIEF_MS or REPORT_MS
    if now - self.reported_at >= pause then
        local busy = math.floor(1000 * self.worked / (now - self.reported_at))
        self.reported_at, self.worked, self.reported_came = now, 0, 0
        if held ~= self.reported then
            self.reported = held
            self.run.sockets:load(self.id, held, busy)
        end
    end
end

function Worker:turn()
    if self.at_work then
        return
    end
    for _, given in ipairs(self.given) do
        self.accepted[#self.accepted + 1] = given.fd
        given.done(true)
    end
    self.given = {}
    report(self)
    local fd = table.remove(self.accepted, 1) or self.lane.waiting[1] and self.lane.accept()
    if fd then
        self.run.accept(self)
        begin(self, fd)
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- One run

local function close_all(run)
    for fd in pairs(run.network.live_fds) do
        run.network.live_fds[fd] = nil
    end
    for _, listener in pairs(run.network.open) do
        for _, lane in ipairs(listener.all) do
            lane.waiting = {}
        end
    end
    run.sockets:close()
end

local function start(count, kind, balance)
    local platform = Platform.new()
    local run = { platform = platform, network = fake_network.add(platform), waited = {}, came = {}, workers = {},
        accept = ACCEPTS[kind], programs = 0 }
    run.sockets = Sockets.new(fake_sockets.options { platform = platform, log = quiet_log, want = count, balance = balance,
        idle = function(id)
            return not run.workers[id].at_work
        end,
        rescue = function(fd, done, id)
            local worker = run.workers[id]
            table.insert(worker.given, { fd = fd, done = done })
            platform:after(GIVE_MS, function()
                worker:turn()
            end)
            return true
        end })
    assert(run.sockets:open { ':80' })
    local listener = run.network.open[':80']
    local steer = listener.steer
    function listener.steer(...)
        run.programs = run.programs + 1
        return steer(...)
    end
    for id = 1, count do
        run.sockets:query(id, { name = ':80', text = ':80', type = 'tcp', stream = true, port = 80 }, function() end)
        run.sockets:join(id)
        run.workers[id] = setmetatable({ id = id, run = run, lane = listener.all[id] or listener.all[1], accepted = {},
            given = {}, worked = 0, reported = 0, reported_at = -BRIEF_MS, reported_came = 0 }, Worker)
    end
    run.listener = listener
    return run
end

-- The kernel chooses.
local function lane_of(run)
    local sum = 0
    for _, entry in ipairs(run.listener.steered) do
        sum = sum + entry.weight
    end
    local left = math.random() * sum
    for _, entry in ipairs(run.listener.steered) do
        left = left - entry.weight
        if left <= 0 then
            return entry.lane
        end
    end
    return run.listener.all[1]
end

local function come(run)
    local network, platform = run.network, run.platform
    network.next_fd = network.next_fd + 1
    local fd, lane = network.next_fd, lane_of(run)
    network.live_fds[fd], run.came[fd] = true, platform.now()
    table.insert(lane.waiting, fd)
    local first = math.random(#run.workers)
    platform:after(WAKE_MS, function()
        for i = 1, #run.workers do -- of those that share it, some free one
            local worker = run.workers[(first + i) % #run.workers + 1]
            if worker.lane == lane and not worker.at_work then
                worker:turn()
                break
            end
        end
    end)
    platform:after(WAKE_MS, function()
        network.wake(lane)
    end)
end

--- @param kind of workers: 'node' or 'lua', balance: 'steered' or 'shared'
-- @return waiting in ms, sorted; how often the kernel was told anew; how many connections were rescued
function M.run(count, kind, balance, seconds, seed)
    math.randomseed(seed or 1)
    local run = start(count, kind, balance)
    local limit = run.platform.now() + seconds * 1000
    while run.platform.now() < limit do
        run.platform:advance(-math.log(1 - math.random()) * 1000 / (RATE_OF_A_WORKER * count))
        come(run)
    end
    table.sort(run.waited)
    close_all(run)
    return run.waited, run.programs, run.sockets:snapshot().totals.rescued
end

return M
