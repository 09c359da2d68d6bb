-- A master that dies at a chosen one of its system calls: see faults.c.

local ffi = require 'ffi'
local uv = require 'luv'

local M = {}

local COUNT = 5 -- numbers in the file

local library -- built once

local function build()
    if not library then
        library = (os.getenv 'TMPDIR' or '/tmp') .. ('/dm-faults-%d.so'):format(uv.os_getpid())
        assert(os.execute(("cc -shared -fPIC -O1 -o '%s' spec/support/faults.c -ldl"):format(library)) == 0)
    end
    return library
end

--- For a spec's teardown.
function M.clean_up()
    if library then
        os.remove(library)
        library = nil
    end
end

--- What a master is started with, whose counter is in this directory.
function M.environment(dir)
    return { LD_PRELOAD = build(), DM_FAULTS = dir .. '/faults' }
end

--- The numbers that the library reads and counts down.
function M.counter(dir)
    local path = dir .. '/faults'
    local file = assert(io.open(path, 'w'))
    file:write(('\0'):rep(8 * COUNT))
    file:close()
    local self = {}
    --- @param n steps until it happens, next = the same for the master that follows
    -- @param after_accept steps after the next connection that a master accepts, stopped = a process to stop then
    -- @param after_return steps after the next one that it is given by a worker
    function self.set(n, next, after_accept, stopped, after_return)
        local fd = assert(uv.fs_open(path, 'r+', 0))
        local values = ffi.new('int64_t[?]', COUNT, { n, next or 0, after_accept or 0, stopped or 0,
            after_return or 0 })
        assert(uv.fs_write(fd, ffi.string(values, 8 * COUNT), 0))
        uv.fs_close(fd)
    end
    --- What is left of the first number, and of the third; or of that number.
    function self.get(number)
        local fd = assert(uv.fs_open(path, 'r', 0))
        local values = ffi.new('int64_t[?]', COUNT)
        ffi.copy(values, uv.fs_read(fd, 8 * COUNT, 0), 8 * COUNT)
        uv.fs_close(fd)
        if number then
            return tonumber(values[number - 1])
        end
        return tonumber(values[0]), tonumber(values[2])
    end
    return self
end

return M
