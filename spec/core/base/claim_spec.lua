-- Two masters of one user never serve one address, whoever starts when: between bind() and listen() there is one.

local bit = require 'bit'
local core = require 'dutch-master.core'
local net = require 'spec.support.net'
local sys = require 'spec.support.sys'
local uv = require 'luv'
local wait = require 'spec.support.wait'

-- What dm-spec is run by.
local RUNNER = require('spec.support.files').text('/proc/self/cmdline'):match '^[^%z]+'

local left_stopped = {} -- pids of processes that a failed test has left: pclose() waits for them

local function end_all()
    for pid in pairs(left_stopped) do
        uv.kill(pid, 'sigkill')
    end
    left_stopped = {}
end

-- A process that does something, and is stopped before it does the rest. @return function() -> what it says at its end
local function stopped(first, rest, uid)
    local script = os.tmpname()
    local out = assert(io.open(script, 'w'))
    out:write("local ffi = require 'ffi'\n", [[ffi.cdef 'int socket(int, int, int); int listen(int, int);\
        int bind(int, const void *, unsigned); int setsockopt(int, int, int, const void *, unsigned);\
        int getpid(void); int kill(int, int);']], '\n', first, [[
        print(ffi.C.getpid()) io.stdout:flush()
        ffi.C.kill(ffi.C.getpid(), 19)
        ]], rest, '\n')
    out:close()
    assert(sys.C.chmod(script, 420) == 0)
    local run = io.popen((uid and 'setpriv --reuid=%d --regid=%d --clear-groups ' or ''):format(uid, uid)
        .. 'luajit ' .. script)
    local pid = assert(tonumber(run:read '*l'))
    left_stopped[pid] = true
    return function()
        wait.wait_until(function()
            local stat = io.open(('/proc/%d/stat'):format(pid))
            local text = stat:read '*a'
            stat:close()
            return text:find '%) T ' ~= nil
        end, { what = 'that it is stopped' })
        uv.kill(pid, 'sigcont')
        left_stopped[pid] = nil
        local said = run:read '*l'
        run:close()
        os.remove(script)
        return said
    end
end

