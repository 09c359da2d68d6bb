-- A server of lines and its clients, over real sockets.
-- Longer than 400 lines: its bounds, of which there are many, need the same server and clients as all else.

local cjson = require 'cjson'
local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local sys = require 'spec.support.sys'

local EMFILE_ROOM = 2

describe('stream', function()
    local fds, dir, remove, path, server, clients, on_line

    before_each(function()
        fds = sys.count_fds()
        dir, remove = sys.temp_dir()
        path = dir .. '/control.sock'
        clients = {}
        -- By default each line is answered by itself.
        on_line = function(conn, line)
            conn:write('you said ' .. line .. '\n')
        end
    end)

    after_each(function()
        if server then server:close() end
        server = nil
        for _, client in ipairs(clients) do
            client.conn:close()
        end
        loop.close()
        remove()
        assert.equal(fds, sys.count_fds())
    end)

    local function serve(at, request_ms, silent_ms)
        server = assert(core.serve(at or path, {
            request_ms = request_ms, silent_ms = silent_ms,
            on_client = function(conn)
                local client = { conn = conn, uid = conn:uid(), pid = conn:pid(), lines = {} }
                clients[#clients + 1] = client
                conn:on_line(function(line)
                    client.lines[#client.lines + 1] = line
                    on_line(conn, line)
                end)
                conn:on_close(function(reason)
                    client.closed = reason or 'hung up'
                end)
            end,
        }))
        return server
    end

    -- A client of our own; .lines are the answers, .closed the reason.
    local function connect(at)
        local conn = assert(core.connect(at or path))
        local client = { conn = conn, lines = {} }
        conn:on_line(function(line)
            client.lines[#client.lines + 1] = line
        end)
        conn:on_close(function(reason)
            client.closed = reason or 'hung up'
        end)
        return client
    end

    local function await_line(client, count)
        sys.await(function()
            return client.lines[count or 1] or client.closed
        end, 'a line')
        return client.lines[count or 1]
    end

    local function await_closed(client)
        return sys.await(function()
            return client.closed
        end, 'the end of a connection')
    end

    -- Alive means: a client gets its answer.
    local function assert_serving()
        local client = connect()
        client.conn:write 'are you there\n'
        assert.equal('you said are you there', await_line(client))
        client.conn:close()
    end

    it('carries lines both ways and knows who is there', function()
        serve()
        local client = connect()
        client.conn:write 'one\ntwo\nthr'
        assert.equal('you said two', await_line(client, 2))
        client.conn:write 'ee\n'
        assert.equal('you said three', await_line(client, 3))
        assert.equal(sys.C.geteuid(), clients[1].uid)
        assert.equal(sys.C.getpid(), clients[1].pid)
        assert.equal(sys.C.geteuid(), client.conn:uid())
        client.conn:close()
        assert.equal('hung up', await_closed(clients[1]))
        assert.same({ nil, 'closed', 'EBADF' }, { client.conn:write 'x' })
        assert.same({ nil, 'closed', 'EBADF' }, { clients[1].conn:uid() })
    end)

    it('serves somebody with socat who only listens after asking', function()
        serve()
        local pipe = io.popen(('echo hello | timeout 10 socat -t 5 - UNIX-CONNECT:%s'):format(path))
        sys.await(function()
            return clients[1] and clients[1].lines[1]
        end)
        clients[1].conn:close()
        assert.equal('you said hello', pipe:read('*l'))
        pipe:close()
    end)

    it('hands over big answers to who reads them', function()
        serve()
        local big = ('x'):rep(3 * 1024 * 1024)
        on_line = function(conn)
            assert.is_true(conn:write(big .. '\n'))
        end
        local client = connect()
        client.conn:write 'big\n'
        assert.equal(#big, #await_line(client))
        client.conn:close()
    end)

    it('an answer just before the end arrives', function()
        serve()
        on_line = function(conn)
            conn:write 'last words\n'
            conn:close()
        end
        local client = connect()
        client.conn:write 'x\n'
        assert.equal('last words', await_line(client))
        assert.equal('hung up', await_closed(client))
        assert.is_nil(clients[1].closed)
    end)

    describe('path', function()
        local function refused(expected, at)
            local s, message, code = core.serve(at or path, { on_client = print })
            assert.is_nil(s)
            assert.equal(expected, code)
            assert.truthy(message:find(at or path, 1, true))
            return message
        end

        it('is 0600 from the start, whatever the umask, and goes with the server', function()
            serve()
            local st = core.stat(path)
            assert.equal('socket', st.type)
            assert.equal(tonumber('600', 8), st.mode)
            server:close()
            assert.is_nil(core.stat(path))
            assert.is_nil(core.connect(path))
        end)

        it('a stale socket is replaced', function()
            serve()
            -- A second name keeps the socket file when the server removes the first.
            assert.equal(0, sys.C.link(path, dir .. '/kept'))
            server:close()
            os.rename(dir .. '/kept', path)
            assert.equal('ECONNREFUSED', select(3, core.connect(path)))
            serve()
            assert_serving()
        end)

        it('a live one is not', function()
            serve()
            refused 'EADDRINUSE'
            assert_serving()
        end)

        it('a live one with a full backlog is not', function()
            local first = assert(core.serve(path, { on_client = print }))
            local held = {}
            -- Not accepted, as the loop does not run.
            for i = 1, 129 do
                held[i] = assert(core.connect(path))
            end
            refused 'EADDRINUSE'
            first:close()
            for _, conn in ipairs(held) do
                conn:close()
            end
        end)

        it('a file, a directory and a link are left alone', function()
            sys.write_file(path, 'precious')
            assert.truthy(refused 'EEXIST':find('not a socket', 1, true))
            assert.equal('precious', sys.read_file(path))
            os.rename(path, dir .. '/precious')
            sys.C.symlink(dir .. '/precious', path)
            refused 'EEXIST'
            os.remove(path)
            sys.C.mkdir(path, 448)
            refused 'EEXIST'
        end)

        it('too long a one is refused, not cut', function()
            local long = dir .. '/' .. ('x'):rep(107 - #dir)
            assert.truthy(refused('ENAMETOOLONG', long):find('107', 1, true))
            assert.equal('ENAMETOOLONG', select(3, core.connect(long)))
            local fits = long:sub(1, 107)
            serve(fits)
            local client = connect(fits)
            client.conn:write 'x\n'
            assert.equal('you said x', await_line(client))
            client.conn:close()
        end)

        it('of another server that took it over is left alone', function()
            serve()
            os.remove(path)
            local first = server
            serve()
            first:close()
            assert.is_table(core.stat(path))
            assert_serving()
        end)

        it('the socket of a former master is ours at once, and closed if it cannot be served', function()
            local before = sys.count_fds()
            for code, at in pairs { EPERM = path, ENAMETOOLONG = dir .. '/' .. ('x'):rep(108) } do
                local fd = sys.open('/dev/null', sys.O_RDONLY) -- cannot be watched
                assert.equal(code, select(3, core.serve(at, { fd = fd, on_client = print })))
                assert.equal(before, sys.count_fds())
            end
        end)

        it('a missing directory is said', function()
            refused('ENOENT', dir .. '/none/control.sock')
            assert.equal('ENOENT', select(3, core.connect(dir .. '/none/x')))
        end)
    end)

    it('keeps other users out by mode and by credentials', function()
        if sys.C.geteuid() ~= 0 then
            pending('needs root to become another user')
            return
        end
        serve()
        local ask = ('setpriv --reuid 54321 --clear-groups timeout 10 socat -u UNIX-CONNECT:%s - 2>&1'):format(path)
        sys.C.chmod(dir, tonumber('755', 8))
        local pipe = io.popen(ask)
        assert.truthy(pipe:read('*a'):find('Permission denied', 1, true))
        pipe:close()
        sys.C.chmod(path, tonumber('666', 8))
        os.execute(('(%s > %s/out; mv %s/out %s/answer) &'):format(ask, dir, dir, dir))
        local answer = sys.await(function()
            return sys.read_file(dir .. '/answer')
        end, 'the end of socat')
        local decoded = cjson.decode((answer:match('^{[^\n]*}')))
        assert.is_false(decoded.ok)
        assert.equal('EPERM', decoded.error.code)
        assert.equal(0, #clients)
    end)

    it('a client that is refused while it writes reads why', function()
        serve()
        local client = connect()
        sys.await(function()
            return clients[1]
        end)
        clients[1].conn:write 'go away\n'
        clients[1].conn:close()
        local ok, _, code = client.conn:write 'hello\n'
        assert.is_nil(ok)
        assert.equal('EPIPE', code)
        assert.equal('hung up', await_closed(client))
        assert.same({ 'go away' }, client.lines)
    end)

    it('an answer is read although the request was not', function()
        serve()
        local client = connect()
        sys.await(function()
            return clients[1]
        end)
        client.conn:write 'hello\n'
        clients[1].conn:write 'go away\n'
        clients[1].conn:close()
        assert.equal('hung up', await_closed(client))
        assert.same({ 'go away' }, client.lines)
    end)

    describe('bounds', function()
        it('the length of a line, and says so', function()
            serve()
            local client = connect()
            client.conn:write(('x'):rep(65536) .. '\n')
            assert.equal(65536 + #'you said ', #await_line(client))
            client.conn:write(('x'):rep(65537))
            assert.equal('line longer than 65536 bytes', await_closed(clients[1]))
            await_closed(client)
            assert.equal('EMSGSIZE', cjson.decode(client.lines[2]).error.code)
            assert_serving()
        end)

        it('what waits for a client that does not read', function()
            serve()
            local results = {}
            on_line = function(conn)
                for i = 1, 100 do
                    local ok, _, code = conn:write(('x'):rep(65535) .. '\n')
                    results[i] = ok or code
                end
            end
            local fd = assert(core.connect(path))
            fd:write 'x\n'
            -- The client does read, but all the writing happens before it can.
            assert.equal('does not read its answers', sys.await(function()
                return clients[1] and clients[1].closed
            end))
            assert.is_true(results[1])
            assert.equal('EPIPE', results[100])
            fd:close()
            on_line = function(conn, line)
                conn:write('you said ' .. line .. '\n')
            end
            assert_serving()
        end)

        it('how much one client is listened to', function()
            serve()
            on_line = function(conn, line)
                if line:sub(1, 1) ~= 'x' then conn:write('you said ' .. line .. '\n') end
            end
            local flooder = connect()
            local start = sys.now()
            for _ = 1, 15 do
                flooder.conn:write((('x'):rep(63) .. '\n'):rep(1000))
            end
            assert_serving()
            sys.await(function()
                return clients[1].lines[15 * 1000]
            end, 'the whole flood')
            assert.is_true(sys.now() - start < 5000)
            flooder.conn:close()
        end)

        it('the number of clients: silent ones make room, those who asked stay', function()
            serve()
            local admin = connect()
            admin.conn:write 'first\n'
            assert.equal('you said first', await_line(admin))
            local silent = {}
            for i = 1, 1000 do
                silent[i] = connect()
                if i % 10 == 0 then loop.run_once(5) end
            end
            sys.await(function()
                return #clients == 1001
            end, 'all clients')
            local open = 0
            for _, client in ipairs(clients) do
                if not client.closed then open = open + 1 end
            end
            assert.equal(64, open)
            assert.equal('too many clients', clients[2].closed)
            assert_serving()
            admin.conn:write 'second\n'
            assert.equal('you said second', await_line(admin, 2))
            admin.conn:close()
            for _, client in ipairs(silent) do
                client.conn:close()
            end
        end)

        it('the number of clients that asked: the idlest makes room', function()
            serve()
            local all = {}
            for i = 1, 66 do
                all[i] = connect()
                all[i].conn:write 'hello\n'
                assert.equal('you said hello', await_line(all[i]))
            end
            assert.is_nil(clients[1].closed)
            -- The clock of the loop has to move on for one of them to be the idlest.
            local start = sys.now()
            sys.await(function()
                return sys.now() - start > 5
            end)
            for i = 2, 66 do
                all[i].conn:write 'again\n'
                assert.equal('you said again', await_line(all[i], 2))
            end
            assert_serving()
            assert.equal('too many clients', clients[1].closed)
            for i = 2, 66 do
                assert.is_nil(clients[i].closed)
            end
            for _, client in ipairs(all) do
                client.conn:close()
            end
        end)

        it('descriptors: at the limit a client is told, and nothing spins', function()
            serve()
            local client = connect()
            local old = sys.limit('nofile', 2048)
            local fillers = {}
            local function fill()
                local fd = sys.C.open('/dev/null', sys.O_CLOEXEC)
                while fd >= 0 do
                    fillers[#fillers + 1] = fd
                    fd = sys.C.open('/dev/null', sys.O_CLOEXEC)
                end
            end
            fill()
            local ok, err = pcall(function()
                await_closed(client)
                assert.equal('EMFILE', cjson.decode(client.lines[1]).error.code)
                local start = sys.now()
                loop.run_once(100)
                assert.is_true(sys.now() - start > 90)
                fill() -- its own end
                -- Two descriptors come free, for both ends of one connection.
                for _ = 1, EMFILE_ROOM do
                    sys.close(table.remove(fillers))
                end
                local silent = connect()
                sys.await(function()
                    return clients[1]
                end)
                loop.run_once(100)
                assert.is_nil(clients[1].closed)
                -- Who asks nothing gives way to the next, whose own end takes the one that comes free.
                sys.close(table.remove(fillers))
                local asks = connect()
                asks.conn:write 'hello\n'
                assert.equal('you said hello', await_line(asks))
                assert.equal('no descriptors left', clients[1].closed)
                silent.conn:close()
                asks.conn:close()
                await_closed(clients[2])
            end)
            for _, fd in ipairs(fillers) do
                sys.close(fd)
            end
            sys.limit('nofile', old)
            assert(ok, err)
            assert_serving()
        end)

        it('its pace, where not even the newcomer can be told', function()
            serve()
            local client = connect()
            local old = sys.limit('nofile', 3) -- as if the table of the whole system were full: its reserve is of no use
            local turns, start = 0, sys.now()
            while sys.now() - start < 200 do
                loop.run_once(100)
                turns = turns + 1
            end
            sys.limit('nofile', old)
            assert.is_true(turns < 40, turns)
            client.conn:write 'hello\n'
            assert.equal('you said hello', await_line(client))
            client.conn:close()
            assert_serving()
        end)

        it('the time to ask', function()
            serve(path, 200)
            local client, silent, slow = connect(), connect(), connect()
            client.conn:write 'x\n'
            slow.conn:write 'half a requ'
            await_line(client)
            await_closed(silent)
            await_closed(slow)
            assert.equal('ETIMEDOUT', cjson.decode(silent.lines[1]).error.code)
            assert.equal('no request came', clients[2].closed)
            assert.equal('no request came', clients[3].closed)
            assert.is_nil(client.closed)
            client.conn:close()
        end)

        it('but a request that came in time counts, even if we were late to look', function()
            serve(path, 50)
            local client = connect()
            sys.await(function()
                return clients[1]
            end)
            client.conn:write 'x\n'
            -- The master is busy for longer than the deadline.
            local start = sys.now()
            repeat until sys.now() - start > 100
            assert.equal('you said x', await_line(client))
            client.conn:close()
        end)
    end)

    it('survives a client that is killed, at every point', function()
        serve()
        for _, input in ipairs { '', 'half a li', 'a line\n', 'a line\nhalf' } do
            local client = connect()
            client.conn:write(input)
            client.conn:close()
        end
        sys.await(function()
            local closed = 0
            for _, client in ipairs(clients) do
                closed = closed + (client.closed and 1 or 0)
            end
            return closed == 4
        end, 'four ends')
        assert_serving()
    end)

    it('a half-closed client goes when it hangs up', function()
        serve()
        local pipe = io.popen(('echo hello | timeout 10 socat -t 0.2 - UNIX-CONNECT:%s'):format(path))
        sys.await(function()
            return clients[1] and clients[1].closed
        end, 'the client to be noticed')
        assert.equal('you said hello', pipe:read('*l'))
        pipe:close()
    end)

    it('one that is owed an answer is kept for it, however long that takes', function()
        serve(path, nil, 10)
        for _, owed in ipairs { false, true } do
            on_line = function(conn)
                if owed then conn:hold(1) end
            end
            local number = #clients + 1
            local pipe = io.popen(('echo hello | timeout 20 socat -t 20 - UNIX-CONNECT:%s'):format(path))
            sys.await(function()
                return clients[number] and clients[number].lines[1]
            end)
            local start = sys.now()
            sys.await(function()
                return clients[number].closed or sys.now() - start > 2500 -- it is looked at once a second
            end)
            assert.equal(not owed and 'hung up' or nil, clients[number].closed)
            if owed then
                clients[number].conn:write 'at last\n'
                clients[number].conn:close()
            end
            assert.equal(owed and 'at last' or nil, pipe:read '*l')
            pipe:close()
        end
    end)

    it('closing the server tells the clients on both sides', function()
        serve()
        local client = connect()
        client.conn:write 'x\n'
        await_line(client)
        server:close()
        server:close()
        assert.is_nil(clients[1].closed)
        assert.equal('the server was closed', await_closed(clients[1]))
        assert.equal('hung up', await_closed(client))
    end)

    it('everything may be closed from within a callback', function()
        serve()
        on_line = function(conn)
            conn:close()
            server:close()
            conn:close()
        end
        local client = connect()
        client.conn:write 'a\nb\nc\n'
        assert.equal('hung up', await_closed(client))
        assert.same({ 'a' }, clients[1].lines)
        assert.is_nil(clients[1].closed)
        local second
        server = assert(core.serve(path, { on_client = function(conn)
            conn:close()
            server:close()
            second = true
        end }))
        local other = connect()
        await_closed(other)
        assert.is_true(second)
    end)

    it('an error in a callback is reported and harms nobody', function()
        local errors = {}
        core.on_error(function(what)
            errors[#errors + 1] = what
        end)
        serve()
        on_line = function(_, line)
            error(line)
        end
        local client = connect()
        client.conn:write 'one\ntwo\n'
        sys.await(function()
            return errors[2]
        end)
        core.on_error(nil)
        assert.same({ 'control line', 'control line' }, errors)
        client.conn:close()
    end)

    it('10,000 requests leave descriptors flat', function()
        serve()
        for _ = 1, 1000 do
            local client = connect()
            for i = 1, 10 do
                client.conn:write 'x\n'
                if i == 10 then await_line(client, 10) end
            end
            client.conn:close()
        end
        sys.await(function()
            return clients[1000].closed
        end)
        assert.equal(fds + 2, sys.count_fds())
    end)

    it('costs nothing while nobody asks', function()
        serve()
        local client = connect()
        client.conn:write 'x\n'
        await_line(client)
        loop.run_once(5)
        local start = sys.now()
        loop.run_once(150)
        assert.is_true(sys.now() - start >= 140)
        client.conn:close()
    end)
end)
