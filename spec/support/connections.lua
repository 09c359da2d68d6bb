-- Which connections are inside a process: accepted and not closed. What waits in an accept queue is not.
-- A worker is frozen first, so that the answer is exact, and what a worker's death may cost is known to the connection.

local files = require 'spec.support.files'
local uv = require 'luv'
local wait = require 'spec.support.wait'

local M = {}

local function state(pid)
    return files.or_empty(('/proc/%d/stat'):format(pid)):match '%) (%u)'
end

--- Freezes a process: SIGSTOP, and it has taken effect. False if the process is gone.
function M.freeze(pid)
    if not uv.kill(pid, 'sigstop') then
        return false
    end
    local now
    wait.try(function()
        now = state(pid)
        return now == 'T' or now == 'Z' or now == 'X' or now == nil
    end)
    return now == 'T'
end

-- -> inode -> how many descriptors it has of it
local function sockets_of(pid)
    local inodes = {}
    local scan = uv.fs_scandir(('/proc/%d/fd'):format(pid))
    while scan do
        local name = uv.fs_scandir_next(scan)
        if not name then
            break
        end
        local target = uv.fs_readlink(('/proc/%d/fd/%s'):format(pid, name))
        local inode = target and target:match '^socket:%[(%d+)%]$'
        if inode then
            inodes[inode] = (inodes[inode] or 0) + 1
        end
    end
    return inodes
end

--- The client's ports of the IPv4 connections to `port` that the (frozen) process has: { [client port] = how many
--- descriptors it has of it }, and how many of all.
function M.inside(pid, port)
    local inodes, ports, count = sockets_of(pid), {}, 0
    -- sl local remote state queues timer retransmits uid timeout inode ...
    local pattern = ('^ *%%d+: %%x+:%04X %%x+:(%%x+) %%x+ %%S+ %%S+ %%S+ +%%d+ +%%d+ (%%d+)'):format(port)
    for line in io.lines '/proc/net/tcp' do
        local remote, inode = line:match(pattern)
        if remote and remote ~= '0000' and inodes[inode] then
            ports[tonumber(remote, 16)] = inodes[inode]
            count = count + inodes[inode]
        end
    end
    return ports, count
end

return M
