local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local p = require 'spec.support.process'

--- Holds the loop up, as a slow callback or a stopped process does.
local function block(ms)
    local stop = core.now() + ms
    while core.now() < stop do end -- luacheck: ignore
end

describe('timer', function()
    p.leaves_nothing()

    it('fires once, not before its time', function()
        local fired, at, start = 0, nil, core.now()
        local timer = core.timer(function() fired, at = fired + 1, core.now() end)
        timer:start(30)
        p.await(function() return fired > 0 end)
        assert.is_true(at - start >= 30)
        loop.run_once(50)
        assert.are.equal(1, fired)
    end)

    it('fires in the order of deadlines, equal ones as they were started', function()
        local order = {}
        for index, ms in ipairs { 30, 10, 20, 10, 0 } do
            core.timer(function() order[#order + 1] = index end):start(ms)
        end
        p.await(function() return #order == 5 end)
        assert.are.same({ 5, 2, 4, 3, 1 }, order)
    end)

    it('starts anew, stops, and takes no start once closed', function()
        local fired = {}
        local a = core.timer(function() fired[#fired + 1] = 'a' end)
        local b = core.timer(function() fired[#fired + 1] = 'b' end)
        local c = core.timer(function() fired[#fired + 1] = 'c' end)
        a:start(1)
        a:start(40)
        b:start(10)
        b:stop()
        c:start(10)
        c:close()
        assert.are.same({ nil, 'closed', 'EBADF' }, { c:start(1) })
        p.await(function() return #fired > 0 end)
        assert.are.same({ 'a' }, fired)
    end)

    it('may be started, stopped and closed by callbacks of others due at the same time', function()
        local fired, a, b = {}, nil, nil
        a = core.timer(function()
            fired[#fired + 1] = 'a'
            b:close()
            a:start(0)
            if #fired > 2 then
                a:close()
            end
        end)
        b = core.timer(function() fired[#fired + 1] = 'b' end)
        local c = core.timer(function() fired[#fired + 1] = 'c' end)
        a:start(1)
        b:start(1)
        c:start(1)
        p.await(function() return #fired == 3 end)
        p.step()
        assert.are.same({ 'a', 'c', 'a' }, fired)
    end)

    it('is kept while it runs, and collected when it does not', function()
        local fired = false
        core.timer(function() fired = true end):start(10)
        collectgarbage()
        p.await(function() return fired end)
        local weak = setmetatable({}, { __mode = 'v' })
        weak[1] = core.timer(function() return weak end)
        collectgarbage()
        collectgarbage()
        assert.is_nil(weak[1])
    end)

    it('is judged after what had been readable before', function()
        -- The message is there before the deadline, the loop comes late to both.
        local order = {}
        local timer = core.timer(function() order[#order + 1] = 'deadline' end)
        local record = p.sh('read line <&3; echo ready >&3; exec sleep 100', {
            channel = true,
            on_line = function() order[#order + 1] = 'ready' end,
        })
        p.await(function() return record.execs == 1 end)
        record.child:send 'go'
        timer:start(200)
        block(700)
        p.await(function() return #order == 2 end)
        assert.are.same({ 'ready', 'deadline' }, order)
        record.child:signal 'SIGKILL'
    end)

    it('is judged after a message behind more than one tick reads', function()
        local order = {}
        local timer = core.timer(function() order[#order + 1] = 'deadline' end)
        local script = 'read line <&3; yes $(printf %0999d 0) | head -n 150 >&3; echo ready >&3; exec sleep 100'
        local record = p.sh(script, {
            channel = true,
            on_line = function(_, line)
                if line == 'ready' then
                    order[#order + 1] = 'ready'
                end
            end,
        })
        p.await(function() return record.execs == 1 end)
        record.child:send 'go'
        timer:start(300)
        block(700)
        p.await(function() return #order == 2 end)
        assert.are.same({ 'ready', 'deadline' }, order)
        record.child:signal 'SIGKILL'
    end)

    it('is not held back for ever by a child that floods', function()
        local fired
        local record = p.sh('exec yes $(printf %0999d 0) >&3', { channel = true })
        p.await(function() return #record.lines > 0 end)
        local start = core.now()
        core.timer(function() fired = core.now() end):start(100)
        p.await(function()
            record.lines = {}
            record.events = {}
            return fired
        end)
        assert.is_true(fired - start < 1000 * p.patience)
        record.child:signal 'SIGKILL'
    end)

    it('moves all deadlines by the time for which the loop stood still', function()
        local fired = {}
        local start = core.now()
        for index, ms in ipairs { 200, 400 } do
            core.timer(function() fired[index] = core.now() - start end):start(ms)
        end
        loop.run_once(10)
        block(2000)
        p.await(function() return fired[1] and fired[2] end)
        assert.is_true(fired[1] >= 2150, fired[1])
        assert.is_true(fired[2] >= 2350, fired[2])
    end)

    it('does not take ordinary lateness for standing still', function()
        local at, start = nil, core.now()
        core.timer(function() at = core.now() - start end):start(100)
        block(600)
        p.await(function() return at end)
        assert.is_true(at < 700 * p.patience, at)
    end)

    it('refuses a negative time and a callback that is none', function()
        assert.has_error(function() core.timer() end)
        assert.has_error(function() core.timer(function() end):start(-1) end)
        assert.has_error(function() core.timer(function() end):start(0 / 0) end)
    end)

    it('survives an error in its callback', function()
        local what, message
        core.on_error(function(w, m) what, message = w, m end)
        core.timer(function() error 'broken' end):start(0)
        p.await(function() return what end)
        core.on_error(nil)
        assert.are.equal('timer', what)
        assert.matches('broken', message)
        assert.matches('traceback', message)
    end)
end)

describe('the clock', function()
    it('is monotonic, in whole milliseconds, and wall time is the system\'s', function()
        local before = core.now()
        assert.are.equal(before, math.floor(before))
        assert.is_true(core.now() >= before)
        assert.is_true(math.abs(core.wall() - os.time()) < 2)
    end)
end)
