local fake = require 'spec.support.fake_cluster'
local Leftovers = require 'dutch-master.cluster.leftovers'

describe('leftovers', function()
    local world, platform, leftovers, orphans, signals, lives

    -- A process that became ours: of a worker, by its environment, or of nobody.
    local function leave(pid, worker, more)
        local orphan = { start = pid * 10, command = 'daemon', master = tostring(platform.pid()),
            worker = worker and tostring(worker) }
        for key, value in pairs(more or {}) do
            orphan[key] = value
        end
        orphans[pid] = orphan
    end

    local function ended(id, plan)
        lives[id] = nil
        leftovers:ended { id = id, leaving = {}, plan = fake.plan(plan), log = world.log:child { workerId = id } }
    end

    before_each(function()
        world = fake.new { plan = fake.plan {} }
        platform, orphans, signals, lives = world.platform, {}, {}, { [1] = true, [2] = true }
        function platform.adopted()
            local list = {}
            for pid in pairs(orphans) do
                list[#list + 1] = pid
            end
            table.sort(list)
            return list
        end
        function platform.proc_stat(pid)
            return orphans[pid] and { starttime = orphans[pid].start }
        end
        function platform.origin(pid)
            return orphans[pid]
        end
        function platform.signal_adopted(pid, name)
            signals[#signals + 1] = ('%s %d'):format(name, pid)
            if name == 'SIGKILL' or name == 'SIGTERM' and orphans[pid].obeys then
                orphans[pid] = nil
            end
            return true
        end
        leftovers = Leftovers.new { platform = platform, log = world.log,
            lives = function(id)
                return lives[id] == true
            end,
            plan = function()
                return fake.plan {}
            end }
    end)

    after_each(function()
        leftovers:close()
        assert.equal(0, platform:armed())
    end)

    it('are named when their worker ends, asked after leftoverTimeout, and killed killTimeout later', function()
        leave(70, 1)
        leave(71, 1, { obeys = true })
        leave(72, 2)
        ended(1, { leftover_timeout_ms = 2000, kill_timeout_ms = 500 })
        local said = world.records[#world.records]
        assert.equal('Worker left processes behind in sessions of their own', said.msg)
        assert.same({ 1, 2, 2, { 'daemon (pid 70)', 'daemon (pid 71)' } },
            { said.workerId, said.count, said.endsIn, said.processes })
        platform:advance(1990)
        assert.same({}, signals)
        platform:advance(20)
        assert.same({ 'SIGTERM 70', 'SIGCONT 70', 'SIGTERM 71', 'SIGCONT 71' }, signals)
        platform:advance(600)
        assert.equal('SIGKILL 70', signals[#signals])
        platform:advance(1100)
        assert.same({}, { orphans[70], orphans[71] })
        assert.is_table(orphans[72]) -- its worker lives
        assert.equal(0, platform:armed())
    end)

    it('which appear when one of them ends go the same way, though its worker ended long ago', function()
        leave(70, 1)
        ended(1, { leftover_timeout_ms = 1000, kill_timeout_ms = 500 })
        function platform.signal_adopted(pid, name)
            signals[#signals + 1] = ('%s %d'):format(name, pid)
            if name == 'SIGKILL' then
                orphans[pid] = nil
                if pid < 75 then
                    leave(pid + 1, 1)
                end
            end
        end
        platform:advance(20000)
        assert.same({}, orphans)
        assert.equal('SIGKILL 75', signals[#signals])
    end)

    it('stay by choice, and are named once', function()
        leave(70, 1)
        ended(1, { leftover_timeout_ms = false })
        platform:advance(60000)
        ended(2)
        assert.same({}, signals)
        assert.is_table(orphans[70])
    end)

    it('are not what the script or another master started, nor what cleared its environment', function()
        leave(70, nil)
        leave(71, 1, { master = '4242' })
        leave(72, 'x')
        ended(1, { leftover_timeout_ms = 0, kill_timeout_ms = 0 })
        platform:advance(5000)
        assert.same({}, signals)
        assert.equal(0, world.count 'Worker left processes behind in sessions of their own')
    end)

    it('are told apart from who has their number now', function()
        leave(70, 1)
        ended(1, { leftover_timeout_ms = 1000 })
        leave(70, 2, { start = 5 })
        platform:advance(60000)
        assert.same({}, signals)
    end)

    it('hold nobody up when they are very many', function()
        local asked = 0
        for pid = 1000, 1999 do
            leave(pid, 1)
        end
        local origin = platform.origin
        function platform.origin(pid)
            asked = asked + 1
            return origin(pid)
        end
        ended(1, { leftover_timeout_ms = 0, kill_timeout_ms = 0 })
        assert.equal(100, asked)
        platform:advance(30000)
        assert.same({}, orphans)
    end)
end)
