-- A master with a keeper, for the e2e specs: which process is which, and the death of a master.
local bit = require 'bit'
local cjson = require 'cjson'
local ffi = require 'ffi'
local assert = require 'luassert'
local files = require 'spec.support.files'
local uv = require 'luv'
local master = require 'spec.support.master'
local pair = require 'spec.support.pair'
local wait = require 'spec.support.wait'

ffi.cdef [[
struct dm_spec_itimerspec { long interval_s, interval_ns, value_s, value_ns; };
long syscall(long number, ...);
int close(int);
int timerfd_settime(int, int, const struct dm_spec_itimerspec *, struct dm_spec_itimerspec *);
int timerfd_gettime(int, struct dm_spec_itimerspec *);
]]
local PIDFD_OPEN, PIDFD_GETFD = 434, 438

local M = {}

--- The pid of the master now. nil: there is none at this moment.
-- @param keeper its pid, where that is not m.pid
function M.pid(m, keeper)
    return pair.master_of(keeper or m.pid)
end

local TOOK_OVER = 'The former master died, this one has taken over'

--- Ends the master and waits for the next one. @return its record
function M.kill(m, signal, keeper)
    local count = #m:records(TOOK_OVER)
    local pid
    m:wait_until(function() -- the kernel's list of children may be short of one while others come and go
        pid = M.pid(m, keeper)
        return pid
    end, 'a master')
    assert(uv.kill(pid, signal or 'sigkill'))
    return m:await(TOOK_OVER, { count = count + 1 })
end

--- From now on no master waits for its turn because others died before it: a signal ends the pause, one that nobody
-- listens to. @return what ends this
function M.without_pauses(m)
    local timer = uv.new_timer()
    timer:start(10, 10, function()
        if not m.ended then -- what a dead master was about to fork looks like one
            uv.kill(m.pid, 'sigurg')
        end
    end)
    return function()
        timer:close()
    end
end

-- Where the shared memory is that dm_keeper_memory describes (src/keeper/keeper.h), and what it looks like.
local MEMORY, HALVES, MARKS, ROOM = '/memfd:dutch-master-state (deleted)', 8, 16384, 32 * 1024 * 1024
local TEXTS = HALVES + 48 + MARKS

