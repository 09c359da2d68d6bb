-- A master with a keeper, for the e2e specs: which process is which, and the death of a master.
local ffi = require 'ffi'
local uv = require 'luv'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

ffi.cdef [[
struct dm_spec_itimerspec { long interval_s, interval_ns, value_s, value_ns; };
long syscall(long number, ...);
int close(int);
int timerfd_settime(int, int, const struct dm_spec_itimerspec *, struct dm_spec_itimerspec *);
int timerfd_gettime(int, struct dm_spec_itimerspec *);
]]
local PIDFD_OPEN, PIDFD_GETFD = 434, 438

local M = {}

local function read(path)
    local file = io.open(path)
    local text = file and file:read '*a'
    if file then
        file:close()
    end
    return text
end

--- The pid of the master now. nil: there is none at this moment.
-- @param keeper its pid, where that is not m.pid
function M.pid(m, keeper)
    keeper = keeper or m.pid
    for pid in (read(('/proc/%d/task/%d/children'):format(keeper, keeper)) or ''):gmatch '%d+' do
        local words = read(('/proc/%s/cmdline'):format(pid)) or ''
        if words:find('%-%-keeper') and not words:find('--script-process', 1, true) then
            return tonumber(pid)
        end
    end
end

local TOOK_OVER = 'The former master died, this one has taken over'

--- Ends the master and waits for the next one. @return its record
function M.kill(m, signal, keeper)
    local count = #m:records(TOOK_OVER)
    local pid = assert(M.pid(m, keeper), 'there is no master')
    assert(uv.kill(pid, signal or 'sigkill'))
    return m:await(TOOK_OVER, { count = count + 1 })
end

--- From now on no master waits for its turn because others died before it: a signal ends the pause, one that nobody
-- listens to. @return what ends this
function M.without_pauses(m)
    local timer = uv.new_timer()
    timer:start(10, 10, function()
        if not m.ended and not M.pid(m) then
            uv.kill(m.pid, 'sigurg')
        end
    end)
    return function()
        timer:close()
    end
end

--- How many descriptors a process has.
function M.descriptors(pid)
    local count, scan = 0, uv.fs_scandir(('/proc/%d/fd'):format(pid))
    while scan and uv.fs_scandir_next(scan) do
        count = count + 1
    end
    return count
end

--- The keeper's patience with its master ends now, and not in a minute, as often as it is said: twice, unless given.
function M.let_patience_end(m, times)
    local pidfd = ffi.C.syscall(PIDFD_OPEN, ffi.new('long', m.pid), ffi.new('long', 0))
    assert(pidfd >= 0, 'pidfd_open')
    local timer
    for number = 3, 1000 do
        if uv.fs_readlink(('/proc/%d/fd/%d'):format(m.pid, number)) == 'anon_inode:[timerfd]' then
            timer = ffi.C.syscall(PIDFD_GETFD, pidfd, ffi.new('long', number), ffi.new('long', 0))
            break
        end
    end
    ffi.C.close(pidfd)
    assert(timer and timer >= 0, 'pidfd_getfd')
    local time = ffi.new('struct dm_spec_itimerspec')
    for i = 1, times or 2 do
        wait.wait_until(function() -- the second is the keeper's, which has an interval
            ffi.C.timerfd_gettime(timer, time)
            return i == 1 or time.interval_s > 0
        end, { what = 'the keeper to grow impatient' })
        time.value_s, time.value_ns = 0, 1
        assert(ffi.C.timerfd_settime(timer, 0, time, nil) == 0)
    end
    ffi.C.close(timer)
end

M.start = function(options)
    options.keeper = options.keeper ~= false
    return master.start(options)
end

return M
