-- Whose rights an address is bound with: what a worker asks for is bound with the worker's, and nothing is ever done by
-- a path that a worker can change. (SECURITY.md: "A worker asks for a socket".)

local core = require 'dutch-master.core'
local net = require 'spec.support.net'
local sys = require 'spec.support.sys'
local wait = require 'spec.support.wait'

local NOBODY, DAEMON = 65534, 1
local AS = { uid = NOBODY, gid = NOBODY, groups = {} }
local octal = function(text) return tonumber(text, 8) end

local dir

local function listen(path, options)
    return core.listen(core.address('unix:' .. path), options)
end

local function own_directory(name, uid)
    local path = dir .. '/' .. name
    sys.C.mkdir(path, octal '755')
    sys.C.chown(path, uid, uid)
    return path
end

-- Listens without waiting, as for a worker. @return what came
local function ask(address, options)
    local came
    assert(core.listen(core.address(address), options, function(...)
        came = { ... }
    end))
    return function()
        return came
    end
end

-- A file system that never answers, as a user's own process may serve one. @return function to take it away, or nil
local function hang(path)
    local fd = sys.C.open('/dev/fuse', 2)
    if fd < 0 then
        return nil
    end
    local options = ('fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other'):format(fd)
    local mounted = sys.C.mount('fuse', path, 'fuse', 0, sys.ffi.cast('void *', options)) == 0
    if not mounted then
        sys.C.close(fd)
    end
    return mounted and function()
        if fd then
            sys.C.close(fd) -- all that hang there fail
            sys.C.umount2(path, 2)
        end
        fd = nil
    end
end

