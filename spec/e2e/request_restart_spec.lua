-- A worker that asks to be replaced: { event = 'request-restart' }.

local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

local function start(options, app)
    local port = http.free_port()
    local m = master.start {
        script = ([[require('dutch-master').start { worker = 'app.lua', restartSoak = 0.05,
            workerEnvironment = { LISTEN = '127.0.0.1:%d' }, %s }]]):format(port, options or ''),
        files = { ['app.lua'] = app or apps.http },
    }
    m.port = port
    return m
end

describe('request-restart', function()
    after_each(master.cleanup)

    it('replaces that worker when its successor serves, and loses no request', function()
        local m = start()
        m:await 'Cluster ready'
        local l = load.start { port = m.port, clients = 4 }
        local _, body = http.get { port = m.port, path = '/restart' }
        local id, pid = body:match '^%S+ (%d+) (%d+)'
        local dying = m:await 'Worker dying'
        assert.same({ tonumber(id), tonumber(pid) }, { dying.workerId, dying.workerPid })
        local told = m:await 'Replacement worker available - disconnecting'
        assert.equal(tonumber(id), told.workerId)
        assert.is_true(m:records('Worker listening')[3].index < told.index)
        assert.equal(0, m:await({ msg = 'Worker exited', workerPid = tonumber(pid) }).code)
        l:await(l.counts.total + 100)
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.equal(3, #m:records 'Creating new worker')
        assert.equal(1, m:records('Creating new worker')[3].generation)
        m:finish()
    end)

    it('repeated is one request', function()
        local m = start('numWorkers = 1', [[
            local worker = require 'dutch-master.worker'
            worker.ready()
            if worker.id == 1 then
                for _ = 1, 1000 do worker.send { event = 'request-restart' } end
            end]])
        m:await 'Replacement worker available - disconnecting'
        m:await 'Worker exited'
        assert.equal(2, #m:records 'Creating new worker')
        assert.equal(1, #m:records 'Worker dying')
        m:finish()
    end)

    it('by all workers at once is granted to each', function()
        local m = start('numWorkers = 4', [[
            local worker = require 'dutch-master.worker'
            worker.ready()
            worker.on_message(function() worker.send { event = 'request-restart' } end)
            if worker.id <= 4 then worker.send { event = 'request-restart' } end]])
        m:await('Worker exited', { count = 4 })
        assert.equal(4, #m:records 'Worker dying')
        m:wait_until(function() return #m:workers() == 4 end, 'four workers')
        m:finish()
    end)

    it('of a worker that has not yet proved itself is remembered, and does not spin', function()
        local m = start('numWorkers = 1', [[
            local worker = require 'dutch-master.worker'
            worker.ready()
            worker.send { event = 'request-restart' }]])
        m:await('Worker dying', { count = 5 })
        local first, last = m:records('Worker dying')[1], m:records('Worker dying')[5]
        local function seconds(record)
            local hours, minutes, rest = record.time:match 'T(%d+):(%d+):([%d.]+)Z'
            return hours * 3600 + minutes * 60 + rest
        end
        local took = (seconds(last) - seconds(first)) % 86400
        assert.is_true(took >= 0.6, ('five replacements took %g s'):format(took))
        m:await('Worker exited', { count = 3 })
        m:finish()
    end)
end)