-- Of a snapshot: see dm_keeper_sum.
local function sum_of(text)
    local bytes, sum = ffi.cast('const uint8_t *', text), bit.bxor(0xcbf29ce484222325ULL, #text + 0ULL)
    local word = ffi.new 'uint64_t[1]'
    local whole = #text - #text % 8
    for i = 0, whole - 8, 8 do
        ffi.copy(word, bytes + i, 8)
        sum = bit.bxor(sum, word[0]) * 0x9e3779b97f4a7c15ULL
        sum = bit.bxor(sum, bit.rshift(sum, 29))
    end
    for i = whole, #text - 1 do
        sum = bit.bxor(sum, bytes[i] + 0ULL) * 0x100000001b3ULL
    end
    return sum
end

local function open_memory(m, keeper)
    for number = 3, 1000 do
        local path = ('/proc/%d/fd/%d'):format(keeper or m.pid, number)
        if uv.fs_readlink(path) == MEMORY then
            return assert(uv.fs_open(path, 'r+', 0))
        end
    end
    error 'the keeper has no memory'
end

local function each_half(fd)
    local halves = ffi.new 'uint64_t[6]'
    ffi.copy(halves, assert(uv.fs_read(fd, 48, HALVES)), 48)
    return halves
end

local function newest(fd)
    local halves = each_half(fd)
    local half = halves[0] > halves[3] and 0 or 1
    return assert(uv.fs_read(fd, tonumber(halves[half * 3 + 1]), TEXTS + half * ROOM))
end

--- Waits until no worker's channel is in use: one whose channel was, as its master died, would be replaced.
-- @param keeper its pid, where that is not m.pid
function M.await_quiet(m, keeper)
    local fd = open_memory(m, keeper)
    m:wait_until(function()
        local ok, state = pcall(cjson.decode, (newest(fd))) -- not if it was written meanwhile
        local marks = assert(uv.fs_read(fd, MARKS, HALVES + 48))
        for _, worker in ipairs(ok and state.cluster.workers or {}) do
            local mark = worker.process and worker.process.mark
            ok = ok and (not mark or marks:byte(mark + 1) == 0)
        end
        return ok
    end, 'no channel to be in use')
    uv.fs_close(fd)
end

--- The newest snapshot of a master.
function M.snapshot(m)
    local fd = open_memory(m)
    local text = newest(fd)
    uv.fs_close(fd)
    return text
end

--- Waits until the newest snapshot says so. What is in the log and not in a snapshot yet is logged by the next master too.
-- @param says function(state)
function M.await_snapshot(m, says, what)
    m:wait_until(function()
        local ok, state = pcall(cjson.decode, M.snapshot(m)) -- not if it was written meanwhile
        return ok and says(state)
    end, 'a snapshot: ' .. what)
end

--- Whether a process stands still.
function M.is_stopped(pid)
    return files.or_empty(('/proc/%d/stat'):format(pid)):find '%) [Tt] ' ~= nil
end

--- The master dies, and what it has left is this text. @param whole false: its sum is wrong
function M.leave(m, text, whole)
    local pid = assert(M.pid(m))
    uv.kill(pid, 'sigstop')
    wait.wait_until(function()
        return M.is_stopped(pid)
    end, { what = 'the master to stop' })
    local fd = open_memory(m)
    local halves = each_half(fd)
    for half = 0, 1 do
        halves[half * 3 + 1] = #text
        halves[half * 3 + 2] = sum_of(text) + (whole == false and 1 or 0)
        assert(uv.fs_write(fd, text, TEXTS + half * ROOM))
    end
    assert(uv.fs_write(fd, ffi.string(halves, 48), HALVES))
    uv.fs_close(fd)
    uv.kill(pid, 'sigkill')
end

-- Lists of what has an id come in any order.
local function in_order(list)
    if type(list[1]) == 'table' and list[1].id then
        table.sort(list, function(a, b)
            return a.id < b.id
        end)
    end
    return list
end

--- The fields of `former`, with the values of `live` where that has them.
function M.fill_in(former, live)
    if type(former) ~= 'table' or type(live) ~= 'table' then
        return live
    end
    local filled = {}
    in_order(former)
    in_order(live)
    for key, value in pairs(former) do
        if live[key] == nil then
            filled[key] = value
        else
            filled[key] = M.fill_in(value, live[key])
        end
    end
    return filled
end

--- How many descriptors a process has. @param but a set of what does not count, as readlink says it
function M.descriptors(pid, but)
    local count, dir = 0, ('/proc/%d/fd/'):format(pid)
    local scan = uv.fs_scandir(dir)
    local name = scan and uv.fs_scandir_next(scan)
    while name do
        count = count + (but and but[uv.fs_readlink(dir .. name) or ''] and 0 or 1)
        name = uv.fs_scandir_next(scan)
    end
    return count
end

-- The timer of the keeper's patience, as a descriptor of ours.
local function patience_of(m)
    local pidfd = ffi.C.syscall(PIDFD_OPEN, ffi.new('long', m.pid), ffi.new('long', 0))
    assert(pidfd >= 0, 'pidfd_open')
    local timer
    for number = 3, 1000 do
        if uv.fs_readlink(('/proc/%d/fd/%d'):format(m.pid, number)) == 'anon_inode:[timerfd]' then
            timer = ffi.C.syscall(PIDFD_GETFD, pidfd, ffi.new('long', number), ffi.new('long', 0))
            break
        end
    end
    ffi.C.close(pidfd)
    assert(timer and timer >= 0, 'pidfd_getfd')
    return timer
end

--- Calls fn(a copy of it) for each socket of a process.
function M.each_socket(pid, fn)
    local pidfd = ffi.C.syscall(PIDFD_OPEN, ffi.new('long', pid), ffi.new('long', 0))
    assert(pidfd >= 0, 'pidfd_open')
    local scan = uv.fs_scandir(('/proc/%d/fd'):format(pid))
    for name in function() return scan and (uv.fs_scandir_next(scan)) end do
        local link = uv.fs_readlink(('/proc/%d/fd/%s'):format(pid, name)) or ''
        local fd = link:find '^socket:'
            and tonumber(ffi.C.syscall(PIDFD_GETFD, pidfd, ffi.new('long', tonumber(name)), ffi.new('long', 0))) or -1
        if fd >= 0 then
            fn(fd)
            ffi.C.close(fd)
        end
    end
    ffi.C.close(pidfd)
end

--- The keeper's patience with its master ends now, and not in a minute, as often as it is said: twice, unless given.
-- @return a function to call until it says true
function M.impatience(m, times)
    local timer, time, said = patience_of(m), ffi.new('struct dm_spec_itimerspec'), 0
    return function()
        if said == (times or 2) then
            return true
        end
        ffi.C.timerfd_gettime(timer, time)
        if said == 0 or time.interval_s > 0 then -- the second is the keeper's, which has an interval
            said = said + 1
            time.value_s, time.value_ns = 0, 1
            assert(ffi.C.timerfd_settime(timer, 0, time, nil) == 0)
        end
        if said == (times or 2) then
            ffi.C.close(timer)
            return true
        end
    end
end

--- The same, until it is said.
function M.let_patience_end(m, times)
    wait.wait_until(M.impatience(m, times), { what = 'the keeper to grow impatient' })
end

--- Workers that were in the middle of a line with a master that died, as a set of pids.
function M.distrusted(m)
    local set = {}
    for _, record in ipairs(m:records 'Its channel was in use when the former master died: the worker is replaced') do
        set[record.workerPid] = true
    end
    return set
end

--- Who serves is who served, but for such: another one replaces each, and no request fails by that either.
-- @return whether there was none, one who serves still
function M.same_workers(m, before)
    local distrusted = M.distrusted(m)
    local now, expected = {}, {}
    for _, pid in ipairs(m:workers()) do
        now[pid] = true
    end
    for _, pid in ipairs(before) do
        expected[#expected + 1] = not distrusted[pid] and pid or nil
    end
    for _, pid in ipairs(expected) do
        assert.is_true(now[pid], m:dump())
    end
    return #expected == #before, expected[1]
end

function M.start(options)
    options.keeper = options.keeper ~= false
    return master.start(options)
end

--- Two workers of Node at the port, each of which answers with its pid after a moment; they are ready.
function M.start_node(binary, port)
    local m = M.start { script = ([[require('dutch-master').start { worker = 'app.js', restartSoak = 0,
        interpreter = { %q }, numWorkers = 2, workerEnvironment = { PORT = '%d' } }]]):format(binary, port),
        files = { ['app.js'] = [[
            require('http').createServer((request, response) => {
                setTimeout(() => response.end(`${process.pid}`), Math.random() * 20)
            }).listen(Number(process.env.PORT))]] } }
    m:await 'Cluster ready'
    return m
end

--- What the log of a master that has ended says of its workers that cannot be: one that ends twice or never, one that was
-- never made. -> list of texts
function M.gaps_in_story(m)
    local stories, wrong = {}, {}
    for _, record in ipairs(m.log) do
        local key = record.workerPid and ('worker %s, pid %s'):format(tostring(record.workerId), tostring(record.workerPid))
        local story = key and stories[key] or { made = 0, ended = 0, listening = 0 }
        if key then
            stories[key] = story
        end
        story.made = story.made + (record.msg == 'Creating new worker' and 1 or 0)
        story.listening = story.listening + (record.msg == 'Worker listening' and 1 or 0)
        story.ended = story.ended + ((record.msg == 'Worker exited' or record.msg:find '^Worker could not be started') and 1
            or 0)
    end
    for key, story in pairs(stories) do
        local is_known = story.made + story.ended + story.listening > 0 -- else it was ended in the middle of its fork
        if is_known and (story.made ~= story.ended or story.listening > story.made) then
            wrong[#wrong + 1] = ('%s: made %d times, listening %d, ended %d'):format(key, story.made, story.listening,
                story.ended)
        end
    end
    return wrong
end

return M
