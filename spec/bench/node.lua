--- A Node app under this master, under Node's own cluster, and under PM2, in one run on one machine:
--   spec/support/install-node bench
--   build/dm-spec spec/bench/node.lua [VERSION = 22] [SECONDS of each measurement = 6] [ROLLS = 20]
-- wrk makes the load of the first part, spec/support/load.lua that of the rolls.

local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

io.stdout:setvbuf 'line'

local VERSION = arg and arg[1] or '22'
local SECONDS = tonumber(arg and arg[2]) or 6
local ROLLS = tonumber(arg and arg[3]) or 20
local NODE = assert(versions.binary(VERSION), 'Node ' .. VERSION .. ' is not installed: spec/support/install-node')
local PM2 = versions.modules 'pm2'
local ROUNDS = 3 -- the subjects take turns; the median counts

local APP = [[
    require('http').createServer((request, response) => {
        if (request.url === '/') return response.end('hello')
        setTimeout(() => response.end('hello'), Math.random() * 50)
    }).listen(Number(process.env.PORT))
]]

local function capture(command)
    local pipe = assert(io.popen(command .. ' 2>&1'))
    local text = pipe:read '*a'
    pipe:close()
    return text
end

local function rss_mib(pid)
    local file = io.open(('/proc/%d/status'):format(pid))
    local text = file and file:read '*a' or ''
    if file then
        file:close()
    end
    return (tonumber(text:match 'VmRSS:%s*(%d+)') or 0) / 1024
end

local function write(path, text)
    local file = assert(io.open(path, 'w'))
    file:write(text)
    file:close()
end

local dir = master.temp_dir()
write(dir .. '/app.js', APP)

