-- Prints how two children ended: one that exits, one that gets SIGTERM.
local p = require 'spec.support.process'

local one = p.sh 'exit 3'
local other = p.spawn { '/bin/sleep', '1000' }
p.await(function() return other.execs == 1 end)
other.child:signal 'SIGTERM'
print(('%d %s'):format(p.exit_of(one).code, p.exit_of(other).signal))
