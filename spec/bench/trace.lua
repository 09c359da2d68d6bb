-- trace.lua: how a restart of one worker runs through the master's Lua: calls, modules, changes from one module to
-- another, the same without those that everybody calls (log, machine, the check of the plan), and how often the summary
-- for the service manager is computed. Figures of shape, not of time. Nobody keeps the master: what a snapshot for a
-- keeper costs is keeper.lua's matter.
-- usage: luajit -joff spec/bench/trace.lua [TREE [BUILD]]
-- TREE: the source tree whose lua/ is traced (.); BUILD: where its dutch-master is (TREE/build). DM_VERBOSE=1 prints
-- every change of module, and how often each function is called.

local uv = require 'luv'
local read = require('spec.support.files').text
local tree = uv.fs_realpath(arg[1] or '.')
uv.os_setenv('DM_BUILD', arg[2] or tree .. '/build')
local master = require 'spec.support.master'

-- In front of the command line: counts from the request to the stop, and writes what it counted.
local COUNTER = [[
jit.off()
local real = loadstring(%q, '=cli')
local calls, changes, summaries, modules, order, path, functions = 0, 0, 0, {}, {}, {}, {}
local last, last_policy, between, counting = nil, nil, 0, nil
local EVERYBODYS = {}
for name in ('log logger format text plan schema option_types options platform linux machine'):gmatch '%%S+' do
    EVERYBODYS[name] = true
end
local function report()
    local often = {}
    for name, count in pairs(functions) do
        often[#often + 1] = ('%%5d %%s'):format(count, name)
    end
    table.sort(often, function(a, b) return a > b end)
    path[#path + 1] = table.concat(often, '\n')
    local file = assert(io.open(os.getenv 'TRACE', 'w'))
    file:write(calls, ' ', #order, ' ', changes, ' ', between, ' ', summaries, '\n', table.concat(order, ' '), '\n',
        table.concat(path, '\n'), '\n')
    file:close()
end
debug.sethook(function()
    local info = debug.getinfo(2, 'S')
    if info.what == 'C' then
        return
    end
    local module = info.source:match '([%%w_/-]+)%%.lua$'
    if not module then
        return
    end
    local name = debug.getinfo(2, 'n').name
    local in_cluster = module:find 'cluster$' ~= nil
    if in_cluster and name == 'restart' then
        counting = counting == nil and true or counting
    elseif in_cluster and name == 'stop' and counting then
        counting = false
        report()
    end
    if not counting then
        return
    end
    calls = calls + 1
    local place = ('%%s:%%d'):format(module:match '[^/]+$', info.linedefined)
    functions[place] = (functions[place] or 0) + 1
    summaries = summaries + (name == 'summary' and 1 or 0)
    if not modules[module] then
        modules[module] = true
        order[#order + 1] = module:match '[^/]+$'
    end
    if not EVERYBODYS[module:match '[^/]+$'] and module ~= last_policy then
        last_policy, between = module, between + 1
    end
    if module ~= last then
        last, changes = module, changes + 1
        path[#path + 1] = place .. ' ' .. tostring(name)
    end
end, 'c')
return real(...)
]]

local dir = assert(uv.fs_mkdtemp((os.getenv 'TMPDIR' or '/tmp') .. '/dm-trace-XXXXXX'))
assert(os.execute(("cp -r '%s/lua/.' '%s'"):format(tree, dir)) == 0)
local cli = read(dir .. '/dutch-master/cli.lua')
local file = assert(io.open(dir .. '/dutch-master/cli.lua', 'w'))
file:write(COUNTER:format(cli))
file:close()

local has_keeper = os.execute(("grep -rqs -e --no-keeper '%s'"):format(dir)) == 0 -- an older tree may know none
local m = master.start {
    keeper = not has_keeper and nil, -- false where there is one
    script = "require('dutch-master').start { worker = 'app.lua', numWorkers = 1, restartSoak = 0.05 }",
    files = { ['app.lua'] = "require('dutch-master.worker').ready()" },
    env = { DUTCH_MASTER_LUA = dir, TRACE = dir .. '/trace', NOTIFY_SOCKET = '@dm-trace-' .. uv.os_getpid() },
}
m:await 'Cluster ready'
m:signal 'SIGUSR2'
m:await 'Restart complete'
m:await 'Worker exited'
m:finish()
local calls, count, changes, between, summaries, modules, path = read(dir .. '/trace'):match
    '^(%d+) (%d+) (%d+) (%d+) (%d+)\n([^\n]*)\n(.*)$'
os.execute(("rm -rf '%s'"):format(dir))
print(('one restart of one worker: %s calls in %s modules, %s changes of module (%s among those of policy), '
    .. '%s summaries'):format(calls, count, changes, between, summaries))
print(modules)
if os.getenv 'DM_VERBOSE' then
    print(path)
end