-- A process whose lines of output are counted by what they are.
local function program(file, args, env)
    local self = { lines = {}, seen = 0 }
    local out = uv.new_pipe(false)
    local all = {}
    for name, value in pairs(uv.os_environ()) do
        all[#all + 1] = name .. '=' .. value
    end
    for name, value in pairs(env or {}) do
        all[#all + 1] = name .. '=' .. value
    end
    self.process, self.pid = uv.spawn(file, { args = args, env = all, stdio = { nil, out, 2 }, cwd = dir }, function()
        self.ended = true
    end)
    assert(self.process, self.pid)
    out:read_start(function(_, data)
        for line in (data or ''):gmatch '[^\n]+' do
            self.lines[#self.lines + 1] = line
        end
    end)
    function self.await(pattern)
        wait.wait_until(function()
            while self.seen < #self.lines do
                self.seen = self.seen + 1
                if self.lines[self.seen]:find(pattern) then
                    return true
                end
            end
            return self.ended
        end, { what = pattern, timeout = 60000 })
    end
    function self.stop()
        self.process:kill 'sigterm'
        wait.wait_until(function() return self.ended end, { timeout = 40000 })
    end
    return self
end

-- Each subject: start(port) -> { memory(), roll(), stop() }
local subjects = {}

subjects[1] = { name = 'dutch-master', start = function(port)
    write(dir .. '/master.lua', ([[
        require('dutch-master').start {
            worker = 'app.js', numWorkers = 2, interpreter = { '%s' }, workerEnvironment = { PORT = '%d' },
        }
    ]]):format(NODE, port))
    local run = program(master.binary(), { 'master.lua' })
    run.await 'Cluster ready'
    return {
        memory = function() return rss_mib(run.pid) end,
        roll = function()
            run.process:kill 'sigusr2'
            run.await 'Restart complete'
        end,
        stop = run.stop,
    }
end }

subjects[2] = { name = 'node cluster', start = function(port)
    local run = program(NODE, { uv.cwd() .. '/spec/bench/node_cluster.cjs', dir .. '/app.js', '2' }, { PORT = port })
    run.await 'ready'
    return {
        memory = function() return rss_mib(run.pid) end,
        roll = function()
            run.process:kill 'sigusr2'
            run.await 'rolled'
        end,
        stop = run.stop,
    }
end }

if PM2 then
    subjects[3] = { name = 'pm2', start = function(port)
        local function pm2(words)
            local command = ("cd '%s' && PATH='%s':$PATH PM2_HOME='%s/pm2' PORT=%d node '%s/pm2/bin/pm2' %s"):format(
                dir, NODE:match '^(.*)/', dir, port, PM2, words)
            local ended, process = false, nil
            process = uv.spawn('/bin/sh', { args = { '-c', command .. ' >/dev/null 2>&1' } }, function()
                ended = true
                process:close()
            end)
            wait.wait_until(function() return ended end, { what = 'pm2 ' .. words, timeout = 120000 })
        end
        pm2 'start app.js -i 2 --name app'
        wait.wait_until(function() return (http.get { port = port }) == 200 end, { what = 'pm2' })
        local pid = tonumber(assert(io.open(dir .. '/pm2/pm2.pid')):read '*a')
        return {
            memory = function() return rss_mib(pid) end,
            roll = function() pm2 'reload app' end,
            stop = function() pm2 'kill' end,
        }
    end }
end

local function wrk(port, extra)
    local text = capture(('wrk -t1 -c64 -d%ds --latency %s http://127.0.0.1:%d/'):format(SECONDS, extra or '', port))
    local p99, unit = text:match '99%%%s+([%d.]+)(%a+)'
    local scale = unit == 's' and 1000 or unit == 'us' and 0.001 or 1
    return assert(tonumber(text:match 'Requests/sec:%s*([%d.]+)'), text), tonumber(p99) * scale
end

local function median(list)
    table.sort(list)
    return list[math.ceil(#list / 2)]
end

local results = {}
for i, subject in ipairs(subjects) do
    results[i] = { close = {}, keep = {}, p99 = {}, close_p99 = {} }
    subject.port = http.free_port() + i
end

print(('Node %s, 2 workers, wrk with 64 connections, %d s, median of %d rounds'):format(VERSION, SECONDS, ROUNDS))
for _ = 1, ROUNDS do
    for i, subject in ipairs(subjects) do
        local run = subject.start(subject.port)
        local result = results[i]
        wrk(subject.port) -- warm
        result.memory = run.memory()
        local rate, p99 = wrk(subject.port, "-H 'Connection: close'")
        table.insert(result.close, rate)
        table.insert(result.close_p99, p99)
        rate, p99 = wrk(subject.port)
        table.insert(result.keep, rate)
        table.insert(result.p99, p99)
        run.stop()
    end
end
for i, subject in ipairs(subjects) do
    local r = results[i]
    local form = '%-14s %6d new connections/s (p99 %.1f ms)  %6d requests/s kept alive (p99 %.1f ms)  master %.1f MiB'
    print(form:format(subject.name, median(r.close), median(r.close_p99), median(r.keep), median(r.p99), r.memory))
end
local function ratio(key)
    return median(results[1][key]) / median(results[2][key])
end
print(('against Node\'s cluster: new connections x%.2f, kept alive x%.2f, p99 x%.2f and x%.2f, memory x%.2f'):format(
    ratio 'close', ratio 'keep', ratio 'close_p99', ratio 'p99', results[1].memory / results[2].memory))

print(('%d rolls under load of 16 clients, answers after 0 to 50 ms'):format(ROLLS))
for _, mode in ipairs { 'keepalive', 'close' } do
    for _, subject in ipairs(subjects) do
        local run = subject.start(subject.port)
        local clients = load.start { port = subject.port, path = '/slow', mode = mode, clients = 16 }
        clients:await(50)
        local began = uv.hrtime()
        local ok, message = pcall(function()
            for _ = 1, ROLLS do
                run.roll()
            end
        end)
        local seconds = (uv.hrtime() - began) / 1e9
        local counts = clients:stop()
        print(('%-14s %-9s %s, %.1f s a roll%s'):format(subject.name, mode, counts.text, seconds / ROLLS,
            ok and '' or ' (' .. tostring(message) .. ')'))
        run.stop()
    end
end
master.cleanup()
