--- soak.lua: everything at once, for long: build/dm-spec spec/bench/soak.lua [SECONDS = 600] [SEED]
--
-- Three masters, of Node, Lua and gunicorn workers, under load by new and by kept connections. Something happens to one
-- of them all the time: a worker is killed or stopped for a while; a good, a bad or a late release is rolled; scaling,
-- reload, a bad script; garbage and crowds at the control socket; hooks that loop, crash or flood. Each verdict is
-- compared with what must come of it. A request may fail only while a worker is being killed, at most as many as that
-- worker can have had in hand. Each minute: memory and descriptors of the masters. At the end: nothing is left.
-- Status 1 if something was wrong.

local uv = require 'luv'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local SECONDS, SEED = tonumber(arg[1]) or 600, tonumber(arg[2]) or os.time()
local CLIENTS = 4 -- of each kind of load
local MOST_MIB = 10

io.stdout:setvbuf 'line'
uv.new_signal():start('sigpipe', function() end)
math.randomseed(SEED)
print(('seed %d, %d s'):format(SEED, SECONDS))

local function node_app(more)
    return ([[const server = require('http').createServer((request, response) => {
        setTimeout(() => response.end('ok'), Math.random() * 10)
    })
    %s
    server.listen(process.env.PORT, '127.0.0.1')]]):format(more or '')
end

local function lua_app(more)
    return ([[%s
    require('dutch-master.http').serve('127.0.0.1:' .. os.getenv 'PORT', function(_, response) response:send 'ok' end)]])
        :format(more or '')
end

local function wsgi_app(more)
    return ([[import threading, random
%s
def application(environ, start_response):
    threading.Event().wait(random.random() * 0.01)
    start_response('200 OK', [('Content-Length', '2')])
    return [b'ok']
]]):format(more or '')
end

local KINDS = {
    { name = 'node', file = 'app.js', worker = "'app.js', interpreter = { '" .. versions.binary '22' .. "' }", app = node_app,
        bad = 'throw new Error("bad release")', late = 'setTimeout(() => process.exit(3), 1500); server.listen = () => 0' },
    { name = 'lua', file = 'app.lua', worker = "'app.lua'", app = lua_app, bad = 'error "bad release"',
        late = [[local timer = require('luv').new_timer() timer:start(1500, 0, function() os.exit(3) end)
            do return end]] },
    { name = 'gunicorn', file = 'app.py', worker = "dutch.gunicorn { app = 'app:application', args = { '--threads', '8' } }",
        listen = true, app = wsgi_app, bad = 'raise Exception("bad release")',
        late = 'threading.Event().wait(1.5)\nraise Exception("late")' },
}

local HOOKS = {
    'for _ = 1, 1e12 do end', 'os.exit(1)', "error 'bad hook'", "require('ffi').cast('int *', 8)[0] = 1",
    "for i = 1, 1e4 do dutch.log:info('flood ' .. i) end", "dutch.store.x = ('x'):rep(1e5)", 'io.popen("sleep 5"):read "*a"',
}

local function script(kind, hook, broken)
    return ([[local dutch = require 'dutch-master'
        dutch.start { worker = %s, numWorkers = 3, restartSoak = 0.3, restartAttempts = 2, hookTimeout = 0.3, readyTimeout = 20,
            stopTimeout = 10, killTimeout = 3, stallTimeout = 0.2, backoff = { first = 0.05, max = 0.2 }, %s
            workerEnvironment = { PORT = '%d' }, every = { 0.5, function() %s end }, onWorkerExit = function() %s end, %s }
        ]]):format(kind.worker, kind.listen and ("listen = '127.0.0.1:%d',"):format(kind.port) or '', kind.port, hook or '',
        hook or '', broken and 'nonsense = 1' or '')
end

local wrong = 0
local function complain(kind, text, ...)
    wrong = wrong + 1
    print(('WRONG %s: %s'):format(kind.name, text:format(...)))
end

local actions, counts = {}, {}

local function workers(kind)
    return kind.m:workers()
end

local function verdict(kind, expected, what)
    local c = cli.run(kind.m, { 'restart', '--wait' }, { timeout = 120000 })
    if c.code ~= expected then
        complain(kind, '%s: exit code %s and not %d: %s', what, tostring(c.code), expected, c.err)
    end
end

