-- The hello example's kind of worker, under load: lua-http in Lua workers, rolled again and again.

local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

local APP = [[
local http, worker = require 'dutch-master.http', require 'dutch-master.worker'
assert(http.serve(os.getenv 'LISTEN', function(_, response)
    response:send(worker.generation .. ' ' .. worker.id)
end))
]]

describe('a cluster of Lua workers on lua-http', function()
    after_each(master.cleanup)

    local function start(port)
        local m = master.start {
            script = ([[
                local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', workerEnvironment = { LISTEN = '127.0.0.1:%d' } }
            ]]):format(port),
            files = { ['app.lua'] = APP },
        }
        m:await 'Cluster ready'
        return m
    end

    for _, mode in ipairs { 'close', 'keepalive' } do
        it(('loses no request in three rolls, clients: %s'):format(mode), function()
            local port = http.free_port()
            local m = start(port)
            local l = load.start { port = port, mode = mode, clients = 8, rate = 400 }
            for roll = 1, 3 do
                l:await(l.counts.total + 50)
                m:signal 'SIGUSR2'
                m:await('Restart complete', { count = roll, timeout = 20000 })
            end
            m:await('Worker exited', { count = 6, timeout = 20000 })
            local total = l.counts.total
            l:await(total + 20)
            local counts = l:stop()
            assert.equal(0, counts.failed, counts.text)
            -- A connection that the worker closes while a request is on its way is what the linger is for.
            assert.equal(0, counts.stale, counts.text)
            local generations = {}
            for body in pairs(l.bodies) do
                generations[body:match '^%d+'] = true
            end
            assert.is_true(generations['1'] and generations['4'])
            m:finish { code = 0 }
            assert.same({}, m:records 'Listening socket repaired')
            for _, record in ipairs(m:records 'Worker exited') do
                assert.equal(0, record.code)
            end
        end)
    end
end)
