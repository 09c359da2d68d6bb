-- A memory cgroup of a spec's own, of version 1 or 2: the kernel kills in it for want of memory, and nowhere else.
--
--     local group, why = memory_cgroup.new()
--     master.start { wrap = group.wrap, ... }
--     group:limit(group:used() + 8 * 2 ^ 20)
--     group:remove()                              when its processes have ended

local uv = require 'luv'
local files = require 'spec.support.files'

local M = {}
local Group = {}
Group.__index = Group

-- Of the two versions: where our own group is, by /proc/self/cgroup, and the names of the files.
local VERSIONS = {
    { own = '0::(/[^\n]*)', root = '/sys/fs/cgroup', limit = 'memory.max', used = 'memory.current',
        kills = 'memory.events' },
    { own = '%d+:[^:\n]*memory[^:\n]*:(/[^\n]*)', root = '/sys/fs/cgroup/memory', limit = 'memory.limit_in_bytes',
        used = 'memory.usage_in_bytes', kills = 'memory.oom_control' },
}

-- -> true, or nil, message
local function write(path, text)
    local fd, message = uv.fs_open(path, 'w', 0)
    if not fd then
        return nil, message
    end
    local ok
    ok, message = uv.fs_write(fd, text)
    uv.fs_close(fd)
    return ok and true, message
end

--- -> a group, or nil and why there is none
function M.new()
    local own, why = assert(files.read '/proc/self/cgroup'), 'no memory controller below /sys/fs/cgroup'
    for _, version in ipairs(VERSIONS) do
        local below = own:match(version.own)
        for _, parent in ipairs { below and version.root .. below or false, version.root } do
            local path = ('%s/dm-spec-%d'):format(tostring(parent), uv.os_getpid())
            local made
            if parent and files.read(parent .. '/cgroup.procs') then
                local message
                made, message = uv.fs_mkdir(path, 493)
                why = message or why
            end
            if made and files.read(path .. '/' .. version.limit) then
                local self = setmetatable({ path = path, version = version }, Group)
                self.wrap = { 'sh', '-c', ('echo $$ >%s/cgroup.procs && exec "$0" "$@"'):format(path) }
                return self
            elseif made then
                uv.fs_rmdir(path)
            end
        end
    end
    return nil, why
end

function Group:used()
    return tonumber(files.read(self.path .. '/' .. self.version.used):match '%d+')
end

function Group:limit(bytes)
    assert(write(self.path .. '/' .. self.version.limit, ('%d'):format(bytes)))
end

--- How many processes of it the kernel has killed for want of memory.
function Group:kills()
    return tonumber(files.read(self.path .. '/' .. self.version.kills):match 'oom_kill (%d+)')
end

--- So much is taken in it for a moment. done() when it is given back.
function Group:take(bytes, done)
    local process, message
    process, message = uv.spawn('sh', { args = { '-c', self.wrap[3], 'dd', 'if=/dev/zero', 'of=/dev/null', 'count=1',
        ('bs=%d'):format(bytes) } }, function()
        process:close()
        done()
    end)
    assert(process, message)
end

function Group:remove()
    return uv.fs_rmdir(self.path)
end

return M
