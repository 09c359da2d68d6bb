-- What the specs of spec/core share: waiting for events, children that record theirs, and the check
-- that a spec leaves no descriptor and no process behind.
local ffi = require 'ffi'
local core = require 'dutch-master.core'
local files = require 'spec.support.files'
local loop = require 'spec.loop'
local luassert = require 'luassert'

local M = {}

--- One multiplier for all time limits, for slow machines, sanitizers and valgrind.
M.patience = tonumber(os.getenv 'DM_TIME_SCALE') or 1

--- This runner, for scripts that need a process of their own.
-- As it was called, not core.executable(): under valgrind that is valgrind.
M.runner = (arg[-1]:match '^/' and '' or core.cwd() .. '/') .. arg[-1]

--- Runs the loop until `done()` is true; fails after `ms`.
function M.await(done, ms, what)
    local deadline = core.now() + (ms or 5000) * M.patience
    while not done() do
        if core.now() > deadline then
            error('waited in vain for ' .. (what or 'an event'), 2)
        end
        loop.run_once(20)
    end
end

--- One loop iteration that does not block.
function M.step()
    loop.run_once(0)
end

--- Spawns; what happens to the child is recorded in the table that comes back.
function M.spawn(opts)
    local record = { lines = {}, events = {}, execs = 0, closes = 0, exits = 0 }
    local function note(name)
        record.events[#record.events + 1] = name
    end
    local all = { env = { 'PATH=/usr/bin:/bin' } }
    for key, value in pairs(opts) do
        all[key] = value
    end
    if type(all[1]) == 'string' then
        all.file, all.argv = all[1], { unpack(all) }
    end
    all.on_exec = function(child)
        record.execs = record.execs + 1
        note 'exec'
        if opts.on_exec then
            opts.on_exec(child)
        end
    end
    all.on_line = function(child, line, had_fd)
        record.lines[#record.lines + 1] = line
        record.had_fd = record.had_fd or had_fd
        note 'line'
        if opts.on_line then
            opts.on_line(child, line, had_fd)
        end
    end
    all.on_channel_closed = function(child, reason)
        record.closes, record.reason = record.closes + 1, reason
        note 'closed'
        if opts.on_channel_closed then
            opts.on_channel_closed(child, reason)
        end
    end
    all.on_exit = function(child, status)
        record.exits, record.status, record.tail = record.exits + 1, status, child:tail()
        note 'exit'
        if opts.on_exit then
            opts.on_exit(child, status)
        end
    end
    record.child, record.message, record.code = core.spawn(all)
    if record.child then
        record.pid = record.child:pid()
    end
    return record
end

--- A shell command as a child.
function M.sh(script, opts)
    local all = { '/bin/sh', '-c', script }
    for key, value in pairs(opts or {}) do
        all[key] = value
    end
    return M.spawn(all)
end

--- Waits for the child's exit and gives its status.
function M.exit_of(record, ms)
    assert(record.child, record.message)
    M.await(function() return record.exits > 0 end, ms, 'the exit of ' .. tostring(record.child))
    return record.status
end

--- Runs to its end with stdout in a file; gives the output and the record.
function M.output_of(opts, ms)
    local path = os.tmpname()
    local file = assert(io.open(path, 'w'))
    local all = {}
    for key, value in pairs(opts) do
        all[key] = value
    end
    all.stdout = M.fileno(file)
    local record = M.spawn(all)
    file:close()
    M.exit_of(record, ms)
    local output = files.text(path)
    os.remove(path)
    return output, record
end

M.fileno = require('posix.stdio').fileno

-- Not luaposix's, which takes the size that lstat tells of a link in /proc for its length, and fails.
ffi.cdef 'long readlink(const char *path, char *buffer, size_t size);'

local function read_link(path)
    local buffer = ffi.new 'char[4096]'
    local n = tonumber(ffi.C.readlink(path, buffer, 4096))
    return n >= 0 and ffi.string(buffer, n) or nil
end

--- Descriptors of this process, as a set of "number -> target" without the one that reads them.
function M.descriptors()
    local found, n = {}, 0
    for name in require('posix.dirent').files '/proc/self/fd' do
        local target = name:match '^%d+$' and read_link('/proc/self/fd/' .. name)
        if target and not target:match '/proc/%d+/fd' then
            found[name], n = target, n + 1
        end
    end
    assert(n > 0)
    return found, n
end

--- Call once in a describe: each of its specs must leave what it found.
function M.leaves_nothing()
    local spec, before = getfenv(2), nil -- busted gives its functions to the spec file alone
    spec.before_each(function()
        collectgarbage()
        loop.lend_sigchld(false)
        loop.close()
        before = M.descriptors()
    end)
    spec.after_each(function()
        M.await(function() return loop.children() == 0 end, 10000, 'the children to be gone')
        M.await(function() return core.kill_adopted() == 0 end, 10000, 'the orphans to be gone')
        collectgarbage()
        loop.close()
        loop.lend_sigchld(true)
        luassert.are.same(before, (M.descriptors()))
    end)
end

M.read = files.read

return M
