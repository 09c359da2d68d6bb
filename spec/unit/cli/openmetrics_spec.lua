-- The numbers as text, and who else names them.

local cjson = require 'cjson'
local measured = require 'dutch-master.channel.measured'
local openmetrics = require 'dutch-master.cli.openmetrics'
local read = require('spec.support.files').text
local Totals = require 'dutch-master.cluster.totals'

-- A status with everything in it.
local function status()
    return {
        script = '/srv/"a"\\b\n/master.lua', version = '1', pid = 1, state = 'steady', generation = 3, wanted = 1,
        uptime_ms = 1500, rss_kb = 4, cpu_ms = 20, totals = Totals.new():snapshot(), log_lost = 0,
        sockets = { rescued = 2, lost = 0 }, unserved = 1, held = { calls = 5, seconds = 0.25, longest = 0.125 },
        hooks = { beforeFork = { calls = 2, failures = 1, ms = 30 } }, output = { lines = 7 },
        workers = { { id = 9, slot = 1, generation = 3, state = 'running', uptime_ms = 500, rss_kb = 2, cpu_ms = 10,
            queue = 1, steered = true, measured = measured.read { answers = { 0, 5 }, buckets = { 5 } } } },
        slots = {},
    }
end

--- The families of a text: name -> type.
local function types(text)
    local found = {}
    for name, kind in text:gmatch '# TYPE dutch_master_(%S+) (%S+)' do
        found[name] = kind
    end
    return found
end

describe('openmetrics', function()
    it('has every family, each once, with its samples behind it', function()
        local text = openmetrics.render({ { status = status() } }, 1000, 'openmetrics')
        local found = types(text)
        for _, family in ipairs(openmetrics.FAMILIES) do
            assert.equal(family[2], found[family[1]], family[1])
            local _, count = text:gsub('# TYPE dutch_master_' .. family[1] .. ' ', '')
            assert.equal(1, count)
        end
        assert.matches('# UNIT dutch_master_cpu_seconds seconds\n', text)
        assert.matches('# EOF\n$', text)
        assert.truthy(text:find([[dutch_master_up{script="/srv/\"a\"\\b\n/master.lua"} 1]], 1, true))
        assert.matches('dutch_master_start_time_seconds{[^}]+} 998.5\n', text)
    end)

    it('in the older format names a counter as its samples', function()
        local text = openmetrics.render({ { status = status() } }, 1000, 'prometheus')
        assert.equal('counter', types(text).cpu_seconds_total)
        assert.falsy(text:find '# EOF' or text:find '# UNIT')
    end)

    it('says that a master is down, and of a stranger nothing', function()
        local text = openmetrics.render({ { path = '/x.sock', problem = 'hangs' }, { path = '/y', problem = 'foreign' } },
            1000, 'openmetrics')
        assert.matches('dutch_master_up{script="/x.sock"} 0\n# EOF\n$', text)
        assert.falsy(text:find '/y')
    end)

    it('is what the examples for Prometheus and Grafana name, and nothing else', function()
        local known = {}
        for name in openmetrics.render({ { status = status() } }, 1000, 'openmetrics'):gmatch '\n(dutch_master_[%w_]+)' do
            known[name] = true
        end
        local named = 0
        for _, path in ipairs { 'examples/prometheus/dashboard.json', 'examples/prometheus/rules.yml' } do
            for name in read(path):gmatch 'dutch_master_[%w_]+' do
                named = named + 1
                assert.is_true(known[name], path .. ': ' .. name)
            end
        end
        assert.is_true(named > 20)
        assert.is_true(#cjson.decode(read 'examples/prometheus/dashboard.json').panels > 10)
    end)
end)
