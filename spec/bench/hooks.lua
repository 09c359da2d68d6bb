-- hooks.lua: how long the master's loop is held while a hook does its worst, and how soon a worker that crashes
-- meanwhile is noticed. Seen from outside, by a ping over the control socket every 5 ms; the time that the master waited
-- for a processor is not in the first figure, but is in the second.
-- usage: luajit spec/bench/hooks.lua [NAME]...   (all without a name)

package.path = './?.lua;' .. package.path
os.setlocale 'C'

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local pings = require 'spec.support.pings'

local SECONDS = 2
local WRITE = 'ffi.cdef "long write(int, const char *, long);" '

-- Ends the processes of the script of the master `pid`.
local function kill_scripts(pid)
    local file = assert(io.open(('/proc/%d/task/%d/children'):format(pid, pid)))
    for child in file:read('*a'):gmatch '%d+' do
        local comm = io.open('/proc/' .. child .. '/comm')
        if comm and comm:read '*l' == 'dutch-script' then
            uv.kill(tonumber(child), 'sigkill')
        end
        if comm then
            comm:close()
        end
    end
    file:close()
end

-- name, what beforeFork and every do, other options, what is done meanwhile
local SITUATIONS = {
    { 'returns at once', '' },
    { 'sleeps', 'os.execute "sleep 60"' },
    { 'sleeps 4 s, and has the time', 'os.execute "sleep 4"', 'hookTimeout = 30,' },
    { 'loops', 'while true do end' },
    { 'loops in a coroutine', 'coroutine.wrap(function() while true do end end)()' },
    { 'loops in pcall', 'while true do pcall(function() while true do end end) end' },
    { 'loops in a pattern', '(("a"):rep(40)):find(("a*"):rep(20) .. "b")' },
    { 'blocks in C', 'ffi.cdef "int pause(void);" ffi.C.pause()' },
    { 'waits for a child that ignores SIGTERM', [[io.popen("trap '' TERM; sleep 60"):read '*a']] },
    { 'eats memory by strings', 'local t = {} while true do t[#t + 1] = ("x"):rep(1e7) .. #t end' },
    { 'eats memory by ffi', 'local t = {} while true do t[#t + 1] = ffi.new("char[?]", 1e7) end' },
    { 'segfaults', 'ffi.cast("int *", 0)[0] = 1' },
    { 'os.exit', 'os.exit(3)' },
    { 'closes its descriptors', 'ffi.cdef "int close(int);" for fd = 0, 9 do ffi.C.close(fd) end while true do end' },
    { 'forks', 'ffi.cdef "int fork(void);" ffi.C.fork() error "twin"' },
    { 'writes junk', WRITE .. 'while true do ffi.C.write(3, "junk\\n", 5) end' },
    { 'writes without an end', WRITE .. 'local s = ("x"):rep(65536) while true do ffi.C.write(3, s, #s) end' },
    { 'asks and never reads', WRITE .. [[local s = '{"ask":"store_all","arguments":{}}\n'
        while true do ffi.C.write(3, s, #s) end]] },
    { 'floods the log', 'while true do dutch.log:debug "flood" end' },
    { 'is stopped by SIGSTOP', 'ffi.cdef "int raise(int);" ffi.C.raise(19)' },
    { 'is out of descriptors', 'local t = {} while true do t[#t + 1] = assert(io.open "/dev/null") end' },
    { 'is killed by SIGKILL, again and again', 'os.execute "sleep 0.1"', '', kill_scripts },
    { 'judges for longer than all this takes', '', [[restartConcurrency = { canary = { soak = 0.01, timeout = 60,
        judge = function() os.execute 'sleep 60' end } },]] },
    { 'logs, and blocks', '', "logger = { info = function() os.execute 'sleep 60' end }," },
}

local function script(body, more)
    more = more or ''
    more = more:find 'hookTimeout' and more or more .. 'hookTimeout = 0.5,'
    more = more:find 'logger' and more or more .. "logger = dutch.logger { level = 'info' },"
    return ([[
        local dutch, ffi = require 'dutch-master', require 'ffi'
        dutch.start { worker = 'app.lua', backoff = { first = 0.05, max = 0.05 },
            controlSocket = dutch.directory .. '/control', %s
            workerEnvironment = { LISTEN = os.getenv 'LISTEN' },
            beforeFork = function(worker) if worker.slot == 1 then %s end end,
            every = { 0.05, function() %s end } }]]):format(more, body, body)
end

local function start()
    return master.start { script = script '', files = { ['app.lua'] = apps.http },
        env = { LISTEN = '127.0.0.1:' .. http.free_port() } }
end

-- The hook runs at the forks of slot 1 while a restart goes on, and of `every`; then both workers are killed.
local function measure(situation)
    local m = start()
    m:await 'Cluster ready'
    m:rewrite('master.lua', script(situation[2], situation[3]))
    m:signal 'SIGHUP' -- for `every`
    m:await 'Restart requested'
    local watch = pings.start(m.app .. '/control', m:process_pid())
    local mark = m:mark()
    local began = uv.hrtime()
    for _, pid in ipairs(m:workers()) do
        uv.kill(pid, 'sigkill')
    end
    m:await('Worker exited', { after = mark })
    local noticed = (uv.hrtime() - began) / 1e6
    local timer, over = uv.new_timer(), false
    timer:start(SECONDS * 1000, 0, function() over = true end)
    master.wait_until(function()
        if situation[4] then
            situation[4](m:process_pid())
        end
        return over
    end, 'the end', { timeout = 60000 })
    timer:close()
    local longest, count = watch.stop()
    m:signal 'SIGTERM'
    m:exit()
    master.cleanup()
    return longest, count, noticed
end

print(('%-40s %12s %12s %8s'):format('a hook that', 'held, ms', 'crash, ms', 'pings'))
local wanted, worst = {}, 0
for _, name in ipairs(arg) do
    wanted[name] = true
end
for _, situation in ipairs(SITUATIONS) do
    if #arg == 0 or wanted[situation[1]] then
        local longest, count, noticed = measure(situation)
        worst = math.max(worst, longest)
        print(('%-40s %12.1f %12.1f %8d'):format(situation[1], longest, noticed, count))
    end
end
print(('longest time that the loop was held: %.1f ms (budget 20 ms)'):format(worst))
