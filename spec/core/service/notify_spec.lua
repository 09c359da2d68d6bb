local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local platform = require 'dutch-master.platform'
local sys = require 'spec.support.sys'
local ffi = sys.ffi

ffi.cdef [[
    struct dm_notify_address { unsigned short family; char path[108]; };
    int socket(int domain, int type, int protocol);
    long sendto(int fd, const void *buf, size_t len, int flags, const void *addr, unsigned addrlen);
    struct dm_iovec { const void *base; size_t len; };
    struct dm_msghdr { const void *name; unsigned namelen; struct dm_iovec *iov; size_t iovlen;
        void *control; size_t controllen; int flags; };
    long sendmsg(int fd, const struct dm_msghdr *msg, int flags);
]]

describe('notify', function()
    local fds, notify, seen, sender

    before_each(function()
        fds = sys.count_fds()
        seen = {}
        notify = assert(platform.notify_socket({}, function(fields)
            seen[#seen + 1] = { fields = fields }
        end))
        sender = ffi.C.socket(1, 2 + sys.O_CLOEXEC + sys.O_NONBLOCK, 0)
    end)

    after_each(function()
        notify:close()
        sys.close(sender)
        loop.close()
        assert.equal(fds, sys.count_fds())
    end)

    local function address()
        local name = notify:name()
        local addr = ffi.new('struct dm_notify_address', { family = 1 })
        ffi.copy(addr.path, name:gsub('^@', '\0'), #name)
        return addr, 2 + #name
    end

    -- Sends, with `count` copies of our standard input if asked; the error number if that fails.
    local function send(text, count)
        local addr, len = address()
        local iov = ffi.new('struct dm_iovec', { ffi.cast('const char *', text), #text })
        local msg = ffi.new('struct dm_msghdr', { name = addr, namelen = len, iov = iov, iovlen = 1 })
        local control
        if count then
            control = ffi.new('int64_t[?]', 2 + math.ceil(count / 2))
            ffi.cast('size_t *', control)[0] = 16 + 4 * count
            local words = ffi.cast('int *', control)
            words[2], words[3] = 1, 1 -- SOL_SOCKET, SCM_RIGHTS
            for i = 0, count - 1 do
                words[4 + i] = 0
            end
            msg.control, msg.controllen = control, ffi.sizeof(control)
        end
        if ffi.C.sendmsg(sender, msg, 0) < 0 then return ffi.errno() end
    end

    -- Sends a message that must arrive, and so shows that everything before it was read.
    local function sync()
        local before = #seen
        assert.is_nil(send 'X_SYNC=1')
        sys.await(function()
            return #seen > before and seen[#seen].fields.X_SYNC
        end, 'the message behind')
        return table.remove(seen)
    end

    local function shell(command)
        return ('NOTIFY_SOCKET=%s %s'):format(notify:name(), command)
    end

    it('has a path in a directory of its own, as systemd gives, which goes with it', function()
        local other = assert(platform.notify_socket({}, print))
        local path = other:name()
        assert.truthy(path:find('^/.*/notify%-%x+$'))
        assert.equal((core.runtime_dir()), (path:match '^(.*)/'))
        assert.are_not.equal(notify:name(), path)
        assert.equal(tonumber('600', 8), bit.band(core.stat(path).mode, tonumber('777', 8)))
        other:close()
        assert.is_nil(core.stat(path))
    end)

    it('of another user can be reached by that one alone, in a directory that nobody can list or change', function()
        if sys.C.geteuid() ~= 0 then
            pending('needs root to become another user')
            return
        end
        local other = assert(platform.notify_socket({ uid = 54321 }, print))
        local path, dir = other:name(), other:name():match '^(.*)/'
        assert.equal(54321, core.stat(path).uid)
        assert.equal(0, core.stat(dir).uid)
        assert.equal(tonumber('711', 8), bit.band(core.stat(dir).mode, tonumber('777', 8)))
        local function as(uid, command)
            return os.execute(('setpriv --reuid %d --clear-groups %s >/dev/null 2>&1'):format(uid, command)) == 0
        end
        assert.is_true(as(54321, 'test -w ' .. path))
        assert.is_false(as(54322, 'test -w ' .. path))
        assert.is_false(as(54321, 'ls ' .. dir))
        assert.is_false(as(54321, 'rm -f ' .. path))
        other:close()
        assert.is_nil(core.stat(dir))
    end)

    it('reads fields: the first of a key counts, keys are upper case', function()
        send 'READY=1\nSTATUS=up = fine\nREADY=0\nlower=1\n=x\nNOEQUALS\nX_A1=\nBAD-KEY=1\n'
        sys.await(function()
            return seen[1]
        end)
        assert.same({ READY = '1', STATUS = 'up = fine', X_A1 = '' }, seen[1].fields)
        send 'READY=10\0'
        sys.await(function()
            return seen[2]
        end)
        assert.same({ READY = '10' }, seen[2].fields)
    end)

    it('skips a value that is not UTF-8, and takes the others', function()
        send 'STATUS=\255\254\nREADY=1\nX_A=ä€𝄞\nX_B=\237\160\128\nX_C=\226\130'
        sys.await(function()
            return seen[1]
        end)
        assert.same({ READY = '1', X_A = 'ä€𝄞' }, seen[1].fields)
    end)

    it('ignores what is wrong, and goes on', function()
        send ''
        sync()
        send '\0'
        send 'READY=1\0STATUS=x'
        send(('X'):rep(4096))
        sync()
        send('READY=1\n' .. ('x'):rep(200000))
        send 'nothing of use'
        send '\n\n\n'
        sync()
        assert.equal(0, #seen)
        send('STATUS=' .. ('x'):rep(4095 - 7))
        sys.await(function()
            return seen[1]
        end)
        assert.equal(4095 - 7, #seen[1].fields.STATUS)
    end)

    it('closes every descriptor sent along', function()
        loop.run_once(5)
        local before = sys.count_fds()
        for _, count in ipairs { 1, 2, 253 } do
            assert.is_nil(send('READY=1', count))
            assert.is_nil(send('', count))
            assert.is_nil(send(('x'):rep(10000), count))
            sync()
        end
        assert.equal(before, sys.count_fds())
        assert.equal(3, #seen)
    end)

    it('survives descriptors when it has none free', function()
        local before = sys.count_fds()
        assert.is_nil(send('READY=1', 253))
        local old = sys.limit('nofile', before + 10)
        local ok, err = pcall(sys.await, function()
            return seen[1]
        end)
        sys.limit('nofile', old)
        assert(ok, err)
        assert.equal(before, sys.count_fds())
        sync()
    end)

    it('of a former master is ours at once, and closed if it cannot be watched', function()
        local before = sys.count_fds()
        local fd = sys.open('/dev/null', sys.O_RDONLY)
        assert.equal('EPERM', select(3, core.notify_socket({ fd = fd, name = '@none' }, print)))
        assert.equal(before, sys.count_fds())
    end)

    it('is not kept from its siblings by a flood', function()
        local got = 0
        local sibling = assert(platform.notify_socket({}, function()
            got = got + 1
        end))
        local flooded = notify
        for _ = 1, 200 do
            repeat until send 'READY=1' -- until the queue is full
            if got == 0 then
                notify = sibling
                send 'READY=1'
                notify = flooded
            end
            loop.run_once(10)
        end
        assert.is_true(got >= 1)
        assert.is_true(#seen > 200)
        sibling:close()
    end)

    it('refuses other users, unless told which', function()
        if sys.C.geteuid() ~= 0 then
            pending('needs root to become another user')
            return
        end
        notify:close()
        notify = assert(platform.notify_socket({ uid = 54321 }, function(fields)
            seen[#seen + 1] = fields
        end))
        assert.equal(0, sys.C.chmod(notify:name(), tonumber('777', 8))) -- as if it had been passed on
        os.execute(shell 'setpriv --reuid 54322 --clear-groups systemd-notify --no-block --ready 2>/dev/null')
        os.execute(shell 'setpriv --reuid 54321 --clear-groups systemd-notify --no-block --status=last 2>/dev/null')
        sys.await(function()
            return seen[1]
        end)
        assert.same({ { STATUS = 'last' } }, seen)
    end)

    it('understands systemd-notify, and lets its barrier pass', function()
        local pipe = io.popen(shell 'systemd-notify --ready --status="all well"; echo exit $?')
        sys.await(function()
            return #seen >= 2
        end, 'READY and BARRIER')
        assert.equal('exit 0', pipe:read('*l'))
        pipe:close()
        assert.equal('1', seen[1].fields.READY)
        assert.equal('all well', seen[1].fields.STATUS)
        assert.equal('1', seen[2].fields.BARRIER)
    end)

    it('survives anything, and reads the next message', function()
        local seed = tonumber(os.getenv 'DM_SPEC_SEED') or os.time()
        math.randomseed(seed)
        local pieces = {
            'READY', '=', '\n', '1', '\0', '\255', '\195', 'ä', 'X_', 'BARRIER=1', ('y'):rep(1000), '=\n=',
        }
        for _ = 1, 3000 do
            local parts = {}
            for i = 1, math.random(0, 8) do
                parts[i] = pieces[math.random(#pieces)]
            end
            send(table.concat(parts), math.random(20) == 1 and math.random(5) or nil)
            if math.random(5) == 1 then loop.run_once(5) end
        end
        sys.await(function()
            return send 'X_SYNC=1' == nil
        end, 'room in the queue')
        sys.await(function()
            return seen[#seen].fields.X_SYNC
        end, 'the last message, seed ' .. seed)
        for _, message in ipairs(seen) do
            for key in pairs(message.fields) do
                assert.truthy(key:find('^[A-Z0-9_]+$'), 'seed ' .. seed)
            end
        end
    end)

    it('may be closed by its own callback', function()
        local count = 0
        local other
        other = assert(platform.notify_socket({}, function()
            count = count + 1
            other:close()
        end))
        local kept = notify
        notify = other
        send 'READY=1'
        send 'READY=1'
        notify = kept
        sys.await(function()
            return count > 0
        end)
        loop.run_once(10)
        assert.equal(1, count)
        assert.same({ nil, 'closed', 'EBADF' }, { other:name() })
        other:close()
    end)

    it('an error in the callback is reported, and the next message read', function()
        local errors, count = {}, 0
        core.on_error(function(what, message)
            errors[#errors + 1] = { what, message }
        end)
        local other = assert(platform.notify_socket({}, function()
            count = count + 1
            error 'boom'
        end))
        local kept = notify
        notify = other
        send 'READY=1'
        send 'READY=1'
        notify = kept
        sys.await(function()
            return count == 2
        end)
        core.on_error(nil)
        assert.equal(2, #errors)
        assert.truthy(errors[1][2]:find('boom', 1, true))
        other:close()
    end)

    it('refuses wrong arguments', function()
        assert.has_error(function()
            core.notify_socket(nil, print)
        end)
        assert.has_error(function()
            core.notify_socket({}, nil)
        end)
    end)

    describe('sd_notify', function()
        local dir, remove

        before_each(function()
            dir, remove = sys.temp_dir()
        end)

        after_each(function()
            remove()
        end)

        -- Runs the Lua text in a process of its own that has this NOTIFY_SOCKET.
        local function run(socket, text)
            sys.write_file(dir .. '/sender.lua', "local core = require 'dutch-master.core'\n" .. text)
            local pipe = io.popen(('%s %s %s/sender.lua 2>&1'):format(
                socket and 'NOTIFY_SOCKET=' .. socket or 'env -u NOTIFY_SOCKET',
                core.realpath '/proc/self/exe', dir))
            local output = pipe:read('*a')
            pipe:close()
            return output
        end

        it('tells the service manager', function()
            assert.equal('true true\n', run(notify:name(),
                "print(core.sd_notify_set(), core.sd_notify('READY=1\\nSTATUS=4 workers'))"):gsub('\t', ' '))
            sys.await(function()
                return seen[1]
            end)
            assert.same({ READY = '1', STATUS = '4 workers' }, seen[1].fields)
        end)

        it('does nothing if there is nobody to tell', function()
            assert.equal('false true\n', run(nil,
                "print(core.sd_notify_set(), core.sd_notify('READY=1'))"):gsub('\t', ' '))
        end)

        it('fails without blocking', function()
            local text = "local _, _, code = core.sd_notify('READY=1') print(code)"
            assert.equal('EINVAL\n', run('relative', text))
            assert.equal('EINVAL\n', run('vsock:1:2', text))
            assert.equal('EINVAL\n', run('@', text))
            assert.equal('ENAMETOOLONG\n', run('/' .. ('x'):rep(200), text))
            assert.equal('ENOENT\n', run(dir .. '/none', text))
            assert.equal('ECONNREFUSED\n', run('@nobody-' .. sys.C.getpid(), text))
            -- Nobody reads this one: its queue fills, and the sender is told so at once.
            assert.equal('EAGAIN\n', run(notify:name(),
                "local code repeat code = select(3, core.sd_notify('READY=1')) until code print(code)"))
        end)
    end)
end)
