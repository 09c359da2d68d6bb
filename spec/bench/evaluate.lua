-- evaluate.lua: what one evaluation of a script costs the fork that waits for it: read the file, ask the process of the
-- script for a new state, run, check, plan, one hook. And what that process weighs, and what the machine takes for a
-- plain fork and exec in the same minute.
-- usage: DUTCH_MASTER_LUA= build/dm-spec spec/bench/evaluate.lua [ROUNDS]
-- (the empty variable takes the Lua from the binary, as it is when installed)

local ffi = require 'ffi'
local loop = require 'spec.loop'
local support = require 'spec.support.script'
local uv = require 'luv'

ffi.cdef [[
int posix_spawn(int *, const char *, const void *, const void *, const char *const *, const char *const *);
int waitpid(int, int *, int);
]]

-- ms from posix_spawn of /bin/true to its end
local function plain()
    local pid, argv = ffi.new 'int[1]', ffi.new 'const char *[2]'
    argv[0] = '/bin/true'
    local start = uv.hrtime()
    assert(ffi.C.posix_spawn(pid, '/bin/true', nil, nil, argv, ffi.new 'const char *[1]') == 0)
    assert(ffi.C.waitpid(pid[0], nil, 0) == pid[0])
    return (uv.hrtime() - start) / 1e6
end

local path = os.tmpname()
local file = assert(io.open(path, 'w'))
file:write(support.README)
file:close()

local world = support.world { path = path }

local function evaluate()
    local session, err = world.evaluate()
    if not session then
        error(err.message)
    end
    assert(session:call('beforeFork', { id = 1, slot = 1, generation = 1 }))
    session:keep()
    session:close()
end

local rounds = tonumber(arg[1]) or 2000
for _ = 1, 200 do
    evaluate()
end
local times, plains = {}, {}
for i = 1, rounds do
    loop.run_once(5) -- forks come one by one; those of a boot, where none waits for the other, cost a state more
    local start = uv.hrtime()
    evaluate()
    times[i] = (uv.hrtime() - start) / 1e6
    if i % 10 == 0 then
        plains[#plains + 1] = plain()
    end
end
local rollup = io.open(('/proc/%d/smaps_rollup'):format(world.process.child:pid()))
local pss = rollup and rollup:read('*a'):match 'Pss:%s*(%d+)' or 0
if rollup then
    rollup:close()
end
world.close()
os.remove(path)
table.sort(times)
table.sort(plains)
local sum = 0
for _, ms in ipairs(times) do
    sum = sum + ms
end
local FORMAT = 'evaluation of a script, with beforeFork: median %.3f ms, mean %.3f ms, p99 %.3f ms (budget 1 ms); '
    .. 'its process %d KiB PSS (budget 3072); fork, exec and end of /bin/true: median %.3f ms'
print(FORMAT:format(times[math.ceil(rounds / 2)], sum / rounds, times[math.ceil(rounds * 0.99)], pss,
    plains[math.ceil(#plains / 2)]))
