-- Run as an ordinary user: prints the step at which each of these spawns fails.
local p = require 'spec.support.process'

for _, opts in ipairs {
    { uid = 0 },
    { gid = 0 },
    { groups = { 0 } },
    { nice = -5 },
} do
    opts[1] = '/bin/true'
    local failed = p.exit_of(p.spawn(opts)).failed
    print(failed.step .. ' ' .. failed.code)
end
