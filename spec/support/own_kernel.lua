-- A machine with a kernel of its own: user-mode-linux, a program that needs no rights here, boots systemd on this system's
-- root, below an overlay in its memory. There systemd has cgroups of version 2, memory among them. What is done in it is
-- gone with it. The build that is tested is installed, no service of this system's is started, and there is no network
-- but lo. The user my-app is there.
--
--     local own_kernel = require 'spec.support.own_kernel'
--     local there, why = own_kernel.available()
--     local m, why = own_kernel.start()       as a machine of machine.lua: run, must, await, write, show, stop
--
-- A program in it, agent.sh, is given the names of scripts over a serial line, and says how each ended. Scripts and what
-- they said are files in a directory that both sides have. The agent's end is that of the machine, and it ends when the
-- line does, so that none outlives its spec.

local files = require 'spec.support.files'
local uv = require 'luv'
local machine = require 'spec.support.machine'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local M = {}
local Machine = setmetatable({}, machine.Machine)
Machine.__index = Machine

local PROGRAM = 'linux.uml'
local BOOT_MS, RUN_MS, END_MS = 60000, 60000, 20000
local LIFE_S = 240 -- of the agent, whatever happens
local MEMORY_MIB = 384
local STARTED = 'Run %S+ as init process' -- the kernel's word: from there on, what fails is our failure

