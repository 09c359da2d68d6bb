--- linux.lua: what the kernel tells in files of /proc and /sys, read through the core. A part of the platform.

local core = require 'dutch-master.core'

local M = {}

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

--- Whether the kernel moves what waits in a socket that is closed to others of its group: see tcp_migrate_req in the
-- kernel's ip-sysctl.rst. It may change at any time.
function M.migrates()
    local text = core.read_file('/proc/sys/net/ipv4/tcp_migrate_req', 16)
    return text ~= nil and text:match '^1' ~= nil
end

-- ms. What a fork is compared with later may be as old: of many forks one reads it.
local OOM_RECENT_MS = 100
local oom_path, oom_count, oom_read_at

--- How many processes of the master's cgroup the kernel has killed for want of memory; nil where it does not say.
-- See memory.events in the kernel's cgroup-v2.rst, memory.oom_control in cgroup-v1/memory.rst.
-- @param recent whether a count of a moment ago will do
function M.oom_kills(recent)
    if oom_path == nil then
        oom_path = oom_counter() or false
    end
    local now = core.now()
    if not (recent and oom_read_at and now - oom_read_at < OOM_RECENT_MS) then
        local text = oom_path and core.read_file(oom_path, 65536)
        oom_count, oom_read_at = text and tonumber(text:match('oom_kill (%d+)')) or nil, now
    end
    return oom_count
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

--- Orphans that the worker has left behind, in groups of their own: known by their environment. @return list of pids
function M.left_by(worker_id)
    local found, ours = {}, tostring(core.pid())
    for _, pid in ipairs(core.adopted()) do
        local origin = core.origin(pid)
        if origin.master == ours and origin.worker == tostring(worker_id) then
            found[#found + 1] = pid
        end
    end
    return found
end

return M
