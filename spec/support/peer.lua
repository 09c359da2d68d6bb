-- The peer that a server under the master is measured against: the same server under the master process that it brings
-- along, in a group of its own. Its output is in peer.log in its directory.
--
--     local p = peer.start { 'gunicorn', '--bind', '127.0.0.1:' .. port, 'app:application', dir = dir, at = port }
--     p:signal 'sighup'
--     p:stop()
--
-- with `after_each(peer.cleanup)`.
local files = require 'spec.support.files'
local uv = require 'luv'
local wait = require 'spec.support.wait'

local M = {}
local Peer = {}
Peer.__index = Peer

local running = {}

-- The pids of processes whose stat has `id` where the pattern says.
local function processes(pattern, id)
    local list = {}
    local scan = assert(uv.fs_scandir '/proc')
    for name in uv.fs_scandir_next, scan do
        if tonumber(files.or_empty('/proc/' .. name .. '/stat'):match(pattern)) == id then
            list[#list + 1] = tonumber(name)
        end
    end
    return list
end

--- The processes of a group, a list of pids.
function M.group(id)
    return processes('%) %a %d+ (%d+)', id)
end

-- Whether somebody listens at a TCP port, or the path is there. Without connecting: that would hold a worker.
local function listens(at)
    if type(at) == 'string' then
        return uv.fs_stat(at)
    end
    for _, name in ipairs { 'tcp', 'tcp6' } do
        if files.or_empty('/proc/net/' .. name):find((':%04X %%x+:0000 0A'):format(at)) then
            return true
        end
    end
    return false
end

--- Starts it, and waits until it listens. options: program and arguments, dir (its working directory), at (port, or
--- path).
function M.start(options)
    local self = setmetatable({ dir = options.dir }, Peer)
    local log = assert(uv.fs_open(options.dir .. '/peer.log', 'a', tonumber('644', 8)))
    local process, err = uv.spawn(options[1], { args = { unpack(options, 2) }, cwd = options.dir, detached = true,
        stdio = { nil, log, log } }, function()
        self.ended = true
    end)
    assert(uv.fs_close(log))
    self.process = assert(process, err)
    self.pid = process:get_pid()
    self.master = self.pid -- until another one takes its place: see renew
    running[self] = true
    wait.wait_until(function()
        assert(not self.ended, self:log())
        return listens(options.at)
    end, { what = options[1] .. ' under its own master' })
    return self
end

--- What it wrote.
function Peer:log()
    return files.text(self.dir .. '/peer.log')
end

function Peer:signal(name)
    uv.kill(self.master, name)
end

--- The workers of its master.
function Peer:workers()
    return processes('%) %a (%d+)', self.master)
end

--- Waits until it has so many.
function Peer:await_workers(count)
    wait.wait_until(function()
        return #self:workers() == count
    end, { what = count .. ' workers of the peer' })
end

--- Has it start another master of its kind beside itself, as gunicorn and unicorn do at SIGUSR2, and ends the old one
-- once that has as many workers.
function Peer:renew()
    local workers, is_old = self:workers(), {}
    for _, pid in ipairs(workers) do
        is_old[pid] = true
    end
    self:signal 'sigusr2'
    local former = self.master
    wait.wait_until(function()
        for _, pid in ipairs(processes('%) %a (%d+)', former)) do
            if not is_old[pid] and #processes('%) %a (%d+)', pid) == #workers then
                self.master = pid
            end
        end
        return self.master ~= former
    end, { what = 'another master beside the peer', timeout = 30000 })
    uv.kill(former, 'sigquit')
    wait.wait_until(function() return self.ended end, { what = 'the end of the former master' })
end

--- Asks it, by a signal or a function, to replace its workers, and waits until it has.
function Peer:roll(how)
    local workers = self:workers()
    if type(how) == 'function' then
        how(self)
    else
        self:signal(how)
    end
    wait.wait_until(function()
        for _, pid in ipairs(workers) do
            if uv.kill(pid, 0) == 0 then
                return false
            end
        end
        return true
    end, { what = 'the workers of the peer to be replaced' })
end

--- Waits until it has written this so many times.
function Peer:await_log(text, count)
    wait.wait_until(function()
        local found, at = 0, 0
        local log = self:log()
        repeat
            at = log:find(text, at + 1, true)
            found = found + (at and 1 or 0)
        until not at
        return found >= (count or 1)
    end, { what = text })
end

--- Waits until it has ended, killed if it was not asked to.
function Peer:stop(asked)
    if not asked then
        uv.kill(-self.pid, 'sigkill')
    end
    wait.wait_until(function()
        return self.ended and #M.group(self.pid) == 0
    end, { what = 'the end of the peer' })
    self.process:close()
    running[self] = nil
    wait.turn()
end

--- Ends what a failed spec has left.
function M.cleanup()
    for self in pairs(running) do
        self:stop()
    end
end

return M
