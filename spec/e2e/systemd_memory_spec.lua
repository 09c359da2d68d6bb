-- Memory runs out in a unit with MemoryMax=, under a real systemd with cgroups of version 2, of which it hears that the
-- kernel kills for want of memory: a worker, or the master.

local cjson = require 'cjson'
local uv = require 'luv'
local machine = require 'spec.support.machine'
local own_kernel = require 'spec.support.own_kernel'

local UNIT = 'dutch-master@my-app'

local MASTER = [[
local dutch = require 'dutch-master'
dutch.start {
    worker = 'app.lua', backoff = { first = 0.05, max = 0.2 },
    beforeFork = function() dutch.chdir '/srv/my-app/current' end,
}
]]

-- SIGUSR2 has it take all memory there is, as soon as it owes nobody an answer.
local APP = [[
local ffi = require 'ffi'
local uv = require 'luv'
ffi.cdef 'void *malloc(size_t);'
local worker = require 'dutch-master.worker'
local server = assert(worker.listen '127.0.0.1:8000')
local body = tostring(uv.os_getpid())
local answer = ('HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s'):format(#body, body)
local open = 0

local function eat()
    ffi.fill(ffi.C.malloc(2 ^ 27), 2 ^ 27, 1)
end

local hungry = false
local signal = uv.new_signal()
signal:start('sigusr2', function()
    hungry = true
    if open == 0 then eat() end
end)

server:accept(function(connection)
    open = open + 1
    local seen = ''
    connection:read_start(function(_, data)
        if not data then
            if not connection:is_closing() then
                connection:close(function()
                    open = open - 1
                    if hungry and open == 0 then eat() end
                end)
            end
            return
        end
        seen = seen .. data
        if seen:find('\r\n\r\n', 1, true) then
            connection:write(answer)
            connection:shutdown()
        end
    end)
end)
]]

-- Asks until the file is gone, at most a minute, and says how many requests there were and how many failed.
local CLIENT = [[
local uv = require 'luv'
local load = require 'spec.support.load'
local wait = require 'spec.support.wait'
local running = load.start { port = 8000, clients = 2, rate = 20, expect = '^%d+$' }
wait.try(function() return not uv.fs_stat '/run/asking' end, { timeout = 60000 })
local counts = running:stop()
print(('asked %d, failed %d: %s'):format(counts.total, counts.failed, counts.text))
]]

-- In the unit's cgroup: takes memory until the kernel has killed somebody, and then no more.
local TAKER = [[
local ffi = require 'ffi'
ffi.cdef 'void *malloc(size_t);'
local group = arg[1]
local function read(name)
    local file = assert(io.open(group .. '/memory.' .. name))
    local text = file:read '*a'
    file:close()
    return text
end
local function take(bytes)
    ffi.fill(ffi.C.malloc(bytes), bytes, 1)
end
local procs = assert(io.open(group .. '/cgroup.procs', 'w'))
procs:write '0'
procs:close()
local before = read 'events':match 'oom_kill (%d+)'
take(tonumber(read 'max') - tonumber(read 'current'))
while read 'events':match 'oom_kill (%d+)' == before do
    take(2 ^ 17)
end
]]

-- What there is to see, when `why` says this and the workers serve.
local LOOK = [[
unit=dutch-master@my-app script=/srv/my-app/current/master.lua
until why=$(dutch-master why $script 2>/dev/null) && case $why in *"%s"*) ;; *) false ;; esac &&
    dutch-master status $script 2>/dev/null | grep -q 'steady, 2 of 2'; do :; done
echo '= why'; echo "$why"
echo '= status'; dutch-master status --json $script
echo '= unit'; systemctl show $unit
echo '= journal'; journalctl -o cat -u $unit
]]

