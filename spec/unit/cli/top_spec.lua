local fake = require 'spec.support.fake_cli'
local format = require 'dutch-master.cli.format'
local terminal = require 'dutch-master.cli.terminal'
local top = require 'dutch-master.cli.top'

local function snapshot(cpu)
    local workers = {}
    for i = 1, #cpu do
        workers[i] = { id = i, slot = i, pid = 100 + i, state = 'running', generation = 1, uptime_ms = 1000 * i,
            rss_kb = 1000 * i, cpu_ms = cpu[i], queue = 0, restarts = 0, release = '/srv/app/releases/20260102030405' }
    end
    return { script = '/srv/app/master.lua', pid = 1, version = '1', state = 'steady', generation = 1, wanted = #cpu,
        uptime_ms = 5000, rss_kb = 6000, workers = workers, slots = {} }
end

describe('top', function()
    local ctx

    before_each(function()
        ctx = terminal.context(fake.new({ tty = true, environ = { LANG = 'C.UTF-8' } }).platform)
    end)

    local function view(more)
        local v = { history = {}, records = {}, order = 's', reverse = false, paused = false }
        for key, value in pairs(more or {}) do
            v[key] = value
        end
        return v
    end

    it('draws small bars', function()
        assert.equal('   ▁▄█', top.sparkline({ 10, 50, 100 }, 100, 6, true))
        assert.equal('    @@', top.sparkline({ 100, 400 }, 100, 6, false))
        assert.equal('      ', top.sparkline({ 0, 0 }, 0, 6, true))
    end)

    it('cuts by columns, not by bytes or colours', function()
        assert.equal('\27[1mab\27[0m', format.cut('\27[1mabcd\27[0m', 2))
        assert.equal('ééé', format.cut('éééé', 3))
        assert.equal('\255a', format.cut('\255ab', 2))
    end)

    it('takes CPU from one status to the next, and forgets who has gone', function()
        local first, second = snapshot { 100, 0 }, snapshot { 600 }
        local history = top.observe({}, first, 0)
        assert.equal(0, first.workers[1].cpu)
        history = top.observe(history, second, 1000)
        assert.equal(50, second.workers[1].cpu)
        assert.same({ 50 }, history[1].cpu)
        assert.is_nil(history[2])
        for i = 1, 50 do
            history = top.observe(history, snapshot { 600 + i }, 1000 + i * 10)
        end
        assert.equal(12, #history[1].cpu)
    end)

    it('fills any terminal exactly', function()
        local records = {}
        for i = 1, 50 do
            records[i] = { level = 30, msg = ('long '):rep(50), time = '2026-01-02T03:04:05.678Z' }
        end
        for _, workers in ipairs { 1, 4, 100 } do
            local cpu = {}
            for i = 1, workers do
                cpu[i] = i
            end
            local v = view { snapshot = snapshot(cpu), records = records }
            v.snapshot.slots[1] = { slot = 9, state = 'filling', backoff_ms = 500 }
            v.history = top.observe({}, v.snapshot, 0)
            for _, size in ipairs { { 20, 5 }, { 20, 6 }, { 40, 10 }, { 80, 24 }, { 200, 60 },
                { 100, 7 } } do
                local lines = top.frame(ctx, v, size[1], size[2])
                assert.equal(size[2], #lines)
                for _, line in ipairs(lines) do
                    assert.is_true(format.width(line) <= size[1], line)
                end
            end
        end
    end)

    it('sorts', function()
        local v = view { snapshot = snapshot { 0, 0, 0 }, order = 'm' }
        v.history = top.observe({}, v.snapshot, 0)
        local function order()
            local found = {}
            for _, line in ipairs(top.frame(ctx, v, 200, 40)) do
                found[#found + 1] = line:match '  10(%d)  '
            end
            return table.concat(found)
        end
        assert.equal('321', order())
        v.reverse = true
        assert.equal('123', order())
        v.order, v.reverse = 's', false
        assert.equal('123', order())
    end)

    it('fits 40 columns and 10 lines, and scrolls through all workers', function()
        local cpu = {}
        for i = 1, 200 do
            cpu[i] = i
        end
        local v = view { snapshot = snapshot(cpu) }
        v.history = top.observe({}, v.snapshot, 0)
        local seen, first = {}, 1
        for _ = 1, 200 do
            v.first = first
            local lines = top.frame(ctx, v, 40, 10)
            for _, line in ipairs(lines) do
                local pid = tonumber(line:gsub('\27%[[%d;]*m', ''):match '(%d+)  running')
                if pid then
                    seen[pid] = true
                end
            end
            first = v.first + v.room
        end
        local count = 0
        for _ in pairs(seen) do
            count = count + 1
        end
        assert.equal(200, count)
        assert.equal(200, v.first + v.room - 1) -- and not beyond the last one
    end)
end)
