-- Memory runs out, and the kernel kills: a worker that takes it, or the master. In a memory cgroup of this spec's own.

local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local files = require 'spec.support.files'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local memory_cgroup = require 'spec.support.memory_cgroup'

local TIMES = tonumber(os.getenv 'DM_KILLS') or 2
-- Above what the cluster takes: its own ups and downs are less. (A sanitizer takes much for each process.)
local ROOM = (os.getenv 'DM_SANITIZE' and 250 or 24) * 2 ^ 20
local MORE = 2 ^ 20 -- than there is: a master that ends gives back several times as much
local TOOK_OVER = 'The former master died, this one has taken over'

-- One that finds this file takes all memory there is, and serves nobody.
local EATS = [[
if os.remove 'eat' then
    local kept = {}
    while true do
        kept[#kept + 1] = ('%d'):format(#kept) .. ('x'):rep(2 ^ 20)
    end
end
]]

-- The kernel takes this one before all others.
local function choose(pid)
    local file = assert(io.open(('/proc/%d/oom_score_adj'):format(pid), 'w'))
    file:write '1000'
    file:close()
end

local function scale(m, count)
    assert.equal(0, cli.run(m, { 'scale', m.script, tostring(count) }).code)
end

local function settle(m, count)
    m:wait_until(function()
        local out = cli.run(m, { 'status', m.script }).out
        return out:find(('%d of %d workers serving'):format(count, count), 1, true) and #m:workers() == count
    end, ('%d workers to serve'):format(count))
end

describe('when memory runs out', function()
    local group

    after_each(function()
        master.cleanup()
        if group then
            assert(group:remove())
            group = nil
        end
    end)

    it('the kernel kills a worker, or the master, and both say so: its keeper is smaller, and starts another', function()
        local why
        group, why = memory_cgroup.new()
        if not group then
            return pending('no memory cgroup can be made here: ' .. why)
        end
        local port = http.free_port()
        local m = kept.start { wrap = group.wrap, script = ([[require('dutch-master').start { worker = 'app.lua',
            numWorkers = 2, restartSoak = 0, backoff = { first = 0.01, max = 0.1 },
            workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]):format(port),
            files = { ['app.lua'] = EATS .. apps.http } }
        m:await 'Cluster ready'
        local before = m:workers()
        local running = load.start { port = port, clients = 3, mode = 'keepalive', rate = 150, expect = '.' }
        local with_pauses = kept.without_pauses(m)
        kept.await_quiet(m)
        assert.is_nil(kept.kill(m).reason) -- somebody's, and not for want of memory
        local said = cli.run(m, { 'why', m.script }).out
        assert.truthy(said:find('The master was killed by SIGKILL', 1, true), said)
        m:rewrite('eat', '')
        group:limit(group:used() + ROOM)
        scale(m, 3)
        m:await { msg = 'Worker exited', signal = 'SIGKILL' }
        settle(m, 3)
        said = cli.run(m, { 'why', m.script }).out
        assert.truthy(said:find('The kernel killed it because memory ran out', 1, true), said)
        scale(m, 2)
        settle(m, 2)
        for i = 1, TIMES do
            kept.await_quiet(m)
            assert.is_true(files.rss_kb(m.pid) < files.rss_kb(kept.pid(m)))
            for _, pid in ipairs(m:workers()) do
                assert.is_true(files.rss_kb(m.pid) < files.rss_kb(pid))
            end
            choose(kept.pid(m))
            local killed, over = group:kills(), false
            group:limit(group:used() + ROOM)
            group:take(ROOM + MORE, function()
                over = true
            end)
            local record = m:await(TOOK_OVER, { count = i + 1 })
            assert.same({ 'SIGKILL', 'memory ran out' }, { record.signal, record.reason }, m:dump())
            m:wait_until(function() return over end, 'memory to be given back')
            assert.is_true(group:kills() > killed)
            settle(m, 2)
        end
        said = cli.run(m, { 'why', m.script }).out
        assert.truthy(said:find('The master was killed by the kernel because memory ran out', 1, true), said)
        with_pauses()
        kept.same_workers(m, before)
        local counts = running:stop()
        assert.equal(0, counts.failed, counts.text .. m:dump())
        m:finish { code = 0 }
    end)

    it('a master that gets none ends at the first thing that fails, before anybody hears of it', function()
        if os.getenv 'DM_SANITIZE' then
            return pending 'a sanitizer takes address space as it likes'
        end
        local port = http.free_port()
        local m = kept.start { script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = 2,
            workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]):format(port), files = { ['app.lua'] = apps.http } }
        m:await 'Cluster ready'
        local with_pauses, before = kept.without_pauses(m), m:workers()
        for i = 1, 2 do -- a third one that dies early would be the end of the state
            kept.await_quiet(m)
            assert(os.execute(('prlimit --pid %d --as=4096:4096'):format(kept.pid(m))) == 0)
            m:wait_until(function()
                cli.run(m, { 'why', '--json', m.script })
                return #m:records(TOOK_OVER) == i
            end, 'another master')
            settle(m, 2)
            local failed = select(2, m.stderr:gsub('not enough memory', ''))
            assert.is_true(failed <= i, m:dump())
        end
        assert.same({}, m:records 'Internal error')
        with_pauses()
        kept.same_workers(m, before)
        m:finish { code = 0 }
    end)
end)
