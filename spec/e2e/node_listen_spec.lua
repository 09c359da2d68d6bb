-- What a Node app asks for on its channel, and what it is told: every kind of listen, refusals, what counts as ready.
local bit = require 'bit'
local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local versions = require 'spec.support.node_versions'

local KEYS = uv.cwd() .. '/spec/support/nodejs/'

local function generation(port)
    local _, body = http.get { port = port }
    return body and tonumber(body:match '^(%d+)')
end

describe('the sockets of a Node app:', function()
    after_each(master.cleanup)

    versions.it('every kind of listen is answered', function(version, binary)
        local name = ('dutch-master-spec-%s-%d'):format(version, uv.os_getpid())
        local m = app.start { binary = binary, app = [[
            const fs = require('fs'), net = require('net')
            const said = { worker: process.pid }
            const one = (name, options) => new Promise((resolve) => {
                const server = net.createServer((socket) => socket.end(name))
                server.on('error', (error) => { said[name] = error.code; resolve(server) })
                server.listen(options, () => {
                    const address = server.address()
                    said[name] = address && address.port ? address.port : 'listening'
                    resolve(server)
                })
            })
            const ask = (options) => new Promise((resolve) => {
                let text = ''
                const socket = net.connect(options)
                socket.on('data', (data) => { text += data })
                socket.on('error', (error) => resolve(error.code))
                socket.on('end', () => resolve(text))
            })
            const main = async () => {
                await one('first', { port: 0, host: '127.0.0.1' })
                await one('second', { port: 0, host: '127.0.0.1' })
                await one('any', { port: Number(process.env.PORT) })
                await one('again', { port: Number(process.env.PORT) })
                await one('open', { path: 'open.sock', readableAll: true, writableAll: true })
                await one('abstract', { path: '\0' + process.env.NAME })
                await new Promise((resolve) => setTimeout(resolve, 300)) // ready by now, and in rotation
                said.over4 = await ask({ port: Number(process.env.PORT), host: '127.0.0.1' })
                said.over6 = await ask({ port: Number(process.env.PORT), host: '::1' })
                said.over_path = await ask({ path: 'open.sock' })
                said.over_abstract = await ask({ path: '\0' + process.env.NAME })
                said.mode = fs.statSync('open.sock').mode & 0o777
                process.send(said)
            }
            main()
        ]], env = { NAME = name }, plan = [[
            onMessage = function(_, said) dutch.log:info(said, 'said') end,
        ]] }
        m:await('said', { count = 2 })
        local a, b = unpack(m:records 'said')
        assert.not_equal(a.worker, b.worker)
        local names = assert(io.open '/proc/net/unix')
        assert.truthy(names:read('*a'):find('@' .. name .. '\n', 1, true))
        names:close()
        -- The n-th listen(0) of each worker is one port.
        assert.is_number(a.first)
        assert.same({ a.first, a.second }, { b.first, b.second })
        assert.not_equal(a.first, a.second)
        for _, said in ipairs { a, b } do
            assert.is_number(said.any)
            assert.equal('EADDRINUSE', said.again)
            assert.same({ 'any', 'any' }, { said.over4, said.over6 == 'EADDRNOTAVAIL' and 'any' or said.over6 })
            assert.equal('open', said.over_path)
            if tonumber(version) >= 22 then -- earlier ones cannot connect to such a name
                assert.equal('abstract', said.over_abstract)
            end
            assert.equal(tonumber('777', 8), bit.bor(said.mode, tonumber('111', 8)))
        end
        m:finish { code = 0 }
    end)

    -- As without a cluster. Under stock it is refused the port, and nobody listens there any more.
    versions.it('a port that is closed and opened again before the answer is there is served', function(version, binary)
        local second = http.free_port()
        local m = app.start { binary = binary, env = { SECOND = tostring(second) }, app = app.http .. [[
            const make = (name) => {
                const server = http.createServer((request, response) => {
                    response.setHeader('Connection', 'close')
                    response.end(name)
                })
                server.on('error', (error) => console.log(name + ' ' + error.code))
                return server.listen(Number(process.env.SECOND))
            }
            let left = 3, last = make('closed')
            const again = () => { last.close(); last = make(--left ? 'closed' : 'last'); if (left) process.nextTick(again) }
            process.nextTick(again)
            setTimeout(() => console.log('looked'), 300)
        ]] }
        local said
        m:wait_until(function() -- where a refusal is to come, it may come after that
            said = table.concat(m.output, '\n')
            return said:find 'looked.*looked' and (tonumber(version) >= 20 or said:find 'EADDRINUSE')
        end, 'both of them')
        for _ = 1, 10 do
            local _, body = http.get { port = second }
            assert.equal(tonumber(version) >= 20 and 'last' or 'closed', body)
        end
        assert.equal(tonumber(version) < 20, said:find 'EADDRINUSE' ~= nil)
        m:finish { code = 0 }
    end)

    -- get-port and others find a free port by listen(0), and close that.
    versions.it('a port that listen(0) has found is had by who closes that and listens there, in any form', function(_, binary)
        local m = app.start { binary = binary, plan = [[
            onMessage = function(worker, said)
                said.workerId = worker.id
                dutch.log:info(said, 'said')
            end,
        ]], app = [[
            const http = require('http')
            const listen = (server, ...where) => new Promise((resolve, reject) => {
                server.on('error', reject)
                server.listen(...where, () => resolve(server.address().port))
            })
            const find = async (...host) => {
                const server = http.createServer()
                const port = await listen(server, 0, ...host)
                await new Promise((resolve) => server.close(resolve))
                return port
            }
            const serve = async (port, ...host) => {
                await listen(http.createServer((request, response) => {
                    response.setHeader('Connection', 'close')
                    response.end(`${port} ${process.env.DUTCH_MASTER_GENERATION}`)
                }), port, ...host)
                return port
            }
            const main = async () => {
                const began = Date.now()
                const web = await serve(await find('127.0.0.1'), '127.0.0.1')
                const metrics = await serve(await find('127.0.0.1'), '127.0.0.1')
                const held = http.createServer()
                const third = await listen(held, 0, '127.0.0.1')
                const refused = await serve(third, '127.0.0.1').catch((error) => error.code)
                if (process.env.DUTCH_MASTER_SLOT === '1') await serve(await find(), '127.0.0.1') // found at all addresses
                process.send({ web, metrics, refused, took: Date.now() - began })
            }
            main().catch((error) => process.send({ failed: error.stack }))
        ]] }
        for round = 1, 2 do
            m:await('said', { count = 2 * round })
            local first = m:records 'said'[1]
            for _, said in ipairs(m:records 'said') do
                assert.is_nil(said.failed)
                assert.same({ first.web, first.metrics, 'EADDRINUSE' }, { said.web, said.metrics, said.refused })
            end
            assert.not_equal(first.web, first.metrics)
            for _, port in ipairs { first.web, first.metrics } do
                m:wait_until(function()
                    return select(2, http.get { port = port }) == ('%d %d'):format(port, round)
                end, 'an answer on ' .. port)
            end
            if round == 1 then
                app.roll(m)
            end
        end
        for _, replaced in ipairs(m:records 'Worker closed its servers') do -- who only looks for a port is not
            for _, said in ipairs(m:records { msg = 'said', workerId = replaced.workerId }) do
                assert.is_true(said.took >= 1000, m:dump())
            end
        end
        m:finish { code = 0 }
    end)

    versions.it('listen({fd}) is answered with the socket that was passed to the master', function(_, binary)
        local free = http.free_port()
        -- What systemd does: binds, and execs with the socket as descriptor 3.
        local activate = [[
            $^F = 100;
            my $socket = IO::Socket::INET->new(Listen => 64, LocalAddr => shift @ARGV, ReuseAddr => 1) or die $!;
            POSIX::dup2(fileno($socket), 3) if fileno($socket) != 3;
            @ENV{qw(LISTEN_PID LISTEN_FDS)} = ($$, 1);
            exec @ARGV;
        ]]
        local m, port = app.start {
            binary = binary,
            port = free,
            app = app.http:gsub('Number%(process.env.PORT%)', '{ fd: 3 }') .. [[
                require('net').createServer().on('error', (e) => process.send(e.code)).listen({ fd: 4 })
            ]],
            plan = 'onMessage = function(_, code) dutch.log:info({ code = code }, "refused") end,',
            wrap = { 'perl', '-MIO::Socket::INET', '-MPOSIX', '-e', activate, '127.0.0.1:' .. free },
        }
        assert.equal('EINVAL', m:await('refused').code)
        assert.equal(1, generation(port))
        local clients = load.start { port = port, clients = 4, mode = 'close' }
        clients:await(20)
        app.roll(m)
        m:await('Worker exited', { count = 2 })
        clients:await(clients.counts.total + 20)
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.equal(2, generation(port))
        m:finish { code = 0 }
    end)

    versions.it('a worker is ready when its TCP server or its path listens, not by other sockets', function(_, binary)
        local path = master.temp_dir() .. '/x.sock'
        for _, case in ipairs { { '', false }, { ("ready = { path = '%s' },"):format(path), true } } do
            local m, port = app.start { binary = binary, workers = 1, plan = case[1], env = { SOCK = path }, app = [[
                require('dgram').createSocket('udp4').bind(0, '127.0.0.1', () => setTimeout(() => {
                    require('http').createServer().listen(Number(process.env.PORT), () => setTimeout(() => {
                        require('http').createServer().listen(process.env.SOCK)
                    }, 200))
                }, 200))
            ]] }
            local listening = m:records 'Worker listening'
            assert.equal(1, #listening)
            assert.equal(case[2] and 'unix:' .. path or ':' .. port, listening[1].address)
            m:finish { code = 0 }
        end
    end)

    versions.it('an app is told why it cannot listen, as bind would', function(_, binary)
        local taken = uv.new_tcp()
        local port_taken = http.free_port()
        assert(taken:bind('127.0.0.1', port_taken))
        assert(taken:listen(1, function() end))
        local m, port = app.start { binary = binary, workers = 1, app = app.http .. [[
            const net = require('net'), fs = require('fs')
            const fail = (server, ...args) => new Promise((resolve) => {
                server.on('error', (error) => resolve(`${error.syscall} ${error.code} ${error.errno}`))
                server.listen(...args, () => resolve('listening'))
            })
            process.on('message', async (taken) => {
                const secure = require('https').createServer({
                    key: fs.readFileSync(process.env.KEYS + 'key.pem'), cert: fs.readFileSync(process.env.KEYS + 'cert.pem'),
                })
                const said = {
                    taken: await fail(net.createServer(), taken, '127.0.0.1'),
                    taken_by_tls: await fail(secure, taken, '127.0.0.1'),
                    foreign: await fail(net.createServer(), 0, '192.0.2.1'),
                    directory: await fail(net.createServer(), 'no/such/directory/x.sock'),
                    file: await fail(net.createServer(), 'app.js'),
                    unlistenable: await fail(net.createServer(), { fd: 77 }),
                }
                said.datagram = await new Promise((resolve) => {
                    const socket = require('dgram').createSocket('udp4')
                    socket.on('error', (error) => resolve(error.code))
                    socket.bind(0, '192.0.2.1', () => resolve('bound'))
                })
                process.send(said)
            })
            process.send('go')
        ]], env = { KEYS = KEYS }, plan = ([[
            onMessage = function(worker, what)
                if what == 'go' then worker:send(%d) else dutch.log:info(what, 'said') end
            end,
        ]]):format(port_taken) }
        local said = m:await 'said'
        assert.equal('bind EADDRINUSE -98', said.taken)
        assert.equal('bind EADDRINUSE -98', said.taken_by_tls)
        assert.equal('bind EADDRNOTAVAIL -99', said.foreign)
        assert.equal('EADDRNOTAVAIL', said.datagram)
        assert.equal('bind EACCES -13', said.directory) -- as libuv has it
        assert.equal('bind EADDRINUSE -98', said.file)
        assert.equal('bind EINVAL -22', said.unlistenable)
        assert.equal(7, #m:records 'Listening failed')
        assert.equal(1, generation(port)) -- it lives, and so does everybody else
        taken:close()
        m:finish { code = 0 }
    end)

    -- Node counts the sockets that a worker has passed on as its server's own: the count, and the end of the server,
    -- wait for what the master says of them.
    versions.it('of those that a worker sends over, the master says that they are gone', function(_, binary)
        local m, port = app.start { binary = binary, workers = 1, app = [[
            const server = require('net').createServer((socket) => {
                process.send('take it', socket, () => server.getConnections((error, count) => {
                    process.send({ error: error && error.message, count })
                }))
            })
            server.listen(Number(process.env.PORT))
        ]], plan = [[
            onMessage = function(_, what)
                if what ~= 'take it' then dutch.log:info(what, 'counted') end
            end,
        ]] }
        for i = 1, 2 do
            local ended, handle
            handle = http.connect({ port = port }, function(err)
                assert(not err, err)
                handle:read_start(function(_, data) ended = not data end)
            end)
            m:wait_until(function() return ended end, 'the end of a connection that the master threw away')
            handle:close()
            local counted = m:await('counted', { count = i })
            assert.is_nil(counted.error)
            assert.equal(0, counted.count)
        end
        app.roll(m)
        assert.equal(0, m:await('Worker exited').code)
        m:finish { code = 0 }
    end)
end)
