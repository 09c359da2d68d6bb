-- What a Node app brings along when it starts: flags of its sockets, options of its runtime, wrappers in front of it.
local bit = require 'bit'
local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local stock = require 'spec.support.stock'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local ONE, TWO = { versions = { '22' } }, { versions = { '18', '26' } }

local function mode_text(path)
    return ('%o'):format(bit.band(assert(uv.fs_stat(path)).mode, tonumber('777', 8)))
end

describe('a Node worker', function()
    after_each(master.cleanup)

    versions.it('is ready and served with a socket of its own: exclusive, reusePort', function(_, binary)
        for _, option in ipairs { 'reusePort', 'exclusive' } do
            local m, port = app.start { binary = binary, workers = option == 'exclusive' and 1 or 2, plan = 'readyTimeout = 10,',
                app = ([[require('http').createServer((request, response) => response.end('ok'))
                    .listen({ port: Number(process.env.PORT), host: '127.0.0.1', %s: true })]]):format(option) }
            assert.equal(200, (http.get { port = port }))
            assert.equal(1, #m:records { msg = 'Worker listens with a socket of its own: it is not steered', workerId = 1 })
            m:finish { code = 0 }
        end
    end, { versions = { '24', '26' } })

    versions.it('has an inspector\'s port of its own, as under stock', function(_, binary)
        local base = http.free_port()
        local m = app.start { binary = binary, app = app.http, flags = { '--inspect=127.0.0.1:' .. base } }
        local all = m.stderr
        m:wait_until(function()
            all = m.stderr
            return all:find('ws://127.0.0.1:' .. base + 1, 1, true) and all:find('ws://127.0.0.1:' .. base + 2, 1, true)
        end, 'two inspectors')
        assert.is_nil(all:find 'address already in use', all)
        m:finish { code = 0 }
    end, ONE)

    versions.it('whose wrapper keeps the channel from it is told so', function(_, binary)
        local m = app.start { binary = '/bin/sh', ready = false, workers = 1, app = app.http,
            flags = { '-c', 'exec "' .. binary .. '" "$0" 3>&-' }, plan = 'backoff = { first = 5 },' }
        m:await(function(record)
            return record.msg == 'Worker exited' and (record.reason or ''):find '^it lost its channel before its program'
        end)
        m:finish {}
    end, TWO)

    versions.it('finds the sockets that the master was started with by LISTEN_FDS, if asked to', function(_, binary)
        local port = http.free_port()
        local m = app.start { binary = binary, ready = false, workers = 2, port = port, plan = 'listenFds = true,',
            wrap = { 'systemd-socket-activate', '-l', '127.0.0.1:' .. port, '--fdname=web' }, app = [[
            const { LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES } = process.env
            const server = require('http').createServer((request, response) => response.end(
                [LISTEN_FDS, LISTEN_PID == process.pid, LISTEN_FDNAMES, process.connected].join(' ')))
            if (LISTEN_FDS) server.listen({ fd: 3 })
        ]] }
        local body
        m:wait_until(function() -- the first connection starts it
            local status
            status, body = http.get { port = port }
            return status == 200
        end, 'an answer')
        assert.equal('1 true web true', body)
        m:await 'Cluster ready'
        m:finish { code = 0 }
    end, ONE)

    versions.it('shares a port for datagrams with other processes that want it so', function(_, binary)
        local m = app.start { binary = binary, workers = 2, plan = 'readyTimeout = 10,', app = [[
            const dgram = require('dgram')
            const own = () => dgram.createSocket({ type: 'udp4', reuseAddr: true })
            const first = own().bind(Number(process.env.PORT), () => own().bind(Number(process.env.PORT)))
        ]] }
        assert.equal(0, #m:records 'Listening failed')
        m:finish { code = 0 }
    end, TWO)

    versions.it('gives its path the mode that stock would', function(_, binary)
        local source = [[
            const server = (path, options) => require('net').createServer().listen({ path, ...options })
            server('plain.sock', {})
            server('r.sock', { readableAll: true })
            server('w.sock', { writableAll: true })
            server('rw.sock', { readableAll: true, writableAll: true })
        ]]
        local function modes(dir)
            local list = {}
            for i, name in ipairs { 'plain', 'r', 'w', 'rw' } do
                local path = dir .. '/' .. name .. '.sock'
                wait.wait_until(function() return uv.fs_stat(path) end, { what = path })
                list[i] = mode_text(path)
            end
            return table.concat(list, ' ')
        end
        local m = app.start { binary = binary, app = source, workers = 1 }
        local ours = modes(m.app)
        m:finish { code = 0 }
        local dir = master.temp_dir()
        local file = assert(io.open(dir .. '/app.js', 'w'))
        file:write(source)
        file:close()
        local peer = stock.start { binary = binary, dir = dir, workers = 1 }
        wait.wait_until(function() return uv.fs_stat(dir .. '/rw.sock') end, { what = 'the stock cluster' })
        wait.let_run(100) -- its chmod comes after the bind
        local theirs = modes(dir)
        peer:stop(wait)
        assert.equal(theirs, ours)
    end, ONE)

    versions.it('may unlink its path before it listens there, and have a long one', function(_, binary)
        local long = ('deep/'):rep(30)
        for _, dir in ipairs { '', long } do
            local m = app.start { binary = binary, files = { [dir .. '.keep'] = '', ['app.js'] = ([[
                process.chdir(__dirname + '/%s')
                const fs = require('fs')
                const server = require('http').createServer((request, response) => response.end('ok'))
                try { fs.unlinkSync('app.sock') } catch {}
                server.listen('app.sock', () => fs.chmodSync('app.sock', 0o660))
            ]]):format(dir) } }
            if dir == '' then
                local clients = load.start { socket = m:path 'app.sock', clients = 1, mode = 'close', rate = 50 }
                for _ = 1, 3 do
                    app.roll(m)
                end
                local counts = clients:stop()
                -- Between the app's unlink and our repair there is no path: a client may come just then.
                assert(counts.failed <= 6 and counts.failed == counts.refused and counts.ok > 10, counts.text)
                assert.equal('660', mode_text(m:path 'app.sock'))
            end
            m:finish { code = 0 }
        end
    end, ONE)
end)
