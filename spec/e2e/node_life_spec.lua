-- What a Node app does to its master and the other way round, beside serving: long requests, messages, leaving by its
-- own wish, failing to start.
local bit = require 'bit'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local function generation(port)
    local _, body = http.get { port = port }
    return body and tonumber(body:match '^(%d+)')
end

-- How its workers ended; 0 is: by themselves.
local function codes(m)
    local list = {}
    for i, record in ipairs(m:records 'Worker exited') do
        list[i] = record.code or record.signal
    end
    return list
end

local function pid_of(port)
    local _, body = http.get { port = port }
    return body and tonumber(body:match '(%d+)$')
end

versions.each(function(version, binary)
    describe('a cluster on Node ' .. version, function()
        after_each(master.cleanup)

        local function start(options)
            options.binary = binary
            return app.start(options)
        end

        it('lets a long request end while new ones go to the new workers', function()
            local long_ms = version == '22' and 10000 or 5000
            local m, port = start { app = app.http }
            local status, body
            local asked = false
            local handle
            local parser = http.parser()
            handle = http.connect({ port = port }, function(err)
                assert(not err, err)
                asked = true
                handle:write(('GET /?ms=%d HTTP/1.1\r\nHost: x\r\n\r\n'):format(long_ms))
                handle:read_start(function(_, data)
                    if data and parser:feed(data) == 'done' then
                        status, body = parser.status, parser.body
                    end
                end)
            end)
            wait.wait_until(function() return asked end)
            assert.equal(1, generation(port))
            app.roll(m)
            for _ = 1, 20 do
                assert.equal(2, generation(port)) -- nobody comes to an old worker once the roll is complete
            end
            assert.is_nil(status)
            m:wait_until(function() return status end, 'the long answer', { timeout = 15000 })
            assert.equal(200, status)
            assert.equal('1', body:match '^%d+')
            assert.equal('close', parser.headers.connection)
            m:await('Worker exited', { count = 2, timeout = 2000 })
            assert.same({ 0, 0 }, codes(m))
            handle:close()
            m:finish { code = 0 }
        end)

        it('gives a worker the time to end by itself, its exit handlers run', function()
            local m, port = start { app = app.http .. [[
                process.on('exit', (code) => require('fs').appendFileSync('exits', `${code}\n`))
                process.on('disconnect', () => setTimeout(() => {}, 100))
            ]] }
            assert.equal(1, generation(port))
            app.roll(m)
            m:await('Worker exited', { count = 2, timeout = 2000 })
            m:signal 'SIGTERM'
            m:await('Worker exited', { count = 4, timeout = 2000 })
            assert.same({ 0, 0, 0, 0 }, codes(m))
            local file = assert(io.open(m:path 'exits'))
            assert.equal('0\n0\n0\n0\n', file:read '*a')
            file:close()
            m:finish { code = 0 }
        end)

        it('makes one replacement of three requests for one, the successor first', function()
            local m, port = start { workers = 1, app = app.http .. [[
                process.on('SIGWINCH', () => {
                    for (let i = 0; i < 3; i++) process.send({ event: 'request-restart' })
                })
            ]] }
            local clients = load.start { port = port, clients = 4, mode = 'keepalive' }
            clients:await(20)
            local old = pid_of(port)
            require('luv').kill(old, 'sigwinch')
            assert.equal(0, m:await({ msg = 'Worker exited', workerPid = old }).code)
            local counts = clients:stop()
            assert.equal(0, counts.failed, counts.text)
            assert.equal(1, #m:records 'Worker dying')
            assert.equal(2, #m:records 'Creating new worker')
            local available = m:records('Replacement worker available - disconnecting')[1]
            assert.is_true(available.index > m:records('Worker listening')[2].index)
            m:finish()
        end)

        it('replaces a worker that leaves by its own wish', function()
            for _, verb in ipairs { 'disconnect', 'kill' } do
                local m, port = start { workers = 1, app = app.http .. ([[
                    process.on('SIGWINCH', () => require('cluster').worker.%s())
                ]]):format(verb) }
                local old = pid_of(port)
                require('luv').kill(old, 'sigwinch')
                local listening = m:await('Worker listening', { count = 2 })
                assert.is_true(listening.workerPid ~= old)
                assert.equal(0, m:await({ msg = 'Worker exited', workerPid = old }).code) -- by itself
                m:wait_until(function() return pid_of(port) == listening.workerPid end, 'the new worker to serve')
                m:finish()
            end
        end)

        it('brings messages to the script, and those of the script to the app', function()
            local m = start { workers = 1, app = app.http .. [[
                process.on('message', (message) => process.send({ back: message, more: [null, 1.5, 'x'] }))
                process.send({ hello: true })
            ]], plan = [[
                onMessage = function(worker, message)
                    if message.hello then
                        worker:send { ping = dutch.workers()[1].id }
                    else
                        dutch.log:info({ ping = message.back.ping, more = message.more[3] }, 'came back')
                    end
                end,
            ]] }
            local record = m:await 'came back'
            assert.equal(1, record.ping)
            assert.equal('x', record.more)
            m:finish()
        end)

        it('ends an app that would hold on to timers and sockets for ever', function()
            local m, port = start { app = [[
                const net = require('net')
                const own = { port: 0, host: '127.0.0.1', exclusive: true }
                const database = net.createServer(() => {}).listen(own, () => {
                    net.connect(database.address().port, '127.0.0.1')
                })
                setInterval(() => {}, 1000)
            ]] .. app.http }
            assert.equal(1, generation(port))
            app.roll(m)
            m:await('Worker exited', { count = 2, timeout = 2000 })
            assert.same({ 'SIGTERM', 'SIGTERM' }, codes(m))
            assert.equal(0, #m:records 'Hard-killing worker as it did not die gracefully')
            m:finish { code = 0 }
        end)

        it('keeps the old workers when a new release does not start, and takes the next one', function()
            local m, port = start { app = app.http, plan = 'restartAttempts = 2, readyTimeout = 5,' }
            local clients = load.start { port = port, clients = 4 }
            m:rewrite('app.js', 'this is no JavaScript')
            m:signal 'SIGUSR2'
            m:await('Restart aborted, the old workers stay', { timeout = 20000 })
            assert.equal(1, generation(port))
            m:rewrite('app.js', app.http)
            app.roll(m)
            assert.is_true(generation(port) > 1)
            local counts = clients:stop()
            assert.equal(0, counts.failed, counts.text)
            m:finish()
        end)

        it('goes without the preload when told so', function()
            for _, case in ipairs { { plan = '', has = true }, { plan = 'drain = false,', has = false } } do
                local m = start { workers = 1, app = app.http, plan = case.plan }
                local file = assert(io.open(('/proc/%d/cmdline'):format(m:workers()[1])))
                local words = file:read('*a'):gsub('%z', ' ')
                file:close()
                assert.equal(case.has, words:find('%-%-require %S*drain%.cjs app%.js') ~= nil, words)
                m:finish()
            end
        end)

        it('goes without the preload where its user cannot read that', function()
            local uv = require 'luv'
            if uv.getuid() ~= 0 or os.execute(('setpriv --reuid=65534 --clear-groups test -x %s'):format(binary)) ~= 0 then
                return pending 'needs root, and a node that everybody may run'
            end
            local dir, build = master.temp_dir(), master.binary():match '^(.*)/'
            local closed = dir .. '/bin'
            assert(uv.fs_chmod(dir, tonumber('755', 8)))
            assert(uv.fs_mkdir(closed, tonumber('700', 8)))
            for _, name in ipairs { 'dutch-master', 'drain.cjs' } do
                assert(uv.fs_copyfile(build .. '/' .. name, closed .. '/' .. name))
            end
            local file = assert(io.open(dir .. '/app.js', 'w'))
            file:write(app.http)
            file:close()
            local m, port = start {
                worker = dir .. '/app.js',
                plan = ("user = 'nobody', beforeFork = function() dutch.chdir '%s' end,"):format(dir),
                wrap = { 'sh', '-c', 'shift; exec "$0" "$@"', closed .. '/dutch-master' },
            }
            assert.equal(1, generation(port))
            local said = m:await('The workers may not read what makes keep-alive connections leave, they go without')
            assert.equal(closed .. '/drain.cjs', said.path)
            assert.equal('nobody', said.user)
            m:finish { code = 0 }
        end)

        it('answers listen({fd}) with the socket that was passed to the master', function()
            local free = http.free_port()
            -- What systemd does: binds, and execs with the socket as descriptor 3.
            local activate = [[
                $^F = 100;
                my $socket = IO::Socket::INET->new(Listen => 64, LocalAddr => shift @ARGV, ReuseAddr => 1) or die $!;
                POSIX::dup2(fileno($socket), 3) if fileno($socket) != 3;
                @ENV{qw(LISTEN_PID LISTEN_FDS)} = ($$, 1);
                exec @ARGV;
            ]]
            local m, port = start {
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

        it('answers every kind of listen', function()
            local name = ('dutch-master-spec-%s-%d'):format(version, require('luv').os_getpid())
            local m = start { app = [[
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

        it('starts a worker again that fails once', function()
            local m, port = start { workers = 1, ready = false, app = [[
                const fs = require('fs')
                if (!fs.existsSync('once')) { fs.writeFileSync('once', ''); throw new Error('not today') }
            ]] .. app.http }
            m:await 'Cluster ready'
            assert.equal(1, m:records('Worker exited')[1].code)
            assert.equal(1, generation(port))
            m:finish()
        end)
    end)
end)
