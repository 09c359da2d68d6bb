-- What a Node app does to its master and the other way round, beside serving: long requests, messages, leaving by its
-- own wish, failing to start.
local cjson = require 'cjson'
local uv = require 'luv'
local cli = require 'spec.support.cli'
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

describe('a cluster of a Node app', function()
    after_each(master.cleanup)

    versions.it('lets a request of ten seconds end while new ones go to the new workers', function(_, binary)
        -- Takes ten seconds, and longer if the roll does.
        local m, port = app.start { binary = binary, app = [[
            const fs = require('fs')
            require('http').createServer((request, response) => {
                const answer = () => response.end(`${process.env.DUTCH_MASTER_GENERATION} ${process.pid}`)
                const long = () => (fs.existsSync('rolled') ? answer() : setTimeout(long, 50))
                if (request.url === '/long') setTimeout(long, 10000)
                else answer()
            }).listen(Number(process.env.PORT))
        ]] }
        local status, body
        local asked, began = false, uv.hrtime()
        local handle
        local parser = http.parser()
        handle = http.connect({ port = port }, function(err)
            assert(not err, err)
            asked = true
            handle:write 'GET /long HTTP/1.1\r\nHost: x\r\n\r\n'
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
        m:rewrite('rolled', '')
        m:wait_until(function() return status end, 'the long answer')
        assert.is_true(uv.hrtime() - began > 9.9e9)
        assert.equal(200, status)
        assert.equal('1', body:match '^%d+')
        assert.equal('close', parser.headers.connection)
        m:await('Worker exited', { count = 2 })
        assert.same({ 0, 0 }, codes(m))
        handle:close()
        m:finish { code = 0 }
    end, { at_once = #versions.all }) -- most of it is waiting

    versions.it('gives a worker the time to end by itself, its exit handlers run', function(_, binary)
        local m, port = app.start { binary = binary, app = app.http .. [[
            process.on('exit', (code) => require('fs').appendFileSync('exits', `${code}\n`))
            process.on('disconnect', () => setTimeout(() => {}, 100))
        ]] }
        assert.equal(1, generation(port))
        app.roll(m)
        m:await('Worker exited', { count = 2, timeout = 5000 })
        m:signal 'SIGTERM'
        m:await('Worker exited', { count = 4, timeout = 5000 })
        assert.same({ 0, 0, 0, 0 }, codes(m))
        local file = assert(io.open(m:path 'exits'))
        assert.equal('0\n0\n0\n0\n', file:read '*a')
        file:close()
        m:finish { code = 0 }
    end)

    versions.it('makes one replacement of three requests for one, the successor first', function(_, binary)
        local m, port = app.start { binary = binary, workers = 1, app = app.http .. [[
            process.on('SIGWINCH', () => {
                for (let i = 0; i < 3; i++) process.send({ event: 'request-restart' })
            })
        ]] }
        local clients = load.start { port = port, clients = 4, mode = 'keepalive' }
        clients:await(20)
        local old = pid_of(port)
        uv.kill(old, 'sigwinch')
        assert.equal(0, m:await({ msg = 'Worker exited', workerPid = old }).code)
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.equal(1, #m:records 'Worker dying')
        assert.equal(2, #m:records 'Creating new worker')
        local available = m:records('Replacement worker available - disconnecting')[1]
        assert.is_true(available.index > m:records('Worker listening')[2].index)
        m:finish()
    end)

    versions.it('replaces a worker that leaves by its own wish', function(_, binary)
        for _, verb in ipairs { 'disconnect', 'kill' } do
            local m, port = app.start { binary = binary, workers = 1, app = app.http .. ([[
                process.on('SIGWINCH', () => require('cluster').worker.%s())
            ]]):format(verb) }
            local old = pid_of(port)
            uv.kill(old, 'sigwinch')
            local listening = m:await('Worker listening', { count = 2 })
            assert.is_true(listening.workerPid ~= old)
            assert.equal(0, m:await({ msg = 'Worker exited', workerPid = old }).code) -- by itself
            m:wait_until(function() return pid_of(port) == listening.workerPid end, 'the new worker to serve')
            m:finish()
        end
    end)

    versions.it('brings messages to the script, and those of the script to the app', function(_, binary)
        local m = app.start { binary = binary, workers = 1, app = app.http .. [[
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

    versions.it('ends an app that would hold on to timers and sockets for ever', function(_, binary)
        local m, port = app.start { binary = binary, app = [[
            const net = require('net')
            const own = { port: 0, host: '127.0.0.1', exclusive: true }
            const database = net.createServer(() => {}).listen(own, () => {
                net.connect(database.address().port, '127.0.0.1')
            })
            setInterval(() => {}, 1000)
        ]] .. app.http }
        assert.equal(1, generation(port))
        app.roll(m)
        m:await('Worker exited', { count = 2, timeout = 5000 })
        assert.same({ 'SIGTERM', 'SIGTERM' }, codes(m))
        assert.equal(0, #m:records 'Hard-killing worker as it did not die gracefully')
        m:finish { code = 0 }
    end)

    versions.it('keeps the old workers when a new release does not start, and takes the next one', function(_, binary)
        local m, port = app.start { binary = binary, app = app.http, plan = 'restartAttempts = 2,' }
        local clients = load.start { port = port, clients = 4 }
        m:rewrite('app.js', 'this is no JavaScript')
        m:signal 'SIGUSR2'
        m:await 'Restart aborted, the old workers stay'
        assert.equal(1, generation(port))
        m:rewrite('app.js', app.http)
        app.roll(m)
        assert.is_true(generation(port) > 1)
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        m:finish()
    end)

    versions.it('goes without the preload when told so', function(_, binary)
        for _, case in ipairs { { plan = '', has = true }, { plan = 'drain = false,', has = false } } do
            local m = app.start { binary = binary, workers = 1, app = app.http, plan = case.plan }
            local file = assert(io.open(('/proc/%d/cmdline'):format(m:workers()[1])))
            local words = file:read('*a'):gsub('%z', ' ')
            file:close()
            assert.equal(case.has, words:find('%-%-require %S*drain%.cjs app%.js') ~= nil, words)
            m:finish()
        end
    end)

    versions.it('says once that the preload is not beside the program', function(_, binary)
        local dir, build = master.temp_dir(), master.binary():match '^(.*)/'
        assert(uv.fs_copyfile(build .. '/dutch-master', dir .. '/dutch-master'))
        local m, port = app.start { binary = binary, workers = 2, app = app.http, plan = 'metrics = true,',
            wrap = { 'sh', '-c', 'shift; exec "$0" "$@"', dir .. '/dutch-master' } }
        local beside = 'The Node preload is not beside the program (drain.cjs, metrics.cjs; or in ../share/dutch-master): '
        assert.equal(1, generation(port))
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        for _, lost in ipairs { 'keep-alive draining is off', 'metrics are off' } do
            assert.equal(1, #m:records(beside .. lost), m:dump())
        end
        local check = cli.run(m, { 'check', m.script }, { program = dir .. '/dutch-master' })
        assert(check.err:find(beside .. 'keep-alive draining is off', 1, true), check.err)
        m:finish { code = 0 }
    end, { versions = { '22' } })

    local node = versions.newest()
    if uv.getuid() ~= 0 or os.execute(('setpriv --reuid=65534 --clear-groups test -x %s'):format(node)) ~= 0 then
        pending 'goes without the preload where its user cannot read that: needs root, and a node that everybody may run'
    else
        versions.it('goes without the preload where its user cannot read that', function(_, binary)
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
            local m, port = app.start {
                binary = binary,
                worker = dir .. '/app.js',
                plan = ("user = 'nobody', beforeFork = function() dutch.chdir '%s' end,"):format(dir),
                wrap = { 'sh', '-c', 'shift; exec "$0" "$@"', closed .. '/dutch-master' },
            }
            assert.equal(1, generation(port))
            local said = m:await('The worker user cannot read the Node preload: keep-alive draining is off')
            assert.equal(closed .. '/drain.cjs', said.path)
            assert.equal('nobody', said.user)
            m:finish { code = 0 }
        end)
    end

    versions.it('tells an app who it is, whatever started the master', function(_, binary)
        local m, port = app.start {
            binary = binary, flags = { '--max-old-space-size=128' }, plan = 'args = { "one", "two words" },',
            master_env = { NODE_CHANNEL_FD = '9', NODE_UNIQUE_ID = '77', NODE_CHANNEL_SERIALIZATION_MODE = 'advanced' },
            app = [[
                const cluster = require('cluster')
                const primary = cluster.isPrimary === undefined ? cluster.isMaster : cluster.isPrimary
                const left = Object.keys(process.env).filter((name) => /^NODE_(CHANNEL|UNIQUE)/.test(name)).length
                const flag = process.execArgv.includes('--max-old-space-size=128')
                require('http').createServer((request, response) => response.end(JSON.stringify(
                    [cluster.worker.id, process.pid, primary, left, flag, process.argv.slice(2), process.env.DUTCH_MASTER_WORKER]
                ))).listen(Number(process.env.PORT))
            ]],
        }
        local function ids()
            local found, seen = {}, {}
            m:wait_until(function()
                local _, body = http.get { port = port }
                local id, pid, primary, left, flag, args, name = unpack(cjson.decode(body))
                assert.same({ false, 0, true, { 'one', 'two words' }, tostring(id) }, { primary, left, flag, args, name })
                assert.equal(1, #m:records { msg = 'Worker listening', workerId = id, workerPid = pid })
                found[#found + 1], seen[id] = not seen[id] and id or nil, true
                return #found == 2
            end, 'an answer of either worker')
            table.sort(found)
            return found
        end
        assert.same({ 1, 2 }, ids())
        app.roll(m)
        m:await('Worker exited', { count = 2 })
        assert.same({ 3, 4 }, ids())
        m:finish { code = 0 }
    end)

    versions.it('starts a worker again that fails once', function(_, binary)
        local m, port = app.start { binary = binary, workers = 1, ready = false, app = [[
            const fs = require('fs')
            if (!fs.existsSync('once')) { fs.writeFileSync('once', ''); throw new Error('not today') }
        ]] .. app.http }
        m:await 'Cluster ready'
        assert.equal(1, m:records('Worker exited')[1].code)
        assert.equal(1, generation(port))
        m:finish()
    end)
end)
