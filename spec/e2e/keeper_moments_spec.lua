-- A kept master dies at any moment of a life under load: while it boots, rolls, tries a canary, scales, reloads, stops;
-- of kill -9, of a fault of its own, or stopped for good. No request fails, each verdict comes once and is true, and
-- nobody is left or forgotten. DM_KILLS: how often each, once unless given.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'

local TIMES = tonumber(os.getenv 'DM_KILLS') or 1
local LONGEST_MS = 400 -- what follows a request takes about so long, and the deaths are spread over it
local WAYS = { 'sigkill', 'sigsegv', 'sigstop' }
local TOOK_OVER = 'The former master died, this one has taken over'
local UNFINISHED = 'Ended: it was in the middle of its fork when the former master died'

local SCRIPT = [[
local dutch = require 'dutch-master'
dutch.start { worker = 'app.%s', numWorkers = 2, restartSoak = 0.1, stopTimeout = 10, killTimeout = 2, %s
    restartConcurrency = { canary = { weight = 1, soak = 0.1, judge = function() return true end }, after = 2 },
    backoff = { first = 0.01, max = 0.1 }, workerEnvironment = { LISTEN = '127.0.0.1:%d', PORT = '%d' } }]]

local NODE_APP = [[
require('http').createServer((request, response) => {
    setTimeout(() => response.end(`${process.pid}`), Math.random() * 20)
}).listen(Number(process.env.PORT))]]

local function after(ms, what)
    local timer, over = uv.new_timer(), false
    timer:start(math.max(1, math.floor(ms)), 0, function()
        timer:close()
        what()
        over = true
    end)
    return function()
        return over
    end
end

-- One death, some time from now. -> function() -> whether another master has taken over since
local function death_after(m, ms, way)
    local count = #m:records(TOOK_OVER)
    local died = after(ms, function()
        local pid = kept.pid(m)
        if pid then
            uv.kill(pid, way)
            if way == 'sigstop' then -- as after a minute without a sign of life
                after(50, function() uv.kill(pid, 'sigkill') end)
            end
        end
    end)
    return function()
        return died() and #m:records(TOOK_OVER) > count
    end
end

local kinds = { { name = 'Lua', extension = 'lua', more = '' }, { name = 'Node', extension = 'js', more = '' } }

local function start(kind, port)
    return kept.start { script = SCRIPT:format(kind.extension, kind.more, port, port),
        files = { ['app.lua'] = apps.http, ['app.js'] = NODE_APP } }
end

-- Whoever was at work when its master died is as it should be in the end.
local function settle(m, workers)
    m:wait_until(function()
        local out = cli.run(m, { 'status', m.script }).out
        return out:find(('%d of %d workers serving'):format(workers, workers), 1, true) and out:find 'steady'
            and #m:workers() == workers
    end, ('%d workers to serve'):format(workers))
end

local moments = {
    { 'idle', function(m, death)
        m:wait_until(death, 'another master')
        settle(m, 2)
    end },
    { 'in a roll with a canary', function(m, death)
        local restart = cli.run(m, { 'restart', '--wait', m.script })
        assert.equal(0, restart.code, restart.out .. restart.err .. m:dump())
        m:wait_until(death, 'another master')
        settle(m, 2)
    end },
    { 'in a roll that fails', function(m, death)
        local file = m.extension == 'lua' and 'app.lua' or 'app.js'
        local good = assert(io.open(m:path(file))):read '*a'
        m:rewrite(file, m.extension == 'lua' and 'os.exit(3)' or 'process.exit(3)')
        local before = m:workers()
        local restart = cli.run(m, { 'restart', '--wait', m.script })
        assert.equal(10, restart.code, restart.out .. restart.err .. m:dump())
        m:wait_until(death, 'another master')
        m:rewrite(file, good)
        settle(m, 2)
        kept.same_workers(m, before)
    end },
    { 'while it scales', function(m, death)
        assert.equal(0, cli.run(m, { 'scale', m.script, '4' }).code)
        m:wait_until(death, 'another master')
        settle(m, 4)
        assert.equal(0, cli.run(m, { 'scale', m.script, '2' }).code)
        settle(m, 2)
    end },
}

describe('a kept master', function()
    after_each(master.cleanup)

    for _, kind in ipairs(kinds) do
        it('may die at any moment under ' .. kind.name .. ' workers', function()
            local port = http.free_port()
            if kind.extension == 'js' then
                local binary = versions.newest()
                if not binary then
                    return pending 'no Node is installed'
                end
                kind.more = ('interpreter = { %q },'):format(binary)
            end
            local m = start(kind, port)
            m.extension = kind.extension
            m:await 'Cluster ready'
            local with_pauses = kept.without_pauses(m)
            local loads = { load.start { port = port, clients = 3, mode = 'keepalive', rate = 150, expect = '.' },
                load.start { port = port, clients = 3, mode = 'close', rate = 150, expect = '.' } }
            for i = 1, TIMES do
                for number, moment in ipairs(moments) do
                    local way = WAYS[(i + number) % #WAYS + 1]
                    local ms = LONGEST_MS * (i - 1 + math.random()) / TIMES
                    local ok, message = pcall(moment[2], m, death_after(m, ms, way))
                    assert(ok, ('%s, %s after %d ms: %s'):format(moment[1], way, ms, tostring(message)))
                end
            end
            with_pauses()
            for _, running in ipairs(loads) do
                local counts = running:stop()
                assert.equal(0, counts.failed, counts.text .. m:dump())
            end
            m:wait_until(function() -- a zombie is seen before its record
                local left, count = {}, 0
                for _, record in ipairs(m.log) do -- in order: what was ended in its fork is forked again, as the same
                    if record.msg == 'Creating new worker' then
                        left[record.workerId] = true
                    elseif record.msg == 'Worker exited' or record.msg == UNFINISHED then
                        left[record.workerId] = nil
                    end
                end
                for _ in pairs(left) do
                    count = count + 1
                end
                return count == 2
            end, 'the exit of each worker but two')
            m:finish { code = 0 }
        end)
    end

    it('may die while it boots and while it stops', function()
        for i = 1, TIMES do
            local m = start(kinds[1], http.free_port())
            m:await 'Creating new worker'
            kept.kill(m, WAYS[i % 2 + 1])
            m:await('Worker listening', { count = 2 })
            settle(m, 2)
            local with_pauses = kept.without_pauses(m)
            m:signal 'SIGTERM'
            m:await 'Shutdown requested'
            local pid = kept.pid(m)
            if pid then
                uv.kill(pid, WAYS[(i + 1) % 2 + 1])
            end
            assert.same({ code = 0 }, m:exit())
            assert.is_true(#m:records 'Shutdown requested' <= 2)
            with_pauses()
            m:finish()
        end
    end)
end)
