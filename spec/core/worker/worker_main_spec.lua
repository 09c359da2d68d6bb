-- A Lua worker under a small master of the spec's own.
-- Longer than 400 lines: all that a program may ask of require 'dutch-master.worker', in real processes.

local uv = require 'luv'
local primary = require 'spec.support.primary'

local DISCONNECT = { cmd = 'NODE_CLUSTER', act = 'disconnect' }

local ECHO = [[
local worker = require 'dutch-master.worker'
local server = assert(worker.listen(0))
server:accept(function(connection)
    connection:read_start(function(_, data)
        if data then connection:write(data) else connection:close() end
    end)
end)
]]

-- A client connection that collects what comes.
local function connect(port)
    local client = { data = '', handle = uv.new_tcp() }
    client.handle:connect('127.0.0.1', port, function(err)
        client.error = err
        client.connected = not err
        if not err then
            client.handle:read_start(function(read_error, data)
                client.error = read_error
                client.data = client.data .. (data or '')
                client.ended = data == nil
            end)
        end
    end)
    primary.wait_until(function() return client.connected or client.error end, 'a connection')
    return client
end

-- Time that a process has worked.
local function cpu_ms(pid)
    local file = assert(io.open(('/proc/%d/stat'):format(pid)))
    local user, system = file:read('*a'):match '%) %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ (%d+) (%d+)'
    file:close()
    return (user + system) * 10
end

