-- Run by dm-spec under a soft limit of 64 descriptors: takes 200, then starts a child that prints its own limit, one
-- whose script is looked at, and one whose interpreter is missing. For spawn_spec.lua.

local core = require 'dutch-master.core'
local loop = require 'spec.loop'

local taken = {}
for i = 1, 200 do
    taken[i] = assert(loop.dup_fd(0))
end
assert(#taken == 200)
local out = assert(loop.dup_fd(1))

local function run(fields)
    local ended
    fields.env, fields.stdout, fields.stderr = { 'PATH=/usr/bin:/bin' }, out, 2
    function fields.on_exit(_, status)
        ended = status
    end
    assert(core.spawn(fields))
    while not ended do
        loop.run_once(100)
    end
    return ended
end

local name = os.tmpname()
local file = assert(io.open(name, 'w'))
file:write '#!/no/such/interpreter\n'
file:close()
os.execute('chmod +x ' .. name)
run { file = '/bin/sh', argv = { 'sh', '-c', 'printf %s "$(ulimit -Sn) own"' } }
assert(run({ file = '/bin/true', argv = { 'true' }, must_read = name }).code == 0)
local failed = run({ file = name, argv = { name } }).failed
os.remove(name)
io.write(failed.step == 'interpreter' and failed.path == '/no/such/interpreter' and ', interpreter named\n'
    or ', ' .. failed.step .. ' ' .. tostring(failed.path) .. '\n')
