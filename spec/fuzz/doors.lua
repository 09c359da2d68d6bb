--- doors.lua: the four doors of a running master, with somebody hostile at each: what a worker says on its channel, what
-- it says to the notify socket, what a client of the control socket asks, what a process of the script answers.
--
-- usage: luajit spec/fuzz/doors.lua channel|notify|control|script [SECONDS] [SEED]
--
-- The lines are those of spec/fuzz/corpus, changed at random. Meanwhile somebody else pings the master. Right is: it
-- lives, answers, keeps its memory and its descriptors, has no internal error, and leaves nothing behind when it is
-- stopped. With a build of the sanitizers (DM_BUILD, DM_SANITIZE) they have nothing to report.

local uv = require 'luv'
local cjson = require 'cjson'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local DOOR, SECONDS, SEED = arg[1], tonumber(arg[2]) or 10, tonumber(arg[3]) or os.time()
local HERE = assert(uv.fs_realpath 'spec/fuzz')
local MOST_MIB = os.getenv 'DM_SANITIZE' and 600 or 64 -- a sanitizer keeps what was freed
local MOST_DESCRIPTORS = 400
local MOST_SHOWN = 4000 -- bytes of the end of the log
local PATIENCE_MS = 20000 -- for an answer, on a machine that does much else

io.stdout:setvbuf 'line'
uv.new_signal():start('sigpipe', function() end)
math.randomseed(SEED)
print(('%s: seed %d'):format(DOOR, SEED))

local COMMON = [[numWorkers = 3, restartAttempts = 1000, backoff = { first = 0.01, max = 0.05, reset = 0.01 }, readyTimeout = 10,
    stopTimeout = 2, killTimeout = 1, restartSoak = 0, ]]

local DOORS = {
    channel = ([[worker = '%s/hostile.py', kind = 'node', interpreter = { 'python3' }, drain = false,
        args = { 'channel', '%s/corpus/channel', '%d' }, onMessage = function() end]]):format(HERE, HERE, SEED),
    notify = ([[worker = { 'python3', '%s/hostile.py', 'notify', '%s/corpus/notify', '%d' }, ready = 'notify',
        watchdog = 1]]):format(HERE, HERE, SEED),
    control = [[worker = { 'sleep', '100000' }, ready = { alive = 0.01 }]],
    script = [[worker = { 'sleep', '1' }, ready = { alive = 0.01 },
        beforeFork = hostile, workerEnvironment = function() hostile() return {} end,
        onWorkerReady = hostile, onWorkerExit = hostile, every = { 0.02, hostile }]],
}

