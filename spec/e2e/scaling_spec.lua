-- The number of workers changes under load: only the difference starts or leaves, and no connection is lost with the
-- lanes that close.

local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

local ROUNDS = os.getenv 'DM_FULL' and 20 or 2

-- Ids of those that serve, by the log: ready and not gone. And how many.
local function serving(m)
    local ids, count = {}, 0
    for _, record in ipairs(m:records 'Worker listening') do
        ids[record.workerId] = true
    end
    for _, record in ipairs(m:records 'Worker exited') do
        ids[record.workerId] = nil
    end
    for _ in pairs(ids) do
        count = count + 1
    end
    return ids, count
end

local function subset(a, b)
    for id in pairs(a) do
        assert.is_true(b[id], 'worker ' .. id)
    end
end

describe('scaling', function()
    after_each(master.cleanup)

    for _, case in ipairs {
        { 'steered', "balance = 'steered'" }, { 'sticky', "balance = 'sticky'" }, { 'shared', "balance = 'shared'" },
    } do
        it('2, 8, 1, 4, again and again, loses no request and starts only the difference: ' .. case[1], function()
            local port = http.free_port()
            local m = master.start {
                script = ([[
                    local dutch = require 'dutch-master'
                    dutch.start { worker = 'app.lua', workerEnvironment = { LISTEN = '127.0.0.1:%d' }, %s }
                    ]]):format(port, case[2]),
                files = { ['app.lua'] = apps.http },
            }
            m:await 'Cluster ready'
            local l = load.start { port = port, clients = 8, rate = 600 }
            local started, now = 2, 2
            for _ = 1, ROUNDS do
                for _, count in ipairs { 8, 1, 4, 2 } do
                    local before = serving(m)
                    assert.equal(0, cli.run(m, { 'scale', tostring(count) }).code)
                    m:wait_until(function()
                        return select(2, serving(m)) == count
                    end, count .. ' workers')
                    started = started + math.max(count - now, 0)
                    assert.equal(started, #m:records 'Creating new worker')
                    local after = serving(m)
                    if count > now then
                        subset(before, after)
                    else
                        subset(after, before)
                    end
                    now = count
                    l:await(l.counts.total + 50)
                end
            end
            local counts = l:stop()
            assert.equal(0, counts.failed, counts.text)
            m:finish()
            for _, record in ipairs(m:records 'Worker exited') do
                assert.equal(0, record.code)
            end
        end)
    end
end)
