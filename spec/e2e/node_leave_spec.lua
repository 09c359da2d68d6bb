-- How Node workers leave: their SIGTERM handlers, their time, those that leave by themselves, connections that one has no
-- room for; and what passes over their channel meanwhile.
local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local read = require('spec.support.files').or_empty
local stock = require 'spec.support.stock'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local function ms_between(first, second)
    return (second.arrived - first.arrived) / 1e6
end

local TWO = { versions = { '18', '26' } }

describe('a Node worker that leaves', function()
    after_each(master.cleanup)

    -- OpenTelemetry, terminus, Nest, close-with-grace: all of them wait for SIGTERM.
    versions.it('runs its SIGTERM handlers when its connections are served, and has its time for them', function(_, binary)
        local m, port = app.start { binary = binary, workers = 1, plan = 'stopTimeout = 20, killTimeout = 0.5,', app = [[
            const fs = require('fs')
            let closed, busy = 0
            require('http').createServer((request, response) => {
                busy++
                setTimeout(() => { busy--; response.end(`1 ${process.pid}`) }, 400)
            }).listen(Number(process.env.PORT))
            process.on('disconnect', () => { closed = Date.now() })
            process.on('SIGTERM', async () => {
                const late = Date.now() - closed
                await new Promise((resolve) => setTimeout(resolve, 1500)) // longer than killTimeout
                fs.appendFileSync('said', `busy ${busy} late ${late}\n`)
                process.exitCode = 7
            })
        ]] }
        local clients = load.start { port = port, mode = 'keepalive', clients = 3 }
        clients:await(3)
        app.roll(m)
        local exited = m:await('Worker exited', { timeout = 15000 })
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.equal(7, exited.code, m:dump())
        local late = tonumber(read(m:path 'said'):match '^busy 0 late (%-?%d+)\n$')
        assert(late and late < 500 * wait.scale, read(m:path 'said'))
        assert.equal(0, #m:records 'Hard-killing worker as it did not die gracefully')
        m:finish { code = 0 }
    end, { at_once = 3 })

    -- As without a cluster: its server is closed once, by its handler.
    versions.it('closes its servers in its SIGTERM handler, and is not told that the master was first', function(_, binary)
        local m, port = app.start { binary = binary, workers = 1, app = app.http .. [[
            const other = require('net').createServer().listen(0)
            process.on('SIGTERM', () => server.close((first) => other.close((second) => {
                console.log(`closed ${first ? first.code : 'well'} ${second ? second.code : 'well'}`)
                server.close((third) => process.exit(third && third.code === 'ERR_SERVER_NOT_RUNNING' ? 7 : 8))
            })))
        ]] }
        local clients = load.start { port = port, mode = 'keepalive', clients = 3 }
        clients:await(3)
        app.roll(m)
        m:await_output '^closed well well$'
        assert.equal(7, m:await('Worker exited').code) -- who closes twice hears of it
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        m:finish { code = 0 }
    end, TWO)

    local CLOSERS = {
        terminus = [[
            require('@godaddy/terminus').createTerminus(server, {
                signal: 'SIGTERM', useExit0: true, onSignal: async () => console.log('cleaned up'),
            })
        ]],
        ['http-terminator'] = [[
            const terminator = require('http-terminator').createHttpTerminator({ server })
            process.on('SIGTERM', async () => { await terminator.terminate(); console.log('cleaned up'); process.exit() })
        ]],
        stoppable = [[
            require('stoppable')(server, 5000)
            process.on('SIGTERM', () => server.stop((error) => {
                if (!error) console.log('cleaned up')
                process.exit(error ? 1 : 0)
            }))
        ]],
        ['http-graceful-shutdown'] = [[
            require('http-graceful-shutdown')(server, { onShutdown: async () => console.log('cleaned up') })
        ]],
    }
    local closers = versions.modules 'closers'
    if not closers then
        pending 'cleans up by what people use for that: they are not installed, see spec/support/install-node'
    end
    for name, code in pairs(closers and CLOSERS or {}) do
        versions.it('cleans up by ' .. name, function(_, binary)
            local m, port = app.start { binary = binary, workers = 1, app = app.http .. code, modules = closers }
            local clients = load.start { port = port, mode = 'keepalive', clients = 3 }
            clients:await(3)
            app.roll(m)
            m:await_output '^cleaned up$'
            local exited = m:await 'Worker exited'
            assert.equal(0, exited.code, m:dump())
            local counts = clients:stop()
            assert.equal(0, counts.failed, counts.text)
            m:finish { code = 0 }
        end, { versions = { '22' } })
    end

    -- As under stock, where nothing ends it meanwhile.
    versions.it('cleans up when it is disconnected, and has its time for that', function(_, binary)
        local m = app.start { binary = binary, workers = 1, plan = 'stopTimeout = 20, killTimeout = 0.5,', app = app.http .. [[
            const { worker } = require('cluster')
            const pool = setInterval(() => {}, 1000)
            const by = Number(process.env.DUTCH_MASTER_GENERATION) % 2 ? process : worker
            by.on('disconnect', () => setTimeout(() => { clearInterval(pool); process.exitCode = 7 }, 2500))
            process.on('SIGWINCH', () => worker.disconnect())
            process.on('exit', () => console.log(`patience ${process.env.DUTCH_MASTER_PATIENCE}`))
        ]] }
        for generation = 1, 2 do
            app.roll(m)
            local exited = m:await('Worker exited', { count = generation, timeout = 15000 })
            assert.equal(7, exited.code, m:dump())
        end
        local old = m:await('Worker listening', { count = 3 }).workerPid
        uv.kill(old, 'sigwinch')
        m:await('Worker listening', { count = 4 })
        assert.equal(7, m:await({ msg = 'Worker exited', workerPid = old }, { timeout = 15000 }).code, m:dump())
        m:await_output '^patience undefined$'
        m:finish { code = 0 }
    end, { at_once = 3 })

    versions.it('that is held by something when it has cleaned up gets SIGTERM killTimeout before the end', function(_, binary)
        local m = app.start { binary = binary, workers = 1, plan = 'stopTimeout = 4, killTimeout = 1.5,', app = app.http .. [[
            const pool = setInterval(() => {}, 1000)
            process.on('disconnect', () => {})
        ]] }
        app.roll(m)
        local exited = m:await('Worker exited', { timeout = 15000 })
        local ms = ms_between(m:records('Replacement worker available - disconnecting')[1], exited)
        assert.equal('SIGTERM', exited.signal, m:dump())
        assert(ms > 2400 and ms < 2500 + 1400 * wait.scale, ms)
        m:finish { code = 0 }
    end, TWO)

    versions.it('ends by itself, and at once, where it has no such handler and nothing to do', function(_, binary)
        local m = app.start { binary = binary, app = app.http .. [[
            process.on('exit', () => require('fs').appendFileSync('exits', 'x'))
        ]] }
        app.roll(m)
        m:await('Worker exited', { count = 2, timeout = 5000 })
        for i = 1, 2 do
            assert.equal(0, m:records('Worker exited')[i].code, m:dump())
            assert(ms_between(m:records('Worker disconnected')[i], m:records('Worker exited')[i]) < 900 * wait.scale)
        end
        assert.equal('xx', read(m:path 'exits'))
        m:finish { code = 0 }
    end, { at_once = 3 })

    -- As under the program that this one descends from: people have tests and deploys that count on it.
    versions.it('has its SIGTERM within a second of the readiness of its replacement, and a boot waits for nothing else',
        function(version, binary)
            local m = app.start { binary = binary, plan = 'restartSoak = 0,', app = app.http .. [[
                const note = (what) => require('fs').appendFileSync(what, Date.now() + '\n')
                server.on('listening', () => note('listened'))
                process.on('SIGTERM', () => { note('termed'); process.exit() })
            ]] }
            local function latest(name)
                local last = 0
                for number in read(m:path(name)):gmatch '%d+' do
                    last = math.max(last, tonumber(number))
                end
                return last
            end
            m:wait_until(function() return read(m:path 'listened'):find '\n.*\n' end, 'both of them to say that they listen')
            local boot = master.ms_of(m:records 'Cluster ready'[1]) - latest 'listened' % 86400000
            app.roll(m)
            m:await('Worker exited', { count = 2 })
            local term = latest 'termed' % 86400000 - master.ms_of(m:records 'Worker listening'[4])
            print(('\nNode %s: ready %d ms after the last app listens, SIGTERM %d ms after the replacements are ready'):format(
                version, boot, term))
            assert(boot < 1000 * wait.scale, boot)
            assert(term > 0 and term < 1000 * wait.scale, term)
            m:finish { code = 0 }
        end, TWO)

    for name, code in pairs { disconnect = "require('cluster').worker.disconnect()", close = 'server.close()' } do
        versions.it('by its own wish (' .. name .. ') is replaced at once, and nobody is refused', function(_, binary)
            local m, port = app.start { binary = binary, workers = 1, app = ([[
                %s
                process.on('SIGWINCH', () => { %s })
            ]]):format(app.http, code) }
            local kept = load.start { port = port, mode = 'keepalive', clients = 3 }
            local fresh = load.start { port = port, mode = 'close', clients = 2 }
            kept:await(20)
            local old = m:records('Worker listening')[1].workerPid
            uv.kill(old, 'sigwinch')
            local said = m:await 'Worker closed its servers'
            local created = m:await('Creating new worker', { count = 2 })
            assert(ms_between(said, created) < 500 * wait.scale, m:dump())
            m:await('Worker listening', { count = 2 })
            m:await({ msg = 'Worker exited', workerPid = old }, { timeout = 20000 })
            local a, b = kept:stop(), fresh:stop()
            assert.same({ 0, 0 }, { a.failed, b.failed }, a.text .. b.text .. m:dump())
            m:finish { code = 0 }
        end, TWO)
    end

    -- It ends with what it has accepted, as under stock. The master lets it go when that is answered.
    versions.it('by worker.kill() has answered those who came before it goes', function(_, binary)
        local m, port = app.start { binary = binary, workers = 3, app = app.http .. [[
            process.on('SIGWINCH', () => require('cluster').worker.kill())
        ]] }
        local clients = load.start { port = port, mode = 'close', clients = 4 }
        clients:await(20)
        for round = 1, 3 do
            uv.kill(m:records('Worker listening')[round].workerPid, 'sigwinch')
            m:await('Worker exited', { count = round })
            m:await('Worker listening', { count = 3 + round })
        end
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text .. m:dump())
        m:finish { code = 0 }
    end, TWO)

    versions.it('that has no room for a connection gives it to another one, as stock', function(version, binary)
        local source = [[
            const server = require('http').createServer((request, response) => setTimeout(() => response.end('ok'), 200))
            server.maxConnections = 4
            server.listen(Number(process.env.PORT))
        ]]
        -- Room for twice as many as there are: a server counts a connection until it has seen its end.
        local m, port = app.start { binary = binary, workers = 4, app = source }
        local function fill(at)
            local clients = load.start { port = at, mode = 'close', clients = 8 }
            clients:await(80)
            return clients:stop()
        end
        local ours = fill(port)
        assert.equal(0, ours.failed, ours.text .. m:dump())
        if version == '18' then
            local peer_port = http.free_port()
            local peer = stock.start { binary = binary, dir = m.app, workers = 4, env = { PORT = tostring(peer_port) } }
            wait.wait_until(function() return http.get { port = peer_port } == 200 end, { what = 'the stock cluster' })
            local theirs = fill(peer_port)
            peer:stop(wait)
            assert.equal(0, theirs.failed, theirs.text)
        end
        m:finish { code = 0 }
    end)

    versions.it('closes connections, as stock, when nobody has room for them', function(_, binary)
        local m, port = app.start { binary = binary, workers = 2, app = [[
            const server = require('http').createServer((request, response) => setTimeout(() => response.end('ok'), 300))
            server.maxConnections = 1
            server.listen(Number(process.env.PORT))
        ]] }
        local clients = load.start { port = port, mode = 'close', clients = 6 }
        wait.wait_until(function() return clients.counts.ok >= 6 end, { what = 'answers' })
        local counts = clients:stop()
        assert(counts.ok >= 6, counts.text)
        assert.equal(counts.total, counts.ok + counts.reset + counts.empty + counts.bad, counts.text)
        assert.equal(0, #m:records 'Worker exited')
        m:finish { code = 0 }
    end, TWO)
end)

describe('what a Node worker says', function()
    after_each(master.cleanup)

    versions.it('costs the message if it is too long, and what follows arrives', function(_, binary)
        local m = app.start { binary = binary, workers = 1, app = app.http .. [[
            process.send({ big: 'x'.repeat(10 << 20) })
            process.send({ small: true })
        ]], plan = [[ onMessage = function(_, what) dutch.log:info({ small = what.small, big = what.big ~= nil }, 'heard') end, ]] }
        local heard = m:await 'heard'
        assert.same({ true, false }, { heard.small, heard.big })
        assert.equal(1, #m:records(function(record) return record.msg:find '^Message of the worker dropped' end))
        assert.equal(0, #m:records 'Worker exited')
        m:finish { code = 0 }
    end, TWO)

    versions.it('is passed on as it was written', function(_, binary)
        local m = app.start { binary = binary, workers = 2, app = app.http .. [==[
            const sent = { a: [], o: {}, n: null, list: [1, null, 3], big: 9007199254740991, small: 0.1, e: 1e21, deep: [[[]]],
                text: '\u0000x\u2028', nested: { rooms: [], except: [], flags: {} }, keys: { 1: 'a', 2: 'b' }, yes: true }
            const sorted = (value) => (value && typeof value === 'object' && !Array.isArray(value)
                ? Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]))
                : Array.isArray(value) ? value.map(sorted) : value)
            process.on('message', (message) => {
                if (message.relay) console.log(JSON.stringify(sorted(message.relay)) === JSON.stringify(sorted(sent))
                    ? 'relayed: the same' : 'relayed: ' + JSON.stringify(message.relay))
            })
            if (process.env.DUTCH_MASTER_SLOT === '1') process.on('SIGWINCH', () => process.send({ relay: sent }))
        ]==], plan = [[
            onMessage = function(worker, message)
                for _, other in ipairs(dutch.workers()) do
                    if other.id ~= worker.id then other:send(message) end
                end
            end,
        ]] }
        uv.kill(m:records({ msg = 'Worker listening', workerId = 1 })[1].workerPid, 'sigwinch')
        m:await_output '^relayed: '
        local said = table.concat(m.output, '\n')
        assert(said:find('relayed: the same', 1, true), said)
        m:finish { code = 0 }
    end, TWO)

    versions.it('has nothing of ours in it: stack traces, processes that it forks', function(_, binary)
        local m, port = app.start { binary = binary, workers = 1, app = [[
            const fs = require('fs')
            if (process.argv[2] === 'child') {
                process.send(JSON.stringify(process.execArgv) + Object.keys(require.cache).length)
                process.disconnect()
            } else {
                const traces = []
                const note = () => traces.push(new Error().stack)
                const server = require('http').createServer((request, response) => { note(); response.end(traces.join('\n')) })
                server.on('connection', note)
                server.on('listening', note)
                server.listen(Number(process.env.PORT))
                require('child_process').fork(__filename, ['child']).on('message', (text) => fs.writeFileSync('child', text))
            }
        ]] }
        local status, body = http.get { port = port }
        assert.equal(200, status)
        assert.is_nil(body:find('drain.cjs', 1, true), body)
        m:wait_until(function() return read(m:path 'child') ~= '' end, 'the forked process')
        assert.equal('[]1', read(m:path 'child'))
        m:finish { code = 0 }
    end)
end)
