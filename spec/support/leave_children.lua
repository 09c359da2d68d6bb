-- Leaves three children behind, one of which ignores SIGTERM and one that is stopped. Prints pids.
local p = require 'spec.support.process'

local records = {
    p.spawn { '/bin/sleep', '1000' },
    p.sh("trap '' TERM; echo >&3; while :; do read x <&3 || sleep 1000; done", { channel = true }),
    p.sh('echo >&3; kill -STOP $$; sleep 1000', { channel = true }),
}
p.await(function()
    return records[1].execs == 1 and #records[2].lines == 1 and #records[3].lines == 1
end)
for _, record in ipairs(records) do
    print(record.pid)
end
