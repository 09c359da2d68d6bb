-- A state that is made of what the keeper holds and of what the kernel says.

local kinds = require 'dutch-master.launch.kinds'
local salvage = require 'dutch-master.keeper.salvage'

local function tcp(port)
    return { type = 'stream', family = 'inet', host = '127.0.0.1', port = port, text = '127.0.0.1:' .. port }
end

-- Workers 3 (serves), 5 (has a unix socket alone), 6 (a Node worker with no socket yet).
local STORE = { lock = 4, claim = 5, ['control/1'] = 6, ['control/2'] = 7, ['lane/1.1'] = 10, ['lane/1.4'] = 11,
    ['lane/2.1'] = 12, ['lane/3.1'] = 13, ['pid/3'] = 20, ['pid/5'] = 21, ['pid/6'] = 22, ['channel/3.0'] = 23,
    ['channel/6.12'] = 24, ['out/3'] = 25, ['err/3'] = 26, ['notify/5'] = 27 }
local SOCKETS = {
    [6] = { { type = 'stream', family = 'unix', path = '/run/a.sock', text = 'unix:/run/a.sock' } },
    [7] = { { type = 'stream', family = 'unix', path = '/run/a.sock', text = 'unix:/run/a.sock' } },
    [10] = { tcp(80), true }, [11] = { tcp(80), true },
    [12] = { { type = 'stream', family = 'unix', path = '/run/web', text = 'unix:/run/web' }, false },
    [13] = { tcp(99), false },
}
local LINKS = {
    ['/proc/self/fd/4'] = '/run/a.lock (deleted)', ['/proc/self/fd/10'] = 'socket:[110]',
    ['/proc/self/fd/11'] = 'socket:[111]', ['/proc/self/fd/12'] = 'socket:[112]', ['/proc/self/fd/13'] = 'socket:[113]',
    ['/proc/self/fd/3'] = 'socket:[113]', -- came from outside
    ['/proc/303/fd/1'] = '/dev/null', ['/proc/303/fd/9'] = 'socket:[110]', ['/proc/303/fd/10'] = 'socket:[112]',
    ['/proc/505/fd/3'] = 'socket:[112]',
}

local platform = {
    now = function() return 500000 end,
    readlink = function(path) return LINKS[path] end,
    list = function(path)
        local names = {}
        for link in pairs(LINKS) do
            names[#names + 1] = link:match('^' .. path .. '/(%d+)$')
        end
        return names
    end,
    bound = function(fd) return unpack(SOCKETS[fd] or {}) end,
    stat = function(path) return path == '/run/web' and { dev = 1, ino = 2 } or nil end,
    address = function(text) return { text = text, type = 'stream', port = tonumber(text:match ':(%d+)$') } end,
    read_file = function(path)
        return path == '/proc/505/environ' and 'A=1\0NOTIFY_SOCKET=@dm/5\0' or nil
    end,
}

local function state_for(plan, count)
    local kept = { store = STORE, pids = { ['pid/3'] = 303, ['pid/5'] = 505, ['pid/6'] = 606 } }
    return salvage.state(kept, { platform = platform, loaded = { plan = plan, num_workers = count },
        kind = kinds.of(plan), paths = { '/run/a.sock' }, inherited = { { fd = 3 } }, reason = 'spoilt' })
end

describe('a state made without a snapshot', function()
    local plan = { worker = 'app.js', kind = 'node', restart_signal = 'SIGHUP',
        listen = { { address = 'unix:/run/web', mode = 438 }, '127.0.0.1:81' } }

    it('has the workers that the keeper has, who serves most first, each in a slot, and asks for others', function()
        local cluster = state_for(plan, 2).cluster
        assert.same({ 3, 5, 6 }, { cluster.workers[1].id, cluster.workers[2].id, cluster.workers[3].id })
        assert.same({ 303, 505, 606 }, { cluster.workers[1].pid, cluster.workers[2].pid, cluster.workers[3].pid })
        assert.equal(3, cluster.wanted) -- until the plan's number is taken over, with the restart
        assert.not_equal(2, cluster.configured)
        assert.same({ 3, 5, 6 }, { cluster.slots[1].current, cluster.slots[2].current, cluster.slots[3].current })
        assert.same({ request = { cause = 'master', reason = 'spoilt' } }, cluster.restart)
        assert.equal('filling', state_for(plan, 4).cluster.slots[4].state)
    end)

    it('knows what each worker has by the names in the store, and its environment', function()
        local workers = state_for(plan, 2).cluster.workers
        assert.same({ pidfd = 'pid/3', channel = 'channel/3.0', out = 'out/3', err = 'err/3', reports = 1, mark = 0 },
            workers[1].process)
        assert.same({ pidfd = 'pid/5', reports = 1 }, workers[2].process)
        assert.equal(12, workers[3].process.mark)
        assert.same({ 'disconnect', 'signal', 'disconnect' }, { workers[1].asks, workers[2].asks, workers[3].asks })
        assert.same({ fd = 'notify/5', name = '@dm/5' }, workers[2].notify)
        assert.is_nil(workers[2].conversation)
        assert.is_true(workers[1].conversation.next_key > 1000000) -- no key that is open there already
    end)

    it('has the listeners by their addresses, and who holds which lane', function()
        local directory = state_for(plan, 2).sockets.directory
        assert.equal(1, #directory.plan) -- the other is opened with the restart
        local web, tcp_one = directory.plan[1], directory.asked[1]
        assert.equal(438, web.mode)
        assert.same({ shared = true, uncertain = true, device = 1, inode = 2 }, web.listener)
        assert.is_nil(web.found)
        assert.equal(1, #directory.asked) -- the one from outside is there by its number
        assert.same({ true, false, 2 }, { tcp_one.found, tcp_one.listener.shared, #tcp_one.lanes })
        assert.equal(4, tcp_one.lane_count)
        assert.same({ 3 }, { tcp_one.lanes[1].users[1].id })
        assert.same({}, tcp_one.lanes[2].users)
        assert.same({}, web.lanes[1].users)
        assert.same({ { id = 3, lane = '2.1' }, { id = 5, lane = '2.1' } }, web.guests)
        assert.equal(2, directory.opened)
    end)

    it('has the place of the master: lock and control sockets, the newest last', function()
        local state = state_for(plan, 2)
        assert.same({ lock = 'lock', name = 'claim', lock_path = '/run/a.lock', paths = { '/run/a.sock' } },
            state.claim)
        assert.same({ 'control/1', 'control/2' }, { state.control.servers[1].fd, state.control.servers[2].fd })
        assert.equal(2, state.control.opened)
        assert.equal(7, salvage.next_id { store = STORE })
    end)
end)
