local core = require 'dutch-master.core'
local linux = require 'dutch-master.linux'
local loop = require 'spec.loop'
local unistd = require 'posix.unistd'
local p = require 'spec.support.process'

local function block(ms)
    local stop = core.now() + ms
    while core.now() < stop do end -- luacheck: ignore
end

local function is_gone(pid)
    return linux.proc_stat(pid) == nil
end

-- The first call opens a descriptor that stays.
core.signals({}, function() end)

-- A shell that ends once `script`, run in a session of its own, has written a line to $0. Until it has its session it
-- is of the shell's group, and would be killed with it.
local function leave(script)
    local fifo = os.tmpname()
    os.remove(fifo)
    local record = p.sh(([[mkfifo %s; setsid -f sh -c '%s' %s; read line < %s; rm %s]]):format(fifo, script, fifo, fifo,
        fifo))
    p.exit_of(record)
end

describe('reaper', function()
    p.leaves_nothing()

    it('sees 200 children that exit at once', function()
        local records = {}
        for i = 1, 200 do
            records[i] = p.sh('read line <&3; exit ' .. i, { channel = true })
        end
        p.await(function()
            for _, record in ipairs(records) do
                if record.execs == 0 then
                    return false
                end
            end
            return true
        end, 20000)
        for _, record in ipairs(records) do
            record.child:close_channel()
        end
        p.await(function() return loop.children() == 0 end, 20000)
        for i, record in ipairs(records) do
            assert.are.equal(i, record.status.code)
            assert.are.equal(1, record.exits)
        end
    end)

    it('loses no exit to 10,000 signals that come while the loop is blocked', function()
        core.signals({ 'SIGUSR1', 'SIGRTMIN' }, function() end)
        local records = {}
        for i = 1, 20 do
            records[i] = p.spawn { '/bin/true' }
        end
        local self = unistd.getpid()
        local storm = p.spawn { '/bin/bash', '-c',
            ('for ((i = 0; i < 5000; i++)); do kill -USR1 %d; kill -RTMIN %d; done'):format(self, self) }
        block(2000)
        p.await(function() return loop.children() == 0 end, 30000)
        for _, record in ipairs(records) do
            assert.are.equal(0, record.status.code)
            assert.are.equal(1, record.exits)
        end
        assert.are.equal(0, storm.status.code)
        core.signals({}, function() end)
    end)

    it('sees exits without any SIGCHLD', function()
        require('spec.loop').lend_sigchld(true) -- unblocked with default action: the kernel drops it
        local record = p.sh 'exit 5'
        assert.are.equal(5, p.exit_of(record).code)
        require('spec.loop').lend_sigchld(false)
    end)

    it('lets callbacks spawn, close and stop while exits are reported', function()
        local second, third = nil, nil
        local first = p.sh('exit 1', {
            channel = true,
            on_exit = function(child)
                child:close_channel()
                child:signal 'SIGKILL'
                second = p.sh('exit 2', { on_exit = function() third = p.sh 'exit 3' end })
            end,
        })
        p.await(function() return third and third.exits == 1 end)
        assert.are.same({ 1, 2, 3 }, { first.status.code, second.status.code, third.status.code })
    end)

    it('kills what is left of the group before the leader is reaped', function()
        local record = p.sh('sleep 1000 & echo $! >&3; exit 0', { channel = true })
        p.exit_of(record)
        local grandchild = tonumber(record.lines[1])
        p.await(function() return is_gone(grandchild) end)
    end)

    it('waits for the rest of a group that is to linger, and keeps its number until then', function()
        local ended
        local record = p.sh('sleep 1000 & echo $! >&3; sleep 1001 & echo $! >&3; exit 7', {
            channel = true, lingers = true, on_leader_exit = function(_, status) ended = status end,
        })
        p.await(function() return ended end)
        assert.are.equal(7, ended.code)
        assert.are.equal(0, record.exits)
        assert.are.equal(1, loop.children())
        local others = record.child:others()
        table.sort(others)
        assert.are.same({ tonumber(record.lines[1]), tonumber(record.lines[2]) }, others)
        -- Exits of others are seen while a zombie is kept.
        assert.are.equal(5, p.exit_of(p.sh 'exit 5').code)
        leave 'echo here > $0; exit 9'
        p.await(function() return #core.adopted() == 2 end)
        assert.is_true(record.child:signal_group 'SIGTERM')
        assert.are.equal(7, p.exit_of(record).code)
        assert.are.equal(1, record.exits)
        assert.is_true(is_gone(others[1]) and is_gone(others[2]))
    end)

    it('lets a leader go whose group is empty because the others left it', function()
        local record = p.sh('setsid sh -c "read x <&3; setsid true; exec sleep 1000" & exit 0',
            { channel = true, lingers = true })
        p.exit_of(record)
        assert.are.equal(0, record.status.code)
        p.await(function() return #core.adopted() > 0 end)
        core.kill_adopted()
    end)

    it('waits for nobody where nobody is left, and not for zombies', function()
        local record = p.sh('true & exit 3', { lingers = true,
            on_leader_exit = function(child) child:signal_group 'SIGKILL' end })
        assert.are.equal(3, p.exit_of(record).code)
        assert.are.equal(1, record.exits)
    end)

    it('kills a lingering group that forks all the time', function()
        local ended
        local record = p.sh('f() { (f) & exit 0; }; (f) & (f) & (f) & exit 0',
            { lingers = true, on_leader_exit = function() ended = true end })
        p.await(function() return ended end)
        assert.is_true(record.child:signal_group 'SIGKILL')
        p.exit_of(record)
        assert.are.same({}, record.child:others())
    end)

    it('reaps a grandchild of another session', function()
        local record = p.sh('setsid sh -c "echo \\$\\$ >&3; exec 3>&-; read x < /dev/null; exit 9" & wait; exit 0',
            { channel = true })
        p.exit_of(record)
        local pid = tonumber(record.lines[1])
        assert.is_number(pid)
        record = p.sh('setsid -f sh -c "echo \\$\\$ >&3; read x <&3; exit 9"; read y <&3', { channel = true })
        p.await(function() return #record.lines == 1 end)
        pid = tonumber(record.lines[1])
        record.child:signal 'SIGKILL'
        p.exit_of(record) -- the channel closes with it, so the grandchild goes as well
        p.await(function() return is_gone(pid) end)
    end)

    it('lists and kills the orphans that it adopted', function()
        leave 'echo here > $0; exec sleep 1000'
        p.await(function() return #core.adopted() == 1 end)
        local pid = core.adopted()[1]
        assert.are.equal(1, core.kill_adopted())
        assert.are.same({}, core.adopted())
        assert.is_nil(p.read('/proc/' .. pid .. '/stat'))
    end)

    it('kills also what these leave behind in their turn', function()
        leave 'sleep 1000 & echo here > $0; wait'
        assert.are.equal(1, #core.adopted())
        assert.are.equal(2, core.kill_adopted())
        assert.are.same({}, core.adopted())
    end)

    it('says whose orphans are, and signals them with their group, and nobody else', function()
        leave 'sleep 1000 & echo here > $0; export GONE=1; wait'
        local pid = core.adopted()[1]
        assert.are.same({ pid }, core.adopted())
        assert.are.equal('sh', linux.origin(pid).command)
        assert.is_nil(linux.origin(pid).worker)
        local mine = p.sh('echo $$ >&3; sleep 1000', { channel = true })
        p.await(function() return #mine.lines == 1 end)
        for _, other in ipairs { tonumber(mine.lines[1]), 1, 0, -1, core.pid() } do
            assert.is_false(core.signal_adopted(other, 'SIGKILL'))
        end
        assert.is_true(core.signal_adopted(pid, 'SIGTERM'))
        p.await(function() return #core.adopted() == 0 end)
        assert.is_false(core.signal_adopted(pid, 'SIGTERM'))
        assert.has_error(function() core.signal_adopted(pid, 'SIGNOTHING') end)
        mine.child:signal 'SIGKILL'
        p.exit_of(mine)
    end)

    it('reaps hundreds of strangers', function()
        local hundred = 'for i in 0 1 2 3 4 5 6 7 8 9; do for j in 0 1 2 3 4 5 6 7 8 9; do read x <&3 & done; done'
        local record = p.sh(("for i in 1 2 3; do setsid -f sh -c '%s'; done; read y <&3"):format(hundred), { channel = true })
        p.await(function() return #core.adopted() == 300 end, 20000)
        record.child:signal 'SIGKILL'
        p.exit_of(record) -- the channel closes with it: the end of all
        p.await(function() return #core.adopted() == 0 end, 20000)
    end)

    it('kills a child that is stopped, and continues one that gets TERM and CONT', function()
        for _, names in ipairs { { 'SIGKILL' }, { 'SIGTERM', 'SIGCONT' } } do
            local record = p.sh 'kill -STOP $$; exit 0'
            p.await(function() return p.read('/proc/' .. record.pid .. '/stat'):match '%) T' end)
            for _, name in ipairs(names) do
                assert.is_true(record.child:signal(name))
            end
            assert.are.equal(names[1], p.exit_of(record).signal)
        end
    end)

    it('takes a stop for no exit', function()
        local record = p.sh 'kill -STOP $$; exit 4'
        p.await(function() return p.read('/proc/' .. record.pid .. '/stat'):match '%) T' end)
        p.step()
        assert.are.equal(0, record.exits)
        record.child:signal 'SIGCONT'
        assert.are.equal(4, p.exit_of(record).code)
    end)

    it('signals the group, and nobody once the leader is reaped', function()
        local record = p.sh('sh -c "echo \\$\\$ >&3; exec sleep 1000" & wait', { channel = true })
        p.await(function() return #record.lines == 1 end)
        assert.is_true(record.child:signal_group 'SIGTERM')
        assert.are.equal('SIGTERM', p.exit_of(record).signal)
        local _, message, code = record.child:signal_group 'SIGTERM'
        assert.are.equal('ESRCH', code)
        assert.are.equal('signal: no such process', message)
        _, _, code = record.child:signal 'SIGTERM'
        assert.are.equal('ESRCH', code)
        assert.are.equal(record.pid, record.child:pid())
        assert.has_error(function() record.child:signal 'SIGFOO' end)
    end)

    it('works where the starter ignored or blocked everything', function()
        local output = p.output_of { '/bin/sh', '-c',
            "trap '' CHLD TERM HUP USR1; exec " .. p.runner .. ' spec/support/reap_two.lua' }
        assert.are.equal('3 SIGTERM\n', output)
    end)

    it('stops all that is left when the process ends, whatever it ignores', function()
        local output = p.output_of({ p.runner, 'spec/support/leave_children.lua' }, 10000)
        local pids = 0
        for pid in output:gmatch '%d+' do
            pids = pids + 1
            assert.is_true(is_gone(tonumber(pid)))
        end
        assert.are.equal(3, pids)
    end)
end)

