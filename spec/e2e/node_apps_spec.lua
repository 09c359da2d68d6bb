-- Apps of all sorts, unmodified: each boots, serves, rolls and stops. Frameworks, protocols, kinds of listen.
local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local tls = require 'spec.support.tls'
local versions = require 'spec.support.node_versions'

-- name -> { app or files, modules, from (first version it runs on), and what the worker is if not app.js }
local WEB = {
    ['express 4'] = { modules = 'express4', app = [[
        const app = require('express')()
        app.get('/', (request, response) => response.send('works'))
        app.listen(Number(process.env.PORT))
    ]] },
    ['express 5'] = { modules = 'express5', from = 18, app = [[
        const app = require('express')()
        app.get('/', async (request, response) => response.send('works'))
        app.listen(Number(process.env.PORT), '127.0.0.1')
    ]] },
    fastify = { modules = 'packages', from = 20, app = [[
        const fastify = require('fastify')()
        fastify.get('/', async () => 'works')
        fastify.listen({ port: Number(process.env.PORT), host: '127.0.0.1' })
    ]] },
    koa = { modules = 'packages', from = 18, app = [[
        const Koa = require('koa')
        const app = new Koa()
        app.use(async (context) => { context.body = 'works' })
        app.listen(Number(process.env.PORT))
    ]] },
    ['an ES module with top-level await'] = { worker = 'app.mjs', files = { ['app.mjs'] = [[
        import { createServer } from 'node:http'
        await new Promise((resolve) => setTimeout(resolve, 100))
        createServer((request, response) => response.end('works')).listen(Number(process.env.PORT))
        await new Promise((resolve) => setTimeout(resolve, 10))
    ]] } },
    ['TypeScript, by a flag of Node'] = {
        from = 22, worker = 'app.ts', flags = { '--experimental-strip-types', '--no-warnings' },
        files = { ['app.ts'] = [[
            import { createServer } from 'node:http'
            const port: number = Number(process.env.PORT)
            createServer((request, response) => { response.end('works' as string) }).listen(port)
        ]], ['package.json'] = '{ "type": "module" }' },
    },
    -- The enum is more than Node's own stripping takes.
    ['TypeScript, by the loader tsx'] = {
        from = 18, modules = 'tsx', worker = 'app.ts', flags = { '--import', 'tsx' },
        files = { ['app.ts'] = [[
            import { createServer } from 'node:http'
            enum Word { first = 'wor', second = 'ks' }
            await new Promise<void>((resolve) => setTimeout(resolve, 10))
            createServer((request, response) => { response.end(Word.first + Word.second) }).listen(Number(process.env.PORT))
        ]], ['package.json'] = '{ "type": "module" }' },
    },
    ['an app that is ready when it says so'] = { plan = "ready = { message = 'ready' },", app = [[
        require('http').createServer((request, response) => response.end('works')).listen(Number(process.env.PORT))
        setTimeout(() => process.send({ event: 'ready' }), 200)
    ]] },
    ['an app with helpers: a second server, listen(0), UDP'] = { app = [[
        const http = require('http')
        require('dgram').createSocket('udp4').bind(0, '127.0.0.1')
        http.createServer((request, response) => response.end('metrics')).listen(0, '127.0.0.1')
        setTimeout(() => {
            http.createServer((request, response) => response.end('works')).listen(Number(process.env.PORT))
        }, 200)
    ]], plan = "ready = { port = %d }," },
}

describe('a Node app:', function()
    after_each(master.cleanup)

    for name, case in pairs(WEB) do
        local modules = case.modules and versions.modules(case.modules)
        if case.modules and not modules then
            pending(('%s: %s is not installed, see spec/support/install-node'):format(name, case.modules))
        else
            versions.it(name .. ' boots, serves, rolls and stops', function(_, binary)
                local port = http.free_port()
                local m = app.start {
                    binary = binary, flags = case.flags, app = case.app, files = case.files, worker = case.worker,
                    port = port, modules = modules, plan = case.plan and case.plan:format(port),
                }
                local clients = load.start { port = port, mode = 'keepalive', clients = 4, expect = '^works$' }
                clients:await(20)
                app.roll(m)
                clients:await(clients.counts.total + 20)
                local counts = clients:stop()
                assert.equal(0, counts.failed, counts.text)
                m:await('Worker exited', { count = 2, timeout = 5000 })
                m:finish { code = 0 }
            end, { versions = versions.since(case.from or 0) })
        end
    end

    versions.it('two servers of one worker are served over a roll, either on its port', function(_, binary)
        local ports = { http.free_port(), http.free_port() }
        local m = app.start { binary = binary, env = { PORTS = table.concat(ports, ' ') }, app = [[
            for (const port of process.env.PORTS.split(' ')) {
                require('http').createServer((request, response) => response.end(port)).listen(Number(port))
            }
        ]] }
        local clients = {}
        for i, port in ipairs(ports) do
            clients[i] = load.start { port = port, clients = 2, mode = i == 1 and 'close' or 'keepalive', expect = '^' .. port .. '$' }
            clients[i]:await(20)
        end
        app.roll(m)
        for _, each in ipairs(clients) do
            each:await(each.counts.total + 20)
            local counts = each:stop()
            assert.equal(0, counts.failed, counts.text)
        end
        m:await('Worker exited', { count = 2, timeout = 5000 })
        m:finish { code = 0 }
    end)

    versions.it('a unix path is served over a roll, and gone at the end', function(_, binary)
        local m = app.start { binary = binary, app = [[
            require('http').createServer((request, response) => response.end('works')).listen('./app.sock')
        ]] }
        local path = m:path 'app.sock'
        local clients = load.start { socket = path, clients = 4, expect = '^works$' }
        clients:await(20)
        app.roll(m)
        clients:await(clients.counts.total + 20)
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        m:signal 'SIGTERM'
        m:exit()
        assert.is_nil(uv.fs_stat(path))
        m:finish { code = 0 }
    end)

    versions.it('plain net is served, datagrams come over a roll', function(_, binary)
        local m, port = app.start { binary = binary, app = [[
            const port = Number(process.env.PORT)
            require('net').createServer((socket) => socket.end('net ' + process.pid)).listen(port)
            const udp = require('dgram').createSocket('udp4')
            udp.on('message', (message, from) => udp.send('udp ' + message, from.port, from.address))
            udp.bind(port, '127.0.0.1')
        ]] }
        local function over_tcp()
            local text, done = '', false
            local handle
            handle = http.connect({ port = port }, function(err)
                assert(not err, err)
                handle:read_start(function(_, data)
                    text = text .. (data or '')
                    done = not data
                end)
            end)
            master.wait_until(function() return done end)
            handle:close()
            return text
        end
        local function over_udp()
            local answer
            local handle = uv.new_udp()
            handle:bind('127.0.0.1', 0)
            handle:recv_start(function(_, data) answer = answer or data end)
            handle:send('x', '127.0.0.1', port, function() end)
            master.wait_until(function() return answer end, { what = 'a datagram' })
            handle:close()
            return answer
        end
        for _ = 1, 2 do
            assert.matches('^net %d+$', over_tcp())
            assert.equal('udp x', over_udp())
            app.roll(m)
        end
        m:finish { code = 0 }
    end)

    versions.it('TLS sessions resume on other workers and after a roll', function(_, binary)
        local m, port = app.start { binary = binary, app = tls.app }
        local said, session = tls.ask(binary, port)
        assert.equal('false true true true true true', said)
        app.roll(m)
        assert.equal('true true true true true true', (tls.ask(binary, port, session)))
        m:finish { code = 0 }
    end)
end)
