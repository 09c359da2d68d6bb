-- The master dies while it has a connection in hand that a Node worker has accepted and given back, for want of room
-- (maxConnections). The worker keeps its own until it knows that the master has placed it: whoever takes over asks for it
-- again. Every request is answered, by one worker, once.

local uv = require 'luv'
local cli = require 'spec.support.cli'
local connections = require 'spec.support.connections'
local files = require 'spec.support.files'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local points = require 'spec.support.faults'
local versions = require 'spec.support.node_versions'

local STEPS = 14 -- system calls that matter between a connection's coming back and the end of its placing, about
local SENT = 3 -- of them: it is sent to another worker, and not acked
local TOOK_OVER = 'The former master died, this one has taken over'
local SETTLED = 'Connections that the former master had in hand are settled'

-- The worker of slot 1 has room for one, the others for all. /hold is answered after SIGUSR2.
local APP = [[
    const fs = require('fs')
    const server = require('http').createServer((request, response) => {
        fs.appendFileSync(process.env.DIR + '/served', `${request.url} ${process.pid}\n`)
        const answer = () => response.end(String(process.pid))
        if (request.url === '/hold') process.once('SIGUSR2', answer)
        else setTimeout(answer, 20)
    })
    if (process.env.DUTCH_MASTER_SLOT === '1') server.maxConnections = 1
    server.listen({ port: +process.env.PORT, host: '127.0.0.1' })]]

local World = {}
World.__index = World

local function start(binary, workers)
    local self = setmetatable({ port = http.free_port(), dir = master.temp_dir(), workers = workers }, World)
    self.faults = points.counter(self.dir)
    self.m = kept.start { script = ([[require('dutch-master').start { worker = 'app.js', interpreter = { %q },
            numWorkers = %d, restartSoak = 0,
            workerEnvironment = { DIR = %q, PORT = '%d', LD_PRELOAD = false } }]]):format(binary, workers, self.dir,
            self.port), env = points.environment(self.dir), files = { ['app.js'] = APP } }
    self.m:await 'Cluster ready'
    self.with_pauses = kept.without_pauses(self.m)
    return self
end

-- -> paths and pids, a line each
function World:served()
    local lines = {}
    for line in files.or_empty(self.dir .. '/served'):gmatch '[^\n]+' do
        lines[#lines + 1] = line
    end
    return lines
end

function World:settle()
    self.m:wait_until(function()
        local out = cli.run(self.m, { 'status', self.m.script }).out
        return out:find(('%d of %d workers serving'):format(self.workers, self.workers), 1, true) and out:find 'steady'
            and #self.m:workers() == self.workers
    end, 'all workers to serve')
    kept.await_quiet(self.m)
end

-- One request, on its way from now on. -> function() -> whether it is answered
function World:request(path)
    local outcome = http.begin { port = self.port, path = path }
    return function()
        local how = outcome()
        assert(how == nil or how == 'done', tostring(how) .. self.m:dump())
        return how ~= nil
    end
end

function World:connections_of(pid)
    return (select(2, connections.inside(pid, self.port)))
end

describe('a master that dies with a connection that a worker gave back', function()
    after_each(master.cleanup)
    teardown(points.clean_up)

    versions.it('costs no request: between any two of its steps', function(_, binary)
        local w = start(binary, 4)
        local asked = 0
        for step = 1, STEPS do
            local deaths = #w.m:records(TOOK_OVER)
            w.faults.set(0, 0, 0, 0, step)
            local l = load.start { port = w.port, clients = 8, timeout = 20000, expect = '^%d+$' }
            w.m:await(TOOK_OVER, { count = deaths + 1, timeout = 20000 })
            l:await(l.counts.total + 40)
            local counts = l:stop()
            asked = asked + counts.total
            assert.equal(0, counts.failed, ('step %d: '):format(step) .. counts.text .. w.m:dump())
            w:settle()
            assert.equal(asked, #w:served(), ('step %d'):format(step))
        end
        w.with_pauses()
        w.m:finish { code = 0 }
    end, { versions = { '18', '22', '26' } })

    -- The other worker stands still from the moment at which the connection comes back: it finds it in its channel.
    versions.it('leaves it to who was given it, though it is asked to place it again', function(_, binary)
        local w = start(binary, 2)
        local full, held, waiting, other = nil, {}, {}, nil
        for _, record in ipairs(w.m:records 'Creating new worker') do
            full, other = full or record.workerPid, record.workerPid
        end
        w.m:wait_until(function() -- the first worker has one that it does not answer
            held[#held + 1] = w:request '/hold'
            local count = #held
            w.m:wait_until(function() return #w:served() == count end, 'the request')
            return w:served()[count] == '/hold ' .. full
        end, 'a full worker')
        w.faults.set(0, 0, 0, other, SENT)
        repeat
            waiting[#waiting + 1] = w:request '/'
            w.m:wait_until(function()
                return waiting[#waiting]() or w.faults.get(5) == 0
            end, 'an answer, or a connection that comes back')
        until w.faults.get(5) == 0
        w.m:await(TOOK_OVER)
        assert.is_true(kept.is_stopped(other))
        w.m:wait_until(function() return w:connections_of(full) == 1 end, 'the full worker to be rid of it')
        assert.equal(1, w:connections_of(w.m.pid))
        assert.equal(1, w:connections_of(kept.pid(w.m)))
        uv.kill(other, 'sigcont')
        w.m:wait_until(waiting[#waiting], 'its answer')
        assert.same({ taken = 1 }, { taken = w.m:await(SETTLED).taken })
        uv.kill(full, 'sigusr2')
        uv.kill(other, 'sigusr2')
        for _, answered in ipairs(held) do
            w.m:wait_until(answered, 'the held ones')
        end
        assert.equal(#held + #waiting, #w:served())
        w:settle()
        w.with_pauses()
        w.m:finish { code = 0 }
    end, { versions = { '18', '22', '26' } })
end)
