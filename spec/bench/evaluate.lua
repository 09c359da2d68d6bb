-- evaluate.lua: what one evaluation of a script costs the fork that waits for it: read the file, ask the process of the
-- script for a new state, run, check, plan, one hook. And what that process weighs.
-- usage: DUTCH_MASTER_LUA= build/dm-spec spec/bench/evaluate.lua [ROUNDS]
-- (the empty variable takes the Lua from the binary, as it is when installed)

local loop = require 'spec.loop'
local support = require 'spec.support.script'
local uv = require 'luv'

local SCRIPT = [[
local dutch = require 'dutch-master'

dutch.start {
  worker = 'app.js',
  beforeFork = function()
    dutch.chdir '/deploys/app/current'
  end,
  numWorkers = function()
    return math.max(dutch.cpus(), 2)
  end,
  logger = dutch.logger { name = 'my-app' },
  workerEnvironment = { NODE_ENV = 'production' },
}
]]

local path = os.tmpname()
local file = assert(io.open(path, 'w'))
file:write(SCRIPT)
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
local times = {}
for i = 1, rounds do
    loop.run_once(5) -- forks come one by one; those of a boot, where none waits for the other, cost a state more
    local start = uv.hrtime()
    evaluate()
    times[i] = (uv.hrtime() - start) / 1e6
end
local rollup = io.open(('/proc/%d/smaps_rollup'):format(world.process.child:pid()))
local pss = rollup and rollup:read('*a'):match 'Pss:%s*(%d+)' or 0
if rollup then
    rollup:close()
end
world.close()
os.remove(path)
table.sort(times)
local sum = 0
for _, ms in ipairs(times) do
    sum = sum + ms
end
local FORMAT = 'evaluation of a script, with beforeFork: median %.3f ms, mean %.3f ms, p99 %.3f ms (budget 1 ms); '
    .. 'its process %d KiB PSS'
print(FORMAT:format(times[math.ceil(rounds / 2)], sum / rounds, times[math.ceil(rounds * 0.99)], pss))
