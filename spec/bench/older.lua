--- Upgrades between this build and builds of former commits, under keep-alive and per-request load: the service is started
-- with the former program, becomes this one, the former one again, and this one again. To this one must work; back it
-- must work, or be refused with what it is that it cannot read. No request fails in any, the workers stay the same, and a
-- restart at the end is done.
-- usage: build/dm-spec spec/bench/older.lua COMMIT...       builds each from git, half a minute

local uv = require 'luv'
io.stdout:setvbuf 'line'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'

local node, dir = assert(versions.binary '22'), master.temp_dir()
local wrong = 0

local function build(commit)
    local to = ('%s/%s'):format(dir, commit)
    local command = ([[(mkdir '%s' && git archive %s | tar -x -C '%s' && cmake -S '%s' -B '%s/build' -DDM_SPEC=OFF
        -DDM_VERSION=0.0.9 && cmake --build '%s/build' -j2) >'%s.log' 2>&1]]):format(to, commit, to, to, to, to, to)
    assert(os.execute((command:gsub('\n%s*', ' '))) == 0, 'see ' .. to .. '.log')
    return to .. '/build/dutch-master'
end

local function status(m)
    return cjson.decode(cli.run(m, { 'status', '--json', m.script }).out)
end

local function try(commit, kind, files, more)
    local former, this, port = build(commit), master.binary(), http.free_port()
    local m = kept.start { binary = former, env = { DUTCH_MASTER_LUA = false }, files = files,
        script = ([[require('dutch-master').start { worker = 'app.%s', restartSoak = 0, numWorkers = 2, %s
        workerEnvironment = { PORT = '%d', LISTEN = '127.0.0.1:%d' } }]]):format(kind, more, port, port) }
    m:await 'Cluster ready'
    local before = table.concat(m:workers(), ' ')
    local loads = { load.start { port = port, clients = 4, mode = 'keepalive', expect = '.', rate = 200 },
        load.start { port = port, clients = 4, expect = '.', rate = 200 } }
    loads[1]:await(50)
    for i, to in ipairs { this, former, this, this } do
        local from, began = status(m).version, uv.hrtime()
        local said = cli.run(m, { 'upgrade', '--binary', to, m.script },
            { timeout = 60000, env = { DUTCH_MASTER_LUA = false } }) -- each version its own
        local now, same = status(m).version, before == table.concat(m:workers(), ' ')
        local refused = to == former and said.code == 10 and said.err:find('cannot read the state', 1, true)
        local right = same and (said.code == 0 and (now == '0.0.9') == (to == former) or refused and now == from)
        wrong = wrong + (right and 0 or 1)
        print(('%s %s %d: to %-6s exit code %2d, %s runs, %3.0f ms, %s%s'):format(commit, kind, i,
            to == this and 'this' or 'former', said.code, now, (uv.hrtime() - began) / 1e6,
            refused and 'refused: ' .. said.err:gsub('\n.*', '') or same and 'the same workers' or 'OTHER WORKERS',
            right and '' or ' WRONG: ' .. said.out .. said.err .. m.stderr))
    end
    local restart = cli.run(m, { 'restart', '--wait', m.script })
    wrong = wrong + restart.code
    local failed, total = 0, 0
    for _, running in ipairs(loads) do
        local counts = running:stop()
        failed, total = failed + counts.failed, total + counts.total
    end
    wrong = wrong + failed
    print(('%s %s: restart %d, failed %d of %d'):format(commit, kind, restart.code, failed, total))
    if restart.code ~= 0 then
        print(restart.out .. restart.err .. m:dump())
    end
    m:finish()
    os.execute(("rm -rf '%s/%s'"):format(dir, commit))
end

for _, commit in ipairs(arg) do
    try(commit, 'js', { ['app.js'] = [[require('http').createServer((request, response) => {
        setTimeout(() => response.end(`${process.pid}`), Math.random() * 20) }).listen(Number(process.env.PORT))]] },
        ('interpreter = { %q },'):format(node))
    try(commit, 'lua', { ['app.lua'] = require('spec.support.apps').http }, '')
end
master.cleanup()
os.exit(wrong == 0 and 0 or 1)
