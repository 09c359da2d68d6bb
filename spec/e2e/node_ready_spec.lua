-- When a Node worker counts as ready, what a refused listen() does to it and to its master, and how long an address stays.
local uv = require 'luv'
local files = require 'spec.support.files'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local versions = require 'spec.support.node_versions'

local function await_answer(m, port)
    m:wait_until(function() return http.get { port = port } == 200 end, 'an answer on port ' .. port)
end

-- A helper server first, the main one later.
local HELPER_FIRST = [[
    const http = require('http')
    const generation = process.env.DUTCH_MASTER_GENERATION
    const serve = (port) => http.createServer((request, response) => response.end(generation)).listen(Number(port))
    serve(process.env.HELPER)
    setTimeout(() => serve(process.env.PORT), 700)
]]

local TWO = { versions = { '18', '26' } }
local ONE = { versions = { '22' } }

describe('a Node worker', function()
    after_each(master.cleanup)

    versions.it('is ready when it listens where all workers before it do', function(_, binary)
        local helper = http.free_port()
        local m, port = app.start { binary = binary, app = HELPER_FIRST, env = { HELPER = tostring(helper) } }
        await_answer(m, port)
        local listeners = { load.start { port = port, clients = 3, mode = 'close' },
            load.start { port = helper, clients = 2, mode = 'keepalive' } }
        for _ = 1, 2 do
            app.roll(m)
            local _, body = http.get { port = port }
            assert(tonumber(body) > 1, body)
        end
        for _, clients in ipairs(listeners) do
            local counts = clients:stop()
            assert.equal(0, counts.failed, counts.text .. m:dump())
        end
        m:finish { code = 0 }
    end, TWO)

    versions.it('that does not is named, with what to write if that is meant', function(_, binary)
        local helper = http.free_port()
        local m, port = app.start { binary = binary, app = HELPER_FIRST, env = { HELPER = tostring(helper) },
            plan = 'readyTimeout = 30, restartAttempts = 1,' }
        await_answer(m, port)
        local script = files.text(m.script)
        m:rewrite('master.lua', (script:gsub('readyTimeout = 30', 'readyTimeout = ' .. app.time_to_start(m, 2))))
        m:rewrite('app.js', app.http)
        m:signal 'SIGUSR2'
        local aborted = m:await 'Restart aborted, the old workers stay'
        local words = ('it does not listen on :%d, where the workers before it do. If that is meant, say which address counts: '
            .. 'ready = { port = %d }'):format(helper, port)
        assert(aborted.reason:find(words, 1, true), aborted.reason)
        assert.equal(200, (http.get { port = helper }))
        m:rewrite('master.lua', (script:gsub('readyTimeout = 30', 'ready = { port = ' .. port .. ' }')))
        app.roll(m)
        m:wait_until(function() return http.get { port = helper } == nil end, 'the address that was given up to close')
        m:finish { code = 0 }
    end, ONE)

    versions.it('that is refused a socket goes on, as under stock; one that ends by it ends the boot', function(_, binary)
        local taken = uv.new_tcp()
        assert(taken:bind('127.0.0.1', 0))
        assert(taken:listen(1, function() end))
        local busy = taken:getsockname().port
        local m, port = app.start { binary = binary, env = { BUSY = tostring(busy) }, app = [[
            const http = require('http')
            const optional = http.createServer().on('error', (error) => { // the next port, as detect-port does
                if (error.code === 'EADDRINUSE' && error.syscall === 'bind') main()
            })
            const main = () => http.createServer((request, response) => response.end('ok')).listen(Number(process.env.PORT))
            const nowhere = http.createServer().on('error', (error) => { // fastify tries ::1 too
                if (error.code === 'EADDRNOTAVAIL') optional.listen(Number(process.env.BUSY), '127.0.0.1')
            })
            nowhere.listen(Number(process.env.PORT), '192.0.2.1')
        ]] }
        await_answer(m, port)
        m:finish { code = 0 }

        m = app.start { binary = binary, env = { BUSY = tostring(busy) }, ready = false, app = [[
            require('http').createServer().listen(Number(process.env.BUSY), '127.0.0.1')
        ]] }
        m:exit()
        local fatal = m:records(function(record) return record.level == 60 end)[1]
        assert(fatal and fatal.msg:find('EADDRINUSE: .*127%.0%.0%.1:' .. busy), m:dump())
        m:finish { code = 71 }
        taken:close()
    end, TWO)

    versions.it('may serve datagrams or a path alone', function(_, binary)
        local m = app.start { binary = binary, app = [[
            const socket = require('dgram').createSocket('udp4')
            socket.bind(Number(process.env.PORT), '127.0.0.1')
        ]], plan = 'readyTimeout = 10,' }
        app.roll(m)
        m:finish { code = 0 }
        m = app.start { binary = binary, workers = 1, app = "require('http').createServer().listen('app.sock')" }
        app.roll(m)
        m:finish { code = 0 }
    end, ONE)

    versions.it('is not ready by the private pipe of its loader', function(_, binary)
        local tsx = versions.modules 'tsx'
        if not tsx then
            return pending 'tsx is not installed, see spec/support/install-node'
        end
        local m, port = app.start { binary = binary, worker = 'app.ts', workers = 1,
            flags = { '--import', 'file://' .. tsx .. '/tsx/dist/loader.mjs' }, plan = 'restartAttempts = 1,',
            files = { ['app.ts'] = [[
                import http from 'node:http'
                const port: number = Number(process.env.PORT)
                http.createServer((request, response) => { response.end('one') }).listen(port)
            ]] } }
        local clients = load.start { port = port, clients = 2, mode = 'close' }
        m:rewrite('app.ts', "const late: number = 1500; setTimeout(() => { throw new Error('not today') }, late)")
        m:signal 'SIGUSR2'
        m:await 'Restart aborted, the old workers stay'
        local counts, patience = clients:stop(), app.time_to_start(m, 3)
        assert.equal(0, counts.failed, counts.text)
        m:finish { code = 0 }

        -- The command is a launcher: Node starts Node.
        m = app.start { binary = tsx .. '/.bin/tsx', worker = 'app.ts', workers = 1, ready = false,
            master_env = { PATH = binary:match '^(.*)/' .. ':' .. os.getenv 'PATH' },
            plan = ('readyTimeout = %s, stopTimeout = 2, killTimeout = 1,'):format(patience),
            files = { ['app.ts'] = "import http from 'node:http'\nhttp.createServer().listen(0)" } }
        m:await(function(record)
            return record.msg:find "^Worker was not ready in time: .*interpreter = { 'node', '%-%-import', 'tsx' }$"
        end)
        m:finish {}
    end, ONE)

    versions.it('that speaks TLS is asked so; one that is asked by http is told what it looks like', function(_, binary)
        local keys = uv.cwd() .. '/spec/support/nodejs/'
        local source = ([[
            const fs = require('fs')
            const options = { key: fs.readFileSync('%skey.pem'), cert: fs.readFileSync('%scert.pem') }
            require('https').createServer(options, (request, response) => response.end('ok')).listen(Number(process.env.PORT))
        ]]):format(keys, keys)
        local m = app.start { binary = binary, workers = 1, app = source, plan = 'ready = { tls = true },' }
        app.roll(m)
        m:finish { code = 0 }
        m = app.start { binary = binary, workers = 1, app = source, ready = false,
            plan = ("ready = { http = '/', interval = 0.1 }, readyTimeout = %s, stopTimeout = 2, killTimeout = 1,"):format(
                app.time_to_start(m, 4)) }
        m:await(function(record)
            return record.msg:find 'It looks like a server of HTTPS: write ready = { tls = true }$'
        end)
        m:finish {}
    end, TWO)

    versions.it('hears that the master holds the address, in another form, for the workers before it', function(_, binary)
        local m, port = app.start { binary = binary, plan = 'restartAttempts = 1,', app = [[
            require('http').createServer((request, response) => response.end('ok')).listen(Number(process.env.PORT), '0.0.0.0')
        ]] }
        m:rewrite('app.js', "require('http').createServer().listen(Number(process.env.PORT))")
        m:signal 'SIGUSR2'
        local aborted = m:await 'Restart aborted, the old workers stay'
        assert(aborted.reason:find(('the master itself holds 0.0.0.0:%d'):format(port), 1, true), aborted.reason)
        assert.equal(200, (http.get { port = port }))
        m:finish { code = 0 }
    end, { versions = { '18', '22', '26' } })

    versions.it('keeps nobody waiting for ever at a port that all of them have closed for good', function(_, binary)
        local second = http.free_port()
        local m, port = app.start { binary = binary, env = { SECOND = tostring(second) },
            plan = 'stopTimeout = 2, killTimeout = 1,', app = app.http .. [[
            const other = http.createServer().listen(Number(process.env.SECOND), () => {
                setTimeout(() => other.close(() => console.log('closed')), 300)
            })
        ]] }
        m:wait_until(function() return table.concat(m.output, '\n'):find 'closed.*closed' end, 'both of them')
        local status = http.get { port = second } -- waits for stopTimeout, then its connection ends
        assert.is_nil(status)
        m:await 'Waiting connections lost, no worker listens there any more'
        assert.equal(200, (http.get { port = port }))
        m:finish { code = 0 }
    end, ONE)

    versions.it('keeps the address when it, or all of them, close their servers and listen again', function(_, binary)
        local m, port = app.start { binary = binary, app = [[
            const server = require('http').createServer((request, response) => {
                response.setHeader('Connection', 'close')
                response.end('ok')
            })
            const listen = () => server.listen(Number(process.env.PORT), () => setTimeout(close, 300))
            const close = () => server.close(() => setTimeout(listen, 100)) // never while it is closed: Node throws then
            listen()
        ]] }
        local clients = load.start { port = port, clients = 3, mode = 'close' }
        clients:await(300)
        m:await('Worker closed its servers', { count = 3 })
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text .. m:dump())
        assert.equal(#m:records 'Worker exited', #m:records { msg = 'Worker exited', code = 0 }, m:dump())
        m:finish { code = 0 }
    end, { versions = { '18', '24' } }) -- Node 26 resets fresh connections when an app closes its server, as under stock
end)
