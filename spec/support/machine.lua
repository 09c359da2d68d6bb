-- A machine with a real systemd: systemd-nspawn boots this system's own root, below an overlay in memory, in a network of
-- its own. What is done in it is gone with it. `cmake --install` has put the build that is tested where it belongs.
--
--     local machine = require('spec.support.machine')
--     local there, why = machine.available()
--     local m = machine.start()
--     local code, said = m:run 'systemctl start ...'      a shell command as root
--     m:write('/srv/app/master.lua', '...')
--     m:stop()                                            fails unless it ends, cleanly

local files = require 'spec.support.files'
local uv = require 'luv'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local M = {}
local Machine = {}
Machine.__index = Machine
M.Machine = Machine -- own_kernel.lua has another kind, with run(), write(), stop() of its own

local BOOT_MS = 60000

-- mount, then nspawn; the mounts end with this process's namespace. basic.target: none of this machine's services.
local BOOT = [[
exec 2>&1 </dev/null
set -e
dir=$1 build=$2
mount -t tmpfs tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
DESTDIR=$dir/upper cmake --install "$build" --prefix /usr/local >/dev/null
mkdir -p "$dir/upper/etc"
systemd-id128 new >"$dir/upper/etc/machine-id"
echo spec >"$dir/upper/etc/hostname"
echo 127.0.0.1 localhost spec >"$dir/upper/etc/hosts"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
rm -rf "$dir/root/var/log/journal"
exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn -q -D "$dir/root" --machine="$3" --register=no --keep-unit \
    --private-network --console=pipe -b -- --unit=basic.target
]]

--- Of the commands in a machine.
M.ENVIRONMENT = {
    'HOME=/root', 'TERM=dumb', 'LANG=C.UTF-8', 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    'SYSTEMD_PAGER=',
}
local ENTER = { '-m', '-u', '-i', '-n', '-p', '-C', '-r', '-w', '/usr/bin/env', '-i' }

--- @return whether a machine can be had here, or false and why not
function M.available()
    if uv.getuid() ~= 0 then
        return false, 'only root can boot a machine'
    end
    for _, program in ipairs { 'systemd-nspawn', 'unshare', 'nsenter', 'cmake' } do
        if os.execute('command -v ' .. program .. ' >/dev/null') ~= 0 then
            return false, program .. ' is not installed'
        end
    end
    local try = [[unshare --mount --propagation private sh -c 'mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w &&
        mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt' 2>/dev/null]]
    if os.execute(try) ~= 0 then
        return false, 'no overlay can be mounted here'
    end
    return true
end

local function spawn(program, args, on_end)
    local pipe = uv.new_pipe(false)
    local self, process = { said = {} }, nil
    process, self.pid = uv.spawn(program, { args = args, stdio = { nil, pipe } }, function(code, signal)
        process:close()
        self.code, self.signal = code, signal
    end)
    assert(process, self.pid)
    pipe:read_start(function(_, data)
        if data then
            self.said[#self.said + 1] = data
        else
            pipe:close()
            self.closed = true
            if on_end then
                on_end()
            end
        end
    end)
    return self
end

--- The pid of its systemd: the child of nspawn that is the first in its own namespace.
local function find_init(pid)
    local child = files.or_empty(('/proc/%d/task/%d/children'):format(pid, pid)):match '%d+'
    return child and files.read('/proc/' .. child .. '/comm') == 'systemd\n' and tonumber(child) or nil
end

--- Boots one. nil and why if it does not come up: there are machines on which it cannot.
function M.start()
    local build = uv.fs_realpath(master.binary():match '^(.*)/')
    local self = setmetatable({ dir = master.temp_dir() }, Machine)
    self.nspawn = spawn('unshare', { '--mount', '--propagation', 'private', 'bash', '-c', BOOT, '_', self.dir, build,
        'dm-spec-' .. uv.os_getpid() })
    local up = wait.try(function()
        self.init = self.init or find_init(self.nspawn.pid)
        return self.nspawn.code or self.init
    end, { timeout = BOOT_MS })
    if not up or self.nspawn.code then
        self:kill()
        return nil, 'systemd does not boot here: ' .. table.concat(self.nspawn.said)
    end
    local booted = wait.try(function()
        return (self:run 'systemctl is-system-running --wait') == 0
    end, { timeout = BOOT_MS })
    if not booted then
        local _, failed = self:run 'systemctl --no-pager --failed; systemctl list-jobs --no-pager'
        self:kill()
        return nil, 'systemd does not come up here: ' .. failed
    end
    self:run 'ip link set lo up'
    return self
end

--- Runs a shell command in it, as root; `command` is a format. @return its exit code, and all that it said
function Machine:run(command, ...)
    if select('#', ...) > 0 then
        command = command:format(...)
    end
    local args = { '-t', tostring(self.init) }
    for _, words in ipairs { ENTER, M.ENVIRONMENT, { 'sh', '-c', 'exec 2>&1 </dev/null\n' .. command } } do
        for _, word in ipairs(words) do
            args[#args + 1] = word
        end
    end
    local process = spawn('nsenter', args)
    wait.wait_until(function()
        return process.code and process.closed
    end, { what = 'the end of: ' .. command, timeout = 120000 })
    return process.code, table.concat(process.said)
end

--- The same, and fails unless it ends with 0. @return what it said
function Machine:must(command, ...)
    local code, said = self:run(command, ...)
    if code ~= 0 then
        error(('%s: exit code %d\n%s'):format(command, code, said), 2)
    end
    return said
end

--- Runs a command again until its output matches.
function Machine:await(pattern, command, ...)
    local said, code
    command = select('#', ...) > 0 and command:format(...) or command
    local found = wait.try(function()
        code, said = self:run(command)
        return said:match(pattern)
    end)
    if not found then
        error(('waited in vain for "%s" of `%s`; the last it said (exit code %s):\n%s'):format(pattern, command,
            tostring(code), said), 2)
    end
    return found
end

--- Writes a file; the directory is made.
function Machine:write(path, text)
    self:must("mkdir -p '%s'", path:match '^(.*)/')
    local file = assert(io.open(('/proc/%d/root%s.new'):format(self.init, path), 'w'))
    file:write(text)
    file:close()
    self:must("mv '%s.new' '%s'", path, path)
end

--- The properties of a unit, as a table.
function Machine:show(unit)
    local properties = {}
    for line in self:must("systemctl show '%s'", unit):gmatch '[^\n]+' do
        local name, value = line:match '^(%w+)=(.*)$'
        if name then
            properties[name] = value
        end
    end
    return properties
end

function Machine:kill()
    if not self.nspawn.code then
        uv.kill(self.nspawn.pid, 'sigkill')
    end
    wait.wait_until(function() return self.nspawn.code and self.nspawn.closed end, { what = 'the end of the machine' })
end

--- Powers it off.
function Machine:stop()
    uv.kill(self.nspawn.pid, 'sigterm')
    local ended = wait.try(function()
        return self.nspawn.code and self.nspawn.closed
    end)
    if not ended then
        self:kill()
        error('the machine did not power off', 2)
    end
end

--- Powers a machine off, if there is one, and looks that nothing else of the spec is left.
function M.over(machine)
    if machine then
        machine:stop()
    end
    master.cleanup()
end

return M