-- Writes to the socket of its own process (3), behind the back of what runs there.
local SCRIPT = [[
local dutch = require 'dutch-master'
local ffi = require 'ffi'
ffi.cdef 'long write(int, const char *, unsigned long); int close(int); int getpid(void); int usleep(unsigned);'
local lines = {}
for line in io.lines '%s/corpus/script' do lines[#lines + 1] = line end
math.randomseed(ffi.C.getpid() + os.clock() * 1e6)
local random = math.random
local function changed(line)
    local kind = random(6)
    if kind == 1 and #line > 0 then
        local at = random(#line)
        return line:sub(1, at - 1) .. string.char(random(0, 255)) .. line:sub(at + 1)
    elseif kind == 2 then
        return line:sub(1, random(0, #line))
    elseif kind == 3 then
        return (line:gsub('"[^"]*"', function(word) return random(4) == 1 and '[1e308,null,{}]' or word end))
    end
    return line
end
local function hostile()
    if not io.open 'go' then -- the boot is over
        return
    end
    if random(3) > 1 then -- good, mostly: after deaths in a row the next process waits for seconds
        return
    end
    local said = io.open('said', 'a')
    for _ = 1, random(0, 6) do
        local line = changed(lines[random(#lines)]) .. (random(20) == 1 and '' or '\n')
        ffi.C.write(3, line, #line)
        said:write '.'
    end
    said:close()
    local fate = random(60)
    if fate == 1 then
        ffi.C.close(3)
    elseif fate == 2 then
        ffi.cast('int *', 8)[0] = 1
    elseif fate == 3 then
        os.exit(random(0, 255))
    elseif fate == 4 then
        local flood = ('x'):rep(1e6)
        ffi.C.write(3, flood, #flood)
    end
end
dutch.start { %s %s }
]]

local m = master.start {
    script = DOOR == 'script' and SCRIPT:format(HERE, COMMON, DOORS.script)
        or ("local dutch = require 'dutch-master'\ndutch.start { %s %s }"):format(COMMON, assert(DOORS[DOOR], 'which door?')),
}
local socket
m:wait_until(function()
    socket = (io.popen(('ls %s/run/*.sock 2>/dev/null'):format(m.dir)):read '*l')
    return socket
end, 'its control socket')
if DOOR == 'script' or DOOR == 'channel' then
    m:await 'Cluster ready'
    m:rewrite('go', '')
end

-- The reason first and last: what is between may be cut by who shows it.
local function fail(text)
    local dump = m:dump()
    master.cleanup()
    local reason = ('%s, seed %d: %s\n'):format(DOOR, SEED, text)
    io.stderr:write(reason, dump:sub(-MOST_SHOWN), '\n', reason)
    os.exit(1)
end

-- Somebody who only wants an answer ----------------------------------------------------------------------------------

local pings, slowest = 0, 0

local function ping()
    local pipe, answer = uv.new_pipe(false), ''
    local begun, done = uv.hrtime(), false
    pipe:connect(socket, function(err)
        if err then
            done = true
            return
        end
        pipe:write '{"v":1,"id":"ping","verb":"ping"}\n'
        pipe:read_start(function(_, data)
            answer = answer .. (data or '')
            done = not data or answer:find '\n' ~= nil
        end)
    end)
    local came = wait.try(function() return done or m.ended end, { timeout = PATIENCE_MS })
    pipe:close()
    if m.ended then
        fail 'the master has ended'
    elseif not came then
        fail(('no answer within %d ms'):format(PATIENCE_MS))
    elseif answer ~= '' then -- else it was sent away, in a crowd
        assert(cjson.decode(answer).ok, answer)
        pings, slowest = pings + 1, math.max(slowest, (uv.hrtime() - begun) / 1e6)
    end
end

-- A hostile client of the control socket -----------------------------------------------------------------------------

local asked = 0
local corpus = {}
for line in io.lines(HERE .. '/corpus/control') do
    corpus[#corpus + 1] = line
end

local VALUES = { 'null', '1e999', '-1', '{}', '[]', '""', '"\\u0000"', '1e308', '0.1', '"\\ud800"', ('[' ):rep(50) }

local function changed(line)
    local random, kind = math.random, math.random(5)
    if kind == 1 then
        local at = random(#line)
        return line:sub(1, at - 1) .. string.char(random(0, 255)) .. line:sub(at + 1)
    elseif kind == 2 then
        return line:sub(1, random(0, #line))
    elseif kind == 3 then
        return (line:gsub(':([^,}]*)', function(value)
            return ':' .. (random(3) == 1 and VALUES[random(#VALUES)] or value)
        end))
    end
    return line
end

-- What would end the master, or start a thousand workers, is not tried.
local function harmless(line)
    local ok, request = pcall(cjson.decode, line)
    return not (ok and type(request) == 'table') or request.verb ~= 'stop' and request.verb ~= 'scale'
        or request.verb == 'scale' and (request.workers == 2 or request.by == 0)
end

local clients = {}

local function hostile_client()
    local client = { pipe = uv.new_pipe(false) }
    clients[client] = true
    client.close = function()
        if clients[client] then
            clients[client] = nil
            client.pipe:close()
        end
    end
    client.pipe:connect(socket, function(err)
        if err then
            return client.close()
        end
        if math.random(4) > 1 then
            client.pipe:read_start(function(_, data)
                if not data then
                    client.close()
                end
            end)
        end
    end)
    return client
end

local function bother()
    local count = 0
    for client in pairs(clients) do
        count = count + 1
        if math.random(30) == 1 then
            client.close()
        elseif client.pipe:is_writable() and client.pipe:get_write_queue_size() < 1e5 then
            for _ = 1, math.random(0, 20) do
                local line = changed(corpus[math.random(#corpus)])
                if harmless(line) then
                    asked = asked + 1
                    client.pipe:write(line .. (math.random(20) == 1 and '' or '\n'), function() end)
                end
            end
        end
    end
    if count < 40 then
        hostile_client()
    end
end

-- ---------------------------------------------------------------------------------------------------------------------

local function look()
    local status = io.open(('/proc/%d/status'):format(m:process_pid())):read '*a'
    local mib = tonumber(status:match 'VmRSS:%s+(%d+)') / 1024
    local descriptors = 0
    local scan = uv.fs_scandir(('/proc/%d/fd'):format(m:process_pid()))
    while scan and uv.fs_scandir_next(scan) do
        descriptors = descriptors + 1
    end
    if mib > MOST_MIB then
        fail(('its memory is %.0f MiB'):format(mib))
    elseif descriptors > MOST_DESCRIPTORS then
        fail(('it has %d descriptors'):format(descriptors))
    end
    return mib, descriptors
end

local ends, mib, descriptors = uv.hrtime() + SECONDS * 1e9, 0, 0
local turn = uv.new_timer()
while uv.hrtime() < ends do
    if DOOR == 'control' then
        bother()
    end
    ping()
    mib, descriptors = look()
    local waited
    turn:start(5, 0, function() waited = true end)
    wait.try(function() return waited end)
end
turn:close()
for client in pairs(clients) do
    client.close()
end
wait.turn()

local counts = {}
for _, record in ipairs(m.log) do
    -- An error of our own, and not what is said of somebody else's.
    if record.level >= 60 or record.msg:find 'attempt to ' or record.msg:find 'nternal error' then
        fail(('an internal error: %s\n%s'):format(record.msg, record.traceback or cjson.encode(record)))
    end
    counts[record.msg] = (counts[record.msg] or 0) + 1
end
m:signal 'SIGTERM'
local said = (uv.fs_stat(m:path 'said') or { size = asked }).size
local ended = m:exit()
if ended.code ~= 0 and ended.code ~= 1 then -- 1: a worker had to be killed
    fail 'it did not stop'
end
local ok, problem = pcall(m.finish, m, { code = ended.code })
if not ok then
    fail(tostring(problem))
end
local forks, hooks = counts['Creating new worker'] or 0, 0
for message, count in pairs(counts) do
    if message:find '^Hook failed' or message:find '^Fork abandoned' then
        hooks = hooks + count
    end
end
print(('%s: %d s, %d lines, %d workers, %d hooks failed; %d pings, the slowest %.0f ms; %.1f MiB, %d descriptors'):format(
    DOOR, SECONDS, said, forks, hooks, pings, slowest, mib, descriptors))
if said < SECONDS then
    fail(('only %d hostile lines were said'):format(said))
end