describe('rights:', function()
    if sys.C.geteuid() ~= 0 then
        it('only root has others\' rights to give', function()
            pending 'needs root and another user'
        end)
        return
    end

    local before

    before_each(function()
        before = net.descriptors()
        dir = sys.ffi.string(sys.C.mkdtemp(sys.ffi.new('char[32]', '/tmp/dm-rights-XXXXXX')))
        sys.C.chmod(dir, octal '755')
    end)

    after_each(function()
        os.execute('rm -rf ' .. dir)
        collectgarbage() -- pipes of popen
        sys.await(function() return net.descriptors() <= before end) -- helpers are reaped
    end)

    it('a privileged port is refused to a user, and given to the script', function()
        local listener, message, code = core.listen(core.address '127.0.0.1:81', { as = AS })
        assert.is_nil(listener)
        assert.equal('EACCES', code, message)
        assert.equal('EACCES', select(3, core.listen(core.address '127.0.0.1:81', { as = AS, reuseport = true })))
        assert.equal('EACCES', select(3, core.listen(core.address 'udp:127.0.0.1:81', { as = AS })))
        local owned = assert(core.listen(core.address '127.0.0.1:81', { reuseport = true, owner = AS }))
        owned:close()
    end)

    it('lanes are had at a port that the user may have', function()
        local listener = assert(core.listen(core.address '127.0.0.1:0', { as = AS, reuseport = true }))
        local a, b = assert(listener:lane()), assert(listener:lane())
        assert.equal('steered', (listener:steer({ { lane = a }, { lane = b } })))
        listener:close()
    end)

    it('a directory that the user may not write stays as it is', function()
        assert.equal('EACCES', select(3, listen(dir .. '/s', { as = AS })))
        assert.equal('ENOENT', select(3, core.stat(dir .. '/s')))
    end)

    it('a path belongs to the user who asked, with the mode asked for, whatever the umask', function()
        local path = own_directory('own', NOBODY) .. '/s'
        local listener = assert(listen(path, { as = AS, mode = octal '766' }))
        local stat = core.stat(path)
        assert.same({ NOBODY, NOBODY, octal '766' }, { stat.uid, stat.gid, stat.mode })
        listener:close()
        assert.equal('ENOENT', select(3, core.stat(path)))
        assert.same('', io.popen('ls -A ' .. dir .. '/own'):read '*a')
    end)

    it('a path that comes without its directory, for want of a descriptor, is none', function()
        local path = own_directory('own', NOBODY) .. '/s'
        local fillers = {}
        local old = sys.limit('nofile', 512)
        finally(function()
            sys.limit('nofile', old)
            for _, fd in ipairs(fillers) do
                sys.C.close(fd)
            end
        end)
        local fd = sys.C.open('/dev/null', sys.O_CLOEXEC)
        while fd >= 0 do
            fillers[#fillers + 1] = fd
            fd = sys.C.open('/dev/null', sys.O_CLOEXEC)
        end
        -- For the helper's socket, both ends, and its pidfd; one of these is free again when the answer comes.
        for _ = 1, 3 do
            sys.C.close(table.remove(fillers))
        end
        local listener, _, code = listen(path, { as = AS })
        assert.is_nil(listener)
        assert.equal('EMFILE', code)
        local came = ask('unix:' .. path, { as = AS })
        sys.await(came)
        assert.equal('EMFILE', came()[3])
        for _ = 1, 8 do
            sys.C.close(table.remove(fillers))
        end
        sys.await(function() -- what was left behind is stale, as soon as the helper has ended
            listener = listen(path, { as = AS })
            return listener
        end)
        listener:close()
        assert.equal('ENOENT', select(3, core.stat(path)))
    end)

    it('clients see the user behind the socket, not the master', function()
        local path = own_directory('own', NOBODY) .. '/s'
        for _, address in ipairs { 'unix:' .. path, 'unix:@dm-rights-' .. core.pid() } do
            local listener = assert(core.listen(core.address(address), { as = AS }))
            assert(listener:lane()) -- must not call listen() again: that would make the master its owner
            assert.equal(NOBODY, net.peer_uid(address:sub(6)))
            listener:close()
        end
    end)

    it('the path is put back, and removed, with the user\'s rights', function()
        local own = own_directory('own', NOBODY)
        local path = own .. '/s'
        local listener = assert(listen(path, { as = AS }))
        local lane = listener:lane()
        os.remove(path)
        assert.same({ 'path' }, lane:repair())
        assert.equal(NOBODY, core.stat(path).uid)
        os.remove(path)
        sys.C.chown(own, 0, 0) -- now the user may not write there any more
        assert.same({ 'path lost' }, lane:repair())
        assert.equal('ENOENT', select(3, core.stat(path)))
        listener:close()
    end)

    it('another user\'s stale socket is not replaced', function()
        local path = own_directory('own', NOBODY) .. '/s'
        sys.C.close(net.bind(path)) -- root's, and nobody listens
        local listener, message, code = listen(path, { as = AS })
        assert.is_nil(listener)
        assert.equal('EPERM', code)
        assert.truthy(message:find('a socket of another user is there', 1, true), message)
        assert.equal(0, core.stat(path).uid)
        assert(listen(path, {})):close() -- its own user may
    end)

    it('a path of the script belongs to whom it names from its first moment, in a directory of root\'s', function()
        local listener = assert(listen(dir .. '/s', { owner = { uid = NOBODY, gid = DAEMON }, mode = octal '660' }))
        local stat = core.stat(dir .. '/s')
        assert.same({ NOBODY, DAEMON, octal '660' }, { stat.uid, stat.gid, stat.mode })
        assert.equal(0, net.peer_uid(dir .. '/s'))
        listener:close()
        assert.equal('ENOENT', select(3, core.stat(dir .. '/s')))
    end)

    it('a symbolic link in the name\'s place is never followed', function()
        local own = own_directory('own', NOBODY)
        local target = dir .. '/secret'
        io.open(target, 'w'):close()
        sys.C.chmod(target, octal '600')
        -- The attack: as soon as there may be a socket, its name becomes a link to root's file, and is free again.
        local swap = io.popen(([[setpriv --reuid=%d --regid=%d --clear-groups luajit -e "
            local C = require 'ffi'
            C.cdef 'int symlink(const char *, const char *); int rename(const char *, const char *);'
            C.cdef 'int unlink(const char *);'
            local stop = os.time() + %d
            io.write('go\n') io.flush()
            while os.time() < stop and not io.open('%s/over') do
                C.C.symlink('%s', '%s/l') C.C.rename('%s/l', '%s/s') C.C.unlink('%s/s')
            end"]]):format(NOBODY, NOBODY, 60 * wait.scale, own, target, own, own, own, own))
        swap:read '*l'
        local made, stop = 0, core.now() + 50000 * wait.scale
        while made < 1000 and core.now() < stop do
            for _, whose in ipairs { 'as', 'owner', 'nobody' } do
                local options = { [whose] = AS, mode = octal '777' }
                local listener = listen(own .. '/s', options)
                if listener then
                    made = made + 1
                    listener:lane():repair()
                    listener:close()
                end
            end
        end
        io.open(own .. '/over', 'w'):close()
        swap:close()
        assert.is_true(made >= 1000, made)
        local stat = core.stat(target)
        assert.same({ 0, 0, octal '600' }, { stat.uid, stat.gid, stat.mode })
    end)

    it('a path longer than the kernel\'s 107 bytes works as any other', function()
        local long = dir
        for _ = 1, 12 do
            long = long .. '/' .. ('d'):rep(15)
            sys.C.mkdir(long, octal '755')
        end
        local listener = assert(listen(long .. '/s', {}))
        assert.equal('unix:' .. long .. '/s', listener:address().text)
        local lane = listener:lane()
        os.remove(long .. '/s')
        assert.same({ 'path' }, lane:repair())
        assert.equal('socket', core.stat(long .. '/s').type)
        listener:close()
        assert.equal('ENOENT', select(3, core.stat(long .. '/s')))
    end)

    it('what a worker asks for is bound while the loop goes on, and looked after so', function()
        local path = own_directory('own', NOBODY) .. '/s'
        local came = ask('unix:' .. path, { as = AS, mode = octal '766' })
        assert.is_nil(came())
        sys.await(came)
        local listener = assert(came()[1], came()[2])
        local stat, lane = core.stat(path), listener:lane()
        assert.same({ NOBODY, NOBODY, octal '766' }, { stat.uid, stat.gid, stat.mode })
        assert.equal(NOBODY, net.peer_uid(path))
        os.remove(path)
        assert.same({}, lane:repair()) -- it has only been asked for
        local settled
        assert.is_true(listener:await_path(function() settled = true end))
        sys.await(function() return settled end)
        assert.equal(NOBODY, core.stat(path).uid)
        assert.same({ 'path' }, lane:repair())
        assert.is_false(listener:await_path(error))
        assert.same({}, lane:repair())
        listener:close()
        sys.await(function() return select(3, core.stat(path)) == 'ENOENT' end)
        assert.same('', io.popen('ls -A ' .. dir .. '/own'):read '*a')

        came = ask('unix:@dm-rights-' .. core.pid(), { as = AS })
        sys.await(came)
        assert.equal(NOBODY, net.peer_uid('@dm-rights-' .. core.pid()))
        came()[1]:close()
        came = ask('unix:' .. dir .. '/s', { as = AS })
        sys.await(came)
        assert.equal('EACCES', came()[3])
    end)

    it('a file system that hangs holds up whoever asked there, and nobody else', function()
        local hostile = { uid = 54321, gid = 54321, groups = {} } -- who has asked for nothing before
        sys.C.mkdir(dir .. '/hangs', octal '755')
        local take_away = hang(dir .. '/hangs')
        if not take_away then
            pending 'no file system can be mounted here'
            return
        end
        finally(take_away)
        local hanging = {}
        for i = 1, 8 do
            hanging[i] = ask('unix:' .. dir .. '/hangs/s', { as = hostile })
            assert.is_nil(hanging[i]()) -- the caller goes on
        end
        assert.equal('EAGAIN', select(3, core.listen(core.address('unix:' .. dir .. '/s'), { as = hostile }, error)))
        local path = own_directory('own', DAEMON) .. '/s'
        local other = ask('unix:' .. path, { as = { uid = DAEMON, gid = DAEMON, groups = {} } })
        sys.await(other)
        local listener = assert(other()[1], other()[2])
        for i = 1, 8 do
            sys.await(hanging[i])
            assert.equal('ETIMEDOUT', hanging[i]()[3])
        end
        listener:close()
        take_away()
        sys.await(function() return select(3, core.stat(path)) == 'ENOENT' end)
        sys.await(function()
            local came
            local _, _, code = core.listen(core.address('unix:' .. dir .. '/nowhere/s'), { as = hostile }, function(...)
                came = { ... }
            end)
            if code then -- those that hung are still on their way out
                return assert.equal('EAGAIN', code) and false
            end
            sys.await(function() return came end)
            return came[3] == 'ENOENT'
        end)
    end)

    it('leave no process behind', function()
        local function children()
            return sys.read_file(('/proc/self/task/%d/children'):format(core.pid()))
        end
        local alone = children()
        assert.equal('EACCES', select(3, listen(dir .. '/s', { as = AS })))
        assert.equal(alone, children())
    end)
end)
