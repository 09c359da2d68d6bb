-- As PID 1 of a container: a pid namespace whose init is the master.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'
local kept_master = require 'spec.support.kept'
local pair = require 'spec.support.pair'

local function may_unshare()
    return os.execute 'unshare --pid --fork --mount-proc true 2>/dev/null' == 0
end

-- The pid, as this namespace counts, of the process that is 1 in the one of the master.
local function init_of(m)
    local found
    m:wait_until(function()
        for _, pid in ipairs(m:tree()) do
            local file = io.open(('/proc/%d/status'):format(pid))
            local text = file and file:read '*a' or ''
            if file then
                file:close()
            end
            if text:match 'NSpid:%s+%d+%s+1\n' then
                found = pid
            end
        end
        return found
    end, 'PID 1')
    return found
end

local keeper -- whether there is one, which is PID 1 then
local function start(app, more)
    return master.start {
        keeper = keeper,
        script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = 1, %s }]]):format(more or ''),
        files = { ['app.lua'] = app },
        wrap = { 'unshare', '--pid', '--fork', '--mount-proc', '--kill-child' },
    }
end

for _, kept in ipairs { true, false } do
    describe(kept and 'as PID 1' or 'as PID 1, without a keeper', function()
        before_each(function()
            keeper = kept
        end)
        after_each(master.cleanup)

        if not may_unshare() then
            return it('is tried where namespaces may be made', function()
                pending 'unshare --pid is not allowed here'
            end)
        end

        it('obeys SIGTERM and SIGINT, with the right exit status', function()
            for _, signal in ipairs { 'sigterm', 'sigint' } do
                local m = start(apps.idle)
                m:await 'Cluster ready'
                uv.kill(init_of(m), signal)
                assert.same({ code = 0 }, m:exit())
                assert.equal(1, m:records('Cluster ready')[1].pid)
                m:finish()
            end
        end)

        it('has exit status 1 when a worker had to be killed, 78 for a bad script', function()
            local m = start(apps.stubborn, 'stopTimeout = 0.2, killTimeout = 0.2')
            m:await 'Cluster ready'
            uv.kill(init_of(m), 'sigterm')
            assert.same({ code = 1 }, m:exit())
            m:finish { code = 1 }
            m = start('', 'numWorkers = 0')
            assert.same({ code = 78 }, m:exit())
            m:finish { code = 78 }
        end)

        it('reaps strangers', function()
            -- Each worker leaves a grandchild in a session of its own, whose parent is then PID 1.
            local m = start([[
                require('dutch-master.worker').ready()
                local uv = require 'luv'
                for _ = 1, 5 do
                    uv.spawn('setsid', { args = { 'sh', '-c', 'exec sleep 0.3' }, detached = true })
                end
                local timer = uv.new_timer()
                timer:start(100, 0, function() os.exit(1) end)
            ]], 'backoff = { first = 0.05, max = 0.1 }')
            m:await('Worker exited', { count = 5 })
            local init = init_of(m)
            m:wait_until(function()
                local children = ''
                for _, parent in ipairs { init, pair.master(init) } do
                    local file = assert(io.open(('/proc/%d/task/%d/children'):format(parent, parent)))
                    children = children .. file:read '*a'
                    file:close()
                end
                for pid in children:gmatch '%d+' do
                    local status = io.open(('/proc/%s/status'):format(pid))
                    local text = status and status:read '*a' or ''
                    if status then
                        status:close()
                    end
                    if text:find 'State:%s+Z' then
                        return false
                    end
                end
                return true
            end, 'no zombie')
            uv.kill(init, 'sigterm')
            assert.same({ code = 0 }, m:exit())
            m:finish()
        end)

        it('answers the command line from outside', function()
            local m = start(apps.idle)
            m:await 'Cluster ready'
            if keeper then
                kept_master.kill(m, 'sigkill', init_of(m)) -- the next one answers
            end
            local c = cli.run(m, { 'status' })
            assert.equal(0, c.code, c.err)
            assert.matches(keeper and 'keeper: pid 1, master: pid %d' or 'master: pid 1,', c.out)
            assert.equal(0, cli.run(m, { 'stop', '--wait' }).code)
            assert.same({ code = 0 }, m:exit())
            m:finish()
        end)
    end)
end
