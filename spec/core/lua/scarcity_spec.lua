-- What is opened while something is short: each allocation on the way fails in turn, or there is one more descriptor each
-- time. Then nothing is there, no descriptor is left, and no process; or all of it is, and works without.

local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local p = require 'spec.support.process'
local sys = require 'spec.support.sys'

-- kind -> function(n): from now on the n-th of what is wanted cannot be had
--   @return function that ends this -> whether it was wanted
local SHORT = {
    memory = function(n)
        loop.fail_allocation(n)
        return function()
            return not loop.fail_allocation(0)
        end
    end,
    descriptors = function(n)
        local fillers, old = {}, sys.limit('nofile', 512)
        local fd = sys.C.open('/dev/null', sys.O_CLOEXEC)
        while fd >= 0 do
            fillers[#fillers + 1] = fd
            fd = sys.C.open('/dev/null', sys.O_CLOEXEC)
        end
        for _ = 1, n - 1 do
            sys.close(table.remove(fillers))
        end
        return function(failed)
            sys.limit('nofile', old)
            for _, filler in ipairs(fillers) do
                sys.close(filler)
            end
            return failed
        end
    end,
}
local CODE = { memory = 'ENOMEM', descriptors = 'EMFILE' }

-- Makes something again and again, until nothing is wanted any more that cannot be had. @return how often that was
local function each(kind, make, unmake)
    for n = 1, 200 do
        local fds = sys.count_fds()
        local how = { make() } -- a function, and its arguments
        local stop = SHORT[kind](n)
        local made, message, code = how[1](unpack(how, 2))
        local reached = stop(not made)
        if made then
            unmake(made)
        else
            assert.is_true(reached, message)
            assert.equal(CODE[kind], code, message)
        end
        loop.close()
        assert.equal(fds, sys.count_fds(), ('%s: number %d'):format(kind, n))
        if not reached then
            return n - 1
        end
    end
end

local function close(thing)
    thing:close()
end

describe('scarcity:', function()
    p.leaves_nothing()

    local dir, remove
    before_each(function()
        dir, remove = sys.temp_dir()
    end)
    after_each(function()
        loop.fail_allocation(0)
        remove()
    end)

    -- name -> how it is made; `resumed`: from descriptors of a former master, which are its own from then on
    local MADE = {
        server = function()
            return core.serve, dir .. '/s', { on_client = print }
        end,
        ['resumed server'] = function()
            local first = assert(core.serve(dir .. '/s', { on_client = print }))
            local fd = loop.dup_fd(first:fd())
            first:close()
            return core.serve, dir .. '/s', { fd = fd, on_client = print }
        end,
        ['notify socket'] = function()
            return core.notify_socket, {}, print
        end,
        ['resumed notify socket'] = function()
            return core.notify_socket, { fd = sys.open('/dev/ptmx', sys.O_RDWR), name = '@none' }, print
        end,
        lock = function()
            return core.lock, dir .. '/lock'
        end,
        ['resumed lock'] = function()
            return core.lock, dir .. '/lock', sys.open('/dev/null', sys.O_RDONLY)
        end,
        watch = function()
            return core.watch, print
        end,
        claim = function()
            return core.claim, 'scarcity-' .. core.pid()
        end,
        sink = function()
            return core.sink, dir .. '/log'
        end,
        dial = function()
            return core.dial, '127.0.0.1:1', { on_data = print, on_end = print }
        end,
        lane = function()
            local listener = assert(core.listen(core.address '127.0.0.1:0', { reuseport = true }))
            return function()
                local lane, message, code = listener:lane()
                if not lane then
                    listener:close()
                    return nil, message, code
                end
                return listener
            end
        end,
        ['listener on a path'] = function()
            return core.listen, core.address('unix:' .. dir .. '/l'), { mode = 384 }
        end,
        ['resumed listener'] = function()
            local first = assert(core.listen(core.address '127.0.0.1:0', { reuseport = true }))
            local lanes = {}
            for i = 1, 3 do
                lanes[i] = loop.dup_fd(assert(first:lane()):fd())
            end
            local address = first:address()
            first:close()
            return core.listen, address, { reuseport = true, kept = { lanes = lanes } }
        end,
    }

    -- Who needs nothing of the kind but what it has.
    local NOTHING = { memory = { claim = true },
        descriptors = { ['resumed notify socket'] = true, ['resumed lock'] = true, ['resumed listener'] = true } }

    for name, make in pairs(MADE) do
        it('no ' .. name .. ' is opened by halves', function()
            for kind, nothing in pairs(NOTHING) do
                assert.equal(not nothing[name], each(kind, make, close) > 0, kind)
            end
        end)
    end

    it('no child is made by halves, or adopted so', function()
        local options = { file = '/bin/true', argv = { 'true' }, channel = true, capture_stdout = true,
            capture_stderr = true, die_with_master = true }
        local function await_end()
            p.await(function() return loop.children() == 0 end)
        end
        local function spawn()
            return core.spawn, options
        end
        assert.is_true(each('memory', spawn, await_end) > 3)
        assert.is_true(each('descriptors', spawn, await_end) > 3)
        assert.is_true(each('memory', function()
            local ours, theirs = sys.socketpair()
            local out, out_end = sys.pipe()
            local ended, pid_end = sys.pipe() -- readable, as a pidfd is then
            return function(...)
                for _, fd in ipairs { theirs, out_end, pid_end } do
                    sys.close(fd)
                end
                return core.adopt(...)
            end, { pid = 4194303, pidfd = ended, channel = ours, out = out, stdout = 1 }
        end, await_end) > 2)
    end)
end)
