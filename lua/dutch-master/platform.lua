--- platform.lua: the whole outside world, as one table of functions. Policy gets this table and knows no other; unit
-- specs give it spec/support/fake_platform.lua instead. What it says is said in src/lua_*.c, beside each function.

local core = require 'dutch-master.core'
local preload = require 'dutch-master.launch.node_preload'

local M = setmetatable({}, { __index = core })

math.randomseed(core.pid() * 65536 + core.now() % 65536)

--- A random number in [0, 1), for jitter.
function M.random()
    return math.random()
end

--- The path of drain.cjs, nil when it was not installed.
function M.preload()
    return (preload.find(M, core.environ()))
end

-- The file in which the kernel counts the processes of our cgroup that it killed for want of memory.
local function oom_counter()
    local own = core.read_file('/proc/self/cgroup', 65536) or ''
    local unified = own:match('0::(/[^\n]*)')
    local memory = own:match('%d+:[^:\n]*memory[^:\n]*:(/[^\n]*)')
    for _, path in ipairs {
        unified and '/sys/fs/cgroup' .. unified .. '/memory.events' or false,
        memory and '/sys/fs/cgroup/memory' .. memory .. '/memory.oom_control' or false,
    } do
        if path and core.access(path, 'r') then
            return path
        end
    end
end

local oom_path

--- How many processes of the master's cgroup the kernel has killed for want of memory; nil where it does not say.
-- See memory.events in the kernel's cgroup-v2.rst, memory.oom_control in cgroup-v1/memory.rst.
function M.oom_kills()
    if oom_path == nil then
        oom_path = oom_counter() or false
    end
    local text = oom_path and core.read_file(oom_path, 65536)
    return text and tonumber(text:match('oom_kill (%d+)')) or nil
end

-- What the kernel calls a process: at most 15 bytes of its program's name.
local function command(pid)
    local text = core.read_file(('/proc/%d/comm'):format(pid), 64)
    return text and (text:gsub('\n$', ''):gsub('%c', '?')) or nil
end

--- A process that asked for something, for the log and for `why`: { pid, uid, command, parent = the command that ran
--- it }, the last two as long as it is there to be seen. Of one in another pid namespace only the user is known.
function M.who(pid, uid)
    if not pid or pid <= 0 then
        return { uid = uid }
    end
    local status = core.read_file(('/proc/%d/status'):format(pid), 65536)
    local parent = tonumber(status and status:match '\nPPid:%s*(%d+)')
    return { pid = pid, uid = uid, command = command(pid), parent = parent and parent > 0 and command(parent) or nil }
end

--- Writes to stderr, for a person: what must be said before there is a log.
function M.write_stderr(text)
    io.stderr:write(text)
end

return M
