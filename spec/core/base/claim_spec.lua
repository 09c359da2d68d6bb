-- Two masters of one user never serve one address, whoever starts when: between bind() and listen() there is one.

local core = require 'dutch-master.core'
local net = require 'spec.support.net'
local sys = require 'spec.support.sys'

-- What dm-spec is run by.
local function runner()
    local file = io.open('/proc/self/cmdline', 'rb')
    local program = file:read('*a'):match '^[^%z]+'
    file:close()
    return program
end

-- Two processes that ask for the same ten addresses at the same moments, again and again.
-- @param prefix what an address is made of, before its number
-- @return how many served each of them, by number
local function race(prefix, first)
    local script = os.tmpname()
    local out = assert(io.open(script, 'w'))
    out:write [[
        local core = require 'dutch-master.core'
        local first, last, go = tonumber(arg[1]), tonumber(arg[2]), tonumber(arg[3])
        while core.now() < go do end
        for port = first, last do
            local listener = core.listen(core.address(arg[6] .. port), { reuseport = true })
            print(port, listener and listener:lane() and 'served' or 'refused')
            _G[port] = listener
            while core.now() < go + (port - first + 1) * 10 do end
        end
        io.stdout:flush()
        io.open(arg[4], 'w'):close()
        while not core.stat(arg[5]) and core.now() < go + 20000 do end
    ]]
    out:close()
    -- Each stays until both have asked for all of them.
    local done = { sys.temp_dir() .. '/1', sys.temp_dir() .. '/2' }
    local go, runs = core.now() + 500, {}
    for i = 1, 2 do
        runs[i] = io.popen(('%s %s %d %d %d %s %s %s'):format(runner(), script, first, first + 9, go, done[i],
            done[3 - i], prefix))
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

    it('is not kept by a name that another user sits on', function()
        if sys.C.geteuid() ~= 0 then
            pending 'needs root and another user'
            return
        end
        local port = net.free_port()
        local squatter = io.popen(([[setpriv --reuid=65534 --regid=65534 --clear-groups luajit -e "
            local ffi = require 'ffi'
            ffi.cdef 'int socket(int, int, int); int bind(int, const void *, unsigned); int listen(int, int);'
            local name = string.char(1, 0, 0) .. 'dutch-master/0/port/%d'
            local fd = ffi.C.socket(1, 1, 0)
            assert(ffi.C.bind(fd, name, #name) == 0 and ffi.C.listen(fd, 1) == 0)
            print 'go' io.stdout:flush()
            local stop = os.time() + 3
            while os.time() < stop do end"]]):format(port))
        assert.equal('go', squatter:read '*l')
        local listener = assert(core.listen(core.address('127.0.0.1:' .. port), { reuseport = true }))
        listener:close()
        squatter:close()
    end)
end)