-- A process that has bound a claim's name and does not listen.
local function sit_on(name, uid)
    return stopped(([[
        local name = string.char(1, 0, 0) .. 'dutch-master/%d/%s'
        local fd = ffi.C.socket(1, 1, 0)
        assert(ffi.C.bind(fd, name, #name) == 0)]]):format(sys.C.geteuid(), name), "print 'gone'", uid)
end

-- Two processes that ask for the same ten addresses at the same moments, again and again.
-- @param prefix what an address is made of, before its number
-- @param stops whether the first of them is stopped again and again
-- @return how many served each of them, by number
local function race(prefix, first, stops)
    local script = os.tmpname()
    local out = assert(io.open(script, 'w'))
    out:write [[
        local core = require 'dutch-master.core'
        local first, last, go = tonumber(arg[1]), tonumber(arg[2]), tonumber(arg[3])
        while core.now() < go do end
        if arg[7] then -- as often as a shell can
            os.execute '(i=0; while [ $i -lt 5000 ] && kill -STOP $PPID && kill -CONT $PPID; do i=$((i+1)); done) &'
        end
        for port = first, last do
            local listener = core.listen(core.address(arg[6] .. port), { reuseport = true })
            print(port, listener and listener:lane() and 'served' or 'refused')
            _G[port] = listener
            while core.now() < go + (port - first + 1) * 10 do end
        end
        io.stdout:flush()
        io.open(arg[4], 'w'):close()
        while not core.stat(arg[5]) and core.now() < go + 60000 do end
    ]]
    out:close()
    -- Each stays until both have asked for all of them.
    local done = { sys.temp_dir() .. '/1', sys.temp_dir() .. '/2' }
    local go, runs = core.now() + 500, {}
    for i = 1, 2 do
        runs[i] = io.popen(('exec %s %s %d %d %d %s %s %s %s'):format(RUNNER, script, first, first + 9, go, done[i],
            done[3 - i], prefix, stops and i == 1 and 'stops' or ''))
    end
    local served, asked = {}, 0
    for _, run in ipairs(runs) do
        for line in run:lines() do
            local port, what = line:match '^(%d+)%s+(%a+)'
            asked = asked + 1
            served[port] = (served[port] or 0) + (what == 'served' and 1 or 0)
        end
        run:close()
    end
    os.remove(script)
    assert.equal(20, asked)
    return served
end

describe('an address', function()
    after_each(end_all)

    it('is had by one of two that ask at the same moment, every time', function()
        -- Below those that the kernel gives to clients: other specs run beside this one, and have many.
        local first = 20000 + sys.C.getpid() % 1200 * 10
        local taken_by_others = 0
        for port, count in pairs(race('127.0.0.1:', first)) do
            assert.is_true(count <= 1, port .. ' is served by two')
            taken_by_others = taken_by_others + (count == 0 and 1 or 0)
        end
        assert.is_true(taken_by_others <= 2, taken_by_others)
    end)

    it('that is a path too', function()
        local where = sys.temp_dir() .. '/sock-'
        for number, count in pairs(race('unix:' .. where, 1)) do
            assert.equal(1, count, where .. number)
        end
    end)

    it('is had by one of two, one of which is stopped again and again', function()
        local first = 8000 + sys.C.getpid() % 1000 * 10
        for port, count in pairs(race('127.0.0.1:', first, true)) do
            assert.is_true(count <= 1, port .. ' is served by two')
        end
        local where = sys.temp_dir() .. '/sock-'
        for number, count in pairs(race('unix:' .. where, 1, true)) do
            assert.is_true(count <= 1, where .. number .. ' is served by two')
        end
    end)

    it('is not lost to one that is stopped between bind and listen', function()
        local port = net.free_port()
        local go_on = stopped(([[
            local name = string.char(2, 0, %d, %d, 127, 0, 0, 1) .. ('\0'):rep(8)
            local fd, one = ffi.C.socket(2, 1, 0), ffi.new('int[1]', 1)
            assert(ffi.C.setsockopt(fd, 1, 2, one, 4) == 0 and ffi.C.bind(fd, name, #name) == 0)]]):format(
            math.floor(port / 256), port % 256), "print(ffi.C.listen(fd, 1) == 0 and 'served' or ffi.errno())")
        local listener = assert(core.listen(core.address('127.0.0.1:' .. port), { reuseport = true }))
        assert(listener:lane())
        assert.equal('98', go_on()) -- EADDRINUSE
        listener:close()
    end)

    it('that is a path neither', function()
        local dir = sys.temp_dir()
        local where, hash = core.stat(dir), 14695981039346656037ULL
        for c in ('sock'):gmatch '.' do
            hash = bit.bxor(hash, c:byte()) * 1099511628211ULL
        end
        local go_on = sit_on(('path/%x/%x/%s'):format(where.dev, where.ino, bit.tohex(hash):gsub('^0+', '')))
        local function open()
            return core.listen(core.address('unix:' .. dir .. '/sock'), { reuseport = true })
        end
        local listener, _, code = open()
        assert.same({ nil, 'EADDRINUSE' }, { listener, code })
        go_on()
        assert(open()):close()
    end)
end)

describe('a name', function()
    after_each(end_all)

    it('is held by who has bound it, though that one is stopped before it listens', function()
        local go_on = sit_on 'script/x'
        local claim, message, code = core.claim 'script/x'
        assert.same({ nil, 'EAGAIN' }, { claim, code })
        assert.truthy(message:find 'held by another process', message)
        go_on()
        assert(core.claim 'script/x'):close()
    end)

    it('is not held by another user', function()
        if sys.C.geteuid() ~= 0 then
            pending 'needs root and another user'
            return
        end
        local go_on = sit_on('script/y', 65534)
        local claim = assert(core.claim 'script/y')
        assert.equal(-1, claim:fd())
        go_on()
    end)
end)