-- Its first process. Its root is this system's, read-only; $1 is the spec's directory there.
local INIT = [[#!/bin/bash
set -eu
dir=$1 top=$1/top root=$1/top/root
mount -t proc proc /proc
grep -qw overlay /proc/filesystems ||
    luajit "$dir/insmod.lua" "/usr/lib/uml/modules/$(uname -r)/kernel/fs/overlayfs/overlay.ko"
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$root"
cp -r "$dir/install/." "$top/upper"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$root"
mkdir "$root/spec" "$root/old"
# Linux 6.1 and 6.12 write this option differently.
mount -t hostfs none -o "$dir/shared" "$root/spec" || mount -t hostfs none -o "hostfs=$dir/shared" "$root/spec"
cd "$root"
# Of systemd's units only those that ours need: most begin with devices or all files of this system.
rm -rf .dockerenv etc/systemd/system/* {,usr/}lib/systemd/system/*.wants {,usr/}lib/systemd/system-generators var/log/journal
cp spec/agent.service etc/systemd/system
cp spec/machine-id etc/machine-id
echo spec >etc/hostname
echo 127.0.0.1 localhost spec >etc/hosts
mkdir -p home/my-app srv/my-app
echo my-app:x:990:990::/home/my-app:/bin/sh >>etc/passwd
echo my-app:x:990: >>etc/group
chown 990:990 home/my-app srv/my-app
pivot_root . old
exec chroot . sh -c 'umount -l /old && exec /lib/systemd/systemd --unit=agent.service'
]]

local INSMOD = [[
local ffi = require 'ffi'
ffi.cdef 'int open(const char *, int, ...); long syscall(long, ...); char *strerror(int);'
local FINIT_MODULE = 313
local fd = ffi.C.open(arg[1], 0)
if fd < 0 or ffi.C.syscall(FINIT_MODULE, ffi.new('int', fd), '', ffi.new('int', 0)) ~= 0 then
    error(arg[1] .. ': ' .. ffi.string(ffi.C.strerror(ffi.errno())))
end
]]

local UNIT = ([[
[Unit]
DefaultDependencies=no
Requires=systemd-journald.service
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
ExecStart=/bin/bash /spec/agent.sh
Environment=%s
OOMScoreAdjust=-1000
RuntimeMaxSec=%d
]])

local AGENT = [[
stty raw -echo </dev/ttyS0
exec <>/dev/ttyS0 >&0 2>/dev/null
echo up
while read -r name; do
    sh "/spec/$name" </dev/null >"/spec/$name.said" 2>&1
    echo "$name $?"
done
]]

--- @return whether a machine can be had here, or false and why not
function M.available()
    if os.getenv 'DM_SANITIZE' then
        return false, 'user-mode-linux has 512 GiB of address space for a process, and AddressSanitizer needs 16 TiB'
    end
    for _, program in ipairs { PROGRAM, 'cmake', 'systemctl', 'luajit' } do
        if os.execute('command -v ' .. program .. ' >/dev/null') ~= 0 then
            return false, program .. ' is not installed'
        end
    end
    return true
end

local function put(path, text, mode)
    local file = assert(io.open(path, 'w'))
    file:write(text)
    file:close()
    assert(uv.fs_chmod(path, mode or tonumber('644', 8)))
end

-- Where its memory is a file without a name: in memory, if there is room, else where the spec's files are.
local function place_of_memory(dir)
    local stat = uv.fs_statfs '/dev/shm'
    return stat and stat.bavail * stat.bsize > MEMORY_MIB * 2 ^ 20 and '/dev/shm' or dir
end

-- Ours, by which spec/support/limit finds its processes, too.
local function environment(dir)
    local env, list = uv.os_environ(), {}
    env.TMPDIR, env.HOME = place_of_memory(dir), dir
    for name, value in pairs(env) do
        list[#list + 1] = name .. '=' .. value
    end
    return list
end

local function prepare(dir)
    local build = uv.fs_realpath(master.binary():match '^(.*)/')
    for _, name in ipairs { 'top', 'shared' } do
        assert(uv.fs_mkdir(dir .. '/' .. name, tonumber('755', 8)))
    end
    local install = ("DESTDIR='%s/install' cmake --install '%s' --prefix /usr/local >/dev/null"):format(dir, build)
    assert(os.execute(install) == 0, install)
    local assignments = {}
    for i, assignment in ipairs(machine.ENVIRONMENT) do
        assignments[i] = ('"%s"'):format(assignment)
    end
    put(dir .. '/init', INIT, tonumber('755', 8))
    put(dir .. '/insmod.lua', INSMOD)
    put(dir .. '/shared/agent.sh', AGENT)
    put(dir .. '/shared/agent.service', UNIT:format(table.concat(assignments, ' '), LIFE_S * wait.scale))
    put(dir .. '/shared/machine-id', ('%032x\n'):format(uv.os_getpid()))
end

-- Calls on_line with each line that a pipe gives.
local function lines_of(pipe, on_line)
    local rest = ''
    pipe:read_start(function(_, data)
        if not data then
            return pipe:close()
        end
        rest = (rest .. data):gsub('([^\n]*)\n', function(line)
            on_line(line)
            return ''
        end)
    end)
end

local function boot(self)
    local dir = self.dir
    local input, output, console = uv.new_pipe(false), uv.new_pipe(false), uv.new_pipe(false)
    self.process, self.pid = uv.spawn(PROGRAM, {
        args = { 'umid=machine', 'uml_dir=' .. dir .. '/', ('mem=%dM'):format(MEMORY_MIB), 'root=/dev/root',
            'rootfstype=hostfs', 'rootflags=/', 'ro', 'con=null', 'con0=null,fd:2', 'ssl=null', 'ssl0=fd:0,fd:1',
            ('init=%s/init'):format(dir), '--', dir },
        env = environment(dir),
        stdio = { input, output, console },
        detached = true, -- a process group of its own
    }, function(code, signal)
        self.process:close()
        self.code, self.signal = code, signal
    end)
    assert(self.process, self.pid)
    self.input = input
    lines_of(output, function(line)
        local name, code = line:match '^(%d+) (%d+)$'
        if name then
            self.codes[tonumber(name)] = tonumber(code)
        elseif line == 'up' then
            self.up = true
        end
    end)
    lines_of(console, function(line)
        table.insert(self.console, line)
        self.started = self.started or line:find(STARTED) ~= nil
    end)
    self.pipes = { output, console }
end

function Machine:has_ended()
    return self.code and self.pipes[1]:is_closing() and self.pipes[2]:is_closing()
end

function Machine:last_words()
    return table.concat(self.console, '\n', math.max(1, #self.console - 40))
end

--- Boots one. nil and why if its kernel does not start: there are systems that do not let it. That systemd does not come
--- up in it is an error.
function M.start()
    local self = setmetatable({ dir = master.temp_dir(), codes = {}, console = {}, count = 0 }, Machine)
    prepare(self.dir)
    boot(self)
    wait.try(function() return self.up or self:has_ended() end, { timeout = BOOT_MS })
    if not self.up then
        self:kill()
        local why = 'user-mode-linux does not boot: ' .. self:last_words()
        return self.started and error(why, 0) or nil, why
    end
    return self
end

--- Runs a shell command in it, as root; `command` is a format. @return its exit code, and all that it said
function Machine:run(command, ...)
    if select('#', ...) > 0 then
        command = command:format(...)
    end
    self.count = self.count + 1
    local number = self.count
    local path = ('%s/shared/%d'):format(self.dir, number)
    put(path, command)
    self.input:write(number .. '\n')
    wait.try(function() return self.codes[number] or self.code end, { timeout = RUN_MS })
    if not self.codes[number] then
        error(('%s: no answer from the machine\n%s'):format(command, self:last_words()), 2)
    end
    return self.codes[number], files.text(path .. '.said')
end

--- Writes a file; the directory is made.
function Machine:write(path, text)
    put(self.dir .. '/shared/text', text)
    self:must("mkdir -p '%s' && cp /spec/text '%s.new' && mv '%s.new' '%s'", path:match '^(.*)/', path, path, path)
end

--- Ends what is left of it: its process group.
function Machine:kill()
    uv.kill(-self.pid, 'sigkill') -- one of its processes may outlive the first
    wait.wait_until(function() return self:has_ended() end, { what = 'the end of the machine' })
    if not self.input:is_closing() then
        self.input:close()
    end
    wait.turn()
end

--- Powers it off, by the end of its line.
function Machine:stop()
    self.input:close()
    local ended = wait.try(function() return self:has_ended() end, { timeout = END_MS })
    self:kill()
    if not ended then
        error('the machine did not power off\n' .. self:last_words(), 2)
    end
end

return M
