--- Failed requests in so many deaths (kill -9) of the process that supervises, and so many upgrades of it: ours beside
-- what its users do with PM2, gunicorn and puma. The same load for all: 8 clients, 200 requests a second together, half
-- of them with kept connections. A supervisor that has died is started again at once, as systemd would.
-- usage: build/dm-spec spec/bench/keeper_peers.lua [dutch-node|dutch-gunicorn|pm2|gunicorn|puma]...   (all without a name)
-- DM_TIMES (20): deaths, and upgrades. einhorn is in no package of Debian's, and no gem can be had here.

local uv = require 'luv'
local texts = require 'spec.support.files'
io.stdout:setvbuf 'line'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local TIMES = tonumber(os.getenv 'DM_TIMES') or 20
-- Between two of them: all of the subjects have settled by then.
local SETTLE_MS = 1200
local NODE_APP = [[require('http').createServer((request, response) => {
    setTimeout(() => response.end('works'), Math.random() * 5) }).listen(Number(process.env.PORT))]]
local WSGI_APP = [[
import random, threading
def application(environ, start_response):
    threading.Event().wait(random.random() * 0.005)
    start_response('200 OK', [('Content-Length', '5')])
    return [b'works']
]]
local RACK_APP = "run ->(env) { sleep rand * 0.005; [200, { 'Content-Length' => '5' }, ['works']] }"

local function write(path, text)
    local file = assert(io.open(path, 'w'))
    file:write(text)
    file:close()
end

local function number_in(path)
    return tonumber(texts.or_empty(path):match '^%s*(%d+)')
end

