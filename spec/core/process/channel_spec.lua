local uv = require 'luv'
local core = require 'dutch-master.core'
local unistd = require 'posix.unistd'
local fcntl = require 'posix.fcntl'
local p = require 'spec.support.process'

local MIB = 1024 * 1024

local function channel_sh(script, opts)
    opts = opts or {}
    opts.channel = true
    return p.sh(script, opts)
end

--- A child in Python: what a shell cannot do with sockets.
local function channel_python(script, opts)
    opts = opts or {}
    opts.channel = true
    opts[1], opts[2], opts[3] = '/usr/bin/python3', '-c', 'import os, socket, array, struct, sys\n'
        .. 's = socket.socket(fileno=3)\n' .. script
    return p.spawn(opts)
end

describe('channel', function()
    p.leaves_nothing()

    it('carries lines both ways', function()
        local record = channel_sh 'while read line <&3; do echo "got $line" >&3; done'
        assert.is_true(record.child:send 'one')
        assert.is_true(record.child:send 'two')
        assert.is_true(record.child:send '')
        p.await(function() return #record.lines == 3 end)
        assert.are.same({ 'got one', 'got two', 'got ' }, record.lines)
        record.child:close_channel()
        assert.are.equal(0, p.exit_of(record).code)
        assert.are.equal(0, record.closes) -- our own closing is no news
    end)

    it('says whether the child has read all', function()
        local record = channel_sh 'read go; while read line <&3; do echo "got $line" >&3; done'
        assert.is_false(record.child:is_unread())
        record.child:send 'one'
        assert.is_true(record.child:is_unread())
        record.child:close_channel()
        assert.is_false(record.child:is_unread())
        record.child:signal 'SIGKILL'
        p.exit_of(record)
        record = channel_sh 'while read line <&3; do echo "got $line" >&3; done'
        record.child:send 'one'
        p.await(function() return #record.lines == 1 end)
        assert.is_false(record.child:is_unread())
        record.child:close_channel()
        p.exit_of(record)
    end)

    it('is behind the descriptors that were given', function()
        local null = assert(fcntl.open('/dev/null', fcntl.O_RDONLY))
        local record = channel_sh('echo hello >&5', { fds = { null, null } })
        unistd.close(null)
        p.exit_of(record)
        assert.are.same({ 'hello' }, record.lines)
    end)

    it('delivers what came before the exit, then its end, then the exit', function()
        local record = channel_sh 'for i in 1 2 3; do echo $i >&3; done'
        p.exit_of(record)
        assert.are.same({ 'exec', 'line', 'line', 'line', 'closed', 'exit' }, record.events)
        assert.is_nil(record.reason)
    end)

    it('tells of its end once, when the child closes it and lives', function()
        local record = channel_sh 'exec 3>&-; kill -STOP $$; exit 0'
        p.await(function() return record.closes > 0 end)
        assert.is_nil(record.reason)
        local ok, message, code = record.child:send 'x'
        assert.are.same({ nil, 'send: broken pipe', 'EPIPE' }, { ok, message, code })
        assert.is_true(record.child:close_channel())
        p.await(function()
            record.child:signal 'SIGCONT'
            return record.exits > 0
        end)
        assert.are.equal(1, record.closes)
    end)

    it('takes a reset for an end', function()
        local record = channel_sh 'read x <&3; exec 3>&-; exit 0'
        for _ = 1, 100 do
            record.child:send(('x'):rep(1000))
        end
        p.exit_of(record)
        assert.are.equal(1, record.closes)
        assert.is_nil(record.reason)
        assert.are.same({ nil, 'send: broken pipe', 'EPIPE' }, { record.child:send 'x' })
    end)

    it('does not let a grandchild that holds it delay the exit', function()
        local record = channel_sh 'setsid -f sleep 1000; echo last >&3; exit 6'
        local start = core.now()
        assert.are.equal(6, p.exit_of(record).code)
        assert.is_true(core.now() - start < 2000 * p.patience)
        assert.are.same({ 'last' }, record.lines)
        assert.are.equal(1, record.closes)
    end)

    it('carries a line of almost 8 MiB; a longer one is lost, and what follows is not', function()
        local skipped = {}
        local record = channel_sh(
            ('head -c %d /dev/zero >&3; echo >&3; head -c 20000000 /dev/zero >&3; echo >&3; echo next >&3'):format(8 * MIB),
            { on_skipped = function(_, length, had_fd)
                skipped[#skipped + 1] = { length, had_fd }
            end })
        p.exit_of(record, 20000)
        assert.are.equal(8 * MIB, #record.lines[1])
        assert.are.equal('next', record.lines[2])
        assert.are.same({ { 20000000, false } }, skipped)
    end)

    it('gives the descriptor that came with a line to whoever takes it, while that line is handled', function()
        local taken, late = {}, nil
        local record = channel_python([[
import os
for i in range(3):
    r, w = os.pipe()
    os.write(w, b'%d' % i)
    s.sendmsg([b'a%d\nb%d\n' % (i, i)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [r]))])
    os.close(r); os.close(w)
r, w = os.pipe()
s.sendmsg([b'half'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [r]))])
s.recv(1)
s.send(b' and half\nplain\n')
s.recv(1)
]], { on_line = function(child, line, had_fd)
            if line == 'a1' or line:find 'half' then
                taken[#taken + 1] = assert(child:take_fd())
                assert.is_nil(child:take_fd())
            elseif line == 'plain' then
                late = { had_fd, child:take_fd() }
            end
        end })
        p.await(function() return #record.lines == 6 end)
        record.child:send 'the rest, please'
        p.await(function() return late end)
        assert.are.equal(2, #taken)
        assert.are.equal('1', unistd.read(taken[1], 10))
        assert.is_nil(late[2])
        for _, fd in ipairs(taken) do
            unistd.close(fd)
        end
        record.child:close_channel()
        p.exit_of(record)
    end)

    it('waits for the rest of half a line, and drops it at the end', function()
        local record = channel_sh 'printf half >&3; read x <&3; printf " line\\nrest" >&3'
        p.await(function() return record.execs == 1 end)
        record.child:send 'go'
        p.exit_of(record)
        assert.are.same({ 'half line' }, record.lines)
    end)

    it('bounds what waits for a child that does not read, and loses nothing of it', function()
        local record = channel_sh 'kill -STOP $$; cat <&3 | wc -c >&3'
        local line, sent = ('x'):rep(99999), 0
        local code, message
        repeat
            local ok
            ok, message, code = record.child:send(line)
            sent = sent + (ok and 1 or 0)
        until not ok
        assert.are.equal('ENOBUFS', code)
        assert.matches('^send: ', message)
        assert.is_true(sent * 100000 >= 4 * MIB - 100000)
        assert.is_true(sent * 100000 <= 5 * MIB)
        p.await(function() return p.read('/proc/' .. record.pid .. '/stat'):match '%) T' end)
        record.child:signal 'SIGKILL'
        p.exit_of(record)
        -- The same with one that reads in the end.
        record = channel_python([[
data = b''
while not data.endswith(b'end\n'):
    data += s.recv(1 << 20)
s.send(b'%d\n' % len(data))
]])
        local total = 0
        for _ = 1, 30 do
            if record.child:send(line) then
                total = total + #line + 1
            end
        end
        assert.is_true(record.child:send 'end')
        p.await(function() return #record.lines == 1 end)
        assert.are.equal(total + 4, tonumber(record.lines[1]))
        p.exit_of(record)
    end)

    it('passes a descriptor with the first byte of its line, queued or not', function()
        local path = os.tmpname()
        local file = assert(io.open(path, 'w'))
        file:write 'passed'
        file:close()
        local fd = assert(fcntl.open(path, fcntl.O_RDONLY))
        os.remove(path)
        local record = channel_python [[
import time
s.recv(1, socket.MSG_PEEK)
data, found = b'', {}
while not data.endswith(b'end\n'):
    chunk, ancillary, flags, _ = s.recvmsg(65536, socket.CMSG_SPACE(400))
    for level, kind, body in ancillary:
        fd = struct.unpack('i', body)[0]
        found[os.pread(fd, 100, 0).decode()] = data.count(b'\n') + chunk.count(b'\n')
    data += chunk
s.send(('%r %d\n' % (sorted(found), len(data))).encode())
]]
        assert.is_true(record.child:send('direct', fd))
        local count = 7
        for _ = 1, 20 do
            assert.is_true(record.child:send(('y'):rep(50000)))
            count = count + 50001
        end
        assert.is_true(record.child:send('queued', fd))
        unistd.close(fd)
        record.child:send 'end'
        p.await(function() return #record.lines == 1 end)
        assert.are.equal(("['passed'] %d"):format(count + 7 + 4), record.lines[1])
        p.exit_of(record)
    end)

    it('bounds the descriptors among what waits', function()
        local null = assert(fcntl.open('/dev/null', fcntl.O_RDONLY))
        local record = channel_sh 'kill -STOP $$; read line <&3'
        local _, before = p.descriptors()
        local sent = 0
        local ok, code
        repeat
            ok, _, code = record.child:send('x', null)
            sent = sent + (ok and 1 or 0)
        until not ok or sent == 5000
        local _, now = p.descriptors()
        assert.are.equal('ENOBUFS', code)
        assert.are.equal(256, now - before)
        assert.is_true(record.child:send 'without one')
        p.await(function() return p.read('/proc/' .. record.pid .. '/stat'):match '%) T' end)
        record.child:signal 'SIGCONT'
        p.exit_of(record)
        unistd.close(null)
    end)

    it('refuses a descriptor that is none, and stays open', function()
        local record = channel_sh 'read line <&3; echo $line >&3'
        local _, _, code = record.child:send('x', 9999)
        assert.are.equal('EBADF', code)
        assert.is_true(record.child:send 'still here')
        p.exit_of(record)
        assert.are.same({ 'still here' }, record.lines)
    end)

    it('closes the descriptors that a child sends, 500 and more', function()
        local _, before = p.descriptors()
        local most = before
        local record = channel_python([[
fds = array.array('i', [0] * 250)
for i in range(4):
    s.sendmsg([b'%d\n' % i], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
s.send(b'plain\n')
s.recv(1)
]], { on_line = function()
            local _, now = p.descriptors()
            most = math.max(most, now)
        end })
        p.await(function() return #record.lines == 5 end)
        assert.is_true(record.had_fd)
        assert.is_true(most < before + 20, most)
        record.child:close_channel()
        p.exit_of(record)
    end)

    -- With SO_LINGER close() waits for the peer of a TCP connection, if it is the last one; so does the close of a
    -- socket in whose queue it is.
    for what, is_read in pairs { ['the descriptors that a child sends'] = true, ['a channel with such in it'] = false } do
        it('waits for nobody when it closes ' .. what, function()
            local record = channel_python [[
import signal
s.recv(1)
listener = socket.create_server(('127.0.0.1', 0))
peers = []
for i in range(3):
    c = socket.create_connection(listener.getsockname())
    peers.append(listener.accept()[0]) # who reads nothing
    c.setblocking(False)
    try:
        while True: c.send(b'x' * 65536)
    except BlockingIOError: pass
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 5))
    s.sendmsg([b'%d\n' % i], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [c.fileno()] * (i + 1)))])
    c.close()
os.kill(os.getpid(), signal.SIGSTOP)
]]
            record.child:pause_reading(not is_read)
            record.child:send 'go'
            local start = uv.hrtime()
            p.await(function()
                return p.read('/proc/' .. record.pid .. '/stat'):match '%) T' and (#record.lines == 3 or not is_read)
            end, 30000)
            record.child:close_channel()
            assert.is_true(uv.hrtime() - start < 4e9 * p.patience, (uv.hrtime() - start) / 1e9)
            record.child:signal 'SIGKILL'
            p.exit_of(record)
        end)
    end

    it('does not starve siblings of a child that floods', function()
        local loud = channel_sh 'exec yes $(printf %0999d 0) >&3'
        p.await(function() return #loud.lines > 0 end)
        local start = core.now()
        local quiet = channel_sh 'echo hello >&3'
        p.await(function()
            loud.lines, loud.events = {}, {}
            return quiet.exits > 0
        end)
        assert.is_true(core.now() - start < 1000 * p.patience)
        assert.are.same({ 'hello' }, quiet.lines)
        loud.child:signal 'SIGKILL'
        p.exit_of(loud)
    end)

    it('is not read while paused, and delivers at the exit what is there', function()
        local record = channel_sh 'echo one >&3; read x <&3; echo two >&3'
        record.child:pause_reading(true)
        p.await(function() return record.execs == 1 end)
        require('spec.loop').run_once(50)
        assert.are.same({}, record.lines)
        record.child:pause_reading(false)
        p.await(function() return #record.lines == 1 end)
        record.child:pause_reading(true)
        record.child:send 'go'
        p.exit_of(record)
        assert.are.same({ 'one', 'two' }, record.lines)
    end)

    it('may be closed by the callback that gets a line', function()
        local record
        record = channel_sh('printf "a\\nb\\nc\\n" >&3; read x <&3; exit 3', {
            on_line = function(child) child:close_channel() end,
        })
        assert.are.equal(3, p.exit_of(record).code)
        assert.are.same({ 'a' }, record.lines)
        assert.are.equal(0, record.closes)
    end)

    it('outlives an error in its callback', function()
        local errors = 0
        core.on_error(function() errors = errors + 1 end)
        local record = channel_sh('echo a >&3; echo b >&3', { on_line = function() error 'broken' end })
        p.exit_of(record)
        core.on_error(nil)
        assert.are.same({ 'a', 'b' }, record.lines)
        assert.are.equal(2, errors)
    end)

    it('refuses a newline in a line', function()
        local record = channel_sh 'exit 0'
        assert.has_error(function() record.child:send 'a\nb' end)
        p.exit_of(record)
    end)
end)
