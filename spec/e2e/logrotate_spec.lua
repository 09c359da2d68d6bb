-- logrotate with the file of examples/logrotate, while two workers write: no line is lost, torn or doubled.

local master = require 'spec.support.master'
local read = require('spec.support.files').text

-- Counts aloud on stdout and stderr, and is asked to leave.
local COUNTER = [[
local uv = require 'luv'
local worker = require 'dutch-master.worker'
io.stdout:setvbuf 'line'
local timer, count = uv.new_timer(), 0
timer:start(1, 1, function()
    for _ = 1, 10 do
        count = count + 1
        local line = ('%d %d %s\n'):format(worker.id, count, ('x'):rep(count % 200))
        ;(count % 2 == 0 and io.stdout or io.stderr):write(line)
    end
end)
worker.on_disconnect(function()
    timer:close()
    io.stdout:write(('%d last %d\n'):format(worker.id, count))
    os.exit(0)
end)
worker.ready()
]]

describe('logrotate', function()
    after_each(master.cleanup)

    it('rotates what the master and running workers write', function()
        if os.execute 'command -v logrotate >/dev/null' ~= 0 then
            return pending 'logrotate is not installed'
        end
        local dir = master.temp_dir()
        local m = master.start {
            script = ([[local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', workerOutput = '%s/workers.log' }]]):format(dir),
            files = { ['app.lua'] = COUNTER },
        }
        m:await 'Cluster ready'
        local config = read 'examples/logrotate/my-app':gsub('/var/log/my%-app', dir)
            :gsub('systemctl kill [^\n]*', 'kill -USR1 ' .. m.pid):gsub('    compress\n    delaycompress\n', '')
        local file = assert(io.open(dir .. '/config', 'w'))
        file:write(config)
        file:close()
        for i = 1, 3 do
            local before = #m:records 'Log reopened'
            assert.equal(0, os.execute(("logrotate -f -s '%s/state' '%s/config'"):format(dir, dir)))
            m:await('Log reopened', { count = before + 1 })
            assert.equal(2, m:records('Log reopened')[i].workers)
            master.wait_until(function() return #read(dir .. '/workers.log') > 1000 end)
        end
        m:finish()

        local seen, last = {}, {}
        for _, name in ipairs { 'workers.log', 'workers.log.1', 'workers.log.2', 'workers.log.3' } do
            local text = read(dir .. '/' .. name)
            assert.equal('\n', text:sub(-1))
            for line in text:gmatch '[^\n]+' do
                local id, count, rest = line:match '^(%d) (%d+) (x*)$'
                if not id then
                    id, count = line:match '^(%d) last (%d+)$'
                    last[id] = tonumber(count)
                else
                    assert.equal(tonumber(count) % 200, #rest, line)
                    assert.is_nil(seen[id .. ' ' .. count], line)
                    seen[id .. ' ' .. count] = true
                end
            end
        end
        for id, count in pairs(last) do
            for i = 1, count do
                assert.is_true(seen[id .. ' ' .. i], ('worker %s, line %d'):format(id, i))
            end
        end
        assert.is_true(last['1'] > 100 and last['2'] > 100)
    end)
end)
