-- What workers write, as `logs` shows it.

local uv = require 'luv'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'

-- Writes what it is told by a file, and stays.
local TALKER = [[
    local uv = require 'luv'
    local worker = require 'dutch-master.worker'
    local id = worker.id
    io.stdout:setvbuf 'no'
    io.stdout:write('out ' .. id .. '\n')
    io.stderr:write('err ' .. id .. '\n')
    worker.ready()
    uv.new_signal():start('sigusr1', function()
        io.stdout:write('later ' .. id .. '\n')
    end)
    uv.run()
]]

local function start(more, app)
    local m = master.start {
        script = ("require('dutch-master').start { worker = 'app.lua', ready = 'message', numWorkers = 2, %s }")
            :format(more or ''),
        files = { ['app.lua'] = app or TALKER },
    }
    m:await 'Cluster ready'
    return m
end

local function lines(m, ...)
    local c = cli.run(m, { 'logs', '--json', ... })
    assert.equal(0, c.code, c.err)
    local all = {}
    for line in c.out:gmatch '[^\n]+' do
        local item = cjson.decode(line)
        all[#all + 1] = item.stream .. ' ' .. item.worker .. ' ' .. item.text
        assert.matches('^%d+%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%dZ$', item.time)
    end
    table.sort(all)
    return all
end

describe('logs', function()
    after_each(master.cleanup)

    it('keeps the last of stderr without being asked, and stdout goes where it went', function()
        local m = start()
        m:wait_until(function() return #lines(m) == 2 end, 'two lines')
        assert.same({ 'stderr 1 err 1', 'stderr 2 err 2' }, lines(m))
        m:await_output '^out 1$'
        m:finish()
    end)

    it('keeps stdout too if a size is given, and still passes it on', function()
        local m = start "keepOutput = '1M'"
        m:wait_until(function() return #lines(m) == 4 end, 'four lines')
        assert.same({ 'stderr 1 err 1', 'stderr 2 err 2', 'stdout 1 out 1', 'stdout 2 out 2' }, lines(m))
        assert.same({ 'stderr 2 err 2', 'stdout 2 out 2' }, lines(m, '--worker', '2'))
        assert.equal(1, #lines(m, '-n', '1'))
        assert.equal(4, #lines(m, '--since', '10m'))
        assert.equal(0, #lines(m, '--since', '2100-01-01T00:00:00Z'))
        m:await_output '^out 1$'
        m:await_output '^out 2$'
        local text = cli.run(m, { 'logs' }).out
        assert.matches('\n?%d%d:%d%d:%d%d%.%d%d%d worker 1 E err 1\n', text)
        assert.falsy(text:find '\27')
        m:finish()
    end)

    it('follows what comes', function()
        local m = start "keepOutput = '1M'"
        local c = cli.start(m, { 'logs', '--follow', '--worker', '2' })
        c:await_output 'out 2'
        for _, pid in ipairs(m:workers()) do
            uv.kill(pid, 'sigusr1')
        end
        c:await_output 'worker 2   later 2'
        assert.falsy(c.out:find 'later 1')
        m:signal 'SIGTERM'
        assert.equal(1, c:wait().code)
        assert.matches('the master went away', c.err)
        m:finish()
    end)

    it('makes harmless what a worker wrote to move a cursor', function()
        local m = start('numWorkers = 1', [[
            io.stderr:write('\27[2J\27]0;title\7<b>\27[31mred\27[0m\200\n')
            require('dutch-master.worker').ready()
        ]])
        m:wait_until(function() return cli.run(m, { 'logs' }).out:find 'title' end, 'the line')
        local out = cli.run(m, { 'logs' }).out
        assert.falsy(out:find '\27' or out:find '\7')
        assert.matches('<b>red', out)
        m:finish()
    end)

    it('holds nobody up in a flood, and says what was lost', function()
        local m = start("numWorkers = 1, keepOutput = '64K'", [[
            require('dutch-master.worker').ready()
            for i = 1, 200000 do io.stdout:write('line ', i, '\n') end
            io.stdout:flush()
            io.stderr:write 'over\n'
        ]])
        m:wait_until(function() return cli.run(m, { 'logs' }).out:find 'over' end, 'the end of the flood')
        local c = cli.run(m, { 'logs', '-n', '100000' })
        assert.is_true(#c.out < 64 * 1024)
        local last = 0
        for number in c.out:gmatch 'line (%d+)\n' do
            assert.is_true(last == 0 or tonumber(number) == last + 1, number)
            last = tonumber(number)
        end
        assert.equal(200000, last)
        m:finish()
    end)

    it('has the past from a stamped file, whatever the master forgot, and without one', function()
        local dir = master.temp_dir()
        local m = start(("keepOutput = '1K', stampOutput = true, workerOutput = '%s/out.log'"):format(dir), [[
            local worker = require 'dutch-master.worker'
            for i = 1, 3000 do io.stdout:write(worker.id, ' line ', i, '\n') end
            io.stdout:write 'half'
            io.stdout:flush()
            io.stderr:write('err ' .. worker.id .. '\n')
            io.stdout:write(' and half\n')
            io.stdout:flush()
            worker.ready()
            local uv = require 'luv'
            uv.new_signal():start('sigusr1', function() io.stderr:write('later\n') end)
            uv.run()
        ]])
        m:wait_until(function() return #lines(m, '-n', '10000') == 6004 end, 'all lines')
        assert.equal(3002, #lines(m, '-n', '10000', '--worker', '2'))
        assert.equal(6004, #lines(m, '--since', '10m'))
        assert.equal(0, #lines(m, '--since', '2100-01-01T00:00:00Z'))
        assert.equal(100, #lines(m))
        local last = lines(m, '--worker', '1', '-n', '2')
        table.sort(last)
        assert.same({ 'stderr 1 err 1', 'stdout 1 half and half' }, last)
        -- Nothing is shown twice, and what comes is shown; after a rotation it is in the new file.
        local c = cli.start(m, { 'logs', '--follow', '--worker', '2', '-n', '5000' })
        c:await_output '2 line 3000'
        uv.fs_rename(dir .. '/out.log', dir .. '/out.log.1')
        m:signal 'SIGUSR1'
        m:await 'Log reopened'
        for _, pid in ipairs(m:workers()) do
            uv.kill(pid, 'sigusr1')
        end
        c:await_output 'worker 2 E later'
        assert.equal(1, select(2, c.out:gsub('2 line 17\n', '')))
        c:kill 'sigterm'
        c:wait()
        m:signal 'SIGTERM'
        assert.same({ code = 0 }, m:exit())
        c = cli.run(m, { 'logs' })
        assert.equal(3, c.code)
        assert.matches('worker 1 E later', c.out)
        assert.matches('not running', c.err)
        m:finish()
    end)

    it('has more than the master remembers from a plain file, without time and worker', function()
        local dir = master.temp_dir()
        local m = start(("keepOutput = '1K', workerOutput = '%s/out.log'"):format(dir), [[
            for i = 1, 3000 do io.stdout:write('line ', i, '\n') end
            io.stdout:flush()
            require('dutch-master.worker').ready()
        ]])
        local c
        m:wait_until(function()
            c = cli.run(m, { 'logs', '-n', '9000' })
            return select(2, c.out:gsub('\n', '')) == 6000
        end, 'all lines')
        assert.matches('^line 1\n', c.out)
        -- Its memory may hold lines of one worker alone: of whoever wrote last.
        local last = cli.run(m, { 'logs', '-n', '1' }).out:match 'worker (%d)   line 3000\n$'
        assert.truthy(last)
        -- Whose lines they are and of when, only the master remembers.
        local why = ('the lines of %s/out.log have no time and no worker (stampOutput = true): '):format(dir)
        for _, words in ipairs { { 'logs', '--since', '10m' }, { 'logs', '--worker', last } } do
            c = cli.run(m, words)
            assert.equal(0, c.code)
            assert.truthy(c.err:find(why .. 'here is what the master remembers\n', 1, true), c.err)
            assert.matches('worker %d   line 3000\n', c.out)
            assert.falsy(c.out:find 'line 17\n')
        end
        m:signal 'SIGTERM'
        assert.same({ code = 0 }, m:exit())
        c = cli.run(m, { 'logs', '--since', '10m' })
        assert.same({ 3, '' }, { c.code, c.out })
        assert.truthy(c.err:find(why .. 'nothing of it can be shown by --since or --worker\n', 1, true), c.err)
        m:finish()
    end)

    it('can be switched off, and says so', function()
        local m = start 'keepOutput = 0'
        local c = cli.run(m, { 'logs' })
        assert.equal(1, c.code)
        assert.matches('keeps nothing.*keepOutput', c.err)
        c = cli.run(m, { 'logs', '--since', 'yesterday' })
        assert.equal(2, c.code)
        assert.matches('expected a time such as 10m', c.err)
        m:finish()
    end)
end)
