--- orphans.lua: what a master that was killed has left behind: workers that go on serving, and hold its ports. They are
-- known by their environment, which names their master; and that by its lock, which nobody holds any more, or because
-- one of them holds an address. A master
-- that starts says who they are, and with --take-over takes their sockets over and ends them when it serves; or, where
-- the sockets cannot be had, ends them first. It ends them as its own.

local claim = require 'dutch-master.control.claim'

local M = {}

-- How often it is looked whether they have gone, and how long SIGKILL may take.
local LOOK_MS, KILL_MS = 50, 5000

local function read(platform, path, bytes)
    return (platform.read_file(path, bytes))
end

local function is_dead(platform, pid)
    return pid ~= nil and pid > 1 and not platform.stat(('/proc/%d'):format(pid))
end

--- The pid of a master of the script that has died without letting go of its place, or nil. To be asked before the
-- place is taken.
function M.predecessor(platform, script)
    local path = claim.path_for(script, nil, platform)
    local pid = path and tonumber(read(platform, (path:gsub('%.sock$', '.lock')), 32) or nil)
    return is_dead(platform, pid) and pid or nil
end

--- The master that has died, if this process is a worker of one; else nil.
function M.master_of(platform, pid)
    local environ = read(platform, ('/proc/%d/environ'):format(pid), 1048576) or ''
    local master = tonumber(('\0' .. environ):match '%zDUTCH_MASTER_PID=(%d+)%z')
    return is_dead(platform, master) and master or nil
end

-- Opened before it is looked at: what is signalled is what was seen.
local function look_at(platform, pid, master)
    local process = platform.open_process(pid)
    local environ = process and '\0' .. (read(platform, ('/proc/%d/environ'):format(pid), 1048576) or '')
    local worker = environ and environ:find('%zDUTCH_MASTER_PID=' .. master .. '%z')
        and environ:match '%zDUTCH_MASTER_WORKER=(%d+)%z'
    if not worker then
        return process and platform.close_fd(process) and nil
    end
    local stat = read(platform, ('/proc/%d/stat'):format(pid), 4096) or ''
    local name, state, group = stat:match '%((.*)%) (%a) %d+ (%d+)'
    if state == 'Z' or state == nil then
        platform.close_fd(process)
        return nil
    end
    return { pid = pid, name = name, worker = tonumber(worker), leads = tonumber(group) == pid, process = process }
end

--- What lives of the workers of that master: list of {pid, name, worker = its number, leads = it is the worker itself,
-- process = a descriptor of it}. Give them back to `forget`.
function M.find(platform, master)
    local list = {}
    for _, name in ipairs(platform.list '/proc' or {}) do
        list[#list + 1] = tonumber(name) and look_at(platform, tonumber(name), master) or nil
    end
    table.sort(list, function(a, b)
        return a.pid < b.pid
    end)
    return list
end

--- The sockets on which they listen, each once.
-- @return list of what platform.copy_listener gives; or nil, why none can be had
function M.sockets(platform, list)
    local sockets, seen, why = {}, {}, 'they listen on none'
    for _, orphan in ipairs(list) do
        local dir = ('/proc/%d/fd'):format(orphan.pid)
        for _, name in ipairs(platform.list(dir) or {}) do
            local inode = (platform.readlink(dir .. '/' .. name) or ''):match '^socket:%[(%d+)%]$'
            local socket, message, code
            if inode and not seen[inode] then
                socket, message, code = platform.copy_listener(orphan.process, tonumber(name))
                seen[inode] = code ~= 'EBADF' -- it may have been closed since
                why = not socket and code ~= 'ENOTSOCK' and message or why
            end
            sockets[#sockets + 1] = socket
        end
    end
    return sockets[1] and sockets, why
end

function M.forget(platform, list)
    for _, orphan in ipairs(list) do
        platform.close_fd(orphan.process)
    end
end

--- "gunicorn (pid 12)" of each.
function M.names(list)
    local names = {}
    for i, orphan in ipairs(list) do
        names[i] = ('%s (pid %d)'):format(orphan.name, orphan.pid)
    end
    return names
end

--- Ends them: the workers are asked, then whoever of theirs is left, and at the end of its time each is killed.
-- @param options {platform, master = its pid, signal, timeout_ms, done = function(how many had to be killed)}
-- @return a timer, to be closed if it is to go no further
function M.stop(options)
    local platform, asked, killed = options.platform, {}, {}
    local deadline = platform.now() + options.timeout_ms
    local timer
    local function ask(list)
        local workers = false
        for _, orphan in ipairs(list) do
            workers = workers or orphan.leads
        end
        for _, orphan in ipairs(list) do
            if not asked[orphan.pid] and (orphan.leads or not workers) then
                asked[orphan.pid] = true
                platform.signal_process(orphan.process, orphan.leads and options.signal or 'SIGTERM')
                platform.signal_process(orphan.process, 'SIGCONT')
            end
        end
    end
    local function look()
        local list = M.find(platform, options.master)
        local late = platform.now() - deadline
        if late >= 0 then
            for _, orphan in ipairs(list) do
                killed[orphan.pid] = true
                platform.signal_process(orphan.process, 'SIGKILL')
            end
        else
            ask(list)
        end
        M.forget(platform, list)
        if list[1] and late < KILL_MS then
            return timer:start(LOOK_MS)
        end
        local count = 0
        for _ in pairs(killed) do
            count = count + 1
        end
        options.done(count)
    end
    timer = platform.timer(look)
    timer:start(0)
    return timer
end

return M