describe('when memory runs out in a unit with MemoryMax=', function()
    local there, why_not = own_kernel.available()
    local m

    if not there then
        return it('the kernel kills a worker, or the master, and the unit goes on', function()
            pending(why_not)
        end)
    end

    after_each(function()
        local last = m
        m = nil
        machine.over(last)
    end)

    -- @return the properties of the unit, and status (a table), why and journal (texts)
    local function look(why)
        local seen, name = {}, nil
        for line in m:must(LOOK, why):gmatch '([^\n]*)\n' do
            name = line:match '^= (%l+)$' or name
            seen[name] = seen[name] and seen[name] .. line .. '\n' or ''
        end
        local properties = { status = cjson.decode(seen.status), why = seen.why, journal = seen.journal }
        for key, value in seen.unit:gmatch '(%w+)=([^\n]*)' do
            properties[key] = value
        end
        return properties
    end

    -- @return how many workers are the same
    local function still_there(before, after)
        local count = 0
        for _, worker in ipairs(after.status.workers) do
            for _, former in ipairs(before.status.workers) do
                count = count + (worker.pid == former.pid and 1 or 0)
            end
        end
        return count
    end

    -- @return a function that ends them, and gives how many there were and how many of them failed
    local function begin_requests()
        m:write('/run/client.lua', CLIENT)
        m:must("touch /run/asking; cd '%s'; luajit -joff /run/client.lua >/run/asked 2>&1 &", uv.cwd())
        return function()
            m:must 'rm /run/asking'
            local said = m:await('asked [^\n]+', 'cat /run/asked')
            return tonumber(said:match 'asked (%d+)'), tonumber(said:match 'failed (%d+)'), said
        end
    end

    local function start(policy)
        m:write(('/run/systemd/system/%s.service.d/limit.conf'):format(UNIT), '[Service]\nMemoryMax=32M\n' .. policy)
        -- systemd 252 may keep the count of kills over a restart, and take the next one for none. Stopped, it is forgotten.
        m:must('systemctl stop %s && systemctl daemon-reload && systemctl start %s', UNIT, UNIT)
        return look ''
    end

    local function eat()
        m:must "pkill -USR2 -o -f 'dutch-master --lua-worker'"
    end

    local function says(text, part)
        assert.truthy(text:find(part, 1, true), text)
    end

    local function same_unit(before, after)
        assert.same({ 'active', 'success', before.MainPID, before.NRestarts, '2 of 2 workers serving, generation 1' },
            { after.ActiveState, after.Result, after.MainPID, after.NRestarts, after.StatusText })
    end

    it('the kernel kills a worker, or the master, and the unit goes on', function()
        local reason
        m, reason = own_kernel.start()
        if not m then
            return pending(reason)
        end
        m:write('/srv/my-app/current/app.lua', APP)
        m:write('/srv/my-app/current/master.lua', MASTER)
        m:must 'chown -R my-app: /srv/my-app'

        -- A worker. The unit is the one that is installed, but for the limit.
        local before = start ''
        assert.same({ 'continue', tostring(32 * 2 ^ 20), '0' }, { before.OOMPolicy, before.MemoryMax, before.NRestarts })
        local end_requests = begin_requests()
        eat()
        local after = look 'The kernel killed it because memory ran out'
        same_unit(before, after)
        assert.equal(1, still_there(before, after))
        assert.equal(before.status.master_pid, after.status.master_pid)
        says(after.journal, 'killed by the OOM killer') -- systemd has seen it, and done nothing

        -- The master: the kernel takes it before all others.
        before = after
        m:write('/run/taker.lua', TAKER)
        m:must("echo 1000 >/proc/%s/oom_score_adj; luajit /run/taker.lua '/sys/fs/cgroup%s'", before.status.master_pid, before.ControlGroup)
        after = look 'The master was killed by the kernel because memory ran out'
        same_unit(before, after)
        assert.not_equal(before.status.master_pid, after.status.master_pid)
        -- One that was in the middle of a message is replaced, sooner or later, and nobody sees it.
        local _, in_use = after.journal:gsub('Its channel was in use when the former master died', '')
        assert.is_true(still_there(before, after) >= 2 - in_use, after.journal)
        says(after.journal, 'The former master died, this one has taken over')
        local count, failed, said = end_requests()
        assert.is_true(count > 0)
        assert.equal(0, failed, said .. '\n' .. after.journal)

        -- Why the unit has OOMPolicy=continue: what systemd does of itself.
        before = start 'OOMPolicy=stop\n'
        eat()
        m:await('^1\n', 'systemctl show -p NRestarts --value %s', UNIT)
        after = look ''
        assert.not_equal(before.MainPID, after.MainPID)
        assert.equal(0, still_there(before, after))
        says(after.journal, "Failed with result 'oom-kill'")
    end)
end)
