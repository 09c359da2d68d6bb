-- Rolls of unmodified Node apps under load of four sorts of clients at once: no request fails, whatever the version.
-- DM_ROLLS=50 for the long run, DM_VERBOSE=1 to see the figures.
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local tools = require 'spec.support.load_tools'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local ROLLS = tonumber(os.getenv 'DM_ROLLS') or 3
local CLIENTS = 6 -- of each sort
local GONE_MS = 2000 -- an old worker, after its last answer

-- When each worker that is gone had answered for the last time, as far as our own clients saw: ms until its exit.
local function lingered(m, loads)
    local last, list = {}, {}
    for _, each in ipairs(loads) do
        for body, at in pairs(each.last) do
            local pid = tonumber(body:match '(%d+)$')
            last[pid] = math.max(last[pid] or 0, at)
        end
    end
    for _, record in ipairs(m:records 'Worker exited') do
        list[#list + 1] = last[record.workerPid] and (record.arrived - last[record.workerPid]) / 1e6
    end
    return list
end

versions.each(function(version, binary)
    describe('a roll on Node ' .. version, function()
        after_each(master.cleanup)

        it('fails no request, and old workers are soon gone', function()
            local m, port = app.start { binary = binary, app = app.http }
            local own = {}
            for i, mode in ipairs { 'close', 'keepalive' } do
                own[i] = load.start { port = port, mode = mode, clients = CLIENTS }
            end
            local others = { tools.wrk(port, 'close', CLIENTS), tools.wrk(port, 'keepalive', CLIENTS) }
            if versions.modules 'autocannon' then
                others[3] = tools.autocannon(port, versions.newest(), CLIENTS)
            end
            for roll = 1, ROLLS do
                for _, each in ipairs(own) do
                    each:await(each.counts.total + 30) -- so that each worker has been seen
                end
                app.roll(m)
                m:await('Worker exited', { count = 2 * roll, timeout = 10000 })
            end
            local texts, failed, slowest = {}, 0, 0
            for _, each in ipairs(own) do
                each:await(each.counts.total + 30)
                local counts = each:stop()
                texts[#texts + 1] = counts.text
                -- A kept connection that ends unannounced fails no client that asks again, but it ought not to.
                failed, slowest = failed + counts.failed + counts.stale, math.max(slowest, counts.max_ms)
            end
            for _, each in ipairs(others) do
                local counts = each:stop()
                assert.is_true(counts.ok > 50, counts.text)
                texts[#texts + 1] = counts.text
                failed = failed + counts.failed
            end
            local text = table.concat(texts, '\n')
            local waited = lingered(m, own)
            table.sort(waited)
            if os.getenv 'DM_VERBOSE' then
                print(('\nNode %s, %d rolls, slowest of %d old workers gone %d ms after its last answer\n%s'):format(version,
                    ROLLS, #waited, waited[#waited], text))
            end
            assert.equal(0, failed, text)
            assert.equal(2 * ROLLS, #waited)
            -- The slowest answer, of an app that takes 50 ms at most, tells how busy the machine was.
            assert.is_true(waited[#waited] < GONE_MS * wait.scale + slowest, ('%d ms\n%s'):format(waited[#waited], text))
            -- Each by itself.
            assert.equal(2 * ROLLS, #m:records { msg = 'Worker exited', code = 0 })
            assert.equal(2, #m:workers())
            assert.equal(0, #m:records 'Hard-killing worker as it did not die gracefully')
            m:finish { code = 0 }
        end)
    end)
end)

if not versions.modules 'autocannon' then
    pending 'rolls under load of autocannon: not installed, see spec/support/install-node'
end
