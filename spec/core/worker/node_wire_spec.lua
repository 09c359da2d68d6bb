-- conversation.lua and drain.cjs against real Node workers of every version.
-- Longer than 400 lines: one worker, each kind of talk with it.
local core = require 'dutch-master.core'
local cjson = require 'cjson'
local conversation = require 'dutch-master.channel.conversation'
local http = require 'spec.support.http'
local node = require 'spec.support.node'
local p = require 'spec.support.process'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local HERE = core.cwd() .. '/spec/support/nodejs/'
local DRAIN = core.cwd() .. '/lua/node/drain.cjs'

local function names(list)
    local found = {}
    for i, entry in ipairs(list) do
        found[i] = entry.name
    end
    table.sort(found)
    return found
end

versions.each(function(version, binary)
    describe('Node ' .. version, function()
        after_each(node.cleanup)

        local function app(source, options)
            options = options or {}
            options.binary = options.binary or binary
            options.env = { APP = source }
            options.argv = options.argv or { '--require', DRAIN, HERE .. 'eval.cjs' }
            return node.start(options)
        end

        it('boots, serves, leaves when asked', function()
            local w = app [[
                require('http').createServer((q, r) => r.end('hello ' + require('cluster').worker.id)).listen(0)
            ]]
            w:await(function() return w.listening[1] end, 'listening')
            assert.equal('online', w.heard[1][1])
            assert.equal('tcp4:*:0#0', w.listening[1].name)
            local status, body = http.get { port = w.listening[1].port }
            assert.equal(200, status)
            assert.equal('hello ' .. w.id, body)
            assert.is_true(w.conv:disconnect())
            assert.equal(0, w:exit().code)
            assert.is_true(w.channel_closed)
            assert.is_nil(w.reason)
            assert.same({ name = 'tcp4:*:0#0', open = 0, type = 'tcp4', stream = true, port = 0 }, w.heard[2][2])
        end)

        it('is given every kind of listen', function()
            local dir = os.tmpname()
            os.remove(dir)
            local w = app(([=[
                const http = require('http'), net = require('net')
                const wanted = [[0], [0], [0, '127.0.0.1'], [0, '::1'], [{ port: 0, host: '::', ipv6Only: true }],
                    ['%s'], ['\0dm-%s'], [{ path: '%s2', readableAll: true, writableAll: true }], [0, undefined, 77]]
                let left = wanted.length
                const next = () => { left -= 1; if (left === 0) udp() }
                for (const args of wanted) {
                    const server = net.createServer((s) => s.end('x')).on('error', (e) => say({ error: e.code, args }))
                    server.listen(...args, next)
                }
                function udp() {
                    const socket = require('dgram').createSocket('udp4')
                    socket.bind(0, '127.0.0.1', () => say({ udp: socket.address().port > 0 }))
                }
            ]=]):format(dir, core.pid(), dir))
            assert.same({ udp = true }, w:message())
            w:await(function() return #w.listening == 10 end, 'ten sockets listening')
            local want = {
                'tcp4:*:0#0', 'tcp4:*:0#1', 'tcp4:*:0#2', 'tcp4:127.0.0.1:0#0', 'tcp6:::1:0#0', 'tcp6::::0/v6#0',
                'udp4:127.0.0.1:0#0', 'unix:' .. dir, 'unix:' .. dir .. '2', 'unix:@dm-' .. core.pid(),
            }
            table.sort(want)
            assert.same(want, names(w.listening))
            for _, socket in ipairs(w.queries) do
                if socket.path == dir .. '2' then
                    assert.is_true(socket.readable_all and socket.writable_all)
                end
            end
            for _, info in ipairs(w.listening) do
                assert.equal(info.type ~= 'udp4', info.stream)
            end
            w.conv:disconnect()
            assert.equal(0, w:exit().code)
        end)

        it('is told EADDRINUSE and EACCES as bind would', function()
            local w = app([[
                const net = require('net')
                const first = net.createServer().listen(18231, '127.0.0.1', () => {
                    net.createServer().on('error', (second) => {
                        first.close(() => net.createServer().listen(18231, '127.0.0.1', function () {
                            net.createServer().on('error', (third) => say([second.code, second.syscall, third.code]))
                                .listen(18232)
                        }))
                    }).listen(18231, '127.0.0.1')
                })
            ]], { refuse = { ['tcp4:*:18232'] = 'EACCES' } })
            assert.same({ 'EADDRINUSE', 'bind', 'EACCES' }, w:message())
        end)

        it('waits for an answer that comes late', function()
            local w = app [[require('http').createServer((q, r) => r.end('late')).listen(0)]]
            local give = w.answer
            local held
            w.answer = function(self, ...)
                held = { self, ... }
            end
            w:await(function() return held end, 'the query')
            local passed
            local timer = core.timer(function() passed = true end)
            timer:start(300)
            w:await(function() return passed end, 'a moment')
            timer:close()
            assert.same({}, w.listening)
            give(unpack(held))
            w:await(function() return w.listening[1] end, 'listening')
            assert.equal('late', select(2, http.get { port = w.listening[1].port }))
        end)

        it('survives the refusal of a datagram socket and of TLS', function()
            local spare = core.listen(assert(core.address 'udp:127.0.0.1:0'))
            local fd = spare:lane():fd()
            local w = app(([[
                const https = require('https'), fs = require('fs')
                const socket = require('dgram').createSocket('udp4')
                socket.on('error', (one) => {
                    const options = { key: fs.readFileSync('%skey.pem'), cert: fs.readFileSync('%scert.pem') }
                    https.createServer(options).on('error', (two) => say([one.code, two.code])).listen(18234)
                })
                socket.bind(18233)
            ]]):format(HERE, HERE), {
                refuse = { ['udp4:0.0.0.0:18233'] = 'EADDRINUSE', ['tcp4:*:18234'] = 'EACCES' },
                spare_fd = function() return fd end,
            })
            assert.same({ 'EADDRINUSE', 'EACCES' }, w:message())
            w.conv:disconnect()
            assert.equal(0, w:exit().code)
            spare:close()
        end)

        it('speaks with the app both ways, also with descriptors thrown away', function()
            local w = app [[
                process.on('message', (m) => say({ echo: m }))
                const net = require('net')
                const server = net.createServer().listen(0, '127.0.0.1', () => {
                    const client = net.connect(server.address().port, '127.0.0.1', () => {
                        process.send({ take: 'socket' }, client, () => {
                            say('after'); say(null); say([1, 'x', { a: false }])
                        })
                    })
                })
            ]]
            assert.same({ take = 'socket' }, w:message())
            assert.equal('after', w:message())
            assert.equal(cjson.null, w:message())
            assert.same({ 1, 'x', { a = false } }, w:message())
            for _, value in ipairs { 'text', 5, { deep = { 1, { 2 } } }, ('x'):rep(300000) } do
                assert.is_true(w.conv:message(cjson.encode(value)))
                assert.same({ echo = value }, w:message())
            end
            w.conv:disconnect()
            assert.equal(0, w:exit().code)
        end)

        it('leaves by its own wish, is answered and never asked again', function()
            for _, verb in ipairs { 'disconnect', 'kill' } do
                local w = app(([[
                    require('http').createServer((q, r) => r.end()).listen(0, () => require('cluster').worker.%s())
                ]]):format(verb))
                w:await(function() return w.heard[#w.heard] and w.heard[#w.heard][1] == 'leaving' end, 'leaving')
                assert.is_false(w.conv:disconnect())
                assert.equal(0, w:exit().code)
            end
        end)

        it('leaves in peace when asked before it has booted, and with a query unanswered', function()
            local early = app [[require('http').createServer().listen(0)]]
            early.conv:disconnect()
            assert.equal(0, early:exit().code)
            local waiting = app [[require('http').createServer().listen(0)]]
            waiting.answer = function() end
            waiting:await(function() return waiting.queries[1] end, 'the query')
            waiting.conv:disconnect()
            assert.equal(0, waiting:exit().code)
        end)

        it('serves connections that are handed to it', function()
            local other = core.listen(assert(core.address '127.0.0.1:0'))
            local lane = other:lane()
            local w = app [[
                const http = require('http')
                http.createServer((q, r) => r.end('one')).listen(0)
                http.createServer((q, r) => r.end('two')).listen(0)
            ]]
            w:await(function() return #w.listening == 2 end, 'two servers')
            local done, accepted = 0, 0
            local outcome = {}
            for i = 1, 20 do
                local connected
                local handle
                handle = http.connect({ port = other:address().port }, function()
                    connected = true
                    handle:write 'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'
                    handle:read_start(function(_, data)
                        outcome[i] = (outcome[i] or '') .. (data or '')
                        if not data then
                            handle:close()
                        end
                    end)
                end)
                wait.wait_until(function() return connected end)
                local fd = assert(lane:accept())
                assert(w.conv:newconn(fd, function(yes)
                    done, accepted = done + 1, accepted + (yes and 1 or 0)
                end, w.listening[2].name))
                core.close_fd(fd)
            end
            w:await(function() return done == 20 end, 'answers')
            assert.equal(20, accepted)
            wait.wait_until(function()
                local count = 0
                for i = 1, 20 do
                    count = count + (outcome[i] and outcome[i]:find('two', 1, true) and 1 or 0)
                end
                return count == 20
            end, { what = 'twenty answers' })
            other:close()
        end)

        it('resumes TLS sessions of other workers, and of those before a roll', function()
            local source = ([[
                const fs = require('fs')
                const options = { key: fs.readFileSync('%skey.pem'), cert: fs.readFileSync('%scert.pem') }
                require('https').createServer(options, (q, r) => r.end(String(q.socket.isSessionReused()))).listen(0)
            ]]):format(HERE, HERE)
            local tickets = conversation.tickets()
            local ports = {}
            for i = 1, 3 do
                local w = app(source, { tickets = tickets })
                w:await(function() return w.listening[1] end, 'listening')
                ports[i] = w.listening[1].port
            end
            local client = node.client(binary, { HERE .. 'tls_resume.cjs', cjson.encode(ports) })
            assert.equal('false true true', table.concat(client:message(), ' ', 1, 3))
        end)

        describe('at maxConnections', function()
            local ACK = '{"cmd":"NODE_HANDLE_ACK"}'
            -- It is its own client. Told a number it makes so many connections, and says so; 0: it ends them.
            local FULL = [[
                const net = require('net'), made = [], { disconnect } = process
                process.disconnect = () => { disconnect.call(process); console.error('disconnects') }
                const server = net.createServer((s) => s.on('error', () => {})).listen(0, '127.0.0.1')
                server.maxConnections = 1
                process.on('message', (count) => {
                    let left = count
                    if (count === 0) made.forEach((client) => client.destroy())
                    for (let i = 0; i < count; i++) {
                        const client = net.connect(server.address().port, '127.0.0.1', () => { if (--left === 0) say('made') })
                        made.push(client.on('error', (error) => say(error.code)).on('end', () => say('ended')))
                    }
                })
            ]]

            local function full()
                local w = app(FULL)
                w:await(function() return w.listening[1] end, 'listening')
                w:tell(1)
                assert.equal('made', w:message())
                return w
            end

            local function gives_back(w, count)
                w:await(function() return #w.returned == count end, count .. ' connections')
            end

            it('gives connections back, also while it leaves', function()
                local w = full()
                w:tell(2)
                gives_back(w, 2)
                assert.equal('made', w:message())
                w.conv:drain()
                w:tell(2)
                gives_back(w, 4)
                assert.same({ false, false }, { w.returned[1].again, w.returned[4].again })
                assert.equal('made', w:message())
                assert.equal(0, #w.messages)
            end)

            for _, leaves in ipairs { false, true } do
                it('gives one back once more where its master died with it: ' .. (leaves and 'it leaves' or 'it serves'), function()
                    local w = full()
                    w.loses[ACK] = true
                    local count = leaves and 1 or 3
                    w:tell(count)
                    gives_back(w, 1)
                    if leaves then
                        w.conv:disconnect()
                        w:tell(0)
                        w:await(function() return (w.child:tail() or ''):find 'disconnects' end, 'a disconnect that waits')
                    end
                    w.conv:ask_again(5)
                    w.loses[ACK] = nil
                    gives_back(w, count + 1)
                    local first = w.returned[1].inode
                    for i, connection in ipairs(w.returned) do
                        assert.equal(i == 2, connection.again)
                        assert.equal(i <= 2, connection.inode == first)
                    end
                    if leaves then
                        w:await(function() return w.channel_closed end, 'the end of the channel')
                        return
                    end
                    assert.equal('made', w:message())
                    w.conv:ask_again(6) -- nothing is lost
                    w:tell(1)
                    gives_back(w, 5)
                    assert.is_false(w.returned[5].again)
                    assert.equal('made', w:message())
                    for _, connection in ipairs(w.returned) do
                        core.close_fd(connection.fd)
                    end
                    w.returned = {}
                    for _ = 1, 4 do -- it has none of them
                        assert.equal('ended', w:message())
                    end
                end)
            end

            it('goes on where an ack is lost of what the app sent', function()
                local w = app [[
                    const net = require('net')
                    net.createServer().listen(0, '127.0.0.1', function () {
                        process.send({ passed: 1 }, this)
                        process.send({ passed: 2 }, this)
                        process.send({ passed: 3 })
                    })
                ]]
                w.loses[ACK] = true
                assert.same({ passed = 1 }, w:message())
                w.conv:ask_again(5)
                w.loses[ACK] = nil
                assert.same({ passed = 2 }, w:message())
                assert.same({ passed = 3 }, w:message())
            end)
        end)

        it('cannot see the preload before the drain begins', function()
            local function witness(argv)
                local w = node.start { binary = binary, argv = argv, env = {} }
                local seen = w:message().witness
                w.conv:disconnect()
                assert.equal(0, w:exit().code)
                return seen
            end
            local with = witness { '--require', DRAIN, HERE .. 'drain_app.cjs' }
            assert.same(witness { HERE .. 'drain_app.cjs' }, with)
            assert.same({}, with.loaded)
        end)
    end)
end)

describe('Node of each version', function()
    after_each(node.cleanup)

    local chosen = {}
    versions.each(function(version, binary)
        chosen[#chosen + 1] = { version = version, binary = binary }
    end)

    local function check(result, version)
        for name, entry in pairs(result) do
            local text = ('Node %s: %s: %s'):format(version, name, cjson.encode(entry))
            if name == 'upgraded' or name == 'raw' then
                assert.equal(cjson.null, entry.closed, text)
            else
                assert.is_true(entry.closed ~= cjson.null and entry.closed < 3500, text)
                assert.equal(cjson.null, entry.error, text)
            end
            if name:find '_busy$' or name:find '_loop$' or name:find '_fresh$' or name == 'http_explicit'
                or name == 'http_upload' or name == 'http_slow_head' then
                if not name:find 'session' then
                    assert.equal('200 close', entry.last, text)
                end
            end
            if name:find '_session' then
                assert.equal(2147483647, entry.goaways[1].last, text)
                for _, status in pairs(entry.answers) do
                    assert.equal(200, status, text)
                end
            end
        end
        assert.equal('ping', result.upgraded.echo)
        assert.equal('200 keep', result.http_stream.last)
    end

    -- Side by side, for the connections take their time to leave.
    it('lets every kind of connection leave', function()
        for _, v in ipairs(chosen) do
            v.worker = node.start { binary = v.binary, argv = { '--require', DRAIN, HERE .. 'drain_app.cjs' }, env = {} }
            v.client = node.client(v.binary, { HERE .. 'drain_client.cjs', cjson.encode(v.worker:message().ports) })
            assert.equal('connected', v.client:message())
        end
        for _, v in ipairs(chosen) do
            v.client:tell 'send'
            assert.equal('ready', v.client:message())
            v.worker.conv:drain()
            v.client:tell 'go'
        end
        local settled
        local timer = core.timer(function() settled = true end)
        timer:start(150)
        p.await(function() return settled end, 1000, 'the settling')
        timer:close()
        for _, v in ipairs(chosen) do
            v.worker.conv:disconnect()
        end
        for _, v in ipairs(chosen) do
            local result = v.client:message(15000)
            assert.equal(0, v.worker:exit(3000).code)
            check(result, v.version)
        end
    end)
end)
