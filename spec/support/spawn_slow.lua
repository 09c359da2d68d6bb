-- Prints how long spawning and the longest loop iteration took, and how long the child took to exec.
local core = require 'dutch-master.core'
local p = require 'spec.support.process'

local start = core.now()
local record = p.spawn { '/bin/true' }
local longest = core.now() - start
while record.execs == 0 do
    local before = core.now()
    p.step()
    longest = math.max(longest, core.now() - before)
end
print(('%d %d'):format(longest, core.now() - start))
p.exit_of(record)
