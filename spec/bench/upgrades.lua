--- Twenty upgrades of one master, under keep-alive and per-request load: to a newer, the same and a former version, and to
-- programs that do not start, crash after a second, hang, cannot read the state. After each: the exit code, the reason,
-- the version that runs, the same workers. At the end: requests that failed (0), descriptors of keeper and master.
-- usage: build/dm-spec spec/bench/upgrades.lua [node version]
-- DM_TIMES (20). DM_FORMER: the dutch-master of a build of a former commit; without it that of this tree, with a lower
-- number. Four builds with other version numbers take a minute or two.

local uv = require 'luv'
io.stdout:setvbuf 'line'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local State = require 'dutch-master.keeper.estate'
local versions = require 'spec.support.node_versions'

local TIMES = tonumber(os.getenv 'DM_TIMES') or 20
local node = assert(versions.binary(arg[1] or '22'))
local dir, port = master.temp_dir(), http.free_port()

local function sh(command, ...)
    command = command:format(...)
    assert(os.execute(command .. ' >>' .. dir .. '/build.log 2>&1') == 0, command)
end

-- @param file, pattern, replacement  what is different in its Lua, if anything is
local function build(version, file, pattern, replacement)
    local from = '.'
    if file then
        from = ('%s/%s.tree'):format(dir, version)
        sh("mkdir '%s' && tar -c --exclude=./build* --exclude=./spec/.cache --exclude=./.git . | tar -x -C '%s'", from, from)
        local path = ('%s/lua/dutch-master/%s'):format(from, file)
        local stream = assert(io.open(path))
        local text, count = stream:read '*a':gsub(pattern, replacement)
        stream:close()
        assert(count == 1, pattern)
        stream = assert(io.open(path, 'w'))
        stream:write(text)
        stream:close()
    end
    local to = ('%s/%s'):format(dir, version)
    sh("(cmake -S '%s' -B '%s' -DDM_SPEC=OFF -DDM_VERSION=%s && cmake --build '%s' -j2)", from, to, version, to)
    return to .. '/dutch-master'
end

-- One that says of itself that it reads a state of that version, and understands nothing.
local function stranger(state)
    local path = ('%s/stranger%d'):format(dir, state)
    sh("cc -D_GNU_SOURCE -O1 -DSTATE=%d -o '%s' spec/support/next_program.c", state, path)
    return path
end

local CRASH = [[%0
    if how and not how.failed then
        local timer = self.platform.timer(function()
            local ffi = require 'ffi'
            ffi.cast('int *', 0)[0] = 1
        end)
        timer:start(1000)
    end]]
local HANG = [[%0
    while self.platform.kept().upgrade and not self.platform.kept().upgrade.failed do end]]

local this = master.binary()
local good = {
    { 'newer', build '0.2.0' }, { 'same', this }, { 'former', os.getenv 'DM_FORMER' or build '0.0.9' },
}
local RESUME = 'function Upgrade:resume%(kept, how%)'
local bad = {
    { 'does not start', '/bin/true', 'is no program that this master can become' },
    { 'crashes after a second', build('9.0.1', 'keeper/upgrade.lua', RESUME, CRASH), 'its master died of SIGSEGV' },
    { 'cannot read the state', stranger(99), 'cannot read the state of this version' },
    { 'does not understand', stranger(State.VERSION), 'it does not understand what the keeper hands over' },
    { 'hangs', build('9.0.2', 'master.lua', 'function Master:succeed%(%)', HANG), 'did not take over within 10 s' },
}

local m = kept.start { env = { DUTCH_MASTER_LUA = false }, -- each version its own
    script = ([[require('dutch-master').start { worker = 'app.js', restartSoak = 0,
    interpreter = { %q }, numWorkers = 2, workerEnvironment = { PORT = '%d' } }]]):format(node, port),
    files = { ['app.js'] = [[require('http').createServer((request, response) => {
        setTimeout(() => response.end(`${process.pid}`), Math.random() * 20) }).listen(Number(process.env.PORT))]] } }
m:await 'Cluster ready'
local before = table.concat(m:workers(), ' ')
local kept_alive = load.start { port = port, clients = 4, mode = 'keepalive', expect = '.', rate = 400 }
local single = load.start { port = port, clients = 4, expect = '.', rate = 400 }
single:await(50)

local function running_version()
    return cjson.decode(cli.run(m, { 'status', '--json', m.script }).out).version
end

local wrong, first, last = 0, nil, nil
local version = running_version()
for i = 1, TIMES do
    -- Three good ones, then a bad one.
    local is_good = i % 4 ~= 0
    local case = is_good and good[(i - math.floor(i / 4) - 1) % #good + 1] or bad[(i / 4 - 1) % #bad + 1]
    local began = uv.hrtime()
    local said = cli.run(m, { 'upgrade', '--binary', case[2], m.script }, { timeout = 60000 })
    local took = (uv.hrtime() - began) / 1e9
    local now = running_version()
    local right = said.code == (is_good and 0 or 10) and (is_good or now == version and said.err:find(case[3], 1, true))
        and table.concat(m:workers(), ' ') == before
    if is_good then
        right = right and said.out:find(('Upgraded from %s to %s'):format(version, now), 1, true)
    end
    version = now
    wrong = wrong + (right and 0 or 1)
    last = ('%d keeper, %d master'):format(kept.descriptors(m.pid), kept.descriptors(kept.pid(m)))
    first = first or last
    print(('%2d  %-24s exit code %2d, %s runs, %4.1f s, descriptors %s, failed so far %d%s'):format(i, case[1],
        said.code, now, took, last,
        kept_alive.counts.total - kept_alive.counts.ok + single.counts.total - single.counts.ok,
        right and '' or '   WRONG: ' .. said.out .. said.err))
end
local a, b = kept_alive:stop(), single:stop()
print(('%d upgrades: %d wrong; failed %d of %d kept alive, %d of %d single; slowest %d ms'):format(TIMES, wrong, a.failed,
    a.total, b.failed, b.total, math.max(a.max_ms, b.max_ms)))
print('descriptors after the first and the last: ' .. first .. '; ' .. last)
m:finish()
master.cleanup()
os.exit(wrong + a.failed + b.failed == 0 and 0 or 1)