function actions.kill(kind)
    local pids = workers(kind)
    if #pids > 0 then
        kind.may_fail = kind.may_fail + 2 * CLIENTS -- all that it can have had in hand
        uv.kill(pids[math.random(#pids)], 'sigkill')
    end
end

function actions.stall(kind)
    local pids = workers(kind)
    local pid = pids[math.random(#pids)]
    if pid then
        uv.kill(pid, 'sigstop')
        wait.let_run(math.random(100, 1500))
        uv.kill(pid, 'sigcont')
    end
end

function actions.roll(kind)
    verdict(kind, 0, 'a good release')
end

function actions.bad_release(kind)
    kind.m:rewrite(kind.file, kind.app(kind.bad))
    verdict(kind, 10, 'a bad release')
    kind.m:rewrite(kind.file, kind.app())
end

function actions.late_release(kind)
    kind.m:rewrite(kind.file, kind.app(kind.late))
    verdict(kind, 10, 'a release that fails late')
    kind.m:rewrite(kind.file, kind.app())
end

function actions.bad_script(kind)
    kind.m:rewrite('master.lua', script(kind, nil, true))
    verdict(kind, 10, 'a bad script')
    kind.m:rewrite('master.lua', script(kind))
end

function actions.scale(kind)
    cli.run(kind.m, { 'scale', tostring(math.random(2, 5)) })
end

function actions.reload(kind)
    local c = cli.run(kind.m, { 'reload' })
    if c.code ~= 0 then
        complain(kind, 'reload: exit code %s: %s', tostring(c.code), c.err)
    end
end

function actions.hooks(kind)
    kind.m:rewrite('master.lua', script(kind, HOOKS[math.random(#HOOKS)]))
    cli.run(kind.m, { 'reload' })
    wait.let_run(1500)
    kind.m:rewrite('master.lua', script(kind))
    cli.run(kind.m, { 'reload' })
end

function actions.crowd(kind)
    local socket = io.popen(('ls %s/run/*.sock'):format(kind.m.dir)):read '*l'
    local pipes = {}
    for i = 1, 80 do
        local pipe = uv.new_pipe(false)
        pipes[i] = pipe
        pipe:connect(socket, function(err)
            if not err and not pipe:is_closing() then
                pipe:write(math.random(2) == 1 and '{"v":1,"id":1,"verb":"events","follow":true}\n' or ('garbage {['):rep(500) .. '\n',
                    function() end)
            end
        end)
    end
    wait.let_run(300)
    local c = cli.run(kind.m, { 'status' })
    if c.code ~= 0 then
        complain(kind, 'status in a crowd: exit code %s: %s', tostring(c.code), c.err)
    end
    for _, pipe in ipairs(pipes) do
        pipe:close()
    end
end

local names = {}
for name in pairs(actions) do
    names[#names + 1], counts[name] = name, 0
end
table.sort(names)

for _, kind in ipairs(KINDS) do
    kind.port, kind.may_fail = http.free_port(), 0
    kind.m = master.start { script = script(kind), files = { [kind.file] = kind.app() } }
    kind.m:await 'Cluster ready'
    kind.loads = {
        load.start { port = kind.port, clients = CLIENTS, mode = 'close', rate = 100, timeout = 30000, expect = '^ok$' },
        load.start { port = kind.port, clients = CLIENTS, mode = 'keepalive', rate = 100, timeout = 30000, expect = '^ok$' },
    }
end

local function look(kind)
    local status = io.open(('/proc/%d/status'):format(kind.m:process_pid())):read '*a'
    local descriptors, scan = 0, uv.fs_scandir(('/proc/%d/fd'):format(kind.m:process_pid()))
    while scan and uv.fs_scandir_next(scan) do
        descriptors = descriptors + 1
    end
    kind.mib = tonumber(status:match 'VmRSS:%s+(%d+)') / 1024
    kind.most = math.max(kind.most or 0, kind.mib)
    return ('%s %.1f MiB %d fd %d requests'):format(kind.name, kind.mib, descriptors,
        kind.loads[1].counts.total + kind.loads[2].counts.total)
end

local begun, minute = uv.hrtime(), 0
while (uv.hrtime() - begun) / 1e9 < SECONDS do
    local kind, name = KINDS[math.random(#KINDS)], names[math.random(#names)]
    counts[name] = counts[name] + 1
    actions[name](kind)
    wait.let_run(math.random(0, 500))
    if kind.m.ended then
        complain(kind, 'the master has ended')
        break
    end
    local now = math.floor((uv.hrtime() - begun) / 60e9)
    if now > minute then
        minute = now
        local parts = {}
        for i, each in ipairs(KINDS) do
            parts[i] = look(each)
        end
        print(('minute %d: %s'):format(minute, table.concat(parts, '; ')))
    end
end

for _, kind in ipairs(KINDS) do
    look(kind)
    local failed = 0
    for _, each in ipairs(kind.loads) do
        local result = each:stop()
        failed = failed + result.failed
        print(('%s: %s'):format(kind.name, result.text))
        if result.bad + result.refused + result.timeout > 0 then
            complain(kind, 'answers that were bad, refused or too late')
        end
    end
    print(('%s: %d failed, %d may have been inside killed workers'):format(kind.name, failed, kind.may_fail))
    if failed > kind.may_fail then
        complain(kind, 'requests failed outside of killed workers')
    end
    if kind.most > MOST_MIB then
        complain(kind, 'its memory was %.1f MiB', kind.most)
    end
    for _, record in ipairs(kind.m.log) do
        if record.level >= 60 or record.msg:find 'attempt to ' then
            complain(kind, 'an internal error: %s', record.msg)
        end
    end
    kind.m:signal 'SIGTERM'
    local ok, problem = pcall(kind.m.finish, kind.m, { code = kind.m:exit().code })
    if not ok then
        complain(kind, 'left behind: %s', tostring(problem):sub(1, 3000))
    end
end
local parts = {}
for i, name in ipairs(names) do
    parts[i] = name .. ' ' .. counts[name]
end
print(('%d wrong; %s'):format(wrong, table.concat(parts, ', ')))
master.cleanup()
os.exit(wrong == 0 and 0 or 1)
