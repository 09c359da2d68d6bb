-- All workers stopped, more clients than a backlog holds, as many workers as a listener can have: who waits is served when
-- somebody can, nobody is refused, and the master stays quick.
local cjson = require 'cjson'
local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local connections = require 'spec.support.connections'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

describe('a cluster', function()
    after_each(master.cleanup)

    local function start(count, options)
        local port = http.free_port()
        local m = master.start {
            script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = %d,
                workerEnvironment = { LISTEN = '127.0.0.1:%d' }, %s }]]):format(count, port, options or ''),
            files = { ['app.lua'] = apps.http },
        }
        m:await('Cluster ready', { timeout = 120000 })
        return m, port
    end

    -- At both bounds of stallTimeout, with more clients than the backlogs hold: the kernel lets them try again.
    for _, stall in ipairs { 0.05, 60 } do
        it(('whose workers are all stopped serves everybody when they go on: stallTimeout = %g'):format(stall), function()
            local m, port = start(3, ('stallTimeout = %g, backlog = 8,'):format(stall))
            local pids = {}
            for _, record in ipairs(m:records 'Worker listening') do
                pids[#pids + 1] = record.workerPid
                assert(connections.freeze(record.workerPid))
            end
            local l = load.start { port = port, clients = 60, timeout = 30000 }
            m:wait_until(function()
                local waiting = 0
                for _, worker in ipairs(cjson.decode(cli.run(m, { 'status', '--json' }).out).workers) do
                    waiting = waiting + worker.queue
                end
                return waiting >= 27 -- each queue is full
            end, 'full queues')
            l:no_more()
            assert.equal(0, l.counts.total)
            for _, pid in ipairs(pids) do
                uv.kill(pid, 'sigcont')
            end
            local counts = l:stop()
            assert.equal(0, counts.failed, counts.text .. m:dump())
            l = load.start { port = port, clients = 4 } -- and each is back
            m:wait_until(function()
                return l.distinct == 3
            end, 'an answer of each', { timeout = 60000 })
            counts = l:stop()
            assert.equal(0, counts.failed, counts.text)
            m:finish()
        end)
    end

    it('of 512 workers has a lane for each, and one more is refused', function()
        if os.getenv 'DM_SANITIZE' then
            return pending '512 workers with sanitizers take gigabytes'
        end
        local m, port = start(512)
        local l = load.start { port = port, clients = 16, rate = 1000 }
        l:await(2000)
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.is_true(l.distinct > 256, l.distinct)
        local more = cli.run(m, { 'scale', '513' })
        assert.not_equal(0, more.code)
        assert.matches('at most 512', more.err)
        m:finish { timeout = 60000 }
    end)
end)
