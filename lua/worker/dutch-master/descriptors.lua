-- What luv cannot do with descriptors: the binary's own module, or, when a worker is run by plain
-- luajit to try it out without a master, the three calls that are needed then.

local wired, wire = pcall(require, 'dutch-master.wire')
if wired then
    return wire
end

local ffi = require 'ffi'
ffi.cdef 'int listen(int, int); int fcntl(int, int, ...); int close(int);'

local F_DUPFD_CLOEXEC = 1030 -- Linux

return {
    alone = true,
    listen = function(fd, backlog)
        return ffi.C.listen(fd, backlog) == 0 or nil, 'cannot listen'
    end,
    is_listening = function()
        return false
    end,
    duplicate = function(fd)
        local copy = ffi.C.fcntl(fd, F_DUPFD_CLOEXEC, ffi.cast('int', 3))
        if copy < 0 then
            return nil, 'cannot duplicate a descriptor'
        end
        return copy
    end,
    close = function(fd)
        ffi.C.close(fd)
    end,
}