describe('a Lua worker', function()
    local p

    local function start(...)
        p = primary.start(...)
        return p
    end

    after_each(function()
        if p then
            p:close()
            p = nil
        end
    end)

    -- Sends text and waits until what has come back since ends in `expected`, a pattern.
    local function ask(client, text, expected)
        client.data = ''
        client.handle:write(text)
        primary.wait_until(function() return client.data:find(expected) end, expected)
    end

    it('runs a script with its arguments and leaves when nothing is left', function()
        start([[print(arg[0] ~= nil, arg[2], ...)]], { channel = false, args = { 'a', 'b' } })
        assert.same({ code = 0, signal = 0 }, p:await_exit())
        assert.equal('true\tb\ta\tb\n', p.stdout)
        assert.equal('', p.stderr)
    end)

    it('finds modules beside the script and none relative to the working directory', function()
        start([[
            for _, path in ipairs { package.path, package.cpath } do
                for entry in path:gmatch '[^;]+' do assert(entry:sub(1, 1) == '/', entry) end
            end
            print((package.path:match '^[^;]+'))]], { channel = false })
        p:await_exit()
        assert.equal(uv.fs_realpath(p.dir) .. '/?.lua\n', p.stdout)
    end)

    it('ends with a traceback and code 1 when the script fails', function()
        start([[local function boom() error 'boom' end boom()]], { channel = false })
        assert.equal(1, p:await_exit().code)
        assert.matches('app.lua:1: boom\nstack traceback:', p.stderr)
    end)

    it('ends with a traceback and code 1 when a callback fails', function()
        start([[local t = require('luv').new_timer() t:start(1, 0, function() error 'late' end)]],
            { channel = false })
        assert.equal(1, p:await_exit().code)
        assert.matches('app.lua:1: late\nstack traceback:', p.stderr)
    end)

    it('names a script that is missing or does not compile', function()
        start('', { channel = false, script = '/nonexistent/app.lua' })
        assert.equal(1, p:await_exit().code)
        assert.matches('cannot open /nonexistent/app.lua', p.stderr)
        p:close()
        start('x = = 1', { channel = false })
        assert.equal(1, p:await_exit().code)
        assert.matches('app.lua:1: unexpected symbol', p.stderr)
    end)

    it('says hello before the script runs and hides the channel from what it starts', function()
        start [[
            local worker = require 'dutch-master.worker'
            worker.send { id = worker.id, generation = worker.generation, fd = os.getenv 'NODE_CHANNEL_FD' or false }]]
        assert.equal(0, p:expect({ act = 'online' }).seq)
        assert.same({ id = 7, generation = 3, fd = false }, p:expect { id = 7 })
    end)

    it('hears the master even if the script never asks for the worker module', function()
        start [[require('luv').new_timer():start(100000, 0, function() end)]]
        p:expect { act = 'online' }
        p:send(DISCONNECT)
        assert.same({ code = 0, signal = 0 }, p:await_exit())
    end)

    it('asks the master for its socket, announces it and serves', function()
        start(ECHO)
        local query, port = p:lend()
        assert.equal(0, query.port)
        assert.equal(4, query.addressType)
        p:expect { cmd = 'NODE_HANDLE_ACK' }
        assert.equal(port, p:expect({ act = 'listening' }).port)
        local client = connect(port)
        ask(client, 'hello', '^hello$')
        client.handle:close()
    end)

    it('takes one connection in a turn, so that what waits behind a slow request can go to others', function()
        start [[
            local worker = require 'dutch-master.worker'
            local held = 0
            assert(worker.listen(0)):accept(function(connection)
                held = held + 1
                connection:read_start(function(_, data)
                    if data then connection:write(held .. '.') else connection:close() end
                end)
            end)]]
        local _, port = p:lend()
        p:expect { act = 'listening' }
        p.process:kill 'sigstop'
        local clients, fewest = {}, math.huge
        for i = 1, 6 do
            clients[i] = connect(port)
            clients[i].handle:write 'x'
        end
        p.process:kill 'sigcont'
        for _, client in ipairs(clients) do
            primary.wait_until(function() return client.data:find '%.' end, 'an answer')
            fewest = math.min(fewest, tonumber(client.data:match '%d+'))
            client.handle:close()
        end
        assert.is_true(fewest <= 2, fewest .. ' were taken before the first was read')
    end)

    it('leaves what it has not begun in the queue: the next one is served by another while a request takes long', function()
        start [[
            local uv, worker = require 'luv', require 'dutch-master.worker'
            assert(worker.listen(0)):accept(function(connection)
                connection:read_start(function(_, data)
                    if not data then
                        return connection:close()
                    end
                    connection:try_write 'begun'
                    local stop = uv.hrtime() + 5e8
                    while data == 'slow' and uv.hrtime() < stop do end
                    connection:write ', worker'
                end)
            end)]]
        local _, port = p:lend()
        p:expect { act = 'listening' }
        local slow = connect(port)
        ask(slow, 'quick', 'begun, worker')
        p.process:kill 'sigstop' -- that both are seen in one turn
        local waiting = connect(port)
        waiting.handle:write 'x'
        slow.data = ''
        slow.handle:write 'slow'
        p.process:kill 'sigcont'
        primary.wait_until(function() return slow.data == 'begun' end, 'its beginning')
        local taken = uv.new_tcp()
        assert(p.handles[1]:listen(10, function()
            assert(p.handles[1]:accept(taken))
            taken:write 'another'
        end))
        primary.wait_until(function() return waiting.data ~= '' end, 'an answer')
        assert.equal('another', waiting.data)
        assert.equal('begun', slow.data)
        taken:close()
        waiting.handle:close()
        primary.wait_until(function() return slow.data == 'begun, worker' end, 'its end')
        slow.handle:close()
    end)

    it('goes on accepting once it has descriptors again', function()
        start [[
            local uv, worker = require 'luv', require 'dutch-master.worker'
            local server = assert(worker.listen(0))
            server:accept(function(connection)
                connection:write 'served'
                connection:read_start(function(_, data)
                    if not data then connection:close() end
                end)
            end)
            local spare = {}
            repeat
                spare[#spare + 1] = uv.fs_open('/dev/null', 'r', 0)
            until not uv.fs_open('/dev/null', 'r', 0)
            worker.send { full = true }
            worker.on_message(function()
                for _, fd in ipairs(spare) do uv.fs_close(fd) end
            end)]]
        local _, port = p:lend()
        p:expect { full = true }
        local client = connect(port)
        client.handle:write 'x'
        local before = cpu_ms(p.pid)
        local turn = uv.new_timer()
        local over = false
        turn:start(300, 0, function() over = true end)
        primary.wait_until(function() return over end, 'a while')
        turn:close()
        assert.is_true(cpu_ms(p.pid) - before < 150, 'it tries all the time')
        assert.equal('', client.data)
        p:send { free = true }
        primary.wait_until(function() return client.data == 'served' end, 'service')
        client.handle:close()
    end)

    it('finishes its connections when asked to leave, then leaves by itself', function()
        start(ECHO)
        local _, port = p:lend()
        p:expect { act = 'listening' }
        local client = connect(port)
        ask(client, 'one', '^one$')
        p:send(DISCONNECT)
        assert.equal('k1', p:expect({ act = 'close' }).key)
        ask(client, 'two', '^two$')
        assert.is_nil(p.exit)
        client.handle:close()
        assert.same({ code = 0, signal = 0 }, p:await_exit())
    end)

    it('leaves when its master is gone', function()
        start(ECHO)
        local _, port = p:lend()
        p:expect { act = 'listening' }
        local client = connect(port)
        ask(client, 'here', '^here$')
        p.channel:close()
        ask(client, 'still', '^still$')
        client.handle:close()
        assert.same({ code = 0, signal = 0 }, p:await_exit())
    end)

    it('takes a connection that the master hands over', function()
        start(ECHO)
        p:lend()
        p:expect { act = 'listening' }
        local listener, accepted = uv.new_tcp(), uv.new_tcp()
        listener:bind('127.0.0.1', 0)
        listener:listen(8, function()
            listener:accept(accepted)
            p.got = true
        end)
        local client = connect(listener:getsockname().port)
        primary.wait_until(function() return p.got end, 'the connection')
        p:send({ cmd = 'NODE_CLUSTER', act = 'newconn', key = 'k1', seq = 41 }, accepted)
        assert.is_true(p:expect({ ack = 41 }).accepted)
        accepted:close()
        ask(client, 'rescued', '^rescued$')
        client.handle:close()
        -- Nobody has this key: the master keeps its connection.
        p:send({ cmd = 'NODE_CLUSTER', act = 'newconn', key = 'other', seq = 42 }, listener)
        assert.is_false(p:expect({ ack = 42 }).accepted)
        listener:close()
    end)

    it('gives the error of a socket that cannot be had', function()
        start [[
            local worker = require 'dutch-master.worker'
            local server, message, code = worker.listen '127.0.0.1:80'
            worker.send { server = server ~= nil, message = message, code = code }]]
        local query = p:expect { act = 'queryServer' }
        assert.equal('127.0.0.1', query.address)
        p:send { cmd = 'NODE_CLUSTER', ack = query.seq, errno = -98, key = 'k' }
        local report = p:expect { code = 'EADDRINUSE' }
        assert.is_false(report.server)
        assert.equal('EADDRINUSE: address already in use: 127.0.0.1:80', report.message)
    end)

    it('refuses what is no address', function()
        start([[
            local worker = require 'dutch-master.worker'
            for _, where in ipairs { 'x', '127.0.0.1', 70000, -1, '[::1]', 'unix:', '1.5' } do
                local ok, message = pcall(worker.listen, where)
                assert(not ok and message:find '^listen: ', message)
            end]], { channel = false })
        assert.same({ 0, '' }, { p:await_exit().code, p.stderr })
    end)

    it('listens by callback and on a unix socket', function()
        start [[
            local worker = require 'dutch-master.worker'
            worker.listen('unix:./s', function(err, server)
                assert(not err, err)
                server:accept(function(connection) connection:write('hi') connection:shutdown() end)
            end)]]
        local query = p:expect { act = 'queryServer' }
        assert.equal(uv.cwd() .. '/s', query.address)
        assert.equal(-1, query.port)
        local handle, path = uv.new_pipe(false), p.dir .. '/s'
        assert(handle:bind(path))
        p:send({ cmd = 'NODE_CLUSTER', ack = query.seq, errno = 0, key = 'k1' }, handle)
        assert.equal(-1, p:expect({ act = 'listening' }).port)
        local client, data = uv.new_pipe(false), ''
        client:connect(path, function()
            client:read_start(function(_, chunk) data = data .. (chunk or '') end)
        end)
        primary.wait_until(function() return data == 'hi' end, 'a greeting')
        client:close()
        handle:close()
        os.remove(path)
    end)

    it('exchanges messages, also long ones and early ones', function()
        start [[
            local worker = require 'dutch-master.worker'
            worker.ready()
            local timer = require('luv').new_timer()
            timer:start(20, 0, function()
                worker.on_message(function(message) worker.send { got = message, size = #(message.text or '') } end)
            end)]]
        p:send { early = true }
        p:expect { cmd = 'NODE_DUTCH_READY' }
        assert.same({ early = true }, p:expect({ size = 0 }).got)
        local text = ('x'):rep(1000000)
        p:send { text = text }
        assert.equal(text, p:expect({ size = #text }).got.text)
    end)

    it('refuses a message longer than the master takes', function()
        start [[
            local worker = require 'dutch-master.worker'
            local _, _, code = worker.send(('x'):rep(9000000))
            worker.send { code = code }]]
        p:expect { code = 'EMSGSIZE' }
    end)

    it('leaves the moment of leaving to a program that has its own way', function()
        start [[
            local worker = require 'dutch-master.worker'
            worker.on_disconnect(function(reason) worker.send { reason = reason } end)
            worker.on_message(function() worker.leave() end)
            require('luv').new_timer():start(100000, 0, function() end)]]
        p:send(DISCONNECT)
        p:expect { reason = 'disconnect' }
        assert.is_nil(p.exit)
        p:send 'go'
        assert.same({ code = 0, signal = 0 }, p:await_exit())
    end)

    it('leaves when the last handle of a program with its own way is closed', function()
        start [[
            local worker = require 'dutch-master.worker'
            local timer = require('luv').new_timer()
            timer:start(100000, 0, function() end)
            worker.on_disconnect(function() timer:close() end)]]
        p:expect { act = 'online' }
        p:send(DISCONNECT)
        assert.same({ code = 0, signal = 0 }, p:await_exit())
    end)

    it('tells the master when it leaves by its own wish', function()
        start [[require('dutch-master.worker').leave()]]
        local asked = p:expect { act = 'exitedAfterDisconnect' }
        assert.is_nil(p.exit)
        p:send { cmd = 'NODE_CLUSTER', ack = asked.seq }
        assert.same({ code = 0, signal = 0 }, p:await_exit())
    end)

    it('leaves while it waits for a socket', function()
        start [[require('dutch-master.worker').listen(8000)]]
        p:expect { act = 'queryServer' }
        p:send(DISCONNECT)
        assert.same({ code = 0, signal = 0 }, p:await_exit())
    end)

    it('serves connections of its own listening handle', function()
        start [[
            local worker, uv = require 'dutch-master.worker', require 'luv'
            local tcp = assert(worker.listen(0)):tcp()
            tcp:listen(16, function()
                local connection = uv.new_tcp()
                tcp:accept(connection)
                connection:read_start(function(_, data)
                    if data then connection:write(data) else connection:close() end
                end)
            end)]]
        local _, port = p:lend()
        p:expect { act = 'listening' }
        local client = connect(port)
        ask(client, 'raw', '^raw$')
        p:send(DISCONNECT)
        p:expect { act = 'close' }
        ask(client, 'more', '^more$')
        client.handle:close()
        assert.same({ code = 0, signal = 0 }, p:await_exit())
    end)

    it('binds by itself without a master', function()
        start([[
            local worker = require 'dutch-master.worker'
            assert(not worker.has_master)
            local server = assert(worker.listen '127.0.0.1:0')
            server:accept(function(connection)
                connection:write('alone', function() connection:close() server:close() end)
            end)
            print(server.port)]], { channel = false })
        primary.wait_until(function() return p.stdout:match '^%d+\n' end, 'the port')
        local client = connect(tonumber(p.stdout))
        primary.wait_until(function() return client.ended end, 'the end')
        client.handle:close()
        assert.equal('alone', client.data)
        assert.equal(0, p:await_exit().code)
    end)

    describe('with lua-http', function()
        local APP = [[
            local http, cqueues = require 'dutch-master.http', require 'cqueues'
            assert(http.serve(0, function(request, response)
                if request.path == '/slow' then
                    require('dutch-master.worker').send 'slow'
                    cqueues.sleep(0.3)
                end
                if request.path == '/broken' then error 'broken' end
                if request.path == '/echo' then return response:send(request:body()) end
                if request.path == '/pieces' then response:write 'a' response:write 'b' return end
                response:send('path ' .. request.path)
            end))]]

        it('serves, on one connection, several requests', function()
            start(APP)
            local _, port = p:lend()
            p:expect { act = 'listening' }
            local client = connect(port)
            ask(client, 'GET /one HTTP/1.1\r\nHost: x\r\n\r\n', 'path /one$')
            assert.matches('^HTTP/1.1 200 OK\r\n', client.data)
            ask(client, 'POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody', '\r\n\r\nbody$')
            ask(client, 'GET /pieces HTTP/1.1\r\nHost: x\r\n\r\n', '0\r\n\r\n$')
            ask(client, 'HEAD / HTTP/1.1\r\nHost: x\r\n\r\n', '\r\n\r\n$')
            ask(client, 'GET /broken HTTP/1.1\r\nHost: x\r\n\r\n', '^HTTP/1.1 500 ')
            client.handle:close()
            primary.wait_until(function() return p.stderr:find 'broken' end, 'the message')
        end)

        it('takes a connection that the master hands over', function()
            start(APP)
            p:lend()
            p:expect { act = 'listening' }
            local listener, accepted = uv.new_tcp(), uv.new_tcp()
            listener:bind('127.0.0.1', 0)
            listener:listen(8, function()
                listener:accept(accepted)
                p.got = true
            end)
            local client = connect(listener:getsockname().port)
            primary.wait_until(function() return p.got end, 'the connection')
            p:send({ cmd = 'NODE_CLUSTER', act = 'newconn', key = 'k1', seq = 1 }, accepted)
            assert.is_true(p:expect({ ack = 1 }).accepted)
            accepted:close()
            listener:close()
            ask(client, 'GET /handed HTTP/1.1\r\nHost: x\r\n\r\n', 'path /handed$')
            client.handle:close()
        end)

        it('finishes what is in flight and closes what is idle', function()
            start(APP)
            local _, port = p:lend()
            p:expect { act = 'listening' }
            local slow, idle, silent = connect(port), connect(port), connect(port)
            ask(idle, 'GET / HTTP/1.1\r\nHost: x\r\n\r\n', 'path /$')
            assert.is_nil(idle.data:lower():find 'connection: close')
            slow.handle:write 'GET /slow HTTP/1.1\r\nHost: x\r\n\r\n'
            primary.wait_until(function()
                for _, message in ipairs(p.messages) do
                    if message == 'slow' then return true end
                end
            end, 'the slow request')
            p:send(DISCONNECT)
            p:expect { act = 'close' }
            -- Whoever is quick still gets an answer, and is told that it is the last one.
            ask(idle, 'GET /last HTTP/1.1\r\nHost: x\r\n\r\n', 'path /last$')
            assert.matches('connection: close', idle.data:lower())
            primary.wait_until(function() return idle.ended and slow.ended and silent.ended end, 'the ends')
            assert.matches('path /slow$', slow.data)
            assert.matches('connection: close', slow.data:lower())
            for _, client in ipairs { idle, slow, silent } do
                client.handle:close()
            end
            p:await_exit()
            assert.equal('', p.stderr)
            assert.same({ code = 0, signal = 0 }, p.exit)
        end)
    end)
end)
