-- Starts two children and dies: the first is to die with it. Prints their pids.
local p = require 'spec.support.process'
local signal = require 'posix.signal'

local one = p.spawn { '/bin/sleep', '1000', die_with_master = true }
local other = p.spawn { '/bin/sleep', '1000' }
p.await(function() return one.execs + other.execs == 2 end)
print(('%d %d'):format(one.pid, other.pid))
io.stdout:flush()
signal.kill(require('posix.unistd').getpid(), signal.SIGKILL)