local function children(pid)
    local list = {}
    for child in texts.or_empty(('/proc/%d/task/%d/children'):format(pid, pid)):gmatch '%d+' do
        list[#list + 1] = tonumber(child)
    end
    return list
end

-- Those that we adopted are zombies when they have ended.
local function is_alive(pid)
    local state = texts.or_empty(('/proc/%d/stat'):format(pid)):match '%) (%a)'
    return state ~= nil and state ~= 'Z' and state ~= 'X'
end

local function serves(port)
    return wait.wait_until(function()
        return (http.get { port = port }) == 200
    end, { what = 'an answer', timeout = 60000 })
end

-- A daemon of ours, in a group of its own, its words in a file. @return pid
local function spawn(dir, words, env)
    local log = assert(uv.fs_open(dir .. '/out.log', 'a', tonumber('644', 8)))
    local all = {}
    for name, value in pairs(uv.os_environ()) do
        all[#all + 1] = (env or {})[name] == nil and name .. '=' .. value or nil
    end
    for name, value in pairs(env or {}) do
        all[#all + 1] = name .. '=' .. value
    end
    local process, pid
    process, pid = uv.spawn(words[1], { args = { unpack(words, 2) }, cwd = dir, env = all, detached = true,
        stdio = { nil, log, log } }, function()
        process:close()
    end)
    assert(process, pid)
    uv.fs_close(log)
    return pid
end

local function run(dir, words, env)
    local ended
    local command = {}
    for name, value in pairs(env or {}) do
        command[#command + 1] = ("%s='%s'"):format(name, value)
    end
    local process = uv.spawn('sh', { args = { '-c', ("cd '%s' && %s %s >>out.log 2>&1"):format(dir,
        table.concat(command, ' '), words) } }, function(code)
        ended = code
    end)
    wait.wait_until(function() return ended end, { what = words, timeout = 120000 })
    process:close()
    return ended
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Subjects: start(port) -> { kill = function(), upgrade = function(), stop = function() }

local subjects = {}

local function ours(worker, files)
    return function(port)
        local m = kept.start { files = files, env = { DUTCH_MASTER_LUA = false }, script = ([[local dutch = require 'dutch-master'
            dutch.start { worker = %s, numWorkers = 2, restartSoak = 0, %s workerEnvironment = { PORT = '%d' } }]])
            :format(worker, files['app.py'] and ("listen = '127.0.0.1:%d',"):format(port) or '', port) }
        m:await 'Cluster ready'
        local before = m:workers()
        return {
            kill = function()
                kept.kill(m)
            end,
            upgrade = function()
                local code = run(m.app, ("'%s' upgrade master.lua"):format(master.binary()),
                    { DUTCH_MASTER_RUNTIME_DIR = m.dir .. '/run' })
                assert(code == 0, 'upgrade: ' .. tostring(code))
            end,
            stop = function()
                local same = table.concat(before, ' ') == table.concat(m:workers(), ' ')
                m:finish()
                return same and 'the same workers' or 'WORKERS WERE REPLACED'
            end,
        }
    end
end

subjects['dutch-node'] = ours("'app.js'", { ['app.js'] = NODE_APP })
subjects['dutch-gunicorn'] = ours("dutch.gunicorn { app = 'app:application' }", { ['app.py'] = WSGI_APP })

subjects.pm2 = function(port)
    local modules = versions.modules 'pm2'
    if not modules then
        return nil, 'pm2 is not in spec/.cache'
    end
    local dir = master.temp_dir()
    write(dir .. '/app.js', NODE_APP)
    local env = { PM2_HOME = dir .. '/home', PORT = port, PATH = versions.binary '22':match '(.*)/' .. ':' .. os.getenv 'PATH' }
    local function pm2(words)
        return run(dir, ("node '%s/pm2/bin/pm2' %s"):format(modules, words), env)
    end
    pm2 'start app.js -i 2 --name app'
    pm2 'save'
    serves(port)
    return {
        kill = function() -- the next command starts a daemon again
            uv.kill(number_in(dir .. '/home/pm2.pid'), 'sigkill')
            pm2 'resurrect'
            serves(port)
        end,
        upgrade = function()
            pm2 'update'
            serves(port)
        end,
        stop = function()
            pm2 'kill'
        end,
    }
end

-- A server with a pid file of its own: start, and start again when it is killed.
local function server(port, files, words, upgrade)
    local dir = master.temp_dir()
    for name, text in pairs(files) do
        write(dir .. '/' .. name, text)
    end
    local pid_file = dir .. '/pid'
    local command = words(port, pid_file)
    local function start()
        os.remove(pid_file)
        -- Whoever stayed holds the port for a moment: tried again, as systemd would.
        wait.wait_until(function()
            local pid = spawn(dir, command)
            local begun = uv.hrtime()
            return wait.try(function()
                return number_in(pid_file) == pid and #children(pid) >= 2 or not is_alive(pid)
                    or uv.hrtime() - begun > 20e9
            end, { timeout = 30000 }) and is_alive(pid)
        end, { what = command[1], timeout = 120000 })
        serves(port)
    end
    start()
    return {
        kill = function()
            uv.kill(number_in(pid_file), 'sigkill')
            start()
        end,
        upgrade = function()
            upgrade(number_in(pid_file), pid_file)
            serves(port)
        end,
        stop = function()
            local pid = number_in(pid_file)
            uv.kill(pid, 'sigterm')
            wait.wait_until(function() return not is_alive(pid) end, { what = 'its end' })
        end,
    }
end

-- As its documentation says: USR2, and when the new one serves, the former one is asked to go.
subjects.gunicorn = function(port)
    return server(port, { ['app.py'] = WSGI_APP }, function(p, pid_file)
        return { 'gunicorn', '-w', '2', '--pid', pid_file, '-b', '127.0.0.1:' .. p, 'app:application' }
    end, function(pid, pid_file)
        uv.kill(pid, 'sigusr2')
        local new
        wait.wait_until(function()
            new = number_in(pid_file .. '.2')
            return new and #children(new) >= 2
        end, { what = 'the new gunicorn' })
        uv.kill(pid, 'sigterm')
        wait.wait_until(function()
            return not is_alive(pid) and number_in(pid_file) == new
        end, { what = 'the former gunicorn to go' })
    end)
end

-- Its hot restart: the same process, the same sockets, new workers.
subjects.puma = function(port)
    return server(port, { ['config.ru'] = RACK_APP }, function(p, pid_file)
        return { 'puma', '-w', '2', '-b', 'tcp://127.0.0.1:' .. p, '--pidfile', pid_file, 'config.ru' }
    end, function(pid)
        local before = {}
        for _, child in ipairs(children(pid)) do
            before[child] = true
        end
        uv.kill(pid, 'sigusr2')
        wait.wait_until(function()
            local fresh = 0
            for _, child in ipairs(children(pid)) do
                fresh = fresh + (before[child] and 0 or 1)
            end
            return fresh >= 2
        end, { what = 'new workers' })
    end)
end

-- ---------------------------------------------------------------------------------------------------------------------

local function measure(name, what, port, act)
    local kept_alive = load.start { port = port, clients = 4, mode = 'keepalive', rate = 100, expect = '^works$', timeout = 5000 }
    local single = load.start { port = port, clients = 4, rate = 100, expect = '^works$', timeout = 5000 }
    single:await(50)
    local begun, wrong = uv.hrtime(), 0
    for _ = 1, TIMES do
        local ok, message = pcall(act)
        if not ok then
            wrong = wrong + 1
            print(name, what, tostring(message):sub(1, 300))
        end
        wait.let_run(SETTLE_MS)
    end
    local a, b = kept_alive:stop(), single:stop()
    print(('%-15s %-9s %3d times: %5d of %6d requests failed (kept %d of %d, single %d of %d), asked again %d, '
        .. 'slowest %d ms, %.1f s each%s'):format(name, what, TIMES, a.failed + b.failed, a.total + b.total, a.failed,
            a.total, b.failed, b.total, a.stale, math.max(a.max_ms, b.max_ms), (uv.hrtime() - begun) / 1e9 / TIMES,
            wrong > 0 and (', %d WENT WRONG'):format(wrong) or ''))
end

local names = #arg > 0 and arg or { 'dutch-node', 'dutch-gunicorn', 'pm2', 'gunicorn', 'puma' }
for _, name in ipairs(names) do
    local port = http.free_port()
    local subject, why = subjects[name](port)
    if subject then
        measure(name, 'kill -9', port, subject.kill)
        measure(name, 'upgrade', port, subject.upgrade)
        local said = subject.stop()
        if said then
            print(('%-15s %s'):format(name, said))
        end
    else
        print(name, why)
    end
end
master.cleanup()
