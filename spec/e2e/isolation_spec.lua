-- Workers of two users in one cluster: neither reaches the other's sockets, descriptors, memory or messages, nor the
-- master's. One worker tries all of it and says what came. (SECURITY.md: "worker", "of another user")

local uv = require 'luv'
local cjson = require 'cjson'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'
local net = require 'spec.support.net'

local USERS = { 'nobody', 'daemon' }

-- Each evaluation, so each fork, reads whose the next worker is.
local SCRIPT = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 1, stopTimeout = 3, ready = 'message',
    user = io.open(os.getenv 'NEXT_USER'):read '*l' }]]

local APP = [=[
local ffi, uv, cjson, worker = require 'ffi', require 'luv', require 'cjson', require 'dutch-master.worker'
ffi.cdef [[
    int kill(int, int); int getppid(void); int getpid(void); int geteuid(void); int open(const char *, int, ...);
    int readlink(const char *, char *, size_t); long syscall(long, ...); long ptrace(int, int, void *, void *);
    long process_vm_readv(int, void *, unsigned long, void *, unsigned long, unsigned long);
    int socket(int, int, int); int connect(int, const void *, unsigned); int chmod(const char *, unsigned);
]]
local C, ERRORS = ffi.C, { [1] = 'EPERM', [3] = 'ESRCH', [13] = 'EACCES' }
local function result(rc)
    return tonumber(rc) >= 0 and 'done' or ERRORS[ffi.errno()] or ffi.errno()
end
local function unix_address(path)
    return ffi.new('char[110]', '\1\0' .. path), 2 + #path + 1
end
local function connect(path)
    return C.connect(C.socket(1, 1, 0), unix_address(path))
end

local function attack(pid)
    local came = {}
    came.signal, came.ptrace = result(C.kill(pid, 0)), result(C.ptrace(0x4206, pid, nil, nil))
    came.memory = result(C.open('/proc/' .. pid .. '/mem', 2))
    came.environment = result(C.open('/proc/' .. pid .. '/environ', 0))
    came.descriptors = result(C.open('/proc/' .. pid .. '/fd', 0))
    came.directory = result(C.readlink('/proc/' .. pid .. '/cwd', ffi.new 'char[1]', 1))
    local iov = ffi.new('size_t[2]', { 0x10000, 1 })
    came.read = result(C.process_vm_readv(pid, iov, 1, iov, 1, 0))
    local pidfd = C.syscall(434, ffi.cast('long', pid), ffi.cast('long', 0)) -- pidfd_open
    for fd = 0, 63 do
        local opened = C.open('/proc/' .. pid .. '/fd/' .. fd, 0)
        local stolen = C.syscall(438, pidfd, ffi.cast('long', fd), ffi.cast('long', 0)) -- pidfd_getfd
        came.stolen = (opened >= 0 or tonumber(stolen) >= 0) and fd or came.stolen
    end
    return came
end

local dir = os.getenv 'PLACE' .. '/' .. C.geteuid()
local function listen(what, done)
    worker.listen(what, function(err)
        done(err and err:match '^%u+' or 'done')
    end)
end
os.remove(dir .. '/s') -- as many apps do: it is put back before listen() is answered
listen('unix:' .. dir .. '/s', function(came)
    assert(came == 'done', came)
    assert(C.chmod(dir .. '/s', 416) == 0) -- what they do next
    io.stderr:write('LISTENS ', C.geteuid(), '\n')
    worker.ready()
end)

local function try_all(message)
    local report, left = { other = attack(message.other), master = attack(C.getppid()) }, 0
    report.control = result(connect(message.control))
    report.connected = result(connect(message.place .. '/s'))
    for name, address in pairs { path = message.place .. '/s',
            twin = message.place .. '/.s.dutch-master', fresh = message.place .. '/t', root = '/etc/isolation' } do
        left = left + 1
        listen('unix:' .. address, function(came)
            report[name], left = came, left - 1
            if left == 0 then
                io.stderr:write('REPORT ', cjson.encode(report), '\n')
            end
        end)
    end
end

local watch = uv.new_fs_event()
watch:start(os.getenv 'PLACE', {}, function()
    local file = io.open(os.getenv 'PLACE' .. '/target-of-' .. C.geteuid())
    if file then
        watch:close()
        try_all(cjson.decode(file:read '*a'))
    end
end)
]=]

describe('workers of two users', function()
    if uv.getuid() ~= 0 then
        it('need root', function()
            pending 'only root has workers of several users'
        end)
        return
    end

    after_each(master.cleanup)

    local function said(m, pattern)
        return wait.try(function() return m.stderr:match(pattern) end) or error(m.stderr)
    end

    local function own(place, name)
        local uid = tonumber(io.popen('id -u ' .. name):read '*l')
        local path = place .. '/' .. uid
        assert(uv.fs_mkdir(path, tonumber('755', 8)))
        assert(uv.fs_chown(path, uid, uid))
        return uid, path
    end

    it('reach nothing of each other\'s, and nothing of the master\'s', function()
        local place = master.temp_dir()
        assert(uv.fs_chmod(place, tonumber('755', 8)))
        local victim, victims = own(place, USERS[1])
        local other, theirs = own(place, USERS[2])
        local next_user = place .. '/next'
        local function set_user(name)
            local file = assert(io.open(next_user, 'w'))
            file:write(name, '\n')
            file:close()
        end
        set_user(USERS[1])
        local m = master.start {
            script = SCRIPT, files = { ['app.lua'] = APP },
            env = { NEXT_USER = next_user, PLACE = place },
        }
        m:await 'Cluster ready'
        local first = m:workers()[1]
        set_user(USERS[2])
        m:signal 'SIGTTIN'
        said(m, 'LISTENS ' .. other)
        local path = io.popen('ls ' .. m.dir .. '/run/*.sock'):read '*l'
        local file = assert(io.open(place .. '/new', 'w'))
        file:write(cjson.encode { other = first, control = path, place = victims })
        file:close()
        assert(os.rename(place .. '/new', place .. '/target-of-' .. other))
        local report = cjson.decode(said(m, 'REPORT ([^\n]*)\n'))
        local nothing = { signal = 'EPERM', ptrace = 'EPERM', memory = 'EACCES', environment = 'EACCES',
            descriptors = 'EACCES', directory = 'EACCES', read = 'EPERM' }
        assert.same({
            other = nothing, master = nothing, control = 'EACCES', connected = 'EACCES',
            path = 'EADDRINUSE', twin = 'EPERM', fresh = 'EACCES', root = 'EACCES',
        }, report)
        -- The victim has all that it had.
        assert.equal(victim, net.peer_uid(victims .. '/s'))
        assert.equal(2, #m:workers())
        assert.is_nil(uv.fs_stat '/etc/isolation')
        -- Each worker of a roll removes the path, has it put back with its user's rights, and changes its mode.
        local mark = m:mark()
        m:signal 'SIGUSR2'
        m:await('Restart complete', { after = mark })
        assert.equal(tonumber('640', 8), uv.fs_stat(theirs .. '/s').mode % 512)
        assert.equal(other, net.peer_uid(theirs .. '/s'))
        m:finish()
        assert.is_nil(uv.fs_stat(theirs .. '/s'))
        assert.is_nil(uv.fs_stat(victims .. '/s'))
    end)
end)
