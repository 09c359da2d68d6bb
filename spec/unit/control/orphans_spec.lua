-- What a master that was killed has left behind: who it is, and how it is ended.

local orphans = require 'dutch-master.control.orphans'

-- A /proc of tables. processes: pid -> { environ, name, group, state, dies_of = set of signals }
local function new_world(processes, lock)
    local world = { processes = processes, signals = {}, open = 0, clock = 0 }
    world.platform = {
        runtime_dir = function() return '/run' end,
        stat = function(path) return processes[tonumber(path:match '^/proc/(%d+)$')] end,
        list = function()
            local names = { 'self' }
            for pid in pairs(processes) do
                names[#names + 1] = tostring(pid)
            end
            return names
        end,
        read_file = function(path)
            local pid, file = path:match '^/proc/(%d+)/(%w+)$'
            local process = processes[tonumber(pid)]
            if path:find '%.lock$' then
                return lock
            elseif process and file == 'environ' then
                return process.environ
            end
            return process and ('%s (%s) %s 1 %d'):format(pid, process.name, process.state or 'S', process.group)
        end,
        open_process = function(pid)
            world.open = world.open + 1
            return processes[pid] and pid
        end,
        close_fd = function()
            world.open = world.open - 1
            return true
        end,
        signal_process = function(pid, name)
            table.insert(world.signals, ('%s %d'):format(name, pid))
            if processes[pid] and processes[pid].dies_of[name] then
                processes[pid] = nil
            end
        end,
        now = function() return world.clock end,
        timer = function(fn)
            world.fire = fn
            return { start = function(_, ms) world.clock, world.armed = world.clock + ms, true end }
        end,
    }
    function world.run()
        while world.armed do
            world.armed = false
            world.fire()
        end
    end
    return world
end

local function worker(fields)
    fields.environ = ('A=b\0DUTCH_MASTER_PID=%d\0DUTCH_MASTER_WORKER=%d\0'):format(fields.master or 7, fields.worker or 1)
    fields.dies_of = fields.dies_of or { SIGTERM = true, SIGKILL = true }
    return fields
end

describe('orphans', function()
    it('are those of a master that has died, and of no other', function()
        local world = new_world({
            [20] = worker { name = 'a b) c', group = 20, worker = 3 },
            [21] = worker { name = 'helper', group = 20, worker = 3 },
            [22] = worker { name = 'other', group = 22, master = 8 },
            [23] = worker { name = 'zombie', group = 23, state = 'Z' },
            [24] = { name = 'sh', group = 24, environ = 'DUTCH_MASTER_PID=7\0' },
        }, '7\n')
        local platform = world.platform
        assert.equal(7, orphans.predecessor(platform, '/app/master.lua'))
        assert.equal(7, orphans.master_of(platform, 21))
        local list = orphans.find(platform, 7)
        assert.same({ 'a b) c (pid 20)', 'helper (pid 21)' }, orphans.names(list))
        assert.same({ true, false }, { list[1].leads, list[2].leads })
        orphans.forget(platform, list)
        assert.equal(0, world.open)
    end)

    it('are nobody\'s while their master lives', function()
        local world = new_world({ [7] = { name = 'dutch-master' }, [20] = worker { name = 'a', group = 20 } }, '7\n')
        assert.is_nil(orphans.predecessor(world.platform, '/app/master.lua'))
        assert.is_nil(orphans.master_of(world.platform, 20))
    end)

    it('are asked, then what they leave, and killed at the end of their time', function()
        local world, killed = new_world({
            [20] = worker { name = 'worker', group = 20, dies_of = { SIGQUIT = true } },
            [21] = worker { name = 'helper', group = 20 },
            [22] = worker { name = 'stubborn', group = 20, dies_of = { SIGKILL = true } },
        }), nil
        orphans.stop { platform = world.platform, master = 7, signal = 'SIGQUIT', timeout_ms = 500,
            done = function(count) killed = count end }
        world.run()
        assert.equal(1, killed)
        assert.same({}, world.processes)
        assert.equal('SIGQUIT 20', world.signals[1])
        assert.equal('SIGKILL 22', world.signals[#world.signals])
        assert.equal(0, world.open)
    end)

    it('have sockets that are taken over, each once; what cannot be had has a reason', function()
        local world = new_world({ [20] = worker { name = 'a', group = 20 }, [21] = worker { name = 'b', group = 21 } })
        local platform = world.platform
        local list = orphans.find(platform, 7)
        local links = { ['0'] = '/dev/null', ['3'] = 'socket:[55]', ['4'] = 'socket:[56]', ['5'] = 'socket:[57]' }
        local proc = platform.list
        function platform.list(path)
            if path == '/proc' then
                return proc(path)
            end
            return { '0', '3', '4', '5' }
        end
        function platform.readlink(path)
            return links[path:match '%d+$']
        end
        local copied = {}
        function platform.copy_listener(process, number)
            copied[#copied + 1] = process .. '/' .. number
            if number == 4 then
                return nil, 'descriptor of another process: not a socket', 'ENOTSOCK'
            elseif number == 5 and process == 20 then
                return nil, 'closed', 'EBADF'
            end
            return { fd = number }
        end
        local sockets = orphans.sockets(platform, list)
        assert.same({ { fd = 3 }, { fd = 5 } }, sockets)
        assert.same({ '20/3', '20/4', '20/5', '21/5' }, copied)
        function platform.copy_listener()
            return nil, 'not permitted', 'EPERM'
        end
        assert.same({ nil, 'not permitted' }, { orphans.sockets(platform, list) })
        links = {}
        assert.same({ nil, 'they listen on none' }, { orphans.sockets(platform, list) })
        orphans.forget(platform, list)
    end)
end)
