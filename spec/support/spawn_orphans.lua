-- Starts children and dies: the first two, and what they started in their groups, are to die with it; the second has
-- ended before. Prints their pids and those of what they started.
local p = require 'spec.support.process'
local signal = require 'posix.signal'

local one = p.sh('sleep 1000 & echo $! >&3; wait', { channel = true, die_with_master = true })
local ended
local two = p.sh('sleep 1000 & echo $! >&3; exit 0', { channel = true, die_with_master = true, lingers = true,
    on_leader_exit = function() ended = true end })
local other = p.spawn { '/bin/sleep', '1000' }
p.await(function() return one.execs + two.execs + other.execs == 3 and #one.lines + #two.lines == 2 and ended end)
print(('%d %d %d %d'):format(one.pid, one.lines[1], two.lines[1], other.pid))
io.stdout:flush()
signal.kill(require('posix.unistd').getpid(), signal.SIGKILL)
