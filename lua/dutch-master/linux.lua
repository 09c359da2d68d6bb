--- linux.lua: what the kernel tells in files of /proc and /sys, read through the core, and what a service manager
-- passes by the environment. A part of the platform.

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

-- Of /proc/PID/stat, see proc(5): state, utime, stime, starttime, rss. The name, in brackets, may hold anything.
local STAT = '^.*%) (%a)' .. (' %-?%d+'):rep(10) .. ' (%d+) (%d+)' .. (' %-?%d+'):rep(6) .. ' (%d+) %d+ (%-?%d+)'

--- What the kernel counts of a process: { rss_kb, cpu_ms, starttime = clock ticks since boot, which tell a number that
-- was used again, runnable = it works, or waits for a processor to work on, stopped = until it is continued }; nil if
-- there is none.
function M.proc_stat(pid)
    local text = core.read_file(('/proc/%d/stat'):format(pid), 4096)
    local state, user, system, start, pages = (text or ''):match(STAT)
    return state and { rss_kb = math.max(0, tonumber(pages)) * core.page_kb,
        cpu_ms = math.floor((tonumber(user) + tonumber(system)) * core.tick_ms), starttime = tonumber(start),
        runnable = state == 'R', stopped = state == 'T' or state == 't' }
end

-- Bytes. More than the kernel lets a program have.
local ENVIRON_MAX = 8388608

--- { command, master, worker }: the last two as the environment that it was started with has them, or nil.
function M.origin(pid)
    local environ = '\0' .. (core.read_file(('/proc/%d/environ'):format(pid), ENVIRON_MAX) or '')
    return { command = command(pid) or '?', master = environ:match '%zDUTCH_MASTER_PID=(%Z*)',
        worker = environ:match '%zDUTCH_MASTER_WORKER=(%Z*)' }
end

--- Orphans that the worker has left behind, in groups of their own: known by their environment. @return list of pids
function M.left_by(worker_id)
    local found, ours = {}, tostring(core.pid())
    for _, pid in ipairs(core.adopted()) do
        local origin = M.origin(pid)
        if origin.master == ours and origin.worker == tostring(worker_id) then
            found[#found + 1] = pid
        end
    end
    return found
end

local INT_MAX = 2147483647

-- How many sockets the environment says, as sd_listen_fds_with_names(3) reads it. -> count | nil, code
local function passed(environ)
    if not environ.LISTEN_PID then
        return 0
    end
    local pid = tonumber(environ.LISTEN_PID:match '^%s*([1-9]%d*)$')
    if not pid or pid > INT_MAX then
        return nil, pid and 'ERANGE' or 'EINVAL'
    elseif pid ~= core.pid() or not environ.LISTEN_FDS then
        return 0
    end
    local count = tonumber(environ.LISTEN_FDS:match '^%s*([+-]?%d+)$')
    if count and math.abs(count) > INT_MAX then
        return nil, 'ERANGE'
    end
    local names = environ.LISTEN_FDNAMES
    local is_right = count and count > 0 and count <= INT_MAX - 3
        and (not names or names ~= '' and select(2, names:gsub(':', '')) + 1 == count)
    return is_right and count or nil, 'EINVAL'
end

--- Sockets that whoever started this process passed on (LISTEN_FDS, as systemd's socket units do): { fd, name,
-- address } each, none if they are for another. To be asked once. -> list | nil, message, code
function M.inherited()
    local environ = core.environ()
    local count, code = passed(environ)
    local ok, why, errno = core.inherit(count or 0)
    if not count then
        local too_large = code == 'ERANGE' and 'a number is too large'
        return nil, too_large or 'it does not fit LISTEN_PID or LISTEN_FDNAMES', code
    elseif not ok then
        return nil, why, errno
    end
    local list, names = {}, ((environ.LISTEN_FDNAMES or ('unknown:'):rep(count)) .. ':'):gmatch '([^:]*):'
    for fd = 3, 2 + count do
        list[fd - 2] = { fd = fd, name = names(), address = (core.bound(fd)) }
    end
    return list
end

return M
