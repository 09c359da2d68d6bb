-- How many workers: what is no number of workers is refused by name, and never a fork storm.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local master = require 'spec.support.master'

-- Lua text of a value -> how it is named in the refusal
local BAD = {
    ['0'] = '0', ['-1'] = '-1', ['0/0'] = 'NaN', ['1/0'] = 'inf', ['-1/0'] = 'inf', ['1.5'] = '1.5', ['"4"'] = '"4"',
    ['{}'] = 'table', ['{ 2 }'] = 'table', ['1e6'] = '1000000', ['4097'] = '4097', ['true'] = 'true', ['false'] = 'false',
}

local function script(count)
    return ('require("dutch-master").start {\n  worker = "app.lua", restartSoak = 0,\n  numWorkers = %s,\n}'):format(count)
end

local function refused(count)
    return { source = script(count), m = master.start { script = script(count), files = { ['app.lua'] = apps.idle } } }
end

local function check(case, pattern)
    local m = case.m
    m:exit { timeout = 5000 }
    master.wait_until(function() return m.err_ended end)
    assert.same({ code = 78 }, m.ended, case.source .. m:dump())
    assert.matches(pattern, m.stderr)
    assert.equal(1, select(2, m.stderr:gsub('\n', '\n')), m.stderr)
    assert.same({}, m.log)
    m:finish { code = 78 }
end

local function expectation(found)
    return '^dutch%-master: master%.lua:%d+: numWorkers: expected an integer from 1 to 4096.*found .*'
        .. found:gsub('%p', '%%%0')
end

describe('numWorkers', function()
    after_each(master.cleanup)

    it('that is none is refused by name at the start', function()
        local cases = {}
        for value, found in pairs(BAD) do
            cases[#cases + 1] = { found, refused(value) }
        end
        for _, case in ipairs(cases) do
            check(case[2], expectation(case[1]))
        end
    end)

    it('as a function is held to the same', function()
        local cases = {}
        for value, found in pairs(BAD) do
            cases[#cases + 1] = { expectation(found), refused('function() return ' .. value .. ' end') }
        end
        cases[#cases + 1] = { expectation 'nothing', refused 'function() end' }
        cases[#cases + 1] = { '^dutch%-master: master%.lua:3: numWorkers: no idea\n',
            refused 'function() error "no idea" end' }
        for _, case in ipairs(cases) do
            check(case[2], case[1])
        end
    end)

    it('is 2 when it is nil', function()
        local m = refused('nil').m
        assert.equal(2, m:await('Cluster ready').workers)
        m:finish()
    end)

    it('gone bad later leaves the cluster as it is', function()
        local m = refused('function() return 2 end').m
        m:await 'Cluster ready'
        for value, found in pairs(BAD) do
            for _, text in ipairs { value, 'function() return ' .. value .. ' end' } do
                local mark = m:mark()
                m:rewrite('master.lua', script(text))
                m:signal 'SIGUSR2'
                local aborted = m:await('Restart aborted, the old workers stay', { after = mark })
                assert.matches((expectation(found):gsub('^%^dutch%%%-master: ', '')), aborted.reason)
                assert.equal(0, #m:records('Creating new worker', mark))
            end
        end
        local mark = m:mark()
        m:rewrite('master.lua', script 'function() error "no idea" end')
        m:signal 'SIGUSR2'
        assert.equal('master.lua:3: numWorkers: no idea',
            m:await('Restart aborted, the old workers stay', { after = mark }).reason)
        assert.equal(2, #m:workers())
        m:finish()
        assert.equal(2, #m:records 'Creating new worker')
    end)

    it('counts at the boot and at a restart, not when a crash is replaced', function()
        local m = refused('function() return 2 end').m
        m:await 'Cluster ready'
        m:rewrite('master.lua', script '3')
        uv.kill(m:workers()[1], 'sigkill')
        m:await('Worker listening', { count = 3 })
        assert.equal(2, #m:workers())
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        m:wait_until(function() return #m:workers() == 3 end, 'three workers')
        assert.equal(1 + 2 + 3, #m:records 'Creating new worker')
        m:rewrite('master.lua', script '1')
        m:signal 'SIGUSR2'
        m:await('Restart complete', { count = 2 })
        m:wait_until(function() return #m:workers() == 1 end, 'one worker')
        m:finish()
    end)

    it('may be changed by SIGTTIN and SIGTTOU, but not to none', function()
        local m = refused('1').m
        m:await 'Cluster ready'
        m:signal 'SIGTTIN'
        assert.same({ 1, 2 }, { m:await('Scaling cluster').from, m:records('Scaling cluster')[1].to })
        m:await('Worker listening', { count = 2 })
        -- A restart keeps it, for the script has not changed its mind.
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        m:wait_until(function() return #m:workers() == 2 end, 'two workers')
        m:signal 'SIGTTOU'
        m:wait_until(function() return #m:workers() == 1 end, 'one worker')
        m:signal 'SIGTTOU'
        local refusal = m:await(function(record) return record.msg:find('Not scaled', 1, true) ~= nil end)
        assert.equal('SIGTTOU', refusal.signal)
        assert.equal(1, #m:workers())
        m:finish()
    end)
end)
