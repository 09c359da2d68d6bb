-- What luv cannot do with descriptors: the binary's own module, or, when a worker is run by plain
-- luajit to try it out without a master, the calls that are needed then.

local wired, wire = pcall(require, 'dutch-master.wire')
if wired then
    return wire
end

local ffi = require 'ffi'
ffi.cdef 'int listen(int, int); int fcntl(int, int, ...); int close(int); int accept4(int, void *, void *, int);'

local F_DUPFD_CLOEXEC, SOCK_NONBLOCK, SOCK_CLOEXEC, EAGAIN = 1030, 0x800, 0x80000, 11 -- Linux

return {
    alone = true,
    listen = function(fd, backlog)
        return ffi.C.listen(fd, backlog) == 0 or nil, 'cannot listen'
    end,
    is_listening = function()
        return false
    end,
    accept = function(fd)
        local connection = ffi.C.accept4(fd, nil, nil, SOCK_NONBLOCK + SOCK_CLOEXEC)
        if connection < 0 then
            return nil, 'cannot accept', ffi.errno() == EAGAIN and 'EAGAIN' or 'EMFILE'
        end
        return connection
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
