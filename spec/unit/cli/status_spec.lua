local fake = require 'spec.support.fake_cli'
local format = require 'dutch-master.cli.format'
local list = require 'dutch-master.cli.list'
local status = require 'dutch-master.cli.status'
local terminal = require 'dutch-master.cli.terminal'

local function snapshot()
    local workers = {}
    for i = 1, 4 do
        workers[i] = { id = 1000 + i, slot = i, pid = 27400 + i, state = i == 3 and 'terminating' or 'running',
            generation = 12, uptime_ms = 7.5e6, rss_kb = 123456, cpu_ms = 61000, queue = 0, restarts = 11, steered = true,
            release = '/deploys/my-app/releases/20261122103000' }
    end
    return { script = '/deploys/my-app/current/master.lua', pid = 26939, version = '0.1.0', state = 'rolling',
        generation = 12, wanted = 4, uptime_ms = 7e6, rss_kb = 4812, workers = workers, slots = {},
        roll = { done = 2, total = 4, elapsed_ms = 1400 } }
end

describe('status', function()
    local function lines_at(columns)
        local ctx = terminal.context(fake.new({ tty = true, environ = { LANG = 'C.UTF-8' } }).platform)
        function ctx.columns()
            return columns
        end
        local lines = {}
        for line in status.render(ctx, snapshot()):gmatch '[^\n]+' do
            lines[#lines + 1] = line:gsub('\27%[[%d;]*m', '')
        end
        return lines
    end

    it('fits a terminal of 80 columns with all that it knows', function()
        local lines = lines_at(80)
        for _, line in ipairs(lines) do
            assert.is_true(format.width(line) <= 80, line)
        end
        assert.matches('^SLOT    ID    PID  STATE ', lines[4])
        assert.matches('103000$', lines[5])
        assert.matches('^SLOT  WORKER    PID  STATE        GEN', lines_at(200)[4])
    end)

    it('shows what matters most on a narrow one', function()
        for _, columns in ipairs { 40, 20, 10 } do
            local lines = lines_at(columns)
            for _, line in ipairs(lines) do
                assert.is_true(format.width(line) <= columns, line)
            end
            assert.matches(columns == 10 and '^  ID  STAT' or 'ID.*STATE', lines[4])
        end
    end)

    it('is whole where it is no terminal', function()
        assert.matches('/deploys/my%-app/releases/20261122103000$', lines_at(nil)[5])
    end)

    it('wraps on no terminal, nor does the list of masters', function()
        for _, columns in ipairs { 80, 40, 20, 10 } do
            local ctx = terminal.context(fake.new({ tty = true, environ = { LANG = 'C.UTF-8' } }).platform)
            function ctx.columns()
                return columns
            end
            local text = list.render(ctx, { { path = '/run/dutch-master/a', status = snapshot() } })
            for line in text:gsub('\27%[[%d;]*m', ''):gmatch '[^\n]+' do
                assert.is_true(format.width(line) <= columns, line)
            end
        end
    end)
end)
